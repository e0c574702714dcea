//! What is said at the end, where people look when a container has ended.

use std::fs::OpenOptions;
use std::io::Write;

use crate::config::termination_log;

/// Says a sentence on stderr.
pub fn complain(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "tradewind: {sentence}");
}

/// Says why the agent ends, on stderr and where the kubelet looks for a container's last words. A file that is not there is no
/// kubelet's, and what the program has written into it stays.
pub fn last_word(sentence: &str) {
    complain(sentence);
    let file = OpenOptions::new().append(true).open(termination_log());
    let _ = file.and_then(|mut file| writeln!(file, "{sentence}"));
}
