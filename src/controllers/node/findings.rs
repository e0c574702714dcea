//! What the operator found when it started, told in conditions of its Node: `kubectl tradewind doctor` reads them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;
use tradewind_api::names;

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Type of the Node's condition.
    pub condition: &'static str,
    /// Whether it is as it should be.
    pub good: bool,
    /// One word.
    pub reason: &'static str,
    /// Sentence.
    pub message: String,
}

impl Finding {
    fn new(condition: &'static str, good: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { condition, good, reason, message: message.into() }
    }

    /// The mailbox did what the operator needs, conditional writes included.
    pub fn mailbox_works(location: &str) -> Self {
        let message = format!("{location} takes conditional writes, lists, signs and deletes");
        Self::new(names::MAILBOX_CONDITION, true, "Probed", message)
    }

    /// The mailbox cannot be used, or there is none.
    pub fn no_mailbox(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(names::MAILBOX_CONDITION, false, reason, message)
    }

    /// How long signed addresses live, and how long they should.
    pub fn tickets(live: Duration, wanted: Duration) -> Self {
        // Signing takes a moment itself, by which the end may come out earlier.
        let good = live + Duration::from_mins(1) >= wanted;
        let hours = |time: Duration| match time.as_secs().div_ceil(60) {
            minutes if minutes % 60 == 0 || minutes > 600 => format!("{} h", minutes / 60),
            minutes => format!("{minutes} min"),
        };
        let (reason, message) = if good {
            ("LongEnough", format!("signed addresses live {}", hours(wanted)))
        } else {
            let message = format!(
                "signed addresses live only {} of {}, since the mailbox's keys are temporary: machines that the operator cannot reach for longer lose their mailbox; give it keys without AWS_SESSION_TOKEN",
                hours(live),
                hours(wanted)
            );
            ("KeysAreTemporary", message)
        };
        Self::new(names::TICKET_LIFETIME_CONDITION, good, reason, message)
    }

    /// Whether rented machines have an agent to fetch.
    pub fn agent(sha256: Option<&str>) -> Self {
        match sha256 {
            Some(sha256) => {
                let start: String = sha256.chars().take(12).collect();
                Self::new(names::AGENT_CONDITION, true, "InMailbox", format!("the agent {start} is in the mailbox"))
            }
            None => Self::new(
                names::AGENT_CONDITION,
                false,
                "NotGiven",
                "no --agent was given, so no machine can be started",
            ),
        }
    }

    /// Whether Pods on the cluster's own nodes have an agent.
    pub fn agent_image(image: Option<&str>) -> Self {
        match image {
            Some(image) => {
                Self::new(names::AGENT_IMAGE_CONDITION, true, "Given", format!("Pods take the agent from {image}"))
            }
            None => Self::new(
                names::AGENT_IMAGE_CONDITION,
                false,
                "NotGiven",
                "no --agent-image was given, so jobs with checkpoints or several workers cannot run on the cluster's own nodes",
            ),
        }
    }

    fn is_told_by(&self, condition: &NodeCondition) -> bool {
        condition.type_ == self.condition
            && (condition.status == "True") == self.good
            && condition.reason.as_deref() == Some(self.reason)
            && condition.message.as_deref() == Some(&self.message)
    }

    fn condition(&self, now: Timestamp) -> NodeCondition {
        NodeCondition {
            type_: self.condition.to_owned(),
            status: if self.good { "True" } else { "False" }.to_owned(),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message.clone()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(Time(now)),
        }
    }
}

/// Conditions that the Node does not have yet as they should be told.
pub fn untold(findings: &[Finding], node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let there = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let untold = findings.iter().filter(|finding| !there.iter().any(|condition| finding.is_told_by(condition)));
    untold.map(|finding| finding.condition(now)).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeStatus;

    use super::*;

    #[test]
    fn findings_are_told_once_and_again_when_they_change() {
        let now = Timestamp::UNIX_EPOCH;
        let works = vec![Finding::mailbox_works("s3://mail/"), Finding::agent(Some("0123456789abcdef"))];
        let fresh = Node::default();
        let told = untold(&works, &fresh, now);
        assert_eq!(told.len(), 2);
        let status = NodeStatus { conditions: Some(told), ..NodeStatus::default() };
        let node = Node { status: Some(status), ..Node::default() };
        assert_eq!(untold(&works, &node, now), []);
        let broken = [Finding::no_mailbox("BucketNotFound", "there is no bucket"), works[1].clone()];
        let again = untold(&broken, &node, now);
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].type_.as_str(), again[0].status.as_str()), ("tradewind.dev/Mailbox", "False"));
    }

    #[test]
    fn short_tickets_are_a_finding_with_both_times() {
        let hours = Duration::from_hours;
        assert!(Finding::tickets(hours(72), hours(72)).good);
        assert!(Finding::tickets(Duration::from_millis(72 * 3_600_000 - 1), hours(72)).good);
        let short = Finding::tickets(hours(1), hours(72));
        assert!(!short.good && short.message.contains("only 1 h of 72 h"), "{}", short.message);
    }
}
