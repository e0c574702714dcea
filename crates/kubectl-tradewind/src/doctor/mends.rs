//! Commands that mend what the operator told on its Node, and what one looks at when it tells nothing. Pure.

use tradewind_api::names;

use crate::cli::DoctorArgs;

/// The operator's Deployment, as `deploy/operator/` has it.
const OPERATOR: &str = "deploy/tradewind-operator";

/// What shows whether the operator runs, and what it says.
pub(super) fn look_at_operator(args: &DoctorArgs) -> String {
    let namespace = &args.operator_namespace;
    format!("kubectl get deploy,pods -n {namespace}; kubectl logs -n {namespace} {OPERATOR} --tail 50")
}

/// What mends a condition of the Node that is not as it should be.
pub(super) fn of_finding(type_: &str, reason: &str, message: &str, args: &DoctorArgs) -> String {
    let namespace = &args.operator_namespace;
    let set = |what: &str, why: &str| format!("kubectl set env -n {namespace} {OPERATOR} {what}   # {why}");
    match type_ {
        names::MAILBOX_CONDITION => mailbox(reason, message, namespace, &set),
        // Only what stands in the Secret is changed, and the token taken out of it; keys are read when the operator starts.
        names::TICKET_LIFETIME_CONDITION => format!(
            "kubectl patch secret mailbox -n {namespace} --type merge -p '{}' && kubectl rollout restart -n {namespace} {OPERATOR}   # {MAILBOX_SECRET}",
            r#"{"data":{"AWS_SESSION_TOKEN":null},"stringData":{"AWS_ACCESS_KEY_ID":"ID","AWS_SECRET_ACCESS_KEY":"KEY"}}"#
        ),
        names::AGENT_CONDITION => {
            set("TRADEWIND_AGENT=/usr/local/bin/tradewind-agent", "its --agent: where its image has the agent")
        }
        _ => set("TRADEWIND_AGENT_IMAGE=IMAGE", "its --agent-image: the operator's own image has the agent"),
    }
}

/// Its name is the operator's to choose, and nothing in the cluster tells it.
const MAILBOX_SECRET: &str = "the Secret that TRADEWIND_MAILBOX_SECRET names";

/// Another bucket, other keys, or what the operator says: by what is wrong (`ProbeFailure::reason`).
fn mailbox(reason: &str, message: &str, namespace: &str, set: &dyn Fn(&str, &str) -> String) -> String {
    let bucket = "TRADEWIND_MAILBOX=s3://BUCKET/";
    let keys = || {
        format!(
            "kubectl create secret generic mailbox -n {namespace} --from-literal AWS_ACCESS_KEY_ID=ID --from-literal AWS_SECRET_ACCESS_KEY=KEY --dry-run=client -o yaml | kubectl apply -f -   # {MAILBOX_SECRET}, with what else it has, such as AWS_REGION"
        )
    };
    match reason {
        "NotGiven" => set(
            &format!("{bucket} TRADEWIND_MAILBOX_SECRET=mailbox"),
            "a bucket with conditional writes, and a Secret with its keys",
        ),
        "NoConditionalWrites" => set(bucket, "another bucket, with conditional writes"),
        "StoreInconsistent" => set(bucket, "another bucket, of a strongly consistent store"),
        "BucketNotFound" => set(bucket, "a bucket that is there; or make this one"),
        "StoreDenied" if message.contains("AccessDenied") => {
            format!("allow its key these verbs where the bucket is; or give it another: {}", keys())
        }
        "StoreDenied" => keys(),
        // The Secret is not there, or lacks a key.
        "CannotBeOpened" if message.contains("Secret ") => keys(),
        _ => format!("kubectl logs -n {namespace} {OPERATOR} | grep -i mailbox"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn mend(type_: &str, reason: &str, message: &str) -> String {
        let words = ["kubectl-tradewind", "doctor", "--operator-namespace", "ops"];
        match Cli::try_parse_from(words).unwrap().command {
            Command::Doctor(args) => of_finding(type_, reason, message, &args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_mend_follows_the_problem() {
        let denied = |word: &str| mend(names::MAILBOX_CONDITION, "StoreDenied", &format!("denied put ({word})"));
        let keys = "kubectl create secret generic mailbox -n ops --from-literal AWS_ACCESS_KEY_ID=ID";
        assert!(denied("SignatureDoesNotMatch").starts_with(keys), "{}", denied("SignatureDoesNotMatch"));
        let rights = denied("AccessDenied");
        assert!(rights.starts_with("allow its key these verbs") && rights.contains(keys), "{rights}");
        let of = |reason: &str, message: &str| mend(names::MAILBOX_CONDITION, reason, message);
        assert!(of("CannotBeOpened", "reading Secret ops/mailbox: not found").starts_with(keys));
        let bucket = "kubectl set env -n ops deploy/tradewind-operator TRADEWIND_MAILBOX=s3://BUCKET/";
        for reason in ["NotGiven", "NoConditionalWrites", "StoreInconsistent", "BucketNotFound"] {
            assert!(of(reason, "").starts_with(bucket), "{reason}");
        }
        for reason in ["StoreUnavailable", "CannotBeOpened", "NotTried", ""] {
            assert!(of(reason, "").starts_with("kubectl logs -n ops"), "{reason}");
        }
    }

    #[test]
    fn every_mend_is_a_command() {
        for type_ in [names::TICKET_LIFETIME_CONDITION, names::AGENT_CONDITION, names::AGENT_IMAGE_CONDITION] {
            let mend = mend(type_, "NotGiven", "");
            assert!(mend.starts_with("kubectl ") && mend.contains("-n ops"), "{mend}");
        }
    }
}
