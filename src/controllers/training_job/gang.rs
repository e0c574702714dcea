//! Several workers get their nodes together or not at all. Pure.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::training_job::InCluster;
use tradewind_api::{Reason, TrainingJobStatus};

use super::crew::{Crew, State};
use super::decide::{Admission, Decision, Observed, POD_AGAIN, Step};
use super::ended::never_started;
use super::ending::{self, Cause};
use super::status::{IN_CLUSTER, Report};
use super::stop;
use super::turns::{Standing, Turn};
use crate::controllers::pod;
use crate::runtime::Wake;

/// How often a job that waits for its turn looks by itself; it is woken when its turn comes.
const LOOK: Duration = Duration::from_secs(30);

/// How a job stands whose workers do not all have nodes; `None` if it wants none now.
pub fn standing(o: &Observed, attempt: i64) -> Option<Standing> {
    let fresh = TrainingJobStatus::default();
    let status = o.job.status.as_ref().unwrap_or(&fresh);
    // Before its first attempt it stands in the queue only once nothing speaks against it.
    if status.attempt.is_none() && !matches!(o.admission, Admission::Fine { .. }) {
        return None;
    }
    if o.valid.workers < 2 || status.phase.is_terminal() || status.ending.is_some() {
        return None;
    }
    let crew = Crew::of(o, attempt);
    let asks = crew.count(|s| matches!(s, State::Missing | State::Pending)) > 0
        && pause(o).is_none()
        && stop::wanted(o, status, &o.valid).is_none();
    // Whoever is refused by a quota, or as a whole, is no reason for others to wait.
    if !asks || o.refused.is_some() || (o.pod_refused.is_some() && !crew.missing().is_empty()) {
        return None;
    }
    if crew.pods().any(|pod| pod::node(pod).is_empty() && pod::unschedulable(pod).is_some()) {
        return Some(Standing::Stuck);
    }
    Some(if crew.missing().is_empty() { Standing::Trying } else { Standing::Waiting })
}

/// Before the next attempt is tried in the cluster.
pub struct Pause {
    /// Its end.
    until: Timestamp,
    /// Why, as a condition's reason.
    reason: Reason,
    /// Why, as the first half of a sentence.
    what: String,
}

impl Pause {
    /// What a job says meanwhile.
    pub fn words(&self) -> String {
        format!("{}; it is tried again at {}", self.what, self.until.strftime("%H:%M:%S UTC"))
    }

    /// When to look again.
    pub fn wake(&self, o: &Observed) -> Wake {
        let left = o.left(self.until);
        Wake::After(left + Duration::from_millis(50), "the pause is over")
    }
}

/// A job that has given back its nodes leaves them to others for a while; one whose Pods never began, or whose agents fall silent each time,
/// waits longer each time before it tries again.
pub fn pause(o: &Observed) -> Option<Pause> {
    let history = &o.job.status.as_ref()?.history;
    let last = history.last().filter(|last| last.place == IN_CLUSTER)?;
    let reason = Reason::from_word(&last.ended)?;
    let in_a_row = |is: &dyn Fn(&str) -> bool| history.iter().rev().take_while(|record| is(&record.ended)).count();
    let doubling = |times: usize| Duration::from_secs(10) * 2_u32.pow(u32::try_from(times.min(6)).unwrap_or(6));
    let (pause, what) = match reason {
        Reason::GangTimeout => (turned(o), format!("the cluster had no room for all of {} workers", o.valid.workers)),
        Reason::AgentSilent => {
            let times = in_a_row(&|ended| ended == last.ended);
            let what = format!("the agents of the last {times} attempts fell silent");
            (if times > 1 { doubling(times) } else { Duration::ZERO }, what)
        }
        _ if never_started(&last.ended) => {
            (doubling(in_a_row(&never_started)), "the last attempt never began in the cluster".to_owned())
        }
        _ => return None,
    };
    let until = last.at.as_ref()?.0.checked_add(pause).ok().filter(|until| *until > o.now)?;
    Some(Pause { until, reason, what })
}

/// Jobs that gave back at the same moment must not come back at the same moment: between half and the whole of the time.
fn turned(o: &Observed) -> Duration {
    let half = o.valid.gang_timeout / 2;
    let uid = o.job.metadata.uid.as_deref().unwrap_or_default();
    let share = uid.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 100;
    half + half * share / 100
}

/// Not all workers have nodes: make the Pods that are missing, wait, or give back.
pub fn gather(o: &Observed, mut r: Report, attempt: i64, crew: &Crew<'_>) -> Decision {
    let missing = crew.missing();
    let total = crew.workers.len();
    if let Some((reason, message)) = o.pod_refused.as_ref().filter(|_| !missing.is_empty()) {
        if let Some(decision) = give_back(o, &r, attempt, crew) {
            return decision;
        }
        r.waiting(*reason, message);
        return r.rest(Wake::After(POD_AGAIN, "the Pods may be admitted now"));
    }
    match o.turn {
        Turn::Yield(older) | Turn::Behind(older) if crew.pods().next().is_some() && total > 1 => {
            let jobs = if older == 1 { "job waits" } else { "jobs wait" };
            let message =
                format!("the cluster has no room for all of {total} workers, and {older} older {jobs} for room");
            return ending::begin(o, r, crew, attempt, Cause::new(Reason::WaitingForTurn, message));
        }
        _ => {
            if let Some(decision) = await_turn(o, &mut r) {
                return decision;
            }
        }
    }
    if !missing.is_empty() {
        if let Some(pause) = pause(o) {
            r.waiting(pause.reason, &pause.words());
            return r.rest(pause.wake(o));
        }
        return r.decide(Step::CreatePods { attempt, ranks: missing }, Wake::OnChange);
    }
    let gate = crew.workers.iter().find_map(|w| if let State::Gated(gate) = &w.state { Some(gate) } else { None });
    if let Some(gate) = gate {
        r.waiting(
            Reason::Gated,
            &format!("the scheduling gate {gate} holds its Pods; whoever set it decides when they may run"),
        );
        return r.rest(Wake::OnChange);
    }
    if let Some(decision) = give_back(o, &r, attempt, crew) {
        return decision;
    }
    wait(o, r, crew)
}

/// Others are asked for first: nothing of this job is made yet.
pub fn await_turn(o: &Observed, r: &mut Report) -> Option<Decision> {
    let (Turn::Yield(older) | Turn::Behind(older)) = o.turn else { return None };
    let (jobs, them) =
        if older == 1 { ("job with several workers waits", "it") } else { ("jobs with several workers wait", "them") };
    r.waiting(
        Reason::WaitingForTurn,
        &format!("{older} older {jobs} for room in the cluster; this one asks for nodes after {them}"),
    );
    r.passes();
    Some(r.clone().rest(Wake::After(LOOK, "its turn")))
}

fn wait(o: &Observed, mut r: Report, crew: &Crew<'_>) -> Decision {
    let total = crew.workers.len();
    let have = crew.pods().filter(|pod| !pod::node(pod).is_empty()).count();
    let Some(since) = waits_since(crew) else {
        r.waiting(
            Reason::WaitingForCluster,
            &format!("{have} of {total} workers have a node; the scheduler looks for the others"),
        );
        r.passes();
        return r.rest(Wake::OnChange);
    };
    let due = since.checked_add(o.valid.gang_timeout).unwrap_or(Timestamp::MAX);
    let until = if have > 0 || o.others_wait {
        format!(
            "; if that is still so at {}, all are given back and tried again later (gangTimeout)",
            due.strftime("%H:%M:%S UTC")
        )
    } else {
        String::new()
    };
    let room = format!("the cluster has room for {have} of {total} workers");
    if o.valid.in_cluster == InCluster::Only {
        r.waiting(Reason::WaitingForCluster, &format!("{room}{until}"));
    } else {
        let message = format!(
            "{room}, and rented machines have no private network for the others: the job waits for room in the cluster{until}"
        );
        r.waiting(Reason::NoPrivateNetwork, &message);
    }
    let left = o.left(due);
    r.rest(Wake::After(if left.is_zero() { LOOK } else { left }, "gangTimeout"))
}

/// Since when workers wait that have asked for a node.
fn waits_since(crew: &Crew<'_>) -> Option<Timestamp> {
    let nodeless = crew.pods().filter(|pod| pod::node(pod).is_empty());
    nodeless.filter_map(|pod| pod::unschedulable(pod)).min()
}

/// The time for which some workers may wait while others hold nodes is over.
fn give_back(o: &Observed, r: &Report, attempt: i64, crew: &Crew<'_>) -> Option<Decision> {
    let total = crew.workers.len();
    if total < 2 || !(crew.has_nodes() || o.others_wait) {
        return None;
    }
    let made = || crew.pods().filter_map(|pod| pod.metadata.creation_timestamp.as_ref()).map(|t| t.0).min();
    let since = waits_since(crew).or_else(|| if crew.missing().is_empty() { None } else { made() })?;
    if since.checked_add(o.valid.gang_timeout).unwrap_or(Timestamp::MAX) > o.now {
        return None;
    }
    let have = crew.pods().filter(|pod| !pod::node(pod).is_empty()).count();
    let minutes = o.valid.gang_timeout.as_secs().div_ceil(60);
    let message = format!(
        "only {have} of {total} workers had a node after {minutes} min (gangTimeout): all are given back and tried again later"
    );
    Some(ending::begin(o, r.clone(), crew, attempt, Cause::new(Reason::GangTimeout, message)))
}
