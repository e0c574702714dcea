//! What the caller of a log wants, read as a kubelet reads it. Pure.

use jiff::{SignedDuration, Timestamp};
use url::form_urlencoded;

/// The query of `GET /containerLogs/…` (PodLogOptions of Kubernetes).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Goes on until the program has ended.
    pub follow: bool,
    /// The program's run before this one.
    pub previous: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail: Option<u64>,
    /// Only what was said at this time or later.
    pub since: Option<Timestamp>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

impl LogQuery {
    /// Reads a query; `now` is what `sinceSeconds` counts from. What a kubelet does not know it ignores, and so does this.
    ///
    /// # Errors
    /// A sentence about the value that is wrong.
    pub fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut read = Self::default();
        let (mut seconds, mut time) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "follow" => read.follow = flag(&value),
                "previous" => read.previous = flag(&value),
                "timestamps" => read.timestamps = flag(&value),
                "tailLines" => read.tail = Some(number("tailLines", &value, 0)?),
                "limitBytes" => read.limit_bytes = Some(number("limitBytes", &value, 1)?),
                "sinceSeconds" => seconds = Some(number("sinceSeconds", &value, 1)?),
                "sinceTime" => {
                    let at =
                        value.parse().map_err(|_| format!("sinceTime is {value:?}, but must be as in RFC 3339"))?;
                    time = Some(at);
                }
                "stream" if value != "All" => {
                    return Err(
                        "stdout and stderr of rented machines come as one: ask for both (stream=All)".to_owned()
                    );
                }
                _ => {}
            }
        }
        read.since = match (seconds, time) {
            (Some(_), Some(_)) => return Err("at most one of sinceTime or sinceSeconds may be given".to_owned()),
            (Some(seconds), None) => {
                let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                Some(now.checked_sub(ago).unwrap_or(Timestamp::MIN))
            }
            (None, time) => time,
        };
        Ok(read)
    }
}

/// As Kubernetes reads flags of a query: everything but `false` and `0` is true, also nothing.
fn flag(value: &str) -> bool {
    !value.eq_ignore_ascii_case("false") && value != "0"
}

fn number(name: &str, value: &str, least: u64) -> Result<u64, String> {
    let read = value.parse().ok().filter(|read| *read >= least && i64::try_from(*read).is_ok());
    read.ok_or_else(|| format!("{name} is {value:?}, but must be a whole number from {least}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    #[test]
    fn the_words_of_kubectl_are_understood() {
        let all = "follow=true&tailLines=5&timestamps=true&previous=false&limitBytes=100&sinceSeconds=65&container=x";
        let want = LogQuery {
            follow: true,
            timestamps: true,
            tail: Some(5),
            limit_bytes: Some(100),
            since: Some("2026-01-02T03:03:00Z".parse().unwrap()),
            previous: false,
        };
        assert_eq!(LogQuery::parse(all, now()), Ok(want));
        assert_eq!(LogQuery::parse("", now()), Ok(LogQuery::default()));
        let time = LogQuery::parse("sinceTime=2026-01-02T04%3A03%3A00.5%2B01%3A00&stream=All", now()).unwrap();
        assert_eq!(time.since, Some("2026-01-02T03:03:00.5Z".parse().unwrap()));
        assert_eq!(LogQuery::parse("tailLines=0&follow", now()).unwrap().tail, Some(0));
        assert!(LogQuery::parse("follow&previous=0", now()).unwrap().follow);
        assert_eq!(LogQuery::parse("sinceSeconds=9000000000000000000", now()).unwrap().since, Some(Timestamp::MIN));
    }

    #[test]
    fn wrong_values_are_named() {
        for (query, word) in [
            ("tailLines=-1", "tailLines"),
            ("tailLines=99999999999999999999", "tailLines"),
            ("limitBytes=0", "limitBytes"),
            ("sinceSeconds=0", "sinceSeconds"),
            ("sinceTime=yesterday", "sinceTime"),
            ("sinceTime=2026-01-02T03:03:00Z&sinceSeconds=1", "at most one"),
            ("stream=Stderr", "stderr"),
        ] {
            assert!(LogQuery::parse(query, now()).unwrap_err().contains(word), "{query}");
        }
    }
}
