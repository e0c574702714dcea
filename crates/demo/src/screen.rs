//! Calm lines with the time since the start and a word for who speaks.

use std::io::Write;

use tokio::time::Instant;

/// Columns that a line fills at most, unless a word is longer.
const WIDTH: usize = 118;
/// Columns before the text.
const INDENT: usize = 20;

/// Who a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The demo itself.
    Demo,
    /// The market and its machines.
    Market,
    /// The job as its object tells it.
    Job,
    /// The training program.
    Program,
    /// The job that nobody disturbs.
    Reference,
    /// The job with several workers.
    Gang,
}

impl Who {
    fn word(self) -> (&'static str, &'static str) {
        match self {
            Self::Demo => ("demo", "35"),
            Self::Market => ("market", "33"),
            Self::Job => ("charlm", "36"),
            Self::Program => ("program", "32"),
            Self::Reference => ("reference", "2"),
            Self::Gang => ("gang", "34"),
        }
    }
}

/// Where the story is told.
#[derive(Debug, Clone)]
pub struct Screen {
    began: Instant,
    colour: bool,
}

impl Screen {
    /// The clock of the lines starts now.
    pub fn new(colour: bool) -> Self {
        Self { began: Instant::now(), colour }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// One line of the story; a long one is wrapped.
    pub fn say(&self, who: Who, text: &str) {
        let (word, colour) = who.word();
        let head = format!("{:6.1} s  {}", self.seconds(), self.paint(&format!("{word:<9}"), colour));
        let body = wrap(text, WIDTH - INDENT).join(&format!("\n{}", " ".repeat(INDENT)));
        let body = if who == Who::Reference { self.paint(&body, colour) } else { body };
        self.plain(&format!("{head}  {body}"));
    }

    /// A line without time and speaker.
    #[expect(clippy::unused_self, reason = "everything that is shown goes through the screen")]
    pub fn plain(&self, text: &str) {
        // Nobody may be reading any more; the demo ends by itself.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// The result of a check.
    pub fn check(&self, holds: bool, text: &str) {
        let mark = if holds { self.paint("✔", "32") } else { self.paint("✘", "31;1") };
        let body = wrap(text, WIDTH - 4).join("\n    ");
        self.plain(&format!("  {mark} {body}"));
    }

    /// A heading.
    pub fn head(&self, text: &str) {
        self.plain(&format!("\n{}", self.paint(text, "1")));
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Lines of at most `width` characters, broken between words.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one\ntwo", 7), ["one", "two"]);
        assert_eq!(wrap("incomprehensibilities a", 7), ["incomprehensibilities", "a"]);
        assert_eq!(wrap("", 7), [""]);
    }
}
