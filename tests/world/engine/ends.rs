//! An end of the table happens, in the moment in which its phase is first seen.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use tradewind_api::RentedMachine;
use tradewind_api::rented_machine::MachinePhase;
use tradewind_cluster::memory::{Backup, at_once};
use tradewind_cluster::{Cluster, Guard, Key, MetadataPatch};
use tradewind_sim::market::State;

use super::checker::Known;
use super::cluster::delete;
use super::operator::settings;
use super::plan::{Happening, Mood};
use super::table::Reached;
use super::wire::lock;
use super::world::World;

/// From an end to the calm: longer than every trouble that passes by itself.
const TROUBLED: Duration = Duration::from_secs(45);

/// An earlier state of the API server, and what the checker knew then.
pub struct Earlier {
    at: Duration,
    state: Backup,
    known: Known,
}

/// From one backup to the next.
const BACKUP: Duration = Duration::from_secs(3);
/// Backups that are kept: of the last minute.
const BACKUPS: usize = 20;

impl World {
    /// Keeps a state of the API server now and then, where one may be put back.
    pub(super) fn back_up(&mut self) {
        let wanted = matches!(self.mood, Mood::Cell(cell) if cell.end == Happening::EtcdRestored)
            || self.plan.happenings.iter().any(|(_, what)| *what == Happening::EtcdRestored);
        let at = self.common.now();
        if !wanted || self.backups.back().is_some_and(|last| at < last.at + BACKUP) {
            return;
        }
        if self.backups.len() == BACKUPS {
            self.backups.pop_front();
        }
        self.common.look();
        let known = lock(&self.common.checker).known();
        self.backups.push_back(Earlier { at, state: self.common.memory.backup(), known });
    }

    /// RentedMachines whose machines may be alive.
    fn open_claims(&self) -> Vec<Arc<RentedMachine>> {
        let all = self.common.memory.peek_all::<RentedMachine>().into_iter();
        all.filter(|m| m.status.as_ref().is_none_or(|s| s.phase != MachinePhase::Gone)).collect()
    }

    /// Somebody deletes every RentedMachine whose machine may be alive, and tears its finaliser off.
    pub(super) fn tear_claims(&mut self) {
        let cluster: &dyn Cluster = &*self.common.memory;
        for machine in self.open_claims() {
            let uid = machine.metadata.uid.clone().unwrap_or_default();
            lock(&self.common.checker).torn(&uid, self.common.now());
            let patch = MetadataPatch { finalizers: Some(Vec::new()), ..MetadataPatch::default() };
            let key = Key::of(&*machine);
            let _ = at_once(cluster.amend::<RentedMachine>(&key, &patch, &Guard::same(&*machine)));
            delete::<RentedMachine>(&self.common, &key);
        }
    }

    /// Puts one of the last states back. Operators are restarted, as the administrator was told to, or not.
    pub(super) fn restore_etcd(&mut self) {
        let (bumped, restarted) = (self.chance.one_in(2), self.chance.one_in(2));
        self.common.look();
        let back = self.chance.below(self.backups.len());
        let Some(earlier) = self.backups.get(back) else { return };
        self.common.note(|| format!("etcd is as it was at {:?}, bumped: {bumped}, restarted: {restarted}", earlier.at));
        self.common.memory.restore(&earlier.state, bumped);
        lock(&self.common.checker).goes_back(&self.common, &earlier.known, earlier.at);
        self.backups.clear();
        if restarted {
            self.kill_operator(Duration::ZERO);
        }
    }

    /// Lets the end of the cell happen if its phase was reached just now.
    pub(super) fn end_comes(&mut self) {
        let Mood::Cell(cell) = self.mood else { return };
        if !lock(&self.common.checker).takes_reached() {
            return;
        }
        let finds = self.finds(cell.end);
        self.reached = if finds { Reached::Happened } else { Reached::Nothing };
        self.common.note(|| format!("--- {:?} is reached; the end finds something: {finds}", cell.at));
        if !finds {
            return;
        }
        lock(&self.common.checker).end_happens(cell);
        self.happen(cell.end);
        self.plan.calm_at = self.common.now() + TROUBLED;
        self.common.look();
    }

    /// Whether there is anything that the end could hit.
    fn finds(&self, end: Happening) -> bool {
        let memory = &self.common.memory;
        let market = |wanted: &dyn Fn(&State) -> bool| {
            self.common.with_market(|market, _| market.machines().iter().any(|m| wanted(&m.state)))
        };
        match end {
            Happening::PodDeleted | Happening::PodForced | Happening::PodEvicted => {
                !memory.peek_all::<Pod>().is_empty()
            }
            Happening::Drained
            | Happening::NodeNotReady
            | Happening::PodsCollected
            | Happening::NodeDeleted
            | Happening::Cordoned => memory.peek::<Node>(&Key::cluster(settings().node_name)).is_some(),
            Happening::RoomGone | Happening::WorkerPreempted | Happening::WorkerNodeLost => {
                !self.control_plane.nodes.pods(None).is_empty()
            }
            Happening::MachineDeleted => !memory.peek_all::<RentedMachine>().is_empty(),
            Happening::ClaimLost => !self.open_claims().is_empty(),
            Happening::Reboot => market(&|s| *s == State::Running),
            Happening::Outbid | Happening::Reclaim => {
                market(&|s| matches!(s, State::Running | State::Booting { .. } | State::Restarting { .. }))
            }
            _ => true,
        }
    }
}
