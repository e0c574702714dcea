//! Which part of a program's output is shown, and how. Pure.

use jiff::Timestamp;
use tradewind_protocol::{LogSegment, Said};

use super::query::LogQuery;

/// A line, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// When it was said; `None` if nobody knows.
    pub at: Option<Timestamp>,
    /// Without the line's end.
    pub text: Vec<u8>,
    /// The line ends with it.
    pub ends: bool,
}

/// Output of one attempt.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// In order.
    pub pieces: Vec<Piece>,
    /// The program has ended: nothing follows.
    pub ended: bool,
}

impl Pieces {
    /// Adds what a segment says from record `from` on, if it is of this attempt.
    pub fn add(&mut self, segment: LogSegment, from: usize, attempt: u32) {
        if segment.attempt.is_some_and(|of| of != attempt) {
            return;
        }
        for record in segment.records.into_iter().skip(from) {
            let (text, ends) = match record.said {
                Said::Line(text) => (text, true),
                Said::Part(text) => (text, false),
                Said::End(_) => {
                    self.ended = true;
                    continue;
                }
            };
            self.pieces.push(Piece { at: record.at, text, ends });
        }
    }

    /// Drops all but the last `lines`.
    pub fn keep_last(&mut self, lines: u64) {
        let mut left = lines;
        let mut from = self.pieces.len();
        for at in (0..self.pieces.len()).rev() {
            let begins = at == 0 || self.pieces[at - 1].ends;
            if left == 0 {
                break;
            }
            from = at;
            left -= u64::from(begins);
        }
        self.pieces.drain(..from);
    }
}

/// Writes pieces as the caller wants them.
#[derive(Debug)]
pub struct Printer {
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<u64>,
    /// The last piece did not end its line.
    within: bool,
}

impl Printer {
    /// For this query.
    pub fn new(query: &LogQuery) -> Self {
        Self { since: query.since, timestamps: query.timestamps, left: query.limit_bytes, within: false }
    }

    /// Writes a piece.
    pub fn print(&mut self, piece: &Piece, out: &mut Vec<u8>) {
        if self.since.is_some_and(|since| piece.at.is_some_and(|at| at < since)) {
            return;
        }
        let from = out.len();
        if self.timestamps && !self.within {
            // As a kubelet writes it: nine digits, always.
            let at = piece.at.unwrap_or(Timestamp::UNIX_EPOCH);
            out.extend_from_slice(at.strftime("%Y-%m-%dT%H:%M:%S%.9fZ ").to_string().as_bytes());
        }
        out.extend_from_slice(&piece.text);
        if piece.ends {
            out.push(b'\n');
        }
        self.within = !piece.ends;
        if let Some(left) = &mut self.left {
            let fits = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len() - from);
            out.truncate(from + fits);
            *left -= fits as u64;
        }
    }

    /// A sentence of ours, on a line of its own. The limit does not cut it.
    pub fn say(&mut self, sentence: &str, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.within) {
            out.push(b'\n');
        }
        out.extend_from_slice(format!("[tradewind] {sentence}\n").as_bytes());
    }

    /// The limit is reached.
    pub fn full(&self) -> bool {
        self.left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(records: &str) -> LogSegment {
        LogSegment::decode(format!("tradewind-log2 0 3 1000000000000\n{records}").as_bytes()).unwrap()
    }

    fn pieces(records: &str) -> Pieces {
        let mut pieces = Pieces::default();
        pieces.add(segment(records), 0, 3);
        pieces
    }

    fn printed(query: &LogQuery, pieces: &Pieces) -> String {
        let (mut printer, mut out) = (Printer::new(query), Vec::new());
        pieces.pieces.iter().for_each(|piece| printer.print(piece, &mut out));
        String::from_utf8(out).unwrap()
    }

    const TEXT: &str = "F0 one\nP1000 tw\nF2000 o\nF3000 \nP4000 thr\nE5000 0\n";

    #[test]
    fn the_last_lines_are_counted_as_lines() {
        for (lines, want) in
            [(0, ""), (1, "thr"), (2, "\nthr"), (3, "two\n\nthr"), (4, "one\ntwo\n\nthr"), (99, "one\ntwo\n\nthr")]
        {
            let mut all = pieces(TEXT);
            assert!(all.ended);
            all.keep_last(lines);
            assert_eq!(printed(&LogQuery::default(), &all), want, "{lines}");
        }
    }

    #[test]
    fn times_begin_lines_and_cut_off_what_is_older() {
        let query = LogQuery { timestamps: true, ..LogQuery::default() };
        let want = "2001-09-09T01:46:40.000000000Z one\n2001-09-09T01:46:41.000000000Z two\n2001-09-09T01:46:43.000000000Z \n2001-09-09T01:46:44.000000000Z thr";
        assert_eq!(printed(&query, &pieces(TEXT)), want);
        let since = |ms: i64| LogQuery {
            since: Some(Timestamp::from_millisecond(1_000_000_000_000 + ms).unwrap()),
            ..LogQuery::default()
        };
        assert_eq!(printed(&since(3000), &pieces(TEXT)), "\nthr");
        assert_eq!(printed(&since(3001), &pieces(TEXT)), "thr");
        assert_eq!(printed(&since(9000), &pieces(TEXT)), "");
        let mut old = Pieces::default();
        old.add(LogSegment::decode(b"tradewind-log 0\nold\n").unwrap(), 0, 3);
        assert_eq!(printed(&since(9000), &old), "old\n", "without a time nothing is held back");
    }

    #[test]
    fn the_limit_counts_bytes_and_sentences_stand_alone() {
        let query = LogQuery { limit_bytes: Some(5), ..LogQuery::default() };
        assert_eq!(printed(&query, &pieces(TEXT)), "one\nt");
        let (mut printer, mut out) = (Printer::new(&LogQuery::default()), Vec::new());
        pieces("P0 half").pieces.iter().for_each(|piece| printer.print(piece, &mut out));
        assert!(out.is_empty(), "a record that is cut off is not there yet");
        pieces("P0 half\n").pieces.iter().for_each(|piece| printer.print(piece, &mut out));
        printer.say("gone", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "half\n[tradewind] gone\n");
    }

    #[test]
    fn only_one_attempt_is_shown_and_only_what_is_new() {
        let mut other = Pieces::default();
        other.add(segment(TEXT), 0, 4);
        assert_eq!(other, Pieces::default());
        other.add(segment(TEXT), 3, 3);
        assert_eq!((other.pieces.len(), other.ended), (2, true));
    }
}
