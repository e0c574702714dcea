//! Keeps the values of the job's Secrets out of what the program prints: its output goes to the container's own log, which the provider
//! keeps, to the mailbox and, at a failure, into the status.

use tradewind_core::{ExposeSecret, SecretString};

/// Shorter values are left alone: they are words like `true` or `8080`, and hide nothing.
pub const SHORTEST: usize = 6;
/// What is printed in their place.
const MASK: &[u8] = b"***";

/// Replaces known values in a stream, wherever its pieces are cut.
pub struct Masker {
    /// Longest first, so that the longest value at a place is the one that is replaced.
    values: Vec<SecretString>,
    /// Whether a value begins with that byte.
    begins: [bool; 256],
    /// The end of the stream so far, while it may be the beginning of a value.
    pending: Vec<u8>,
}

impl Masker {
    /// For these values. Blanks around them are not part of what is looked for.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let trimmed = values.into_iter().map(|value| value.expose_secret().trim());
        let mut values: Vec<SecretString> =
            trimmed.filter(|value| value.len() >= SHORTEST).map(SecretString::from).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.expose_secret().len()));
        let mut begins = [false; 256];
        for value in &values {
            begins[usize::from(value.expose_secret().as_bytes()[0])] = true;
        }
        Self { values, begins, pending: Vec::new() }
    }

    /// Takes in a piece and gives what may be shown of the stream by now.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.values.is_empty() {
            return piece.to_vec();
        }
        let mut stream = std::mem::take(&mut self.pending);
        stream.extend_from_slice(piece);
        let mut shown = Vec::with_capacity(stream.len());
        let mut rest = stream.as_slice();
        while let Some(byte) = rest.first() {
            if !self.begins[usize::from(*byte)] {
                shown.push(*byte);
                rest = &rest[1..];
                continue;
            }
            let mut values = self.values.iter().map(|value| value.expose_secret().as_bytes());
            // More of the stream may make it a value, or a longer one.
            if values.clone().any(|value| value.len() > rest.len() && value.starts_with(rest)) {
                self.pending = rest.to_vec();
                return shown;
            }
            let whole = values.find(|value| rest.starts_with(value)).map(<[u8]>::len);
            shown.extend_from_slice(if whole.is_some() { MASK } else { &rest[..1] });
            rest = &rest[whole.unwrap_or(1)..];
        }
        shown
    }

    /// What is left at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.pending);
        // A whole value may stand before what could have become a longer one.
        let longer = std::mem::take(&mut self.values);
        self.values = longer.into_iter().filter(|value| value.expose_secret().len() <= rest.len()).collect();
        let mut shown = self.push(&rest);
        rest = std::mem::take(&mut self.pending);
        shown.append(&mut rest);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(values: &[&str], pieces: &[&[u8]]) -> String {
        let values: Vec<SecretString> = values.iter().map(|value| SecretString::from(*value)).collect();
        let mut masker = Masker::new(&values);
        let mut shown: Vec<u8> = pieces.iter().flat_map(|piece| masker.push(piece)).collect();
        shown.extend(masker.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn values_are_replaced_wherever_the_stream_is_cut() {
        let values = ["hunter2hunter", "hunter2", "topsecret\n", "short"];
        for (text, expected) in [
            ("password hunter2!", "password ***!"),
            ("hunter2hunter2hunter", "***2hunter"),
            ("hunter2hunte", "***hunte"),
            ("a short hunter", "a short hunter"),
            ("hhunter2", "h***"),
            ("topsecret\ntopsecret", "***\n***"),
            ("", ""),
        ] {
            assert_eq!(masked(&values, &[text.as_bytes()]), expected, "{text:?} in one piece");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(masked(&values, &bytes), expected, "{text:?} byte by byte");
            for cut in 0..text.len() {
                let (left, right) = text.as_bytes().split_at(cut);
                assert_eq!(masked(&values, &[left, right]), expected, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn without_values_everything_is_shown_at_once() {
        let mut masker = Masker::new(&[SecretString::from("true")]);
        assert_eq!(masker.push(b"it is true"), b"it is true");
        assert!(masker.finish().is_empty());
    }
}
