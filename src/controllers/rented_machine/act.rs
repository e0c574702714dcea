//! Carrying out one step: at most one external change, safe to repeat.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tradewind_api::rented_machine::{MachinePhase, OrderOutcome, OrderStatus};
use tradewind_api::{Provider, Reason, RentedMachine, TrainingJob, names};
use tradewind_cluster::{ClusterError, Guard, Key, MetadataPatch, Removal, Selector, StatusPatch, Strategy};
use tradewind_core::{Money, OrderKey, fail_point};
use tradewind_protocol::bootstrap::{self, variables};
use tradewind_providers::{Refusal, RentOutcome, RentRequest, SecretEnv};

use super::decide::{BOOTING, Observed, Step, became_ours};
use super::memory::MachineMemory;
use super::observe::CALL_WITHIN;
use super::{cost, lagging, project, serve};
use crate::accounts::{Account, books, ledger};
use crate::context::Context;
use crate::controllers::deletion::{Deletion, deletion};
use crate::controllers::pod;
use crate::events::Severity;
use crate::market::UsedUp;
use crate::runtime::Failure;
use crate::storage::Unusable;

/// One machine, as read and as last written.
pub struct Acting<'a> {
    /// Everything shared.
    pub ctx: &'a Context,
    /// What was read.
    pub observed: &'a Observed,
    /// The object as the server acknowledged it.
    pub machine: &'a RentedMachine,
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Done {
    /// There is more to do soon.
    pub again: bool,
    /// How soon; at once if absent.
    pub after: Option<Duration>,
    /// The object was let go.
    pub released: bool,
}

impl Done {
    fn again() -> Self {
        Self { again: true, ..Self::default() }
    }
}

impl Acting<'_> {
    /// Carries out a step.
    pub fn carry_out<'s>(
        &'s self,
        step: &'s Step,
        memory: &'s mut MachineMemory,
    ) -> BoxFuture<'s, Result<Done, Failure>> {
        match step {
            Step::Rest => Box::pin(async { Ok(Done::default()) }),
            Step::AddFinalizer => Box::pin(self.add_finalizer()),
            Step::PrepareMailbox => Box::pin(self.prepare(memory)),
            Step::Order { offer, number } => Box::pin(self.order(*offer, *number, memory)),
            Step::End(ids) => Box::pin(self.end(ids, memory)),
            Step::DeleteSelf => Box::pin(self.delete_self()),
            Step::Release => Box::pin(self.release()),
        }
    }

    fn key(&self) -> Key {
        Key::of_meta(&self.machine.metadata)
    }

    async fn set_finalizer(&self, wanted: bool) -> Result<(), Failure> {
        let mut finalizers = self.machine.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != names::MACHINE_FINALIZER);
        if wanted {
            finalizers.push(names::MACHINE_FINALIZER.to_owned());
        }
        let patch = MetadataPatch { finalizers: Some(finalizers), ..MetadataPatch::default() };
        let guard = Guard::exact(self.machine);
        let written = self.ctx.cluster.amend::<RentedMachine>(&self.key(), &patch, &guard).await?;
        self.ctx.caches.rented.own(&written);
        Ok(())
    }

    async fn add_finalizer(&self) -> Result<Done, Failure> {
        self.set_finalizer(true).await?;
        Ok(Done::again())
    }

    async fn prepare(&self, memory: &mut MachineMemory) -> Result<Done, Failure> {
        let Some(serving) = serve::serving(self.ctx, self.machine) else { return Ok(Done::default()) };
        let prepared = serving.prepare(&mut memory.agent).await;
        prepared.map_err(|message| Failure::new("MailboxUnavailable", message))?;
        Ok(Done::again())
    }

    /// The ledger admits and the order is written under the account's lock; then, within five seconds, the call.
    async fn order(&self, index: usize, number: u32, memory: &mut MachineMemory) -> Result<Done, Failure> {
        let ctx = self.ctx;
        // Each list of the account wakes every machine; those without room must not read everything each time.
        if let Some(wait) = memory.full_until.and_then(|until| until.checked_sub(ctx.clock.monotonic())) {
            return Ok(Done { again: true, after: Some(wait), released: false });
        }
        let (Some(account), Some(Some(offer))) =
            (ctx.accounts.get(&self.machine.spec.provider), self.observed.offers.get(index))
        else {
            return Ok(Done::default());
        };
        let request = self.request(index, number, offer).await?;
        let turn = account.ledger.lock().await;
        if let Some(full) = self.admit(&account, index).await? {
            if self.lets_go(&full).await? {
                return Ok(Done::again());
            }
            memory.full_until = Some(ctx.clock.monotonic() + FULL_AGAIN);
            return self.refused_by_ledger(full).await;
        }
        let written_at = ctx.clock.monotonic();
        let mut next = self.machine.clone();
        let status = next.status.get_or_insert_default();
        let chosen = self.machine.spec.offers.get(index);
        status.orders.push(OrderStatus {
            key: request.key.to_string(),
            offer: i64::try_from(index).unwrap_or(0),
            at: MicroTime(ctx.clock.now()),
            outcome: OrderOutcome::Open,
            machine_id: None,
            reason: None,
            message: None,
            leftover: false,
        });
        status.phase = MachinePhase::Ordering;
        status.message =
            format!("orders offer {} for at most ${} an hour", offer.id, chosen.map_or(Money::ZERO, |c| c.price_cap));
        fail_point::reach("order-decided");
        let written = ctx.cluster.write_status(next).await?;
        fail_point::reach("order-written");
        ctx.caches.rented.own(&written);
        let before = ctx.clock.now();
        let outcome = account.provider.rent(&request, written_at + CALL_WITHIN).await;
        // One order of an account at a time, call included: the next one's five seconds begin when it can go out.
        drop(turn);
        self.record(&written, outcome, before, &account).await
    }

    async fn request(&self, index: usize, number: u32, offer: &tradewind_core::Offer) -> Result<RentRequest, Failure> {
        let ctx = self.ctx;
        let (Some(mailbox), Some(agent)) = (&ctx.mailbox, &ctx.agent) else {
            return Err(Failure::new("NoMailbox", "the operator has no mailbox"));
        };
        let unavailable = |e: tradewind_checkpoints::StoreError| Failure::new("MailboxUnavailable", e.to_string());
        let life = ctx.settings.ticket_lifetime;
        let control = mailbox.control_ticket(&self.observed.uid, life).await.map_err(unavailable)?;
        let binary = mailbox.agent_ticket(&agent.sha256, life).await.map_err(unavailable)?;
        let mut env = BTreeMap::from([
            (variables::AGENT_URL.to_owned(), binary.url),
            (variables::AGENT_SHA256.to_owned(), agent.sha256.clone()),
            (variables::CONTROL_URL.to_owned(), control.url),
        ]);
        if let Some(poll) = ctx.settings.agent_poll {
            let millis = poll.as_millis().to_string();
            env.insert("TRADEWIND_POLL_MS".to_owned(), millis.clone());
            env.insert("TRADEWIND_REPORT_MS".to_owned(), millis);
        }
        let spec = &self.machine.spec;
        Ok(RentRequest {
            key: OrderKey::new(&ctx.settings.install, &self.observed.uid, number, ctx.clock.now()),
            offer: offer.clone(),
            price_cap: spec.offers.get(index).map_or(Money::ZERO, |o| o.price_cap),
            image: spec.workload.image.clone(),
            disk_gib: u64::try_from(spec.workload.disk_gib).unwrap_or(0),
            env: SecretEnv(env),
            bootstrap: bootstrap::LINE.to_owned(),
        })
    }

    /// Whether the account has room, by a fresh and complete list of RentedMachines.
    async fn admit(&self, account: &Account, index: usize) -> Result<Option<ledger::Full>, Failure> {
        let ctx = self.ctx;
        let key = Key::cluster(account.name.as_str());
        // Before the books: a machine that goes into them between the two reads is counted all the same.
        let machines = ctx.cluster.read_all::<RentedMachine>(None, &Selector::everything()).await?;
        let Some(provider) = ctx.cluster.find::<Provider>(&key).await? else {
            return Err(Failure::new("NoProvider", "the Provider does not exist"));
        };
        if provider.spec.paused {
            return Err(Failure::benign("Paused", "the Provider is paused"));
        }
        let meta = &provider.metadata;
        let held = meta.finalizers.iter().flatten().any(|f| f == names::PROVIDER_FINALIZER);
        if meta.deletion_timestamp.is_some() || !held {
            return Err(Failure::benign("Deleting", "the Provider is being deleted or not held yet"));
        }
        if let Some(trouble) = account.trouble() {
            return Err(Failure::benign("AccountTrouble", trouble));
        }
        self.claim_holds().await?;
        self.nobody_else(&machines)?;
        let all = machines.iter().map(|m| &**m);
        let committed = ledger::committed(all.clone(), &account.name, &self.observed.uid);
        let books = provider.status.as_ref().map(|s| s.spend.clone()).unwrap_or_default();
        let spent = ledger::spent_today(&books, all, &account.name, ctx.clock.now());
        let asked = self.machine.spec.offers.get(index).map_or(Money::MAX, |o| o.reserve_per_hour);
        let job = self.machine.spec.budget_per_hour;
        if let Err(full) = ledger::admit(&account.name, &provider.spec.limits, committed, spent, job, asked) {
            return Ok(Some(full));
        }
        // As the list and the labels are now: they may have changed since the plan.
        let namespace = &self.machine.spec.job.namespace;
        let unread = |unusable: Unusable| Failure::new(unusable.reason.as_str(), unusable.message);
        let offer = self.observed.offers.get(index).and_then(Option::as_ref);
        if let Some(denied) = ctx.denied(namespace, &provider, offer).await.map_err(unread)? {
            return Err(Failure::benign("NoAccess", denied));
        }
        ctx.share_has_room(&provider, namespace, &machines, &self.observed.uid, asked).await.map_err(unread)
    }

    /// The claim as the API server knows it now: the caches of an operator that is about to lose its lead may be old, and whoever leads
    /// then may have gone on to the next attempt.
    async fn claim_holds(&self) -> Result<(), Failure> {
        let (job, claim) = (&self.machine.spec.job, &self.machine.spec.claim);
        let lapsed = |what: &str| Err(Failure::benign("ClaimLapsed", format!("{what}; nothing is rented")));
        let key = Key::namespaced(job.namespace.as_str(), job.name.as_str());
        let found = self.ctx.cluster.find::<TrainingJob>(&key).await?;
        let attempt = Some(self.machine.spec.attempt);
        let wants = found.is_some_and(|found| {
            found.metadata.uid.as_ref() == Some(&job.uid)
                && found.metadata.deletion_timestamp.is_none()
                && found
                    .status
                    .as_ref()
                    .is_some_and(|s| s.attempt == attempt && !s.phase.is_terminal() && s.restarts_on.is_none())
        });
        if !wants {
            return lapsed("the job no longer wants this attempt");
        }
        let key = Key::namespaced(claim.pod_namespace.as_str(), claim.pod_name.as_str());
        let bound = self.ctx.cluster.find::<Pod>(&key).await?.is_some_and(|pod| {
            pod.metadata.uid.as_ref() == Some(&claim.pod_uid)
                && pod.metadata.deletion_timestamp.is_none()
                && pod::node(&pod) == self.ctx.settings.node_name
        });
        if bound { Ok(()) } else { lapsed("the Pod is gone or runs elsewhere") }
    }

    /// One attempt, one machine: another one may have been moved to this attempt.
    fn nobody_else(&self, machines: &[std::sync::Arc<RentedMachine>]) -> Result<(), Failure> {
        let spec = &self.machine.spec;
        let other = machines.iter().find(|m| {
            let same = m.spec.job.uid == spec.job.uid && m.spec.attempt == spec.attempt;
            let there = m.status.as_ref().is_some_and(|s| s.machine_id.is_some() && s.phase != MachinePhase::Gone);
            same && there && m.metadata.uid.as_deref() != Some(self.observed.uid.as_str())
        });
        other.map_or(Ok(()), |other| {
            let name = other.metadata.name.as_deref().unwrap_or_default();
            Err(Failure::benign("ClaimLapsed", format!("machine {name} serves this attempt; nothing is rented")))
        })
    }

    /// A day's money, or what other namespaces use of a share, comes back in hours: the claim is given up, so that the job can go to
    /// another account. True if it was.
    async fn lets_go(&self, full: &ledger::Full) -> Result<bool, Failure> {
        let spec = &self.machine.spec;
        let namespace = match full {
            ledger::Full::PerDay { .. } => "",
            ledger::Full::AccessPerHour { .. } | ledger::Full::AccessPerDay { .. } => spec.job.namespace.as_str(),
            ledger::Full::PerHour { .. } | ledger::Full::JobPerHour { .. } => return Ok(false),
        };
        let provider = self.ctx.caches.providers.get(&Key::cluster(spec.provider.as_str()));
        let used_up = UsedUp {
            until: self.ctx.clock.monotonic() + USED_UP_FOR,
            generation: provider.and_then(|provider| provider.metadata.generation),
            says: full.to_string(),
        };
        self.ctx.market.use_up(&spec.provider, namespace, used_up);
        let mut next = self.machine.clone();
        let status = next.status.get_or_insert_default();
        status.ended = Some(Reason::LimitReached.as_str().to_owned());
        status.ended_message = Some(format!("{full}; nothing was rented, the job plans again"));
        let written = self.ctx.cluster.write_status(next).await?;
        self.ctx.caches.rented.own(&written);
        Ok(true)
    }

    async fn refused_by_ledger(&self, full: ledger::Full) -> Result<Done, Failure> {
        let message = format!("nothing is rented now: {full}; tried again every {} s", FULL_AGAIN.as_secs());
        let status = self.machine.status.clone().unwrap_or_default();
        if status.message != message {
            let mut next = self.machine.clone();
            next.status.get_or_insert_default().message = message;
            let written = self.ctx.cluster.write_status(next).await?;
            self.ctx.caches.rented.own(&written);
        }
        Ok(Done { again: true, after: Some(FULL_AGAIN), released: false })
    }

    /// Writes down what became of the call. If this write is lost, the order is found open and looked up by its key.
    async fn record(
        &self,
        written: &RentedMachine,
        outcome: RentOutcome,
        before: jiff::Timestamp,
        account: &Account,
    ) -> Result<Done, Failure> {
        let ctx = self.ctx;
        let mut next = written.clone();
        let status = next.status.get_or_insert_default();
        let Some(mut order) = status.orders.pop() else { return Ok(Done::again()) };
        let offer_id = self
            .machine
            .spec
            .offers
            .get(usize::try_from(order.offer).unwrap_or(0))
            .map(|o| o.id.clone())
            .unwrap_or_default();
        match outcome {
            RentOutcome::Rented { id } => {
                order.outcome = OrderOutcome::Rented;
                order.machine_id = Some(id.clone());
                let at = cost::between(before, ctx.clock.now());
                became_ours(self.observed, status, &order, &id, at);
                // The words of `decide`, so that the next look has nothing to write.
                BOOTING.clone_into(&mut status.message);
            }
            RentOutcome::Refused { why, message, leftover } => {
                order.outcome = OrderOutcome::Refused;
                order.reason = Some(why.as_str().to_owned());
                order.message = Some(tradewind_api::conditions::bounded(message.clone(), 300));
                order.leftover = leftover.is_some();
                order.machine_id = leftover;
                status.message = match why {
                    Refusal::RateLimited => format!("offer {offer_id} was not ordered yet ({message}); tried again"),
                    _ => format!("offer {offer_id} was refused ({}): {message}; the next one is tried", why.as_str()),
                };
                self.remember_refusal(account, &offer_id, why, &message);
            }
            RentOutcome::Unknown { message } => {
                status.phase = MachinePhase::Unknown;
                status.message = format!(
                    "the outcome of order {} is not known ({message}); it is looked up under its key",
                    order.key
                );
            }
        }
        let told = match &order.machine_id {
            Some(id) if order.outcome == OrderOutcome::Rented => {
                let price = status.price_per_hour.map(|p| format!(" for ${p} an hour")).unwrap_or_default();
                format!("rented machine {id} on {}{price}; waits for its agent's first report", account.name)
            }
            _ => status.message.clone(),
        };
        let reason = match order.outcome {
            OrderOutcome::Rented => Reason::Rented,
            OrderOutcome::Refused => Reason::OrderRefused,
            OrderOutcome::Open => Reason::OutcomeUnknown,
        };
        status.orders.push(order);
        let written = ctx.cluster.write_status(next).await?;
        ctx.caches.rented.own(&written);
        let severity = if reason == Reason::Rented { Severity::Normal } else { Severity::Warning };
        ctx.tell(&super::job_reference(self.machine), severity, reason, "Rent", told).await;
        Ok(Done::again())
    }

    fn remember_refusal(&self, account: &Account, offer: &str, why: Refusal, message: &str) {
        if why == Refusal::RateLimited {
            // Waits for its turn, as everybody does; neither the account nor the offer is to blame.
            return;
        }
        if why.is_about_the_account() {
            account.set_trouble(Some(message.to_owned()));
            self.ctx.ask(crate::controllers::provider::NAME, Key::cluster(account.name.as_str()));
            return;
        }
        let until = self.ctx.clock.monotonic() + self.ctx.settings.refusal_memory;
        self.ctx.market.refuse(&account.name, offer, until, format!("refused lately ({})", why.as_str()));
        self.ctx.keep_market();
    }

    /// Asks for the end of everything that is ours here, and looks whether it is gone.
    async fn end(&self, ids: &[String], memory: &mut MachineMemory) -> Result<Done, Failure> {
        let ctx = self.ctx;
        let Some(account) = ctx.accounts.get(&self.machine.spec.provider) else {
            return Err(Failure::new(
                "NoAccount",
                "there is no handle for the account; the machine cannot be ended now",
            ));
        };
        let now = ctx.clock.monotonic();
        let own = self.machine.status.as_ref().and_then(|s| s.machine_id.as_deref());
        let mut gone = false;
        let mut failed = None;
        for id in ids {
            let is_own = own == Some(id.as_str());
            if memory.end_asked.get(id).is_none_or(|at| now.saturating_sub(*at) >= END_AGAIN) {
                // One that cannot be ended now must not keep the others alive.
                if let Err(error) = account.provider.terminate(id).await {
                    failed.get_or_insert(Failure::new(error.reason(), error.to_string()));
                    continue;
                }
                memory.end_asked.insert(id.clone(), now);
                if is_own {
                    memory.end_accepted.get_or_insert(ctx.clock.now());
                }
            }
            match account.provider.describe(id).await {
                // A machine rented a moment ago may still be invisible: its absence counts once it was seen, or could have been.
                Ok(None) if !self.would_be_visible(&account, id, memory) => {}
                Ok(None) => {
                    gone = true;
                    if is_own { memory.gone_looks += 1 } else { memory.leftovers_gone.push(id.clone()) }
                }
                Ok(Some(_)) if is_own => {
                    memory.seen = true;
                    memory.gone_looks = 0;
                }
                Ok(Some(_)) => {}
                Err(error) => drop(failed.get_or_insert(Failure::new(error.reason(), error.to_string()))),
            }
        }
        if gone {
            // A fresh list, so that nothing waits for what is gone. Only then: each list has every machine looked at again.
            account.want_look();
            ctx.ask(crate::controllers::provider::NAME, Key::cluster(account.name.as_str()));
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        let pause = LOOK_AGAIN.saturating_mul(1 << memory.end_looks.min(5)).min(END_AGAIN);
        memory.end_looks += 1;
        Ok(Done { again: true, after: Some(pause), released: false })
    }

    fn would_be_visible(&self, account: &Account, id: &str, memory: &MachineMemory) -> bool {
        let status = self.machine.status.as_ref();
        let own = status.and_then(|s| s.machine_id.as_deref()) == Some(id);
        if own && (memory.seen || status.is_some_and(|s| s.running_since.is_some() || s.boot.is_some())) {
            return true;
        }
        let ordered =
            status.iter().flat_map(|s| &s.orders).find(|o| o.machine_id.as_deref() == Some(id)).map(|o| o.at.0);
        let capabilities = account.provider.capabilities();
        let window = capabilities.rent_limit + capabilities.visibility_window;
        ordered.is_none_or(|at| at.checked_add(window).is_ok_and(|visible| visible < self.ctx.clock.now()))
    }

    /// The watch tells when the deletion has begun; asking again before that would only repeat the request.
    async fn delete_self(&self) -> Result<Done, Failure> {
        let how = Removal::guarded(Guard::same(self.machine));
        match self.ctx.cluster.remove::<RentedMachine>(&self.key(), &how).await {
            Err(error) if !lagging(&error) => Err(error.into()),
            _ => Ok(Done::default()),
        }
    }

    /// Whether job or Provider, as the API server knows them, still have to take this machine's cost: what the watch told of them may be
    /// from before an older state was restored.
    async fn cost_is_missing(&self) -> Result<bool, Failure> {
        if self.machine.status.as_ref().is_none_or(|s| s.rented_at.is_none()) {
            return Ok(false);
        }
        let job = &self.machine.spec.job;
        let found =
            self.ctx.cluster.find::<TrainingJob>(&Key::namespaced(job.namespace.as_str(), job.name.as_str())).await?;
        let found =
            found.filter(|j| j.metadata.uid.as_ref() == Some(&job.uid) && j.metadata.deletion_timestamp.is_none());
        let settled =
            |j: &TrainingJob| j.status.as_ref().is_some_and(|s| s.cost.settled_machines.contains(&self.observed.uid));
        if found.is_some_and(|j| !settled(&j)) {
            return Ok(true);
        }
        let found = self.ctx.cluster.find::<Provider>(&Key::cluster(self.machine.spec.provider.as_str())).await?;
        let found = found.filter(|p| p.metadata.deletion_timestamp.is_none());
        let booked = |p: &Provider| p.status.as_ref().is_some_and(|s| books::has(&s.spend, &self.observed.uid));
        Ok(found.is_some_and(|p| !booked(&p)))
    }

    /// Everything is gone and settled: forget the mailbox, free the Pod, let the object go.
    async fn release(&self) -> Result<Done, Failure> {
        if self.cost_is_missing().await? {
            return Err(Failure::benign("NotSettled", "job and Provider have not taken the machine's cost yet"));
        }
        free_pod(self.ctx, self.machine).await?;
        self.tidy_finished_run().await;
        if let Some(mailbox) = &self.ctx.mailbox {
            // What stays behind costs next to nothing; the object must not hang on it.
            let uid = &self.observed.uid;
            let kept = mailbox.keep_logs(&self.ctx.settings.install, uid).await;
            if let Err(error) = kept.and(mailbox.forget(uid).await) {
                tracing::warn!(%error, reason = "MailboxUnavailable", "Leaving a finished machine's mailbox behind");
            }
        }
        self.set_finalizer(false).await?;
        Ok(Done { released: true, ..Done::default() })
    }
}

impl Acting<'_> {
    /// A run that has finished uploads nothing any more: data that no checkpoint names goes now. Only tidiness hangs on it.
    async fn tidy_finished_run(&self) {
        let finished = self.machine.status.as_ref().is_some_and(|s| s.exit_code == Some(0));
        let Some(settings) = self.machine.spec.checkpoint.as_ref().filter(|_| finished) else { return };
        let namespace = &self.machine.spec.job.namespace;
        match self.ctx.catalogue(namespace, &settings.to, &settings.secret_ref.name).await {
            Ok(catalogue) => crate::serving::tidy(&catalogue, settings, std::collections::BTreeSet::new(), true).await,
            Err(unusable) => tracing::info!(error = unusable.message, "Leaving unnamed data of a finished run"),
        }
    }
}

/// How long a claim waits that the ledger has no room for before it asks again: room comes with the end of another machine, minutes or
/// How long a limit that has no room for hours is believed to be used up; then one job asks again.
const USED_UP_FOR: Duration = Duration::from_mins(1);
/// hours later, and each question reads all machines.
const FULL_AGAIN: Duration = Duration::from_secs(15);
/// How often the end is asked for again while the machine is still there.
const END_AGAIN: Duration = Duration::from_secs(10);
/// Time between the first two looks whether a machine is gone; doubled each time.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Brings the claimed Pod in line with the machine, if it is on our Node.
pub async fn project_pod(ctx: &Context, machine: &RentedMachine) -> Result<(), Failure> {
    let Some(pod) = claimed_pod(ctx, machine) else { return Ok(()) };
    if pod::node(&pod) != ctx.settings.node_name {
        return Ok(());
    }
    let status = machine.status.clone().unwrap_or_default();
    // A Pod whose end somebody asked for stays until its machine has saved what there is to save.
    let drains = status.ended.is_none()
        && status.machine_id.is_some()
        && match deletion(&pod) {
            Some(Deletion::Asked) => true,
            // Until the job has seen it: a Pod that is gone at once reads as lost.
            Some(Deletion::Forced) => machine.metadata.deletion_timestamp.is_none(),
            Some(Deletion::Lost) | None => false,
        };
    if pod.metadata.deletion_timestamp.is_some() && !drains {
        return free_pod(ctx, machine).await;
    }
    let uid = machine.metadata.uid.as_deref().unwrap_or_default();
    let Some(patch) = project::patch(uid, &machine.spec, &status, &pod, ctx.clock.now()) else {
        return free_finished_pod(ctx, &pod).await;
    };
    let patch = StatusPatch { strategy: Strategy::Strategic, status: patch };
    let guard = Guard::exact(&*pod);
    match ctx.cluster.amend_status::<Pod>(&Key::of(&*pod), &patch, &guard).await {
        Ok(written) => ctx.caches.pods.own(&written),
        Err(error) if lagging(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn claimed_pod(ctx: &Context, machine: &RentedMachine) -> Option<std::sync::Arc<Pod>> {
    let claim = &machine.spec.claim;
    let pod = ctx.caches.pods.get(&Key::namespaced(claim.pod_namespace.as_str(), claim.pod_name.as_str()))?;
    (pod.metadata.uid.as_deref() == Some(claim.pod_uid.as_str())).then_some(pod)
}

/// A finished Pod needs our finaliser no longer: from here on it may be deleted at once.
async fn free_finished_pod(ctx: &Context, pod: &Pod) -> Result<(), Failure> {
    if pod::is_over(pod) { drop_finalizer(ctx, pod).await } else { Ok(()) }
}

/// Lets a Pod that is being deleted go, or frees a finished one; what is rented is the machine's matter, not the Pod's.
pub async fn free_pod(ctx: &Context, machine: &RentedMachine) -> Result<(), Failure> {
    let Some(pod) = claimed_pod(ctx, machine) else { return Ok(()) };
    drop_finalizer(ctx, &pod).await?;
    if pod.metadata.deletion_timestamp.is_some() {
        let how = Removal::guarded(Guard::same(&*pod)).at_once();
        match ctx.cluster.remove::<Pod>(&Key::of(&*pod), &how).await {
            Err(error) if !lagging(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Takes our finaliser off a Pod.
pub async fn drop_finalizer(ctx: &Context, pod: &Pod) -> Result<(), Failure> {
    if !pod::is_held(pod) {
        return Ok(());
    }
    let finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    let rest: Vec<String> = finalizers.into_iter().filter(|f| f != names::POD_FINALIZER).collect();
    let patch = MetadataPatch { finalizers: Some(rest), ..MetadataPatch::default() };
    match ctx.cluster.amend::<Pod>(&Key::of(pod), &patch, &Guard::exact(pod)).await {
        Ok(written) => {
            ctx.caches.pods.own(&written);
            Ok(())
        }
        Err(ClusterError::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
