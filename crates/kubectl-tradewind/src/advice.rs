//! What to do next, for the reasons that have an answer. `docs/troubleshooting.md` says more.

use tradewind_api::Reason;

/// What to do about a job with this reason; `None` where waiting is right or nothing general can be said.
pub fn for_job(reason: Reason, job: &str, namespace: &str) -> Option<String> {
    let tradewind = |rest: &str| format!("kubectl tradewind {rest} -n {namespace}");
    let logs = tradewind(&format!("logs {job}"));
    let doctor = tradewind(&format!("doctor --for {job}"));
    let edit = format!("kubectl edit tj {job} -n {namespace}");
    let merge = |what: &str, spec: &str| {
        format!("{what}: kubectl patch tj {job} -n {namespace} --type merge -p '{{\"spec\":{spec}}}'")
    };
    Some(match reason {
        Reason::PodRefused
        | Reason::InvalidLocation
        | Reason::CommandRequired
        | Reason::InvalidCheckpoint
        | Reason::UnknownGpu
        | Reason::TemplateConflict => format!("correct the spec: {edit}"),
        Reason::NotRentable => format!("take out of the template what rented machines cannot give, or let it run in the cluster: {edit}"),
        Reason::NoPrivateNetwork => {
            "make room in the cluster, or run with one worker: several need a network between them that rented machines do not have".to_owned()
        }
        Reason::SecretNotFound | Reason::SecretKeyMissing | Reason::SecretsNotReadable | Reason::NoAccess => {
            format!("see what is missing, and the command that mends it: {doctor}")
        }
        Reason::BucketNotFound | Reason::BucketDenied | Reason::StorageUnsuitable => {
            "mend the bucket or the keys in the Secret that checkpoint.secretRef names; the job goes on by itself".to_owned()
        }
        Reason::QuotaExceeded => format!("make room or ask for more: kubectl describe quota -n {namespace}"),
        Reason::NoMailbox => format!("whoever runs the operator must give it a bucket: {}", tradewind("doctor")),
        Reason::NoProvider => "apply a Provider (deploy/samples/provider-vast.yaml), or correct placement.providers: kubectl get twp".to_owned(),
        Reason::NoOffer => {
            format!("wait for the market, or allow more (gpu.models, placement.regions, minTrust, budget.perHour): {edit}")
        }
        Reason::LimitReached => "wait for other machines to end, or raise the limit that is named above".to_owned(),
        Reason::BudgetExhausted => merge("give it more money, if the rest is worth it", r#"{"budget":{"total":"DOLLARS"}}"#),
        Reason::Suspended => merge("to go on", r#"{"suspend":false}"#),
        Reason::NodeCordoned => "allow renting again: kubectl uncordon $(kubectl get nodes -l type=virtual-kubelet -o name)".to_owned(),
        Reason::Gated => "the owner of the scheduling gate decides; with Kueue: kubectl get workloads".to_owned(),
        Reason::TooManyRestarts | Reason::ProgramFailed | Reason::ProgramStalled | Reason::Killed | Reason::NotStartable => {
            format!("see what the program said: {logs}")
        }
        Reason::OutOfMemory => format!("ask for more memory (resources.requests.memory of the first container), or use less: {edit}"),
        Reason::CheckpointLocationInUse => format!("give each job a location of its own: checkpoint.to cannot be changed, so make another job instead of {job}"),
        Reason::RunExists => merge("to go on with the run that is there", r#"{"checkpoint":{"onExisting":"Resume"}}"#),
        Reason::FinishedWithOtherSpec => merge("to start over", r#"{"checkpoint":{"onExisting":"Fresh"}}"#),
        _ => return None,
    })
}

/// What to do about a Provider with this reason. `secret` is `namespace/name` of its key.
pub fn for_provider(reason: Reason, provider: &str, secret_namespace: &str, secret: &str, key: &str) -> Option<String> {
    Some(match reason {
        Reason::KeyRefused | Reason::SecretNotFound | Reason::SecretKeyMissing => format!(
            "kubectl create secret generic {secret} -n {secret_namespace} --from-literal {key}=KEY --dry-run=client -o yaml | kubectl apply --server-side --force-conflicts -f -"
        ),
        Reason::SecretsNotReadable | Reason::NotHeld => "kubectl apply -f deploy/operator/rbac.yaml".to_owned(),
        Reason::OutOfCredit => "add credit to the account, on the provider's own site".to_owned(),
        Reason::Paused => format!("kubectl patch twp {provider} --type merge -p '{{\"spec\":{{\"paused\":false}}}}'"),
        Reason::Deleting => format!("kubectl get twm | grep {provider}   # what is waited for"),
        _ => return None,
    })
}
