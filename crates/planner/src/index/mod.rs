//! The same ranking as [`plan`](crate::plan)'s, for a market that is asked again and again.
//!
//! Offers lie in groups: one number of GPUs, model, provider and capacity, cheapest first. All offers of a group take the same time to
//! run, so price × the least time that anybody in it needs is a bound that rises with the price, and the search goes through the groups
//! by that bound until it exceeds the worst offer that is kept ([`query`]). Minimums, regions, refusals and bans are bits, and
//! one pass over words of them leaves the offers that are worth a look. Nothing is approximate: what comes out is what the plan says.

mod batch;
mod bits;
mod levels;
mod query;
mod row;

use std::collections::BTreeMap;

use tradewind_core::{Capacity, Offer};

use crate::knowledge::{HostRecord, JobFacts, Knowledge};
use crate::lookup::Lookup;
use crate::needs::{Requirements, WorkLeft};
use crate::rank::{Plan, plan_with};
pub use batch::Pending;
use bits::Bits;
use levels::Levels;
pub use query::Effort;
use row::{Group, Key, MINIMUMS, Model, NO_GPU, Row, minimums};

/// Regions with a set of their own; the others share one, so that a market of many regions does not fill the memory.
const REGION_SETS: usize = 192;

/// Offers, indexed, with what is known of the market.
#[derive(Debug)]
pub struct OfferIndex {
    market: Knowledge,
    /// By slot; `None` = free.
    offers: Vec<Option<Offer>>,
    free: Vec<u32>,
    /// Slots in the order of provider, id and capacity.
    by_id: Vec<u32>,
    /// Slots in the order of provider and host.
    by_host: Vec<u32>,
    /// Where the row of each slot is.
    place: Vec<u32>,
    rows: Vec<Row>,
    groups: Vec<Group>,
    models: Vec<Model>,
    providers: Vec<String>,
    /// Lower case; the number is the row's.
    regions: BTreeMap<String, u32>,
    /// Rows whose offers make sense.
    sound: Bits,
    /// Those of them that are neither refused nor banned.
    open: Bits,
    levels: [Levels; MINIMUMS],
    region_sets: Vec<Bits>,
    other_regions: Bits,
}

impl OfferIndex {
    /// Indexes offers. Of `known` only the market's part counts; the job's comes with each question.
    pub fn new(offers: Vec<Offer>, known: &Knowledge) -> Self {
        let len = offers.len();
        let mut index = Self {
            market: Knowledge::default(),
            by_id: (0..number(len)).collect(),
            by_host: (0..number(len)).collect(),
            offers: offers.into_iter().map(Some).collect(),
            free: Vec::new(),
            place: vec![0; len],
            rows: Vec::new(),
            groups: Vec::new(),
            models: Vec::new(),
            providers: Vec::new(),
            regions: BTreeMap::new(),
            sound: Bits::new(len),
            open: Bits::new(len),
            levels: std::array::from_fn(|_| Levels::default()),
            region_sets: Vec::new(),
            other_regions: Bits::new(len),
        };
        index.name_regions();
        index.fill();
        index.learn(known);
        index
    }

    /// Offers in the index.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn offer(&self, slot: u32) -> Option<&Offer> {
        self.offers.get(slot as usize)?.as_ref()
    }

    /// The most frequent regions come first, since those have sets.
    fn name_regions(&mut self) {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for offer in self.offers.iter().flatten() {
            *counts.entry(offer.region.to_ascii_lowercase()).or_default() += 1;
        }
        let mut by_count: Vec<(usize, String)> =
            counts.into_iter().map(|(region, n)| (usize::MAX - n, region)).collect();
        by_count.sort_unstable();
        let len = self.offers.len();
        self.region_sets = by_count.iter().take(REGION_SETS).map(|_| Bits::new(len)).collect();
        self.regions = by_count.into_iter().zip(0..).map(|((_, region), n)| (region, n)).collect();
    }

    /// Everything that follows from the offers alone.
    fn fill(&mut self) {
        let offers = std::mem::take(&mut self.offers);
        let slot_offer = |slot: &u32| offers[*slot as usize].as_ref();
        self.by_id.sort_unstable_by_key(|slot| (slot_offer(slot).map(id_key), *slot));
        self.by_host.sort_unstable_by_key(|slot| (slot_offer(slot).map(host_key), *slot));
        let mut order: Vec<(Key, tradewind_core::Money, u32)> = Vec::with_capacity(offers.len());
        for (slot, offer) in offers.iter().enumerate() {
            let Some(offer) = offer else { continue };
            order.push((self.key(offer), offer.price_per_hour, number(slot)));
        }
        order.sort_unstable();
        let lookup = Lookup::new(&self.market);
        let mut groups: Vec<Group> = Vec::new();
        for (at, (key, _, slot)) in order.iter().enumerate() {
            let Some(offer) = slot_offer(slot) else { continue };
            if groups.last().is_none_or(|group| group.key != *key) {
                groups.push(Group::new(*key, at, lookup.pool(&offer.provider, offer.gpu.as_ref())));
            }
            let region = self.regions.get(&offer.region.to_ascii_lowercase()).copied().unwrap_or(u32::MAX);
            let row = Row::new(offer, region, *slot, HostRecord::default(), self.market.repair_s);
            self.place[*slot as usize] = number(at);
            self.sound.put(at, row.sound);
            match self.region_sets.get_mut(region as usize) {
                Some(set) => set.put(at, true),
                None => self.other_regions.put(at, true),
            }
            self.rows.push(row);
        }
        let values = |n: usize| -> Vec<u64> { self.rows.iter().map(|row| row.minimums[n]).collect() };
        self.levels = std::array::from_fn(|n| Levels::new(&values(n)));
        self.groups = groups;
        self.offers = offers;
    }

    fn key(&mut self, offer: &Offer) -> Key {
        let provider = place_in(&mut self.providers, |name| *name == offer.provider, || offer.provider.clone());
        let model = offer
            .gpu
            .as_ref()
            .map_or(NO_GPU, |name| place_in(&mut self.models, |model| model.name == *name, || Model::new(name)));
        Key { gpu_count: offer.gpu_count, model, provider, capacity: offer.capacity }
    }

    /// Takes over what is known of the market now: refusals, bans, lives, set-up times, records of hosts.
    pub fn learn(&mut self, known: &Knowledge) {
        self.market = Knowledge { step_rates: BTreeMap::new(), ..known.clone() };
        let lookup = Lookup::new(&self.market);
        let ends: Vec<usize> = self.groups.iter().skip(1).map(|g| g.start).chain([self.rows.len()]).collect();
        for (group, end) in self.groups.iter_mut().zip(ends) {
            let provider = self.providers.get(group.key.provider as usize).map_or("", String::as_str);
            let model = self.models.get(group.key.model as usize).map(|model| &model.name);
            *group = Group::new(group.key, group.start, lookup.pool(provider, model));
            for row in &mut self.rows[group.start..end] {
                let reliability_ppm = u32::try_from(row.minimums[row::RELIABILITY]).unwrap_or(u32::MAX);
                row.learn(HostRecord::default(), reliability_ppm, self.market.repair_s);
                group.admit(row);
            }
        }
        let known = std::mem::take(&mut self.market);
        self.open = self.sound.clone();
        for ((provider, id), note) in &known.refused {
            for slot in self.slots_of_id(provider, id).filter(|_| note.for_s > 0) {
                self.open.put(self.place[slot as usize] as usize, false);
            }
        }
        for (provider, host) in known.banned_hosts.keys() {
            for slot in self.slots_of_host(provider, host) {
                self.open.put(self.place[slot as usize] as usize, false);
            }
        }
        for ((provider, host), record) in &known.hosts {
            for slot in self.slots_of_host(provider, host) {
                let at = self.place[slot as usize] as usize;
                let group = self.group_at(at);
                let row = &mut self.rows[at];
                let reliability_ppm = u32::try_from(row.minimums[row::RELIABILITY]).unwrap_or(u32::MAX);
                row.learn(*record, reliability_ppm, known.repair_s);
                self.groups[group].admit(row);
            }
        }
        self.market = known;
    }

    /// Slots of an id, spot and on demand. Copied, so that the caller may change the index.
    fn slots_of_id(&self, provider: &str, id: &str) -> std::vec::IntoIter<u32> {
        let key = |slot: &u32| self.offer(*slot).map_or(("", ""), |o| (o.provider.as_str(), o.id.as_str()));
        let from = self.by_id.partition_point(|slot| key(slot) < (provider, id));
        let found: Vec<u32> =
            self.by_id[from..].iter().copied().take_while(|slot| key(slot) == (provider, id)).collect();
        found.into_iter()
    }

    /// Slots of a host; none of one that is not told.
    fn slots_of_host(&self, provider: &str, host: &str) -> std::vec::IntoIter<u32> {
        let key = |slot: &u32| self.offer(*slot).map_or(("", ""), host_key);
        let from = self.by_host.partition_point(|slot| key(slot) < (provider, host));
        let rest = self.by_host[from..].iter().copied();
        let found: Vec<u32> = rest.take_while(|slot| !host.is_empty() && key(slot) == (provider, host)).collect();
        found.into_iter()
    }

    /// The group of the row at a place.
    fn group_at(&self, at: usize) -> usize {
        // Groups that have lost all their rows begin where the next begins; the last of them has the row.
        self.groups.partition_point(|group| group.start <= at) - 1
    }

    /// Adds an offer, in place of all that have its provider, id and capacity.
    pub fn put(&mut self, offer: Offer) {
        let same: Vec<u32> = self
            .slots_of_id(&offer.provider, &offer.id)
            .filter(|slot| self.offer(*slot).is_some_and(|old| old.capacity == offer.capacity))
            .collect();
        let key = self.key(&offer);
        if let [slot] = same.as_slice()
            && let Some(old) = self.offer(*slot).filter(|old| old.host == offer.host)
            && old.gpu == offer.gpu
            && old.gpu_count == offer.gpu_count
        {
            self.replace(*slot, offer);
            return;
        }
        for slot in same {
            self.take(slot);
        }
        self.insert(key, offer);
    }

    /// Removes all offers with this provider, id and capacity, and says how many there were.
    pub fn remove(&mut self, provider: &str, id: &str, capacity: Capacity) -> usize {
        let found = self.slots_of_id(provider, id);
        let gone: Vec<u32> =
            found.filter(|slot| self.offer(*slot).is_some_and(|offer| offer.capacity == capacity)).collect();
        for slot in &gone {
            self.take(*slot);
        }
        gone.len()
    }

    /// A slot's offer with other terms: the row moves within its group, and only what lies between the two places moves with it.
    fn replace(&mut self, slot: u32, offer: Offer) {
        let from = self.place[slot as usize] as usize;
        let group = self.group_at(from);
        let (start, end) = (self.groups[group].start, self.end(group));
        let row = self.row(&offer, slot);
        let others = |at: &usize| *at != from;
        // Places are counted without the row itself.
        let cheaper = self.rows[start..end].partition_point(|other| other.price <= row.price);
        let to = start + cheaper - usize::from((start..start + cheaper).any(|at| !others(&at)));
        if to > from {
            self.rows[from..=to].rotate_left(1);
            self.each_set(|set| set.close(from, to + 1));
        } else {
            self.rows[to..=from].rotate_right(1);
            self.each_set(|set| set.open(to, from + 1));
        }
        self.rows[to] = row;
        self.mark(to, &offer);
        self.offers[slot as usize] = Some(offer);
        self.groups[group].admit(&self.rows[to]);
        self.renumber(from.min(to), from.max(to) + 1);
    }

    fn insert(&mut self, key: Key, offer: Offer) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.offers.push(None);
            self.place.push(0);
            number(self.offers.len() - 1)
        });
        let group = self.groups.partition_point(|group| group.key < key);
        if self.groups.get(group).is_none_or(|found| found.key != key) {
            let start = self.groups.get(group).map_or(self.rows.len(), |next| next.start);
            let pool = Lookup::new(&self.market).pool(&offer.provider, offer.gpu.as_ref());
            self.groups.insert(group, Group::new(key, start, pool));
        }
        let row = self.row(&offer, slot);
        let (start, end) = (self.groups[group].start, self.end(group));
        let at = start + self.rows[start..end].partition_point(|other| other.price <= row.price);
        self.rows.insert(at, row);
        let len = self.rows.len();
        self.each_set(|set| {
            set.reach(len);
            set.open(at, len);
        });
        self.mark(at, &offer);
        self.groups[group].admit(&row);
        for later in &mut self.groups[group + 1..] {
            later.start += 1;
        }
        let before = |other: &u32, key: &dyn Fn(&Offer) -> bool| self.offer(*other).is_some_and(key);
        let by_id = self.by_id.partition_point(|other| before(other, &|o| id_key(o) < id_key(&offer)));
        let by_host = self.by_host.partition_point(|other| before(other, &|o| host_key(o) < host_key(&offer)));
        self.by_id.insert(by_id, slot);
        self.by_host.insert(by_host, slot);
        self.offers[slot as usize] = Some(offer);
        self.renumber(at, len);
    }

    fn take(&mut self, slot: u32) {
        let at = self.place[slot as usize] as usize;
        let group = self.group_at(at);
        let len = self.rows.len();
        self.rows.remove(at);
        self.each_set(|set| set.close(at, len));
        for later in &mut self.groups[group + 1..] {
            later.start -= 1;
        }
        self.by_id.retain(|other| *other != slot);
        self.by_host.retain(|other| *other != slot);
        self.offers[slot as usize] = None;
        self.free.push(slot);
        self.renumber(at, len - 1);
    }

    fn end(&self, group: usize) -> usize {
        self.groups.get(group + 1).map_or(self.rows.len(), |next| next.start)
    }

    fn row(&mut self, offer: &Offer, slot: u32) -> Row {
        let next = number(self.regions.len());
        let region = *self.regions.entry(offer.region.to_ascii_lowercase()).or_insert(next);
        if region as usize == self.region_sets.len() && self.region_sets.len() < REGION_SETS {
            self.region_sets.push(Bits::new(self.rows.len()));
        }
        let key = (offer.provider.clone(), offer.host.clone());
        let host = self.market.hosts.get(&key).filter(|_| !offer.host.is_empty()).copied().unwrap_or_default();
        Row::new(offer, region, slot, host, self.market.repair_s)
    }

    /// Sets all bits of a place anew.
    fn mark(&mut self, at: usize, offer: &Offer) {
        let region = self.rows[at].region as usize;
        for (n, set) in self.region_sets.iter_mut().enumerate() {
            set.put(at, n == region);
        }
        self.other_regions.put(at, region >= self.region_sets.len());
        for (levels, value) in self.levels.iter_mut().zip(minimums(offer)) {
            levels.put(at, value);
        }
        let sound = self.rows[at].sound;
        let host = (offer.provider.clone(), offer.host.clone());
        let banned = !offer.host.is_empty() && self.market.banned_hosts.contains_key(&host);
        let id = (offer.provider.clone(), offer.id.clone());
        let refused = self.market.refused.get(&id).is_some_and(|note| note.for_s > 0);
        self.sound.put(at, sound);
        self.open.put(at, sound && !banned && !refused);
    }

    fn each_set(&mut self, mut change: impl FnMut(&mut Bits)) {
        let levels = self.levels.iter_mut().flat_map(Levels::sets_mut);
        let single = [&mut self.sound, &mut self.open, &mut self.other_regions];
        self.region_sets.iter_mut().chain(levels).chain(single).for_each(&mut change);
    }

    /// Notes the places of the rows from `from` to before `end`.
    fn renumber(&mut self, from: usize, end: usize) {
        for at in from..end {
            self.place[self.rows[at].slot as usize] = number(at);
        }
    }

    /// The whole plan, with a reason for every offer that does not fit: the slow way, for those who read it.
    pub fn plan(&self, needs: &Requirements, work: &WorkLeft, job: &JobFacts<'_>, limit: usize) -> Plan {
        let offers: Vec<&Offer> = self.offers.iter().flatten().collect();
        plan_with(needs, work, &Lookup::with_job(&self.market, *job), &offers, limit)
    }

    /// Bytes that the index occupies, without what the allocator adds.
    pub fn heap_bytes(&self) -> usize {
        let text = |offer: &Offer| {
            let gpu = offer.gpu.as_ref().map_or(0, |gpu| gpu.as_str().len());
            offer.provider.len() + offer.id.len() + offer.region.len() + offer.host.len() + gpu
        };
        let sets = self.region_sets.iter().chain([&self.sound, &self.open, &self.other_regions]);
        self.offers.capacity() * size_of::<Option<Offer>>()
            + self.offers.iter().flatten().map(text).sum::<usize>()
            + self.rows.capacity() * size_of::<Row>()
            + self.groups.capacity() * size_of::<Group>()
            + (self.by_id.capacity() + self.by_host.capacity() + self.place.capacity()) * 4
            + self.levels.iter().map(Levels::heap_bytes).sum::<usize>()
            + sets.map(|set| set.heap_bytes() + 24).sum::<usize>()
    }
}

fn id_key(offer: &Offer) -> (&str, &str, Capacity) {
    (&offer.provider, &offer.id, offer.capacity)
}

fn host_key(offer: &Offer) -> (&str, &str) {
    (&offer.provider, &offer.host)
}

/// A place or slot. Four thousand million offers do not fit into the memory.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The place of the one that is meant, which is added if there is none.
fn place_in<T>(list: &mut Vec<T>, is_meant: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> u32 {
    let at = list.iter().position(is_meant).unwrap_or_else(|| {
        list.push(new());
        list.len() - 1
    });
    number(at)
}
