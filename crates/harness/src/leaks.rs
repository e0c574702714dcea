//! Searching recordings, logs and files for secrets, plain and in the codings in which they could hide.

use std::{fs, io::ErrorKind, path::Path};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use memchr::memmem::Finder;

use crate::{Error, Result, proxy::Recorded};

/// Where a secret was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// The secret's name, never its value.
    pub secret: String,
    /// The coding in which it was found.
    pub coding: &'static str,
    /// What it was found in.
    pub place: String,
}

/// Secrets to search for.
pub struct Secrets {
    needles: Vec<Needle>,
}

struct Needle {
    secret: String,
    coding: &'static str,
    finder: Finder<'static>,
}

impl Secrets {
    /// Secrets by name and value.
    ///
    /// # Panics
    /// If a value is shorter than 8 bytes: it would be found by chance.
    pub fn new<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut needles = Vec::new();
        for (name, value) in values {
            assert!(value.len() >= 8, "the secret {name} is too short to search for");
            let mut forms = codings(value);
            forms.sort_by(|a, b| a.1.cmp(&b.1));
            forms.dedup_by(|a, b| a.1 == b.1);
            needles.extend(forms.into_iter().map(|(coding, form)| Needle {
                secret: name.into(),
                coding,
                finder: Finder::new(&form).into_owned(),
            }));
        }
        Self { needles }
    }

    /// Searches one piece of text.
    pub fn find(&self, place: &str, haystack: &[u8]) -> Vec<Leak> {
        let found = self.needles.iter().filter(|needle| needle.finder.find(haystack).is_some());
        found.map(|n| Leak { secret: n.secret.clone(), coding: n.coding, place: place.into() }).collect()
    }

    /// Searches both directions of recorded exchanges; `place` begins each leak's place.
    pub fn find_in_exchanges(&self, place: &str, exchanges: &[Recorded]) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for exchange in exchanges {
            let line = String::from_utf8_lossy(exchange.request.split(|b| *b == b'\r').next().unwrap_or_default())
                .into_owned();
            leaks.extend(self.find(&format!("{place}: request {} {line}", exchange.id), &exchange.request));
            leaks.extend(self.find(&format!("{place}: answer {} {line}", exchange.id), &exchange.response));
        }
        leaks
    }

    /// Searches every file below a directory, and the names too. What vanishes meanwhile, as with a machine that ends, gives nothing away.
    pub fn find_in_directory(&self, directory: &Path) -> Result<Vec<Leak>> {
        let reading = |path: &Path| Error::io(format!("reading {}", path.display()));
        let mut leaks = Vec::new();
        for entry in fs::read_dir(directory).map_err(reading(directory))? {
            let path = entry.map_err(reading(directory))?.path();
            let place = path.display().to_string();
            leaks.extend(self.find(&place, path.file_name().unwrap_or_default().as_encoded_bytes()));
            match self.find_at(&path, &place) {
                Err(_) if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == ErrorKind::NotFound) => {}
                found => leaks.extend(found?),
            }
        }
        Ok(leaks)
    }

    fn find_at(&self, path: &Path, place: &str) -> Result<Vec<Leak>> {
        let reading = || Error::io(format!("reading {}", path.display()));
        let kind = fs::symlink_metadata(path).map_err(reading())?.file_type();
        if kind.is_dir() {
            self.find_in_directory(path)
        } else if kind.is_file() {
            Ok(self.find(place, &fs::read(path).map_err(reading())?))
        } else {
            Ok(Vec::new())
        }
    }
}

/// Every form in which a value is searched for.
fn codings(value: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms = vec![("plain", value.as_bytes().to_vec())];
    for offset in 0..3 {
        forms.push(("base64", base64_inside(value, offset, &STANDARD_NO_PAD)));
        forms.push(("base64url", base64_inside(value, offset, &URL_SAFE_NO_PAD)));
    }
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let percent = |upper: bool, plus: bool, safe: &dyn Fn(u8) -> bool| {
        let coded = value.bytes().flat_map(|byte| match byte {
            b' ' if plus => b"+".to_vec(),
            b if safe(b) => vec![b],
            b if upper => format!("%{b:02X}").into_bytes(),
            b => format!("%{b:02x}").into_bytes(),
        });
        coded.collect::<Vec<u8>>()
    };
    for upper in [true, false] {
        for plus in [true, false] {
            forms.push(("URL", percent(upper, plus, &unreserved)));
            forms.push(("URL path", percent(upper, plus, &|b| unreserved(b) || b"/!$&'()*+,;=:@".contains(&b))));
        }
    }
    let json = serde_json::Value::from(value).to_string();
    forms.push(("JSON", json.as_bytes()[1..json.len() - 1].to_vec()));
    forms.push(("hex", value.bytes().flat_map(|b| format!("{b:02x}").into_bytes()).collect()));
    forms
}

/// The characters of a longer text's base64 that depend on `value` alone, if it stands at `offset` modulo 3 in it.
fn base64_inside(value: &str, offset: usize, engine: &impl Engine) -> Vec<u8> {
    let coded = engine.encode([vec![0; offset], value.as_bytes().to_vec()].concat());
    let first = (offset * 8).div_ceil(6);
    let last = (offset + value.len()) * 8 / 6;
    coded.as_bytes()[first..last].to_vec()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const VALUE: &str = "pa55 w/ord+\"ünïque\"";

    fn found(haystack: &[u8]) -> bool {
        !Secrets::new([("token", VALUE)]).find("here", haystack).is_empty()
    }

    #[test]
    fn finds_every_coding_anywhere() {
        for before in ["", "a", "ab", "abc", "abcd"] {
            let text = format!("{before}{VALUE}{before} and more");
            assert!(found(text.as_bytes()));
            assert!(found(STANDARD.encode(&text).as_bytes()), "base64 after {before:?}");
            assert!(found(URL_SAFE_NO_PAD.encode(&text).as_bytes()), "base64url after {before:?}");
            assert!(found(serde_json::json!({ "x": text }).to_string().as_bytes()));
        }
        assert!(found(b"q=pa55+w%2Ford%2B%22%C3%BCn%C3%AFque%22&r"));
        assert!(found(b"q=pa55%20w%2ford%2b%22%c3%bcn%c3%afque%22&r"));
        assert!(found(b"/pa55%20w/ord+%22%C3%BCn%C3%AFque%22/r"));
        assert!(!found(b"pa55 w/ord but another one"));
    }

    #[test]
    fn finds_a_secret_in_a_file_and_names_the_place() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("deep")).unwrap();
        fs::write(directory.path().join("deep/log"), format!("line\n{VALUE}\n")).unwrap();
        let leaks = Secrets::new([("token", VALUE)]).find_in_directory(directory.path()).unwrap();
        assert_eq!(leaks.len(), 1);
        assert!(leaks[0].place.ends_with("deep/log") && leaks[0].coding == "plain" && leaks[0].secret == "token");
    }
}
