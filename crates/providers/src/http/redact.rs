//! Makes a provider's words fit for messages: no secrets, no signed URLs, no control characters, not long.

use tradewind_core::{ExposeSecret, SecretString};

/// Knows secrets in order to remove them. Does not print.
#[derive(Clone, Default)]
pub struct Redactor {
    secrets: Vec<SecretString>,
}

/// Values in a URL's query that are shorter than this sign nothing.
const SHORTEST_PART: usize = 16;
/// Texts shorter than this are no secrets, and replacing them would spoil every sentence.
const SHORTEST_SECRET: usize = 4;

impl Redactor {
    /// One that also removes `secret`, and of a signed URL the values in its query too, should they be quoted alone.
    pub fn with(mut self, secret: &str) -> Self {
        if secret.len() >= SHORTEST_SECRET {
            self.secrets.push(SecretString::from(secret.to_owned()));
        }
        let query = secret.split_once("://").and_then(|(_, rest)| rest.split_once('?')).map_or("", |(_, query)| query);
        let values = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value);
        self.secrets.extend(
            values.filter(|value| value.len() >= SHORTEST_PART).map(|value| SecretString::from(value.to_owned())),
        );
        self
    }

    /// `text` without secrets, without what follows `?` in URLs, on one line, with at most `max` characters.
    pub fn clean(&self, text: &str, max: usize) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret.expose_secret(), "***");
        }
        let mut out = String::new();
        let mut length = 0;
        for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
            let shown = match (word.find("://"), word.find('?')) {
                (Some(scheme), Some(query)) if scheme < query => &word[..query],
                _ => word,
            };
            for c in (!out.is_empty()).then_some(' ').into_iter().chain(shown.chars()) {
                if length == max {
                    out.push('…');
                    return out;
                }
                out.push(c);
                length += 1;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_secrets_queries_and_control_characters_and_shortens() {
        let r = Redactor::default().with("vast-key-1").with("ab");
        assert_eq!(r.clean("Invalid user key vast-key-1\n\u{1b}[31mabc", 100), "Invalid user key *** [31mabc");
        assert_eq!(r.clean("see https://s3/x?X-Amz-Signature=1&y=2 now?", 100), "see https://s3/x now?");
        assert_eq!(r.clean("one two three", 7), "one two…");
        assert_eq!(r.clean("", 7), "");
        let signed = Redactor::default().with("https://s3/x?X-Amz-Date=20261121&X-Amz-Signature=0123456789abcdef");
        assert_eq!(signed.clean("'0123456789abcdef' of 20261121", 100), "'***' of 20261121");
    }
}
