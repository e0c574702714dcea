//! Rental accounts. Pure.

use jiff::Timestamp;
use tradewind_api::conditions::{LOSSES_AT_ONCE, READY, condition};
use tradewind_api::{Provider, Reason};
use tradewind_core::Money;

use super::mends;
use super::report::Check;
use crate::advice;
use crate::cli::DoctorArgs;
use crate::cost;
use crate::text::{count, dollars};

const AREA: &str = "accounts";

/// How the accounts are.
pub fn accounts(providers: &[Provider], args: &DoctorArgs, now: Timestamp) -> Vec<Check> {
    if providers.is_empty() {
        let message = "there is none, so nothing can be rented; jobs run in the cluster only";
        return vec![
            Check::warning(AREA, "Providers", message).mend("kubectl apply -f deploy/samples/provider-vast.yaml"),
        ];
    }
    providers.iter().map(|provider| account(provider, args, now)).collect()
}

fn account(provider: &Provider, args: &DoctorArgs, now: Timestamp) -> Check {
    let name = provider.metadata.name.clone().unwrap_or_default();
    let status = provider.status.clone().unwrap_or_default();
    let limits = &provider.spec.limits;
    let edit = format!("kubectl edit twp {name}");
    let patch = |spec: &str| format!("kubectl patch twp {name} --type merge -p '{{\"spec\":{spec}}}'");
    match condition(&status.conditions, READY) {
        None => {
            return Check::problem(AREA, name, "the operator has not looked at it: does it run?")
                .mend(mends::look_at_operator(args));
        }
        Some(ready) if ready.status != "True" => {
            let secret = &provider.spec.credentials_secret_ref;
            let mend = Reason::from_word(&ready.reason).and_then(|reason| {
                advice::for_provider(reason, &name, &args.operator_namespace, &secret.name, &secret.key)
            });
            let check = if ready.reason == Reason::Paused.as_str() {
                Check::warning(AREA, name, &ready.message)
            } else {
                Check::problem(AREA, name, format!("{}: {}", ready.reason, ready.message))
            };
            return match mend {
                Some(mend) => check.mend(mend),
                None => check,
            };
        }
        Some(_) => {}
    }
    if provider.spec.paused {
        let resume = patch(r#"{"paused":false}"#);
        return Check::warning(AREA, name, "is paused: nothing new is rented").mend(resume);
    }
    if let Some(losses) = condition(&status.conditions, LOSSES_AT_ONCE).filter(|c| c.status == "True") {
        return Check::warning(AREA, name, &losses.message);
    }
    let spent = cost::last_day(provider, now);
    if spent >= limits.per_day {
        let message =
            format!("limits.perDay is used up: {} of {} in 24 hours", dollars(spent), dollars(limits.per_day));
        return Check::warning(AREA, name, message).mend(edit);
    }
    if status.machines > 0 && status.committed_per_hour >= limits.per_hour {
        let message = format!(
            "limits.perHour is used up by {}: {}/h",
            count(status.machines, "machine"),
            dollars(limits.per_hour)
        );
        return Check::warning(AREA, name, message).mend(edit);
    }
    if let Some(credit) =
        status.credit.filter(|credit| *credit < status.committed_per_hour.times(2).max(Money::from_micros(1)))
    {
        let message = format!("the credit, {}, lasts less than two hours", dollars(credit));
        return Check::warning(AREA, name, message).mend("add credit to the account, on the provider's own site");
    }
    let credit = status.credit.map_or(String::new(), |credit| format!(", credit {}", dollars(credit)));
    let message = format!(
        "ready, {}, {}/h of {}/h, {} of {} a day{credit}",
        count(status.machines, "machine"),
        dollars(status.committed_per_hour),
        dollars(limits.per_hour),
        dollars(spent),
        dollars(limits.per_day)
    );
    Check::ok(AREA, name, message)
}
