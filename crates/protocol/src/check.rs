//! The checks that several documents share. Problems name the rule and never repeat the value.

use crate::{Invalid, Ticket};

/// The highest attempt number that is believed; a bound, so that `+ 1` never overflows and a forged number stands out.
pub const MAX_ATTEMPT: u32 = 1_000_000;

/// Checks fields of one document.
#[derive(Clone, Copy)]
pub(crate) struct Check(pub &'static str);

impl Check {
    /// `Err` with this field and problem unless `ok`.
    pub fn that(self, ok: bool, field: &str, problem: impl FnOnce() -> String) -> Result<(), Invalid> {
        if ok { Ok(()) } else { Err(Invalid::new(self.0, field, problem())) }
    }

    /// A protocol version that is understood.
    pub fn version(self, version: u32) -> Result<(), Invalid> {
        crate::document::check_version(self.0, version)
    }

    /// An identifier: 1 to 64 letters, digits, `.`, `_` or `-`, not starting with a dot; fit to be part of an object key.
    pub fn id(self, field: &str, text: &str) -> Result<(), Invalid> {
        let fits = (1..=64).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        self.that(fits, field, || "must be 1 to 64 letters, digits, '.', '_' or '-', and not begin with '.'".to_owned())
    }

    /// An attempt number within [`MAX_ATTEMPT`].
    pub fn attempt(self, attempt: u32) -> Result<(), Invalid> {
        self.that(attempt <= MAX_ATTEMPT, "attempt", || format!("must be at most {MAX_ATTEMPT}"))
    }

    /// A text of at most `max` characters.
    pub fn text(self, field: &str, text: &str, max: usize) -> Result<(), Invalid> {
        // Bytes first: they bound the walk over the characters.
        let fits = text.len() <= max || (text.len() <= max * 4 && text.chars().count() <= max);
        self.that(fits, field, || format!("must have at most {max} characters"))
    }

    /// A list of at most `max` things.
    pub fn count(self, field: &str, count: usize, max: usize) -> Result<(), Invalid> {
        self.that(count <= max, field, || format!("has {count} entries, at most {max} are allowed"))
    }

    /// A text without NUL, which no program argument, variable or path can hold.
    pub fn no_nul(self, field: &str, text: &str) -> Result<(), Invalid> {
        self.that(!text.contains('\0'), field, || "must not contain NUL".to_owned())
    }

    /// A ticket with a URL that could be one.
    pub fn ticket(self, field: &str, ticket: &Ticket) -> Result<(), Invalid> {
        self.url_of(field, &ticket.url, &["https://", "http://", "memory://"])
    }

    /// A text that could be an http or https URL.
    pub fn url(self, field: &str, url: &str) -> Result<(), Invalid> {
        self.url_of(field, url, &["https://", "http://"])
    }

    fn url_of(self, field: &str, url: &str, schemes: &[&str]) -> Result<(), Invalid> {
        let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
        let fits = rest.is_some_and(|rest| !rest.is_empty())
            && url.len() <= Ticket::MAX_URL_BYTES
            && url.bytes().all(|b| b.is_ascii_graphic());
        self.that(fits, field, || format!("must be an http or https URL of at most {} bytes", Ticket::MAX_URL_BYTES))
    }
}

/// The text without control characters (newline and tab stay) and without what turns the direction of writing, cut to its last `max`
/// characters. For everything that a machine says and a person will read on a terminal.
pub fn clean_text(text: &str, max: usize) -> String {
    let harmless = |c: &char| {
        let turns = matches!(*c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        *c == '\n' || *c == '\t' || !(c.is_control() || turns)
    };
    let kept: Vec<char> = text.chars().filter(harmless).collect();
    kept[kept.len().saturating_sub(max)..].iter().collect()
}

/// [`clean_text`] in place, for a text whose length has been checked.
pub(crate) fn clean_in_place(text: &mut String) {
    let cleaned = clean_text(text, usize::MAX);
    if cleaned.len() != text.len() {
        *text = cleaned;
    }
}

/// True for 64 lower-case hexadecimal digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
