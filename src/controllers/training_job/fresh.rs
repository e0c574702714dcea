//! Pods that wait keep a URL that their agent can use. Pure.
//!
//! A Pod is made with a signed URL, and signatures end. It may wait for longer: behind a gate, in Kueue's queue, for a node, for an image. The
//! kubelet reads the annotation when it makes the container, so the URL is renewed in the Pod as it is, at half of its life. Making the Pod
//! again would lose its place in the scheduler's queue and in Kueue's, for nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tradewind_api::names;

use super::decide::{Decision, Observed, Step};
use super::template::Seat;
use crate::controllers::pod;
use crate::runtime::Wake;

/// A URL is not renewed sooner than this after it was signed, however short it lives: that would be a write for nothing.
const SOONEST: SignedDuration = SignedDuration::from_secs(5);
/// A Pod that was not there when its URL was to be renewed is looked at again.
const AGAIN: Duration = Duration::from_mins(1);

/// When a URL signed now is renewed: at half of its life, so that a Pod that gets its node then has the other half for its images.
pub fn renewal(now: Timestamp, expires: Timestamp) -> Timestamp {
    let half = (expires.duration_since(now) / 2).max(SOONEST);
    let at = now.checked_add(half).unwrap_or(Timestamp::MAX);
    // Whole seconds: it is for people to read, too.
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The worker that a Pod is for.
pub fn seat(pod: &Pod) -> Option<Seat> {
    Some(Seat { attempt: pod::attempt(pod)?, rank: pod::rank(pod)? })
}

/// The same decision, but URLs that are due are renewed where nothing else is to be done, and if none is due, the next one is not missed.
pub fn keep(o: &Observed, mut decision: Decision) -> Decision {
    let status = &decision.status;
    let open = !status.phase.is_terminal() && status.ending.is_none() && o.refused.is_none();
    let Some(attempt) = status.attempt.filter(|_| open && decision.step == Step::Rest) else { return decision };
    let of_attempt = o.pods.iter().filter(|pod| pod::is_of(pod, attempt));
    let waiting: Vec<(Timestamp, &Arc<Pod>)> = of_attempt.filter_map(|pod| Some((due(o, pod)?, pod))).collect();
    let names = waiting.iter().filter(|(due, _)| *due <= o.now).filter_map(|(_, pod)| pod.metadata.name.clone());
    let names: Vec<String> = names.collect();
    if !names.is_empty() {
        decision.step = Step::RenewUrls(names);
        decision.wake = decision.wake.sooner(Wake::After(AGAIN, "signed URLs of Pods that wait"));
    } else if let Some(next) = waiting.iter().map(|(due, _)| *due).min() {
        let left = o.left(next);
        decision.wake = decision.wake.sooner(Wake::After(left, "signed URLs of Pods that wait"));
    }
    decision
}

/// When the URL of a Pod whose agent has not begun is renewed; `None` for any other Pod. One without the annotation is left alone: whatever
/// takes it off would have us write it for ever.
fn due(o: &Observed, pod: &Pod) -> Option<Timestamp> {
    let begins = pod::phase(pod) == "Pending" && pod.metadata.deletion_timestamp.is_none() && pod::node(pod) != o.node;
    let annotations = pod.metadata.annotations.as_ref().filter(|_| begins && seat(pod).is_some())?;
    annotations.get(names::CONTROL)?;
    annotations.get(names::CONTROL_RENEWAL)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use serde_json::{Value, json};
    use tradewind_api::{TrainingJob, TrainingJobStatus};
    use tradewind_checkpoints::memory::RedeemError;
    use tradewind_checkpoints::{Fetched, MemoryStore};
    use tradewind_cluster::cache::Event;
    use tradewind_cluster::{Cluster, Key, Memory};
    use tradewind_core::ManualClock;

    use super::super::TrainingJobs;
    use super::super::decide::decide;
    use super::super::valid::Refused;
    use super::*;
    use crate::controllers::worker;
    use crate::runtime::{Failure, Reconciler};
    use crate::test_context::{context, install};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A job of two workers whose Pods were made at noon with URLs that live for three days.
    fn observed() -> Observed {
        let mut job: TrainingJob = serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j", "namespace": "default", "uid": "u"},
            "spec": {
                "template": {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x"]}]}}, "workers": 2,
                "placement": {"inCluster": "Only"},
            },
        }))
        .unwrap();
        job.status = Some(TrainingJobStatus { attempt: Some(0), ..TrainingJobStatus::default() });
        let mut o = Observed::bare(job);
        o.now = at("2026-01-01T12:00:00Z");
        o.pods = vec![pod(0, &json!({})), pod(1, &json!({}))];
        o
    }

    fn pod(rank: i64, change: &Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {
                "name": format!("j-0-{rank}"), "namespace": "default", "uid": rank.to_string(),
                "labels": {names::ATTEMPT: "0", names::RANK: rank.to_string()},
                "annotations": {names::CONTROL: "https://s3/old", names::CONTROL_RENEWAL: "2026-01-03T00:00:00Z"},
            },
            "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Pending"},
        });
        for (path, value) in change.as_object().unwrap() {
            let (parent, field) = path.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[field] = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_url_is_renewed_at_half_of_the_life_that_it_really_has() {
        let now = at("2026-01-01T12:00:00.7Z");
        assert_eq!(renewal(now, at("2026-01-04T12:00:00.7Z")), at("2026-01-03T00:00:00Z"));
        assert_eq!(renewal(now, at("2026-01-01T13:00:00.7Z")), at("2026-01-01T12:30:00Z"));
        assert_eq!(renewal(now, now), at("2026-01-01T12:00:05Z"), "never a write for each look");
        assert_eq!(renewal(now, at("2020-01-01T00:00:00Z")), at("2026-01-01T12:00:05Z"));
    }

    #[test]
    fn pods_that_wait_for_long_get_another_url_in_time_and_nothing_else_happens_to_them() {
        let mut o = observed();
        let first = decide(&o);
        let Wake::After(left, "signed URLs of Pods that wait") = first.wake else { panic!("{:?}", first.wake) };
        assert_eq!((first.step, left), (Step::Rest, Duration::from_hours(36)));
        o.now = at("2026-01-02T23:59:00Z");
        assert_eq!(decide(&o).wake, Wake::After(Duration::from_mins(1), "signed URLs of Pods that wait"));
        o.now = at("2026-01-03T00:00:00Z");
        let due = decide(&o);
        assert_eq!(due.step, Step::RenewUrls(vec!["j-0-0".to_owned(), "j-0-1".to_owned()]));
        assert_eq!((due.status.attempt, due.status.history.len(), due.status.preemptions), (Some(0), 0, 0));
        let renewed = json!({names::CONTROL: "https://s3/new", names::CONTROL_RENEWAL: "2026-01-04T12:00:00Z"});
        o.pods[0] = pod(0, &json!({"/metadata/annotations": renewed}));
        assert_eq!(decide(&o).step, Step::RenewUrls(vec!["j-0-1".to_owned()]), "the other is still due");
        o.pods[1] = pod(1, &json!({"/metadata/annotations": renewed}));
        let all = decide(&o);
        assert_eq!(
            (all.step, all.wake),
            (Step::Rest, Wake::After(Duration::from_hours(36), "signed URLs of Pods that wait"))
        );
    }

    #[test]
    fn only_what_waits_is_renewed() {
        let renewal = "2026-01-04T12:00:00Z";
        let cases = [
            ("behind a gate", json!({"/spec/schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}), true),
            ("on its node, while its image is pulled", json!({"/spec/nodeName": "gpu-1"}), true),
            (
                "its agent has read it",
                json!({"/spec/nodeName": "gpu-1", "/status/phase": "Running", "/status/startTime": renewal}),
                false,
            ),
            ("it is going", json!({"/metadata/deletionTimestamp": renewal}), false),
            ("on our Node, where it has another agent", json!({"/spec/nodeName": "tradewind"}), false),
            ("of an attempt that is over", json!({"/metadata/labels": {names::ATTEMPT: "7", names::RANK: "0"}}), false),
            ("without an agent", json!({"/metadata/annotations": {names::CONTROL_RENEWAL: renewal}}), false),
            ("no time is known", json!({"/metadata/annotations": {names::CONTROL: "https://s3/old"}}), false),
        ];
        for (what, change, expected) in cases {
            let mut o = observed();
            o.now = at("2026-01-05T00:00:00Z");
            o.pods = vec![pod(0, &change)];
            let status = o.job.status.clone().unwrap();
            let renews = keep(&o, Decision { status, step: Step::Rest, wake: Wake::OnChange, passing: false }).step;
            let names = if expected { Step::RenewUrls(vec!["j-0-0".to_owned()]) } else { Step::Rest };
            assert_eq!(renews, names, "{what}");
        }
    }

    #[test]
    fn a_pod_that_waits_past_the_life_of_its_url_has_one_that_works() {
        let clock = Arc::new(ManualClock::new(at("2026-01-03T00:00:00Z"), 1));
        let store = MemoryStore::new(Arc::clone(&clock) as _);
        store.create_bucket("mailbox");
        let cluster = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let port: &dyn Cluster = &*cluster;
        let ctx = Arc::new(context(Arc::clone(&clock) as _, &store, Arc::clone(&cluster) as _));
        let now = |future: BoxFuture<'_, Result<Wake, Failure>>| future.now_or_never().unwrap().unwrap();
        let written = |pod: &Arc<Pod>| port.add((**pod).clone()).now_or_never().unwrap().unwrap();
        let mut o = observed();
        o.pods = o.pods.iter().map(written).collect();
        let job = port.add((*o.job).clone()).now_or_never().unwrap().unwrap();
        let labelled = |pod: &Arc<Pod>| {
            let mut pod = (**pod).clone();
            pod.metadata.labels.as_mut().unwrap().insert(names::JOB_UID.to_owned(), job.metadata.uid.clone().unwrap());
            port.write(pod).now_or_never().unwrap().unwrap()
        };
        ctx.caches.pods.lock().apply(Event::Relist(o.pods.iter().map(labelled).collect()));
        let mut job = (*job).clone();
        job.status = o.job.status.clone();
        let job = port.write_status(job).now_or_never().unwrap().unwrap();
        ctx.caches.jobs.lock().apply(Event::Relist(vec![Arc::clone(&job)]));

        let operator = TrainingJobs::new(Arc::clone(&ctx));
        let key = Key::namespaced("default", "j");
        now(operator.reconcile(&key));
        let pods = cluster.peek_all::<Pod>();
        for (rank, pod) in (0..).zip(&pods) {
            assert_eq!(pod.metadata.uid, o.pods[usize::try_from(rank).unwrap()].metadata.uid, "it is the same Pod");
            let annotations = pod.metadata.annotations.as_ref().unwrap();
            assert_eq!(annotations[names::CONTROL_RENEWAL], "2026-01-04T12:00:00Z");
            let id = worker::id(&install(), job.metadata.uid.as_ref().unwrap(), 0, rank);
            assert!(annotations[names::CONTROL].contains(&format!("machines/{id}/control.json")));
            assert_eq!(store.redeem_get(&annotations[names::CONTROL], None), Ok(Fetched::Absent), "it is signed");
        }
        let version = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.metadata.resource_version.clone()).collect::<Vec<_>>();
        let Wake::After(left, _) = now(operator.reconcile(&key)) else { panic!("it must look again") };
        assert_eq!(version(&cluster.peek_all::<Pod>()), version(&pods), "once is enough");
        assert!(left <= Duration::from_hours(36), "{left:?}");
        clock.advance(Duration::from_hours(72) + Duration::from_secs(1));
        assert_eq!(
            store.redeem_get(&pods[0].metadata.annotations.as_ref().unwrap()[names::CONTROL], None),
            Err(RedeemError::Expired)
        );
        now(operator.reconcile(&key));
        let renewed = cluster.peek_all::<Pod>();
        assert!(store.redeem_get(&renewed[0].metadata.annotations.as_ref().unwrap()[names::CONTROL], None).is_ok());
    }

    #[test]
    fn what_else_is_to_be_done_comes_first() {
        let mut o = observed();
        o.now = at("2026-01-05T00:00:00Z");
        o.pods.pop();
        assert_eq!(decide(&o).step, Step::CreatePods { attempt: 0, ranks: vec![1] });
        let mut o = observed();
        o.now = at("2026-01-05T00:00:00Z");
        let refused = Refused { reason: tradewind_api::Reason::AgentNotStarted, message: "no mailbox".to_owned() };
        o.refused = Some(refused);
        assert_eq!(decide(&o).step, Step::Rest, "it could not be signed");
    }
}
