//! Workers in Pods of the cluster: the same agent and the same programs as on machines, under a kubelet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tradewind_agent::logic::{InCluster, Input};
use tradewind_api::names;
use tradewind_cluster::Key;
use tradewind_protocol::Report;

use super::cluster::job_name;
use super::machines::Fleet;
use super::wire::{Common, lock};

/// Where the numbers of workers begin: far above those of machines.
const FIRST: u64 = 9_000_000;
/// What a kubelet gives a Pod whose object is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// A worker.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Its Pod.
    pub key: Key,
    /// The Pod's uid.
    pub uid: String,
    /// Number of its job.
    pub job: usize,
    /// Its attempt.
    pub attempt: u32,
    /// Its rank.
    pub rank: u32,
    /// It was told to stop.
    pub signalled: bool,
    /// Its agent has left.
    pub left: Option<i32>,
}

/// How a Pod's container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Runs,
    /// It ended with this code.
    Ended(i32),
}

impl Seat {
    fn of(pod: &Pod) -> Option<Self> {
        let label = |name: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(name));
        let job = label(names::JOB_NAME)?;
        Some(Self {
            key: Key::of(pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            job: (0..10).find(|n| job_name(*n) == *job)?,
            attempt: label(names::ATTEMPT)?.parse().ok()?,
            rank: label(names::RANK).map_or(Some(0), |rank| rank.parse().ok())?,
            signalled: false,
            left: None,
        })
    }

    /// Where the others reach it.
    pub fn address(&self) -> IpAddr {
        address(self.job, self.attempt, self.rank)
    }
}

/// A worker's address tells who it is.
fn address(job: usize, attempt: u32, rank: u32) -> IpAddr {
    let byte = |n: u32| u8::try_from(n % 250).unwrap_or(0);
    IpAddr::V4(Ipv4Addr::new(10, u8::try_from(job).unwrap_or(0), byte(attempt), byte(rank) + 1))
}

impl Fleet {
    /// The kubelet starts the agent of a Pod. Gives back the Pod's address.
    pub fn start_worker(&mut self, common: &Common, pod: &Pod) -> String {
        let Some(seat) = Seat::of(pod) else { return String::new() };
        let url = pod.metadata.annotations.as_ref().and_then(|a| a.get(names::CONTROL)).cloned().unwrap_or_default();
        let address = seat.address();
        self.workers += 1;
        let machine = FIRST + self.workers;
        common.note(|| format!("machine {machine} is worker {} of {}", seat.rank, seat.key));
        let pod = InCluster { program: vec!["python".to_owned()], address: Some(address), warnings: Vec::new() };
        self.came.insert((seat.job, seat.attempt, seat.rank));
        self.boot(common, machine, &url, 0, Some((pod, seat)));
        address.to_string()
    }

    fn worker_at(&self, uid: &str) -> Option<usize> {
        self.boots.iter().position(|b| b.seat.as_ref().is_some_and(|seat| seat.uid == uid))
    }

    /// How a Pod's container stands; `None` if it was never started.
    pub fn life(&mut self, uid: &str) -> Option<Life> {
        if let Some(at) = self.worker_at(uid) {
            let Some(code) = self.boots[at].seat.as_ref().and_then(|seat| seat.left) else { return Some(Life::Runs) };
            self.boots.swap_remove(at);
            self.exits.insert(uid.to_owned(), code);
        }
        self.exits.get(uid).map(|code| Life::Ended(*code))
    }

    /// The kubelet tells a worker to stop, or kills it.
    pub fn terminate(&mut self, common: &Common, uid: &str, kill: bool) {
        let Some(at) = self.worker_at(uid) else { return };
        if kill {
            let machine = self.boots[at].machine;
            common.note(|| format!("kubelet kills machine {machine}"));
            self.end(common, machine, false);
            self.exits.insert(uid.to_owned(), 137);
        } else if let Some(seat) = self.boots[at].seat.as_mut().filter(|seat| !seat.signalled) {
            seat.signalled = true;
            self.tell(common, at, Input::Signalled);
        }
    }

    /// Nobody answers for the worker any more, and its Pod is given up; its processes may live on.
    pub fn strand(&mut self, common: &Common, uid: &str) {
        let Some(at) = self.worker_at(uid).filter(|at| self.boots[*at].zombie_until.is_none()) else { return };
        let machine = self.boots[at].machine;
        if self.chance.one_in(3) {
            common.note(|| format!("machine {machine} dies with its node"));
            self.end(common, machine, false);
            return;
        }
        self.end(common, machine, true);
    }

    /// A node's network is gone for so long.
    pub fn cut_off(&mut self, common: &Common, uid: &str, time: Duration) {
        if let Some(at) = self.worker_at(uid) {
            self.boots[at].cut_off_until = common.now() + time;
        }
    }

    /// Workers whose Pods vanished at once: the kubelet ends them, or nobody does for a while.
    pub fn lose_workers(&mut self, common: &Common) {
        for at in 0..self.boots.len() {
            let running = &self.boots[at];
            let Some(seat) = running.seat.clone().filter(|_| running.zombie_until.is_none()) else { continue };
            if is_there(common, &seat) {
                continue;
            }
            let kubelet = self.chance.one_in(2);
            let lives = if kubelet { ORPHAN_GRACE } else { self.chance.millis(5_000, 300_000) };
            let machine = self.boots[at].machine;
            common.note(|| format!("machine {machine}: its Pod is gone, it lives on for {} s", lives.as_secs()));
            self.boots[at].zombie_until = Some(common.now() + lives);
            if kubelet {
                self.tell(common, at, Input::Signalled);
            }
        }
    }

    /// A worker's report is in the mailbox: what it offers must not be lost any more, if its Pod is still there.
    pub(super) fn worker_reported(&self, common: &Common, at: usize, report: &Report) {
        let running = &self.boots[at];
        let (Some(seat), None) = (&running.seat, running.zombie_until) else { return };
        if report.boot == running.id && is_there(common, seat) {
            let recipe = &self.recipes[seat.job];
            let writers = if recipe.all_ranks { recipe.workers } else { 1 };
            let steps = report.offers().map(|offer| offer.manifest.step).collect();
            lock(&common.checker).worker_offered(seat.job, seat.attempt, seat.rank, steps, writers);
        }
    }

    /// A worker's program starts: everybody must be there, and nobody of another attempt may run.
    pub(super) fn worker_begins(&self, common: &Common, at: usize, env: &BTreeMap<String, String>) {
        let Some(seat) = &self.boots[at].seat else { return };
        let count = self.recipes[seat.job].workers;
        if count > 1 {
            let told = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
            let nodes: Vec<String> = (0..count).map(|r| address(seat.job, seat.attempt, r).to_string()).collect();
            let right = told("RANK") == seat.rank.to_string()
                && told("WORLD_SIZE") == count.to_string()
                && told("MASTER_ADDR") == nodes[0]
                && told("NODE_IPS") == nodes.join("\n");
            let all = (0..count).all(|rank| self.came.contains(&(seat.job, seat.attempt, rank)));
            if !right || !all {
                lock(&common.checker).fail(format!(
                    "{}: the program starts as {} of {}, all there: {all}",
                    seat.key,
                    told("RANK"),
                    told("WORLD_SIZE")
                ));
            }
        }
    }

    /// Another attempt's program of this job runs in the cluster, and its Pod is still there.
    pub(super) fn others_run(&self, common: &Common, job: usize, attempt: u32) -> Option<String> {
        let other = self.boots.iter().find(|b| {
            let runs = b.program.is_some() && b.zombie_until.is_none();
            b.seat.as_ref().is_some_and(|s| runs && s.job == job && s.attempt != attempt && is_there(common, s))
        });
        other.map(|b| format!("machine {} runs attempt {:?}", b.machine, b.seat.as_ref().map(|s| s.attempt)))
    }

    /// Workers that run although nobody has given them up.
    pub fn working(&self) -> Vec<String> {
        let seats = self.boots.iter().filter(|b| b.zombie_until.is_none()).filter_map(|b| b.seat.as_ref());
        seats.filter(|s| s.left.is_none()).map(|s| s.key.to_string()).collect()
    }
}

fn is_there(common: &Common, seat: &Seat) -> bool {
    let pod = common.memory.peek::<Pod>(&seat.key);
    pod.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&seat.uid))
}
