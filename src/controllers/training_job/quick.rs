//! A program that fails within minutes on a host where none of ours has worked before: host or program may be to blame, so it is tried once
//! elsewhere for free. Pure.

use tradewind_api::conditions::bounded;

use super::decide::{Decision, Step};
use super::ended::is_failure;
use super::status::Report;
use super::valid::Valid;
use crate::runtime::Wake;

/// What follows, if this failure is not counted: another attempt, on another machine. Never on the same one.
///
/// A rule for the exit code wins. Of several such failures in a row only the first is free: then it is the program.
pub fn elsewhere(r: &mut Report, valid: &Valid, attempt: i64, code: i64, log: &str, how: &str) -> Option<Decision> {
    let mut failures = r.status.history.iter().rev().filter(|record| is_failure(&record.ended));
    failures.next().filter(|record| record.attempt == attempt && record.quick_failure)?;
    let again = failures.next().is_some_and(|record| record.quick_failure);
    let ruled = valid.rules.iter().any(|rule| rule.exit_codes.iter().any(|named| i64::from(*named) == code));
    if again || ruled {
        return None;
    }
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    let said = if last.is_empty() { String::new() } else { format!(" (\"{}\")", bounded(last, 200)) };
    let why = format!(
        "{how}{said} within minutes, on a host where no program of ours has worked before: tried once on another host, not counted as a restart"
    );
    r.moves_on(valid, attempt + 1, &why);
    Some(r.clone().decide(Step::CreatePod { attempt: attempt + 1, on_node: false }, Wake::OnChange))
}
