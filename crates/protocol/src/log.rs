//! Segments of a program's output in the mailbox's ring.

/// One segment: the object `logs/<number modulo the ring's size>`. It begins with a line that names its number, so that a reader who comes
/// late can tell an overwritten segment from the one it looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSegment {
    /// Number of the segment within this boot, from 0.
    pub number: u64,
    /// Output as the program wrote it. Not cleaned: it may hold any byte.
    pub text: Vec<u8>,
}

impl LogSegment {
    /// The largest encoded segment, in bytes.
    pub const MAX_BYTES: usize = 256 * 1024;
    const MARK: &'static str = "tradewind-log ";

    /// The bytes of the object.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = format!("{}{}\n", Self::MARK, self.number).into_bytes();
        bytes.extend_from_slice(&self.text);
        bytes
    }

    /// Reads an object; `None` if it does not begin as a segment does or is too large.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > Self::MAX_BYTES {
            return None;
        }
        let rest = bytes.strip_prefix(Self::MARK.as_bytes())?;
        // A u64 has at most 20 digits.
        let end = rest.iter().take(21).position(|b| *b == b'\n')?;
        let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        Some(Self { number, text: rest[end + 1..].to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_a_round_trip_and_strange_objects_are_none() {
        for text in [&b""[..], b"one\ntwo\n", b"\xff\x00\n", b"tradewind-log 9\n"] {
            let segment = LogSegment { number: u64::MAX, text: text.to_vec() };
            assert_eq!(LogSegment::decode(&segment.encode()), Some(segment));
        }
        for bad in
            [&b""[..], b"tradewind-log ", b"tradewind-log x\n", b"tradewind-log 99999999999999999999999\n", b"step 1\n"]
        {
            assert_eq!(LogSegment::decode(bad), None, "{bad:?}");
        }
        assert_eq!(LogSegment::decode(&vec![b'x'; LogSegment::MAX_BYTES + 1]), None);
    }
}
