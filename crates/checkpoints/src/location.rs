//! Names of places in object stores, as users write them.

use std::fmt;
use std::str::FromStr;

/// A bucket and a prefix: `s3://bucket/some/prefix/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    bucket: String,
    /// Empty, or segments that each end in `/`.
    prefix: String,
}

/// Why a text is not a location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Another scheme, or none.
    #[error("{scheme:?} is not supported; write s3://bucket/prefix/ (S3 and every store that speaks its protocol)")]
    Scheme {
        /// The scheme that was written.
        scheme: String,
    },
    /// The bucket's name is not one.
    #[error(
        "the bucket must have 3 to 63 lower-case letters, digits, '-' or '.', and begin and end with a letter or digit"
    )]
    Bucket,
    /// The prefix cannot be used.
    #[error(
        "the prefix must have at most 512 characters from A-Z a-z 0-9 . _ - = between single slashes, without '.' and '..'"
    )]
    Prefix,
}

impl LocationError {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        "BadLocation"
    }
}

impl Location {
    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix: empty, or ending in `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// True if one of the two holds the other, so that their objects could meet.
    pub fn overlaps(&self, other: &Self) -> bool {
        let within = self.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&self.prefix);
        self.bucket == other.bucket && within
    }

    /// The place below this one.
    pub fn join(&self, folder: &str) -> Result<Self, LocationError> {
        format!("s3://{}/{}{folder}/", self.bucket, self.prefix).parse()
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let Some(rest) = text.strip_prefix("s3://") else {
            let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
            let scheme = scheme.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
            return Err(LocationError::Scheme { scheme });
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let plain = bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
        let edges = edge(bucket.as_bytes().first()) && edge(bucket.as_bytes().last());
        if !(3..=63).contains(&bucket.len()) || !plain || !edges || bucket.contains("..") {
            return Err(LocationError::Bucket);
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.is_empty() {
            return Ok(Self { bucket: bucket.to_owned(), prefix: String::new() });
        }
        let segment = |s: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=');
            !s.is_empty() && s != "." && s != ".." && s.bytes().all(plain)
        };
        if prefix.len() > 512 || !prefix.split('/').all(segment) {
            return Err(LocationError::Prefix);
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: format!("{prefix}/") })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_printed_in_one_way() {
        for (text, bucket, prefix) in [
            ("s3://acme-ckpt/team-a/sdxl-lora/", "acme-ckpt", "team-a/sdxl-lora/"),
            ("s3://acme-ckpt/team-a/sdxl-lora", "acme-ckpt", "team-a/sdxl-lora/"),
            ("s3://a.b.c", "a.b.c", ""),
            ("s3://abc/", "abc", ""),
            ("s3://abc/dt=2026/x", "abc", "dt=2026/x/"),
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!((location.bucket(), location.prefix()), (bucket, prefix), "{text}");
            assert_eq!(location.to_string().parse::<Location>().unwrap(), location);
        }
    }

    #[test]
    fn what_is_no_location_is_named() {
        let error = |text: &str| text.parse::<Location>().unwrap_err();
        assert_eq!(error("gs://bucket/x/"), LocationError::Scheme { scheme: "gs".to_owned() });
        assert!(error("gs://bucket/x/").to_string().contains("s3://bucket/prefix/"));
        assert_eq!(error("/data"), LocationError::Scheme { scheme: String::new() });
        for text in
            ["s3://", "s3://Ab/x", "s3://a_b/x", "s3://-ab/x", "s3://ab./x", "s3://a..b/x", "s3://user:secret@host/x"]
        {
            assert_eq!(error(text), LocationError::Bucket, "{text}");
        }
        for text in ["s3://abc//x", "s3://abc/../x", "s3://abc/x y", "s3://abc/x?y", "s3://abc/\u{e4}", "s3://abc/x//"]
        {
            assert_eq!(error(text), LocationError::Prefix, "{text}");
        }
    }

    #[test]
    fn overlap_is_seen_at_folder_borders_only() {
        let at = |text: &str| text.parse::<Location>().unwrap();
        assert!(at("s3://abc/x/").overlaps(&at("s3://abc/x/y")));
        assert!(at("s3://abc").overlaps(&at("s3://abc/x")));
        assert!(!at("s3://abc/x").overlaps(&at("s3://abc/xy")));
        assert!(!at("s3://abc/x").overlaps(&at("s3://abd/x")));
    }
}
