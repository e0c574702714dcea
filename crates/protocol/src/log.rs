//! Segments of a program's output in the mailbox's ring.
//!
//! An object `logs/<machine>/<number modulo the ring's size>` is a head line and records, one to a line:
//!
//! ```text
//! tradewind-log2 <number> <attempt> <milliseconds since 1970 at which the segment begins>
//! F<milliseconds since then> <a whole line>
//! P<milliseconds since then> <the beginning or the middle of a line>
//! E<milliseconds since then> <exit code: the attempt's program has ended>
//! ```
//!
//! The head names the number, so that a reader who comes late can tell an overwritten segment from the one it looked for. A segment is of
//! one attempt. It is written again whenever it has grown, and only ever grows. Agents of the version before wrote `tradewind-log <number>`
//! and the plain output.

use jiff::Timestamp;

/// One segment of a program's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSegment {
    /// Number of the segment within this boot, from 0.
    pub number: u64,
    /// The attempt whose program said it; `None` from an agent of the version before.
    pub attempt: Option<u32>,
    /// What was said, in order.
    pub records: Vec<LogRecord>,
}

/// Something that a program said, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// When, by the machine's clock; `None` from an agent of the version before.
    pub at: Option<Timestamp>,
    /// What.
    pub said: Said,
}

/// What a record holds. Texts are as the program wrote them, without the line's end: they may hold any other byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A whole line, or the end of one.
    Line(Vec<u8>),
    /// The beginning or the middle of a line.
    Part(Vec<u8>),
    /// The program has ended with this exit code. The last record of its attempt.
    End(i32),
}

impl LogSegment {
    /// The largest encoded segment, in bytes.
    pub const MAX_BYTES: usize = 256 * 1024;
    const MARK: &'static str = "tradewind-log2 ";
    const OLD_MARK: &'static str = "tradewind-log ";

    /// The head of the object of a segment that begins now. Records follow, by [`LogRecord::encode`].
    pub fn head(number: u64, attempt: u32, begins: Timestamp) -> Vec<u8> {
        format!("{}{number} {attempt} {}\n", Self::MARK, begins.as_millisecond()).into_bytes()
    }

    /// Reads an object; `None` if it does not begin as a segment does or is too large. A record that cannot be read is left out.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > Self::MAX_BYTES {
            return None;
        }
        if let Some(rest) = bytes.strip_prefix(Self::OLD_MARK.as_bytes()) {
            let (head, rest) = split(rest, b'\n')?;
            return Some(Self { number: number(head)?, attempt: None, records: plain(rest) });
        }
        let (head, rest) = split(bytes.strip_prefix(Self::MARK.as_bytes())?, b'\n')?;
        let (numbered, head) = split(head, b' ')?;
        let (attempt, begins) = split(head, b' ')?;
        let begins = Timestamp::from_millisecond(number(begins)?).ok()?;
        let records =
            rest.split_inclusive(|b| *b == b'\n').filter_map(|line| LogRecord::decode(line, begins)).collect();
        Some(Self { number: number(numbered)?, attempt: Some(number(attempt)?), records })
    }

    /// Everything that was said, as the program wrote it.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for record in &self.records {
            match &record.said {
                Said::Line(line) => {
                    text.extend_from_slice(line);
                    text.push(b'\n');
                }
                Said::Part(part) => text.extend_from_slice(part),
                Said::End(_) => {}
            }
        }
        text
    }
}

impl LogRecord {
    /// Bytes that a record takes up beside its text, at most: kind, 13 digits, blank, end of the line.
    pub const OVERHEAD: usize = 16;

    /// Puts the record at the end of a segment's object. A clock that was set back does not go back in the segment.
    pub fn encode(said: &Said, at: Timestamp, begins: Timestamp, object: &mut Vec<u8>) {
        let code;
        let (kind, text) = match said {
            Said::Line(text) => ('F', text.as_slice()),
            Said::Part(text) => ('P', text.as_slice()),
            Said::End(exit) => {
                code = exit.to_string();
                ('E', code.as_bytes())
            }
        };
        let since = at.as_millisecond().saturating_sub(begins.as_millisecond()).clamp(0, 9_999_999_999_999);
        object.extend_from_slice(format!("{kind}{since} ").as_bytes());
        object.extend_from_slice(text);
        object.push(b'\n');
    }

    fn decode(line: &[u8], begins: Timestamp) -> Option<Self> {
        let line = line.strip_suffix(b"\n")?;
        let (head, text) = split(line, b' ')?;
        let (kind, since) = head.split_first()?;
        let at = begins.as_millisecond().checked_add(number(since)?)?;
        let said = match kind {
            b'F' => Said::Line(text.to_vec()),
            b'P' => Said::Part(text.to_vec()),
            b'E' => Said::End(number(text)?),
            _ => return None,
        };
        Some(Self { at: Timestamp::from_millisecond(at).ok(), said })
    }
}

fn plain(text: &[u8]) -> Vec<LogRecord> {
    let record = |line: &[u8]| {
        let said = line.strip_suffix(b"\n").map_or_else(|| Said::Part(line.to_vec()), |line| Said::Line(line.to_vec()));
        LogRecord { at: None, said }
    };
    text.split_inclusive(|b| *b == b'\n').map(record).collect()
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == at)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    // A u64 has at most 20 digits.
    std::str::from_utf8(digits.get(..digits.len().min(21))?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn segments_survive_a_round_trip_whatever_bytes_a_program_writes() {
        let said = [
            Said::Part(b"12%\r\xff\x00".to_vec()),
            Said::Line(b"tradewind-log2 9".to_vec()),
            Said::Line(Vec::new()),
            Said::Line(b" F1 x ".to_vec()),
            Said::End(-3),
        ];
        let mut object = LogSegment::head(u64::MAX, 7, at(5_000));
        for (said, ms) in said.iter().zip(5_000..) {
            LogRecord::encode(said, at(ms), at(5_000), &mut object);
        }
        let read = LogSegment::decode(&object).unwrap();
        assert_eq!((read.number, read.attempt), (u64::MAX, Some(7)));
        assert_eq!(read.records.iter().map(|r| r.said.clone()).collect::<Vec<_>>(), said);
        assert_eq!(read.records[3].at, Some(at(5_003)));
        assert_eq!(read.text(), b"12%\r\xff\x00tradewind-log2 9\n\n F1 x \n");
        // A clock that goes back.
        let mut object = LogSegment::head(0, 0, at(5_000));
        LogRecord::encode(&Said::Line(b"x".to_vec()), at(4_000), at(5_000), &mut object);
        assert_eq!(LogSegment::decode(&object).unwrap().records[0].at, Some(at(5_000)));
    }

    #[test]
    fn agents_of_the_version_before_are_understood_and_strange_objects_are_none() {
        let old = LogSegment::decode(b"tradewind-log 3\none\ntwo").unwrap();
        assert_eq!((old.number, old.attempt, old.records.len()), (3, None, 2));
        assert_eq!(old.text(), b"one\ntwo");
        for bad in [
            &b""[..],
            b"tradewind-log ",
            b"tradewind-log x\n",
            b"tradewind-log 99999999999999999999999\n",
            b"tradewind-log2 1\n",
            b"tradewind-log2 1 2 x\n",
            b"tradewind-log2 1 2 9223372036854775807\n",
            b"step 1\n",
        ] {
            assert_eq!(LogSegment::decode(bad), None, "{bad:?}");
        }
        assert_eq!(LogSegment::decode(&vec![b'x'; LogSegment::MAX_BYTES + 1]), None);
        let strange =
            LogSegment::decode(b"tradewind-log2 1 2 3\nX1 a\nF9223372036854775807 a\nF1 good\nE1 no\nF1 cut").unwrap();
        assert_eq!(strange.text(), b"good\n");
    }
}
