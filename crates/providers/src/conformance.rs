//! What every adapter must do, checked against its simulator. Cases are chosen by [`Capabilities`]; a fixture gives the market's
//! other side. The suite never panics: it returns what failed, in words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_core::{Capacity, Clock, Money, Offer, OrderKey};

use crate::{
    Capabilities, GpuProvider, Machine, MachineState, OfferQuery, ProviderError, ProviderResult, Refusal, RentOutcome,
    RentRequest, SecretEnv,
};

/// What went wrong, in one sentence.
pub type Check<T = ()> = Result<T, String>;

/// The calls that a fixture can count and disturb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Reading the market.
    Offers,
    /// Renting.
    Rent,
    /// Reading one machine.
    Describe,
    /// Listing.
    List,
    /// Ending.
    Terminate,
}

/// What happens to the next call of a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; answered 500.
    Before,
    /// It is done; answered 500.
    After,
    /// It is done; the connection closes without an answer.
    Lost,
    /// It is done; the answer is cut in half.
    Garbled,
}

/// The other side of the market: a simulator with knobs. An error is the fixture's own trouble and fails the case.
pub trait Fixture: Send {
    /// The clock that the provider was built with.
    fn clock(&self) -> Arc<dyn Clock>;
    /// An image that the market can start at once.
    fn image(&self) -> String;
    /// A key that was never used.
    fn next_key(&mut self) -> OrderKey;
    /// Texts that must appear in no error: the account's key and what else is secret.
    fn secrets(&self) -> Vec<String>;
    /// Lets time go by: sleeps, or moves a virtual clock.
    fn pass_time(&mut self, time: Duration) -> BoxFuture<'_, ()>;
    /// Nobody can rent this offer any more; it stays in lists that were read before.
    fn sell_out<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check>;
    /// The offer can be had again.
    fn restock<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check>;
    /// From now on a bid wins only at this price. Machines that bid less are taken away.
    fn set_winning_bid<'a>(&'a mut self, offer: &'a Offer, price: Money) -> BoxFuture<'a, Check>;
    /// Disturbs the next call of this verb.
    fn arm(&mut self, verb: Verb, fault: Fault) -> BoxFuture<'_, Check>;
    /// The market does not know the account's key (any more), or knows it again.
    fn set_key_valid(&mut self, valid: bool) -> BoxFuture<'_, Check>;
    /// How many requests of this verb have reached the market.
    fn calls(&mut self, verb: Verb) -> BoxFuture<'_, Check<usize>>;
    /// Ids of machines under this key that the market still bills.
    fn billed<'a>(&'a mut self, key: &'a OrderKey) -> BoxFuture<'a, Check<Vec<String>>>;
    /// A spot machine is taken away by the market.
    fn take_away<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Check>;
}

/// What the suite found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Cases that held.
    pub passed: Vec<&'static str>,
    /// Cases that the capabilities exclude.
    pub left_out: Vec<&'static str>,
    /// Cases that did not hold, and why.
    pub failed: Vec<(&'static str, String)>,
}

/// How long to wait for something to become true.
const PATIENCE: Duration = Duration::from_mins(1);
const STEP: Duration = Duration::from_millis(200);
/// A value in the machine's environment that looks like what the operator really puts there.
const SIGNED: &str = "https://mailbox.invalid/control.json?X-Amz-Signature=5ec2e7c0ffee5ec2e7";

/// Runs every case that the provider's capabilities select.
pub async fn run(provider: &dyn GpuProvider, fixture: &mut dyn Fixture) -> Report {
    let capabilities = provider.capabilities().clone();
    let mut bench = Bench { provider, fixture, texts: Vec::new(), rented: Vec::new() };
    let mut report = Report::default();
    for case in CASES {
        if !(case.wanted)(&capabilities) {
            report.left_out.push(case.name);
            continue;
        }
        let result = (case.run)(&mut bench).await;
        let swept = bench.sweep().await;
        match result.and(swept) {
            Ok(()) => report.passed.push(case.name),
            Err(why) => report.failed.push((case.name, why)),
        }
    }
    report
}

struct Case {
    name: &'static str,
    wanted: fn(&Capabilities) -> bool,
    run: for<'a> fn(&'a mut Bench<'_>) -> BoxFuture<'a, Check>,
}

const ALWAYS: fn(&Capabilities) -> bool = |_| true;
const SPOT: fn(&Capabilities) -> bool = |can| can.spot;
const BIDS: fn(&Capabilities) -> bool = |can| can.bids;
const LABEL: fn(&Capabilities) -> bool = |can| can.label;

const CASES: &[Case] = &[
    Case { name: "offers make sense", wanted: ALWAYS, run: |b| Box::pin(offers_make_sense(b)) },
    Case {
        name: "an on-demand machine lives and ends",
        wanted: ALWAYS,
        run: |b| Box::pin(life(b, Capacity::OnDemand)),
    },
    Case { name: "a spot machine lives and ends", wanted: SPOT, run: |b| Box::pin(life(b, Capacity::Spot)) },
    Case { name: "a rented machine is found by its key", wanted: LABEL, run: |b| Box::pin(found_by_key(b)) },
    Case { name: "an offer out of stock is refused", wanted: ALWAYS, run: |b| Box::pin(out_of_stock(b)) },
    Case { name: "a price above the cap is refused unsent", wanted: ALWAYS, run: |b| Box::pin(above_the_cap(b)) },
    Case { name: "a losing bid leaves nothing unnamed", wanted: BIDS, run: |b| Box::pin(losing_bid(b)) },
    Case { name: "a machine that is taken away says so", wanted: SPOT, run: |b| Box::pin(taken_away(b)) },
    Case { name: "an unknown id is gone, and ending it is fine", wanted: ALWAYS, run: |b| Box::pin(unknown_id(b)) },
    Case { name: "a bad key is a bad key and never gone", wanted: ALWAYS, run: |b| Box::pin(bad_key(b)) },
    Case { name: "a lost answer is unknown and found by key", wanted: LABEL, run: |b| Box::pin(lost(b, Fault::Lost)) },
    Case {
        name: "a cut answer is unknown and found by key",
        wanted: LABEL,
        run: |b| Box::pin(lost(b, Fault::Garbled)),
    },
    Case {
        name: "a 500 after the deed is unknown and found by key",
        wanted: LABEL,
        run: |b| Box::pin(lost(b, Fault::After)),
    },
    Case {
        name: "a 500 before the deed is unknown, and nothing is there",
        wanted: ALWAYS,
        run: |b| Box::pin(nothing_done(b)),
    },
    Case { name: "reads and endings survive one bad answer", wanted: ALWAYS, run: |b| Box::pin(survives(b)) },
    Case { name: "nothing is sent when its time is over", wanted: ALWAYS, run: |b| Box::pin(too_late(b)) },
    Case { name: "no text holds a secret", wanted: ALWAYS, run: |b| Box::pin(std::future::ready(no_secrets(b))) },
];

/// Provider, fixture and everything that was said or rented so far.
struct Bench<'a> {
    provider: &'a dyn GpuProvider,
    fixture: &'a mut dyn Fixture,
    texts: Vec<String>,
    rented: Vec<String>,
}

impl Bench<'_> {
    /// The result, its error kept for the last case and turned into words.
    fn keep<T>(&mut self, what: &str, result: ProviderResult<T>) -> Check<T> {
        result.map_err(|error| {
            self.texts.push(format!("{error} {error:?}"));
            format!("{what}: {error}")
        })
    }

    async fn offers(&mut self) -> Check<Vec<Offer>> {
        let query = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 };
        let offers = self.provider.offers(&query).await;
        self.keep("offers", offers)
    }

    async fn cheapest(&mut self, capacity: Capacity) -> Check<Offer> {
        let mut offers = self.offers().await?;
        offers.retain(|offer| offer.capacity == capacity);
        offers.sort_by_key(|offer| (offer.price_per_hour, offer.id.clone()));
        offers.into_iter().next().ok_or_else(|| format!("no {capacity} offer on the market"))
    }

    fn request(&mut self, offer: Offer) -> RentRequest {
        let env = BTreeMap::from([("TRADEWIND_CONTROL_URL".to_owned(), SIGNED.to_owned())]);
        RentRequest {
            key: self.fixture.next_key(),
            price_cap: offer.price_per_hour,
            offer,
            image: self.fixture.image(),
            disk_gib: 10,
            env: SecretEnv(env),
            bootstrap: "sleep 600".to_owned(),
        }
    }

    async fn rent(&mut self, request: &RentRequest) -> RentOutcome {
        let not_after = self.fixture.clock().monotonic() + Duration::from_mins(1);
        let outcome = self.provider.rent(request, not_after).await;
        self.texts.push(format!("{outcome:?} {request:?}"));
        match &outcome {
            RentOutcome::Rented { id } | RentOutcome::Refused { leftover: Some(id), .. } => {
                self.rented.push(id.clone());
            }
            _ => {}
        }
        outcome
    }

    async fn rent_well(&mut self, capacity: Capacity) -> Check<(OrderKey, String)> {
        let offer = self.cheapest(capacity).await?;
        let request = self.request(offer);
        match self.rent(&request).await {
            RentOutcome::Rented { id } => {
                self.becomes_visible(&id).await?;
                Ok((request.key, id))
            }
            other => Err(format!("renting the cheapest {capacity} offer: {other:?}")),
        }
    }

    /// Waits until a new machine can be described: some markets do not show one at once.
    async fn becomes_visible(&mut self, id: &str) -> Check {
        let window = self.provider.capabilities().visibility_window.min(PATIENCE);
        let mut waited = Duration::ZERO;
        while self.describe(id).await?.is_none() {
            if waited >= window {
                return Err(format!("{id} was rented and cannot be described within {waited:?}"));
            }
            self.fixture.pass_time(STEP).await;
            waited += STEP;
        }
        Ok(())
    }

    async fn describe(&mut self, id: &str) -> Check<Option<Machine>> {
        let machine = self.provider.describe(id).await;
        self.keep("describe", machine)
    }

    async fn by_key(&mut self, key: &OrderKey) -> Check<Option<Machine>> {
        let list = self.provider.list_owned().await;
        let list = self.keep("list", list)?;
        let mut found: Vec<Machine> = list.into_iter().filter(|machine| machine.key.as_ref() == Some(key)).collect();
        match found.len() {
            0 | 1 => Ok(found.pop()),
            n => Err(format!("{n} machines under one key")),
        }
    }

    /// Waits until the machine that bears the key shows up.
    async fn appears(&mut self, key: &OrderKey) -> Check<Machine> {
        let window = self.provider.capabilities().visibility_window.min(PATIENCE);
        let mut waited = Duration::ZERO;
        loop {
            if let Some(machine) = self.by_key(key).await? {
                return Ok(machine);
            }
            if waited >= window {
                return Err(format!("no machine under the key within {waited:?}"));
            }
            self.fixture.pass_time(STEP).await;
            waited += STEP;
        }
    }

    async fn reaches(&mut self, id: &str, state: &MachineState) -> Check {
        let mut waited = Duration::ZERO;
        loop {
            let machine = self.describe(id).await?.ok_or_else(|| format!("gone while waiting for {state:?}"))?;
            if machine.state == *state {
                return Ok(());
            }
            if waited >= PATIENCE {
                return Err(format!("still {:?} after {waited:?}, expected {state:?}", machine.state));
            }
            self.fixture.pass_time(STEP).await;
            waited += STEP;
        }
    }

    async fn end(&mut self, id: &str) -> Check {
        let mut waited = Duration::ZERO;
        loop {
            let ended = self.provider.terminate(id).await;
            self.keep("terminate", ended)?;
            if self.describe(id).await?.is_none() {
                self.rented.retain(|rented| rented != id);
                return Ok(());
            }
            if waited >= PATIENCE {
                return Err(format!("still there {waited:?} after it was terminated"));
            }
            self.fixture.pass_time(STEP).await;
            waited += STEP;
        }
    }

    /// Ends what a case left running.
    async fn sweep(&mut self) -> Check {
        let mut result = Ok(());
        for id in std::mem::take(&mut self.rented) {
            result = result.and(self.end(&id).await.map_err(|why| format!("sweeping up: {why}")));
        }
        result
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

async fn offers_make_sense(b: &mut Bench<'_>) -> Check {
    let spot = b.provider.capabilities().spot;
    let offers = b.offers().await?;
    ensure(!offers.is_empty(), || "no offers".to_owned())?;
    for offer in &offers {
        ensure(offer.price_per_hour > Money::ZERO, || format!("{} costs nothing", offer.id))?;
        ensure(offer.gpu_count >= 1 && offer.gpu.is_some() && offer.gpu_memory_mib > 0, || {
            format!("{} has no GPU", offer.id)
        })?;
        ensure(spot || offer.capacity == Capacity::OnDemand, || format!("{} is spot", offer.id))?;
        let twin = offers.iter().find(|o| o.id == offer.id && o.capacity == Capacity::OnDemand);
        ensure(twin.is_none_or(|t| offer.price_per_hour <= t.price_per_hour), || {
            format!("the bid for {} is above its asking price", offer.id)
        })?;
    }
    let mut terms: Vec<_> = offers.iter().map(|o| (o.id.as_str(), o.capacity)).collect();
    terms.sort_unstable();
    terms.dedup();
    ensure(terms.len() == offers.len(), || "one offer twice on the same terms".to_owned())
}

async fn life(b: &mut Bench<'_>, capacity: Capacity) -> Check {
    let (key, id) = b.rent_well(capacity).await?;
    b.reaches(&id, &MachineState::Running).await?;
    let machine = b.describe(&id).await?.ok_or("gone while running")?;
    ensure(machine.id == id && machine.capacity == capacity, || format!("described as {machine:?}"))?;
    ensure(!b.provider.capabilities().label || machine.key.as_ref() == Some(&key), || {
        format!("its key reads {:?}", machine.key)
    })?;
    b.end(&id).await?;
    ensure(b.fixture.billed(&key).await?.is_empty(), || "still billed after it was gone".to_owned())?;
    let again = b.provider.terminate(&id).await;
    b.keep("a second terminate", again)
}

async fn found_by_key(b: &mut Bench<'_>) -> Check {
    let (first, first_id) = b.rent_well(Capacity::OnDemand).await?;
    let (second, second_id) = b.rent_well(Capacity::OnDemand).await?;
    for (key, id) in [(&first, &first_id), (&second, &second_id)] {
        let machine = b.appears(key).await?;
        ensure(machine.id == *id, || format!("the key finds {}, not {id}", machine.id))?;
    }
    b.end(&first_id).await?;
    let gone = b.by_key(&first).await?;
    ensure(gone.is_none(), || "still listed after it was gone".to_owned())?;
    ensure(b.by_key(&second).await?.is_some(), || "the other machine is no longer listed".to_owned())
}

async fn out_of_stock(b: &mut Bench<'_>) -> Check {
    let offer = b.cheapest(Capacity::OnDemand).await?;
    b.fixture.sell_out(&offer).await?;
    let request = b.request(offer.clone());
    let outcome = b.rent(&request).await;
    b.fixture.restock(&offer).await?;
    match outcome {
        RentOutcome::Refused { why: Refusal::OutOfStock, leftover: None, .. } => {}
        other => return Err(format!("{other:?}")),
    }
    ensure(b.fixture.billed(&request.key).await?.is_empty(), || "a refused order is billed".to_owned())
}

async fn above_the_cap(b: &mut Bench<'_>) -> Check {
    let before = b.fixture.calls(Verb::Rent).await?;
    let offer = b.cheapest(Capacity::OnDemand).await?;
    let mut request = b.request(offer);
    request.price_cap = request.offer.price_per_hour - Money::from_micros(1);
    match b.rent(&request).await {
        RentOutcome::Refused { why: Refusal::PriceRose, leftover: None, .. } => {}
        other => return Err(format!("{other:?}")),
    }
    ensure(b.fixture.calls(Verb::Rent).await? == before, || "it was sent".to_owned())
}

async fn losing_bid(b: &mut Bench<'_>) -> Check {
    let offer = b.cheapest(Capacity::Spot).await?;
    b.fixture.set_winning_bid(&offer, offer.price_per_hour.times(2)).await?;
    let request = b.request(offer.clone());
    let outcome = b.rent(&request).await;
    let billed = b.fixture.billed(&request.key).await?;
    b.fixture.set_winning_bid(&offer, offer.price_per_hour.ratio(10, 11)).await?;
    match outcome {
        RentOutcome::Refused { why: Refusal::PriceRose | Refusal::OutOfStock, leftover, .. } => {
            let named: Vec<String> = leftover.into_iter().collect();
            ensure(billed.iter().all(|id| named.contains(id)), || format!("billed {billed:?}, named {named:?}"))
        }
        other => Err(format!("{other:?}")),
    }
}

async fn taken_away(b: &mut Bench<'_>) -> Check {
    let (key, id) = b.rent_well(Capacity::Spot).await?;
    b.reaches(&id, &MachineState::Running).await?;
    b.fixture.take_away(&id).await?;
    let mut waited = Duration::ZERO;
    loop {
        match b.describe(&id).await?.map(|machine| machine.state) {
            Some(MachineState::TakenAway) => return b.end(&id).await,
            // Where nothing is left to be ended, nothing may be left to be paid either.
            None => {
                b.rented.retain(|rented| *rented != id);
                let billed = b.fixture.billed(&key).await?;
                return ensure(billed.is_empty(), || "it reads as gone and is still billed".to_owned());
            }
            Some(state) if waited >= PATIENCE => return Err(format!("still {state:?} after {waited:?}")),
            Some(_) => {}
        }
        b.fixture.pass_time(STEP).await;
        waited += STEP;
    }
}

async fn unknown_id(b: &mut Bench<'_>) -> Check {
    // An id of the market's own making that exists no more.
    let (_, id) = b.rent_well(Capacity::OnDemand).await?;
    b.end(&id).await?;
    let described = b.describe(&id).await?;
    ensure(described.is_none(), || format!("{described:?}"))?;
    let ended = b.provider.terminate(&id).await;
    b.keep("terminate of what is gone", ended)
}

async fn bad_key(b: &mut Bench<'_>) -> Check {
    let (key, id) = b.rent_well(Capacity::OnDemand).await?;
    let offer = b.cheapest(Capacity::OnDemand).await?;
    let request = b.request(offer);
    b.fixture.set_key_valid(false).await?;
    let described = b.provider.describe(&id).await.map(|_| ());
    let listed = b.provider.list_owned().await.map(|_| ());
    let ended = b.provider.terminate(&id).await;
    let account = b.provider.account().await.map(|_| ());
    let rented = b.rent(&request).await;
    b.fixture.set_key_valid(true).await?;
    for (what, result) in [("describe", described), ("list", listed), ("terminate", ended), ("account", account)] {
        let unauthorised = matches!(result, Err(ProviderError::Unauthorised { .. }));
        let shown = b.keep(what, result).err().unwrap_or_else(|| format!("{what}: no error"));
        ensure(unauthorised, || shown)?;
    }
    ensure(matches!(rented, RentOutcome::Refused { why: Refusal::Unauthorised, leftover: None, .. }), || {
        format!("rent: {rented:?}")
    })?;
    ensure(b.fixture.billed(&key).await? == [id], || "the machine is no longer there".to_owned())
}

async fn lost(b: &mut Bench<'_>, fault: Fault) -> Check {
    let offer = b.cheapest(Capacity::OnDemand).await?;
    let request = b.request(offer);
    let before = b.fixture.calls(Verb::Rent).await?;
    b.fixture.arm(Verb::Rent, fault).await?;
    let outcome = b.rent(&request).await;
    ensure(matches!(outcome, RentOutcome::Unknown { .. }), || format!("{outcome:?}"))?;
    let machine = b.appears(&request.key).await?;
    b.rented.push(machine.id.clone());
    let sent = b.fixture.calls(Verb::Rent).await? - before;
    ensure(sent == 1, || format!("the rent call was sent {sent} times"))?;
    let billed = b.fixture.billed(&request.key).await?;
    ensure(billed == [machine.id.clone()], || format!("the key finds {}, billed are {billed:?}", machine.id))?;
    b.end(&machine.id).await
}

async fn nothing_done(b: &mut Bench<'_>) -> Check {
    let offer = b.cheapest(Capacity::OnDemand).await?;
    let request = b.request(offer);
    b.fixture.arm(Verb::Rent, Fault::Before).await?;
    let outcome = b.rent(&request).await;
    ensure(matches!(outcome, RentOutcome::Unknown { .. }), || format!("{outcome:?}"))?;
    ensure(b.fixture.billed(&request.key).await?.is_empty(), || "something is billed".to_owned())
}

async fn survives(b: &mut Bench<'_>) -> Check {
    for fault in [Fault::Before, Fault::Lost] {
        let (key, id) = b.rent_well(Capacity::OnDemand).await?;
        b.fixture.arm(Verb::Offers, fault).await?;
        b.offers().await.map_err(|why| format!("{fault:?}: {why}"))?;
        b.fixture.arm(Verb::Describe, fault).await?;
        let machine = b.describe(&id).await.map_err(|why| format!("{fault:?}: {why}"))?;
        ensure(machine.is_some(), || format!("{fault:?}: a machine that is there reads as gone"))?;
        b.fixture.arm(Verb::List, fault).await?;
        b.appears(&key).await.map_err(|why| format!("{fault:?}: {why}"))?;
        b.fixture.arm(Verb::Terminate, fault).await?;
        b.end(&id).await.map_err(|why| format!("{fault:?}: {why}"))?;
    }
    Ok(())
}

async fn too_late(b: &mut Bench<'_>) -> Check {
    b.fixture.pass_time(STEP).await;
    let offer = b.cheapest(Capacity::OnDemand).await?;
    let request = b.request(offer);
    let before = b.fixture.calls(Verb::Rent).await?;
    let over = b.fixture.clock().monotonic().saturating_sub(Duration::from_millis(1));
    let outcome = b.provider.rent(&request, over).await;
    ensure(matches!(outcome, RentOutcome::Refused { why: Refusal::RateLimited, leftover: None, .. }), || {
        format!("{outcome:?}")
    })?;
    ensure(b.fixture.calls(Verb::Rent).await? == before, || "it was sent".to_owned())
}

fn no_secrets(b: &mut Bench<'_>) -> Check {
    ensure(b.texts.len() > 5, || "nothing was said, so nothing was checked".to_owned())?;
    let mut secrets = b.fixture.secrets();
    secrets.push("5ec2e7c0ffee5ec2e7".to_owned());
    let leak = b.texts.iter().find(|text| secrets.iter().any(|secret| text.contains(secret.as_str())));
    ensure(leak.is_none(), || {
        // Not the text itself: it would end up in a log.
        "a message holds the account's key or a value of the environment".to_owned()
    })
}
