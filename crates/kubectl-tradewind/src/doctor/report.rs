//! What doctor found, as plain data and as text. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use crate::screen::{Ink, Shade};
use crate::text::count;

/// How one thing is.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, but somebody may want to know.
    Warning,
    /// Does not work.
    Problem,
    /// Could not be looked at.
    Unknown,
}

/// One thing that was looked at.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Which part: installation, accounts, rights, jobs, job.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub state: State,
    /// Sentence.
    pub message: String,
    /// The command, or the deed, that mends it.
    pub mend: Option<String>,
}

impl Check {
    fn new(area: &'static str, name: impl Into<String>, state: State, message: impl Into<String>) -> Self {
        Self { area, name: name.into(), state, message: message.into(), mend: None }
    }

    /// As it should be.
    pub fn ok(area: &'static str, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(area, name, State::Ok, message)
    }

    /// Works, but somebody may want to know.
    pub fn warning(area: &'static str, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(area, name, State::Warning, message)
    }

    /// Does not work.
    pub fn problem(area: &'static str, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(area, name, State::Problem, message)
    }

    /// Could not be looked at.
    pub fn unknown(area: &'static str, name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(area, name, State::Unknown, message)
    }

    /// The command that mends it.
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// Everything that was looked at.
#[derive(Serialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How many problems there are.
    pub problems: usize,
    /// How many warnings.
    pub warnings: usize,
    /// How many could not be looked at.
    pub unknown: usize,
    /// All of it.
    pub checks: Vec<Check>,
}

impl Report {
    /// Adds what was found.
    pub fn extend(&mut self, checks: impl IntoIterator<Item = Check>) {
        self.checks.extend(checks);
    }

    /// Counts what was found.
    pub fn count(&mut self) {
        let count = |state| self.checks.iter().filter(|check| check.state == state).count();
        (self.problems, self.warnings, self.unknown) =
            (count(State::Problem), count(State::Warning), count(State::Unknown));
    }
}

/// Area by area, each thing with its state, what it is, and how to mend it.
pub fn render(report: &Report, ink: Ink) -> String {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut area = "";
    for check in &report.checks {
        if check.area != area {
            if !area.is_empty() {
                text.push('\n');
            }
            area = check.area;
            let (first, rest) = area.split_at(1);
            let _ = writeln!(text, "{}", ink.paint(&format!("{}{rest}", first.to_uppercase()), Shade::Strong));
        }
        let (word, shade) = match check.state {
            State::Ok => ("ok     ", Shade::Good),
            State::Warning => ("warning", Shade::Waiting),
            State::Problem => ("PROBLEM", Shade::Bad),
            State::Unknown => ("unknown", Shade::Faint),
        };
        let _ = writeln!(text, "  {}  {:width$}  {}", ink.paint(word, shade), check.name, check.message);
        if let Some(mend) = &check.mend {
            let _ = writeln!(text, "           {:width$}  {} {mend}", "", ink.paint("mend:", Shade::Strong));
        }
    }
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let verdict = match (report.problems, report.warnings) {
        (0, 0) => "No problems.".to_owned(),
        (0, warnings) => format!("No problems, {}.", count(number(warnings), "warning")),
        (problems, 0) => format!("{}.", count(number(problems), "problem")),
        (problems, warnings) => {
            format!("{}, {}.", count(number(problems), "problem"), count(number(warnings), "warning"))
        }
    };
    let not = if report.unknown > 0 { format!(" {} could not be looked at.", report.unknown) } else { String::new() };
    let _ = writeln!(text, "\n{verdict}{not}");
    text
}
