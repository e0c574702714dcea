//! What befalls the world besides the odds of single calls.

use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use tradewind_api::training_job::Budget;
use tradewind_api::values::Span;
use tradewind_api::{Provider, RentedMachine, TrainingJob, names};
use tradewind_cluster::Key;
use tradewind_cluster::memory::controllers;
use tradewind_core::Money;
use tradewind_protocol::LogEntry;
use tradewind_sim::faults::{Fault, When};
use tradewind_sim::market::{OfferChange, State};

use super::cluster::{
    TEAM, account_secret, apply_account_secret, apply_provider, apply_stranger, cordon, delete, delete_foreground,
    edit_job, force_delete, job_key, job_prefix, pause, rotate_account_secret, stranger,
};
use super::operator::settings;
use super::plan::{Happening, Mood, Odds};
use super::ports::{ACCOUNT, BUCKET, MAILBOX};
use super::wire::lock;
use super::world::World;

/// A trouble that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// A machine shows its real state again.
    StrangeWord(u64),
    /// Offers are there again.
    SoldOut,
    /// The account has credit again.
    NoCredit,
    /// The Provider is resumed.
    Paused,
    /// The Provider is applied again, once it is gone.
    ProviderDeleted,
    /// The Secret is applied again, once it is gone.
    SecretDeleted,
    /// The job is resumed.
    Suspended(usize),
    /// The Node is uncordoned.
    Cordoned,
    /// The job's budget is raised.
    Poor(usize),
    /// The Secret gets the new key.
    KeyRevoked,
    /// The stranger's Pod is deleted.
    Stranger,
    /// The cluster's own nodes are uncordoned.
    RoomGone,
    /// A kubelet answers again.
    WorkerNodeLost(usize),
}

/// Longest trouble that passes by itself in a cell of the table, in milliseconds: longer than any lag and any pause between two looks.
const SHORT: u64 = 40_000;
/// The account's key once the first is revoked.
const SECOND_KEY: &str = "vast-key-2";

impl World {
    /// Lets something happen.
    pub(super) fn happen(&mut self, what: Happening) {
        self.common.note(|| format!("--- {what:?}"));
        let now = self.common.now();
        match what {
            Happening::Outbid => self.take_machine(true),
            Happening::SpotTaken => self.take_spot(),
            Happening::Reclaim => self.take_machine(false),
            Happening::Reboot => {
                let wipe = self.chance.one_in(2);
                if let Some(id) = self.machine_in(|s| *s == State::Running) {
                    self.common.with_market(|market, at| drop(market.exit(at, ACCOUNT, id, Some(137), wipe)));
                }
            }
            Happening::BootFails => {
                if let Some(id) = self.machine_in(|s| matches!(s, State::Booting { .. })) {
                    self.common.with_market(|market, at| drop(market.fail(at, ACCOUNT, id, None)));
                }
            }
            Happening::StrangeWord => {
                if let Some(id) = self.machine_in(|s| *s == State::Running) {
                    self.common.with_market(|market, at| {
                        drop(market.show_status(at, ACCOUNT, id, Some("defrosting".to_owned())));
                    });
                    let hidden = self.pass_later(Passing::StrangeWord(id), 5_000, 300_000);
                    *lock(&self.common.checker).hidden.entry(id).or_default() += hidden;
                }
            }
            Happening::SoldOut => {
                self.set_stock(0);
                self.pass_later(Passing::SoldOut, 5_000, 200_000);
            }
            Happening::Prices => self.move_prices(),
            Happening::RentFault => self.rent_fault(),
            Happening::NoCredit => {
                self.common.with_market(|market, at| drop(market.set_credit(at, ACCOUNT, 0)));
                self.pass_later(Passing::NoCredit, 5_000, 200_000);
            }
            Happening::MarketAway => {
                // Sometimes everything, sometimes only what is needed to find a machine again.
                let part = !self.is_rough() || self.chance.one_in(3);
                self.go_away(if part { "provider list" } else { "provider" });
            }
            Happening::StoreAway => {
                lock(&self.common.checker).losses_excused = true;
                self.go_away("store");
            }
            Happening::ApiAway => self.go_away("cluster"),
            Happening::Crash => self.kill_operator(Duration::ZERO),
            Happening::Outage => {
                let away = if self.is_rough() { self.chance.millis(60_000, 1_500_000) } else { Duration::from_mins(5) };
                self.kill_operator(away);
            }
            Happening::Failover => self.fail_over(now),
            Happening::NodeDeleted => drop(delete::<Node>(&self.common, &Key::cluster(settings().node_name))),
            Happening::PodDeleted => {
                if let Some(key) = self.some_pod() {
                    delete::<Pod>(&self.common, &key);
                }
            }
            Happening::PodForced => {
                if let Some(key) = self.some_pod() {
                    force_delete::<Pod>(&self.common, &key);
                }
            }
            Happening::Suspended => {
                let n = self.chance.below(self.plan.jobs.len());
                edit_job(&self.common, n, |job| job.spec.suspend = true);
                self.pass_later(Passing::Suspended(n), 20_000, 200_000);
            }
            Happening::Cordoned => {
                cordon(&self.common, true);
                self.pass_later(Passing::Cordoned, 5_000, 200_000);
            }
            Happening::SuspendedForGood => {
                edit_job(&self.common, 0, |job| job.spec.suspend = true);
                self.passing.retain(|(_, trouble)| *trouble != Passing::Suspended(0));
            }
            Happening::Poor => {
                let n = self.chance.below(self.plan.jobs.len());
                self.cut_budget(n);
                self.pass_later(Passing::Poor(n), 20_000, 200_000);
            }
            Happening::PoorForGood => self.cut_budget(0),
            Happening::ShortTtl => edit_job(&self.common, 0, |job| {
                job.spec.ttl_after_finished = Some(Span("5s".to_owned()));
            }),
            Happening::KeyRevoked => {
                self.set_account_key(SECOND_KEY);
                self.pass_later(Passing::KeyRevoked, 20_000, 200_000);
            }
            Happening::Stranger => {
                apply_stranger(&self.common.memory);
                self.pass_later(Passing::Stranger, 5_000, 60_000);
            }
            Happening::NodeNotReady => {
                controllers::lose_node(&self.common.memory, &settings().node_name);
                self.evict("DeletionByTaintManager");
            }
            Happening::PodsCollected => {
                delete::<Node>(&self.common, &Key::cluster(settings().node_name));
                controllers::collect_pods(&self.common.memory);
            }
            Happening::Drained => {
                cordon(&self.common, true);
                self.evict("EvictionByEvictionAPI");
                self.pass_later(Passing::Cordoned, 5_000, 200_000);
            }
            Happening::PodEvicted => {
                if let Some(key) = self.some_pod() {
                    drop(controllers::disrupt(&self.common.memory, &key, "DeletionByTaintManager", "evicted"));
                }
            }
            Happening::MachineDeleted => {
                let machines = self.common.memory.peek_all::<RentedMachine>();
                if !machines.is_empty() {
                    let key = Key::of(&*machines[self.chance.below(machines.len())]);
                    delete::<RentedMachine>(&self.common, &key);
                }
            }
            Happening::RoomGone => {
                self.control_plane.nodes.close(true);
                self.control_plane.nodes.disrupt(None, "EvictionByEvictionAPI");
                self.pass_later(Passing::RoomGone, 20_000, 300_000);
            }
            Happening::WorkerPreempted => {
                let pods = self.control_plane.nodes.pods(None);
                if !pods.is_empty() {
                    let key = Key::of(&*pods[self.chance.below(pods.len())]);
                    drop(controllers::disrupt(&self.common.memory, &key, "PreemptionByScheduler", "preempted"));
                }
            }
            Happening::WorkerNodeLost => self.lose_worker_node(),
            Happening::WorkerNodeGone => {
                let node = self.chance.below(self.control_plane.nodes.count());
                self.control_plane.nodes.replace(node);
            }
            Happening::ClaimLost => self.tear_claims(),
            Happening::Damage => self.damage(),
            Happening::Rubbish => {
                let keys = self.fleet.report_keys();
                if !keys.is_empty() {
                    let key = &keys[self.chance.below(keys.len())];
                    self.common.server.tamper(MAILBOX, key, Some(Bytes::from_static(b"{\"version\": 1, \"boot\": ")));
                    lock(&self.common.checker).losses_excused = true;
                }
            }
            Happening::JobDeleted => {
                let n = self.chance.below(self.plan.jobs.len());
                delete::<TrainingJob>(&self.common, &job_key(n));
            }
            Happening::JobForced => force_delete::<TrainingJob>(&self.common, &job_key(0)),
            Happening::JobForeground => delete_foreground(&self.common, &job_key(0)),
            Happening::NamespaceDeleted => drop(delete::<Namespace>(&self.common, &Key::cluster(TEAM))),
            Happening::Paused => {
                pause(&self.common, true);
                self.pass_later(Passing::Paused, 5_000, 200_000);
            }
            Happening::ProviderDeleted => {
                lock(&self.common.checker).books_closed = true;
                delete::<Provider>(&self.common, &Key::cluster(ACCOUNT));
                self.pass_later(Passing::ProviderDeleted, 5_000, 200_000);
            }
            Happening::SecretDeleted => {
                delete::<Secret>(&self.common, &account_secret());
                self.pass_later(Passing::SecretDeleted, 5_000, 200_000);
            }
            Happening::EtcdRestored => self.restore_etcd(),
            Happening::Relist => {
                if let Some(process) = self.processes.first_mut() {
                    process.relist();
                }
            }
        }
    }

    /// Lets a trouble pass after a time, which it gives back.
    fn pass_later(&mut self, trouble: Passing, from: u64, to: u64) -> Duration {
        // In a cell of the table nothing is gained by a longer one.
        let most = if matches!(self.mood, Mood::Cell(_)) { to.min(SHORT.max(from)) } else { to };
        let lasts = self.chance.millis(from, most);
        self.passing.push((self.common.now() + lasts, trouble));
        lasts
    }

    /// Lets troubles pass whose time is over. True if one did.
    pub(super) fn trouble_passes(&mut self) -> bool {
        let now = self.common.now();
        let deletion = |trouble| matches!(trouble, Passing::ProviderDeleted | Passing::SecretDeleted);
        let is_over = |at: Duration, trouble| at <= now || (!self.rough && !deletion(trouble));
        let Some(at) = self.passing.iter().position(|(at, trouble)| is_over(*at, *trouble)) else { return false };
        let (_, trouble) = self.passing.swap_remove(at);
        let memory = &self.common.memory;
        let metadata = match trouble {
            Passing::ProviderDeleted => memory.peek::<Provider>(&Key::cluster(ACCOUNT)).map(|o| o.metadata.clone()),
            Passing::SecretDeleted => memory.peek::<Secret>(&account_secret()).map(|o| o.metadata.clone()),
            _ => None,
        };
        if let Some(metadata) = metadata {
            if metadata.deletion_timestamp.is_some() {
                // It must go: the world does not end before.
                self.passing.push((now + Duration::from_secs(5), trouble));
            }
            return true;
        }
        self.common.note(|| format!("--- {trouble:?} passes"));
        match trouble {
            Passing::StrangeWord(id) => {
                self.common.with_market(|market, at| drop(market.show_status(at, ACCOUNT, id, None)));
            }
            Passing::SoldOut => self.set_stock(1),
            Passing::NoCredit => self.common.with_market(|market, at| drop(market.set_credit(at, ACCOUNT, 50_000_000))),
            Passing::Paused => pause(&self.common, false),
            Passing::ProviderDeleted => apply_provider(&self.common.memory, &self.plan),
            Passing::SecretDeleted => apply_account_secret(&self.common.memory, &self.account_key()),
            Passing::Suspended(n) => edit_job(&self.common, n, |job| job.spec.suspend = false),
            Passing::Cordoned => cordon(&self.common, false),
            Passing::Poor(n) => edit_job(&self.common, n, |job| job.spec.budget = None),
            Passing::KeyRevoked => rotate_account_secret(&self.common, SECOND_KEY),
            Passing::RoomGone => self.control_plane.nodes.close(false),
            Passing::WorkerNodeLost(node) => self.control_plane.nodes.set_down(node, false),
            Passing::Stranger => drop(delete::<Pod>(&self.common, &stranger())),
        }
        true
    }

    /// From now on nothing goes wrong.
    pub(super) fn calm_down(&mut self) {
        self.common.note(|| "--- calm".to_owned());
        self.rough = false;
        {
            let mut calls = lock(&self.common.calls);
            calls.odds = Odds::default();
            calls.away.clear();
        }
        lock(&self.common.faults).clear();
        let gangs = self.plan.jobs.iter().any(|job| job.workers > 1) || self.plan.in_cluster == "Only";
        self.control_plane.nodes.calm_down(gangs);
        self.set_stock(2);
        self.reset_prices();
        self.common.with_market(|market, at| drop(market.set_credit(at, ACCOUNT, 50_000_000)));
    }

    /// A node's kubelet no longer answers: its workers are cut off or not, and its Pods mostly given up.
    fn lose_worker_node(&mut self) {
        let node = self.chance.below(self.control_plane.nodes.count());
        self.control_plane.nodes.set_down(node, true);
        let lasts = self.pass_later(Passing::WorkerNodeLost(node), 5_000, 300_000);
        let given_up = !self.is_rough() || self.chance.one_in(2);
        let cut_off = self.chance.one_in(2);
        for pod in self.control_plane.nodes.pods(Some(node)) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if given_up {
                self.fleet.strand(&self.common, &uid);
            } else if cut_off {
                self.fleet.cut_off(&self.common, &uid, lasts);
            }
        }
        if given_up {
            self.control_plane.nodes.disrupt(Some(node), "DeletionByTaintManager");
        }
    }

    fn cut_budget(&mut self, n: usize) {
        let total = Money::from_micros(100);
        edit_job(&self.common, n, |job| job.spec.budget = Some(Budget { total: Some(total), per_hour: None }));
    }

    fn account_key(&self) -> String {
        self.common.with_market(|market, _| market.account(ACCOUNT).map(|a| a.api_key.clone()).unwrap_or_default())
    }

    fn set_account_key(&self, key: &str) {
        self.common.with_market(|market, _| drop(market.set_api_key(ACCOUNT, key.to_owned())));
    }

    /// Evicts the Pods on our Node.
    fn evict(&self, reason: &str) {
        let node = settings().node_name;
        for pod in self.common.memory.peek_all::<Pod>() {
            if pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&node) {
                drop(controllers::disrupt(&self.common.memory, &Key::of(&*pod), reason, "evicted"));
            }
        }
    }

    pub(super) fn machine_in(&mut self, state: impl Fn(&State) -> bool) -> Option<u64> {
        let ids: Vec<u64> = self
            .common
            .with_market(|market, _| market.machines().iter().filter(|m| state(&m.state)).map(|m| m.id).collect());
        (!ids.is_empty()).then(|| ids[self.chance.below(ids.len())])
    }

    fn take_machine(&mut self, outbid: bool) {
        let Some(id) =
            self.machine_in(|s| matches!(s, State::Running | State::Booting { .. } | State::Restarting { .. }))
        else {
            return;
        };
        self.common.with_market(|market, at| {
            if !outbid || market.outbid(at, ACCOUNT, id, None).is_err() {
                drop(market.reclaim(at, ACCOUNT, id));
            }
        });
        self.effects();
    }

    fn take_spot(&mut self) {
        if let Some(id) = self.machine_in(|s| *s == State::Running) {
            self.common.with_market(|market, at| drop(market.outbid(at, ACCOUNT, id, None)));
            self.effects();
        }
    }

    fn offer_ids(&self) -> Vec<String> {
        self.common.with_market(|market, _| {
            market.account(ACCOUNT).map(|a| a.offers.iter().map(|o| o.id.clone()).collect()).unwrap_or_default()
        })
    }

    fn set_stock(&mut self, stock: u32) {
        for id in self.offer_ids() {
            let change = OfferChange { stock: Some(stock), ..OfferChange::default() };
            self.common.with_market(|market, at| drop(market.change_offer(at, ACCOUNT, &id, change)));
        }
    }

    fn move_prices(&mut self) {
        for id in self.offer_ids() {
            let change = OfferChange {
                stock: None,
                on_demand_micros_per_hour: self.chance.one_in(2).then(|| self.chance.between(300_000, 700_000)),
                bid_micros_per_hour: self.chance.one_in(2).then(|| self.chance.between(100_000, 500_000)),
            };
            self.common.with_market(|market, at| drop(market.change_offer(at, ACCOUNT, &id, change)));
        }
        self.effects();
    }

    /// Prices as they were.
    fn reset_prices(&mut self) {
        for (id, asked, bid) in self.prices.clone() {
            let change = OfferChange { stock: None, on_demand_micros_per_hour: Some(asked), bid_micros_per_hour: bid };
            self.common.with_market(|market, at| drop(market.change_offer(at, ACCOUNT, &id, change)));
        }
    }

    fn rent_fault(&mut self) {
        let rough = self.is_rough();
        let when =
            if rough { self.chance.pick(&[When::Before, When::After, When::Lost, When::Garbled]) } else { When::Lost };
        let status = if rough { self.chance.pick(&[500, 502, 429, 404, 400, 410]) } else { 500 };
        let fault = Fault {
            provider: "*".to_owned(),
            op: "rent".to_owned(),
            when,
            times: if rough { u32::try_from(self.chance.between(1, 2)).unwrap_or(1) } else { 1 },
            // A market that did it and answers with a 4xx all the same would be a liar: no protocol can tell.
            status: if when == When::After { 500 } else { status },
            message: "simulated fault".to_owned(),
            seconds: 0.0,
        };
        lock(&self.common.faults).push(fault);
    }

    fn go_away(&mut self, port: &'static str) {
        let lasts = if self.is_rough() { self.chance.millis(2_000, 240_000) } else { Duration::from_mins(4) };
        let until = self.common.now() + lasts;
        lock(&self.common.calls).away.push((port, until));
    }

    pub(super) fn kill_operator(&mut self, away: Duration) {
        self.processes.iter().for_each(|process| process.wire.kill());
        self.processes.clear();
        let wait = self.chance.millis(100, 20_000);
        self.successor_at = Some(self.common.now() + away + wait);
    }

    /// The old operator freezes, a new one leads; then the old one goes on for a moment with what it knew.
    fn fail_over(&mut self, now: Duration) {
        let frozen = self.chance.millis(16_000, 200_000);
        let moment = self.chance.millis(0, 4_000);
        for process in &mut self.processes {
            if process.ends_at.is_none() {
                process.frozen_until = now + frozen;
                process.ends_at = Some(now + frozen + moment);
            }
        }
        let wait = self.chance.millis(15_000, 16_000);
        self.successor_at.get_or_insert(now + wait);
    }

    /// The same at a call that was chosen.
    pub(super) fn freeze_at_call(&mut self) {
        let Some((number, for_long)) = lock(&self.common.calls).frozen.take() else { return };
        let now = self.common.now();
        // Long after the market's visibility window, or long after the successor has begun.
        let frozen = Duration::from_secs(if for_long { 400 } else { 40 });
        self.common.note(|| format!("--- p{number} freezes at a call for {} s", frozen.as_secs()));
        for process in self.processes.iter_mut().filter(|p| p.wire.process == number && p.ends_at.is_none()) {
            process.frozen_until = now + frozen;
            process.ends_at = Some(now + frozen + Duration::from_secs(3));
            self.successor_at.get_or_insert(now + Duration::from_secs(15));
        }
    }

    pub(super) fn some_pod(&mut self) -> Option<Key> {
        let pods = self.common.memory.peek_all::<Pod>();
        let ours: Vec<Key> = pods
            .iter()
            .filter(|p| p.metadata.labels.as_ref().is_some_and(|l| l.contains_key(names::JOB_UID)))
            .map(|p| Key::of(&**p))
            .collect();
        (!ours.is_empty()).then(|| ours[self.chance.below(ours.len())].clone())
    }

    /// Changes a chunk of the newest checkpoint behind everybody's back.
    fn damage(&mut self) {
        let n = self.chance.below(self.plan.jobs.len());
        let prefix = job_prefix(n);
        let place = format!("{prefix}log/");
        let objects = self.common.server.objects(BUCKET);
        let newest =
            objects.iter().rev().filter(|(key, _)| key.starts_with(&place)).find_map(
                |(_, bytes)| match LogEntry::decode(bytes) {
                    Ok(LogEntry::Checkpoint { manifest, .. }) => Some(manifest),
                    _ => None,
                },
            );
        let Some(manifest) = newest else { return };
        let Some(chunk) = manifest.files.iter().find(|f| f.path == "weights.bin").and_then(|f| f.chunks.first()) else {
            return;
        };
        let key = format!("{prefix}{}", chunk.key);
        let mut checker = lock(&self.common.checker);
        checker.damaged.push(key.clone());
        checker.losses_excused = true;
        drop(checker);
        let size = usize::try_from(chunk.size_bytes).unwrap_or(0);
        let mut bytes = objects.get(&key).map(|b| b.to_vec()).unwrap_or_default();
        bytes.resize(size, b'0');
        // Still a state of that step, but another one.
        if let Some(last) = bytes.last_mut() {
            *last = if *last == b'0' { b'1' } else { b'0' };
        }
        self.common.note(|| format!("damages {key}"));
        self.common.server.tamper(BUCKET, &key, Some(Bytes::from(bytes)));
    }
}
