//! What a machine said that never ran the program: the provider's last log lines, asked for once, before it is ended.

use tradewind_api::conditions::bounded;
use tradewind_api::{Reason, RentedMachine, RentedMachineStatus};
use tradewind_providers::http::Redactor;

use super::decide::Observed;
use super::memory::MachineMemory;
use crate::context::Context;
use crate::events::Severity;

/// Ends before which no program ran, so that the machine's own output is all that tells why.
const NEVER_RAN: [Reason; 3] = [Reason::BootFailed, Reason::AgentNotStarted, Reason::NotStartable];
/// Lines that are asked for: what a host adds after the words that matter is short.
const ASKED: u32 = 50;
/// Lines that are kept, of at most so many characters each: about what a person reads, and what a status should hold.
const KEPT: usize = 20;
const LONGEST_LINE: usize = 200;
/// Lines in an Event, whose whole note may have 1,024 characters.
const IN_EVENT: usize = 4;

/// Why the machine ends, if it is one of the ends before the program ran.
fn never_ran(status: &RentedMachineStatus) -> Option<Reason> {
    let ended = status.ended.as_deref()?;
    status.machine_id.as_ref()?;
    NEVER_RAN.into_iter().find(|reason| reason.as_str() == ended)
}

/// Asks for the last lines of a machine that is about to be ended without having run anything, and puts them into its status. Lines that
/// cannot be had change nothing.
pub async fn hear(ctx: &Context, observed: &Observed, status: &mut RentedMachineStatus, memory: &mut MachineMemory) {
    if observed.status.ended.is_some() || never_ran(status).is_none() {
        return;
    }
    let Some(id) = status.machine_id.clone() else { return };
    if memory.last_words.is_none() {
        let Some(account) = ctx.accounts.get(&observed.spec.provider) else { return };
        let said = account.provider.logs(&id, ASKED).await.unwrap_or_else(|error| {
            tracing::info!(%error, reason = error.reason(), machine.id = id, "The last log lines cannot be had");
            None
        });
        memory.last_words = Some(readable(&said.unwrap_or_default()));
    }
    let lines = memory.last_words.as_deref().unwrap_or_default();
    let Some(last) = lines.last() else { return };
    status.exit_log = Some(lines.join("\n"));
    let message = status.ended_message.take().unwrap_or_default();
    status.ended_message = Some(format!("{message}; its last log line: \"{last}\""));
}

/// An Event with these lines, once the end is written down. True if there was something to tell.
pub async fn tell(ctx: &Context, before: &RentedMachineStatus, machine: &RentedMachine) -> bool {
    let Some(status) = machine.status.as_ref().filter(|_| before.ended.is_none()) else { return false };
    let Some(reason) = never_ran(status) else { return false };
    let id = status.machine_id.as_deref().unwrap_or_default();
    let log = status.exit_log.as_deref().unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let before_the_last = &lines[lines.len().saturating_sub(IN_EVENT)..lines.len().saturating_sub(1)];
    let mut note = format!("machine {id}: {}", status.ended_message.as_deref().unwrap_or_default());
    if !before_the_last.is_empty() {
        note = format!("{note}; the lines before: {}", before_the_last.join(" | "));
    }
    ctx.tell(&super::job_reference(machine), Severity::Warning, reason, "Boot", note).await;
    true
}

/// The last lines of a log as they may be shown to anybody: what a machine was given to start with must not be read back from there.
fn readable(log: &str) -> Vec<String> {
    let lines: Vec<String> = log.lines().map(masked).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(KEPT)..].to_vec()
}

/// One line without queries of URLs, without anything of a signature, and without what is long and random enough to be a key: a machine
/// is given signed URLs and the hash of the agent, its market adds keys of its own.
fn masked(line: &str) -> String {
    let line = Redactor::default().clean(line, usize::MAX);
    let words: Vec<String> = line.split(' ').map(masked_word).collect();
    bounded(words.join(" "), LONGEST_LINE)
}

fn masked_word(word: &str) -> String {
    /// The shortest of what must not be shown: the id of an S3 store's key.
    const SHORTEST_KEY: usize = 20;
    let lower = word.to_ascii_lowercase();
    if let Some((name, _)) = word.split_once('=')
        && ["key", "secret", "token", "password"].iter().any(|part| lower[..name.len()].contains(part))
    {
        return format!("{name}=***");
    }
    let signature = lower.find("x-amz-");
    let (word, cut) = signature.map_or((word, ""), |at| (&word[..at], "***"));
    let mut out = String::new();
    let mut run = String::new();
    let flush = |run: &mut String, out: &mut String| {
        let has = |what: fn(&char) -> bool| run.chars().any(|c| what(&c));
        let random = run.len() >= SHORTEST_KEY && has(char::is_ascii_digit) && has(char::is_ascii_alphabetic);
        out.push_str(if random { "***" } else { run });
        run.clear();
    };
    for c in word.chars() {
        if c.is_ascii_alphanumeric() || "_+%-".contains(c) {
            run.push(c);
        } else {
            flush(&mut run, &mut out);
            out.push(c);
        }
    }
    flush(&mut run, &mut out);
    out + cut
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://s3.example.com/mailbox/machines/0b5f4b1e-8c1c-4b52-8f52-5f0d8a6c9a11/control.json?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261121%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn nothing_of_what_a_machine_was_given_is_read_back_from_its_log() {
        let query = URL.split_once('?').unwrap().1;
        let signature = URL.rsplit_once('=').unwrap().1;
        for line in [
            format!("TRADEWIND_CONTROL_URL={URL}"),
            format!("curl: (6) cannot resolve '{URL}'"),
            format!("+ wget -q -O a \"{URL}\""),
            format!("query was {query}"),
            format!("bad signature {signature}"),
            format!("\u{1b}[31m{signature}\u{1b}[0m"),
            format!("CONTAINER_API_KEY={signature}"),
            "X-Amz-Credential=AKIAIOSFODNN7EXAMPLE".to_owned(),
            "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            "key: AKIAIOSFODNN7EXAMPLE.".to_owned(),
        ] {
            let shown = masked(&line);
            for secret in [signature, "AKIAIOSFODNN7EXAMPLE", "X-Amz-Signature=9"] {
                assert!(!shown.contains(secret), "{line}\n{shown}");
            }
            assert!(shown.contains("***") || shown.contains("control.json"), "{shown}");
        }
    }

    #[test]
    fn what_helps_is_kept() {
        for line in [
            "/bin/sh: 1: curl: not found",
            "Error response from daemon: manifest for acme/train-a-very-long-image-name:1.4 not found",
            "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown",
            "wget: unable to resolve host address 's3.eu-central-1.amazonaws.com'",
            "Python 3.12.3 (main, Aug 14 2025, 17:47:21) [GCC 13.3.0] on linux",
        ] {
            assert_eq!(masked(line), line);
        }
    }

    #[test]
    fn a_log_of_any_length_gives_a_few_lines() {
        let long = "x ".repeat(500);
        let log: Vec<String> = (0..5000).flat_map(|n| [format!("line {n}"), String::new(), long.clone()]).collect();
        let log = log.join("\n");
        let lines = readable(&log);
        assert_eq!(lines.len(), KEPT);
        assert!(lines.iter().all(|line| line.chars().count() <= LONGEST_LINE));
        assert_eq!(lines[KEPT - 2], "line 4999");
        assert!(readable("\n \n").is_empty());
    }
}
