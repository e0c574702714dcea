//! What the program printed: the ring of log segments, the tail for the exit, progress.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tradewind_protocol::{LogRecord, LogSegment, Progress, Said, Ticket};

use super::Action;
use super::settings::{Settings, backoff};
use crate::progress::{Reading, read_line};

/// Longest line that is looked at for progress, in bytes.
const LONGEST_LINE: usize = 4_096;
/// Characters of output that travel with the exit.
const TAIL_CHARS: usize = 2_000;

#[derive(Debug)]
struct Segment {
    number: u64,
    attempt: u32,
    begins: Timestamp,
    /// The object: head and records.
    bytes: Vec<u8>,
    /// Bytes of the program's own in it.
    text: usize,
    /// Bytes that are in the store.
    stored: usize,
}

#[derive(Debug, Default)]
pub(super) struct Output {
    segments: VecDeque<Segment>,
    next: u64,
    written: u64,
    /// The segment on its way, and how many of its bytes.
    in_flight: Option<(u64, usize)>,
    failures: u32,
    write_at: Duration,
    tail: VecDeque<u8>,
    line: Vec<u8>,
    /// Progress as far as it is known.
    pub progress: Option<Progress>,
}

impl Output {
    /// Segments stored so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// True if everything printed is stored.
    pub fn flushed(&self) -> bool {
        self.segments.iter().all(|segment| segment.stored == segment.bytes.len())
    }

    /// The end of what was printed.
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let skip = text.chars().count().saturating_sub(TAIL_CHARS);
        text.chars().skip(skip).collect()
    }

    /// Forgets what an attempt that is over said of itself. What it printed stays in the ring.
    pub fn begin_anew(&mut self) {
        self.tail.clear();
        self.line.clear();
        self.progress = None;
    }

    /// Takes in output of an attempt's program.
    pub fn push(&mut self, (attempt, at): (u32, Timestamp), bytes: &[u8], settings: &Settings, ring: usize) {
        self.tail.extend(bytes);
        let surplus = self.tail.len().saturating_sub(TAIL_CHARS * 4);
        self.tail.drain(..surplus);
        self.read_progress(bytes);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in part.chunks(settings.log_segment_bytes.max(1)) {
                let said = match piece.strip_suffix(b"\n") {
                    Some(line) => Said::Line(line.to_vec()),
                    None => Said::Part(piece.to_vec()),
                };
                self.append((attempt, at), &said, piece.len(), settings, ring);
            }
        }
    }

    /// The attempt's program has ended: readers need not wait for more of it.
    pub fn end(&mut self, (attempt, at): (u32, Timestamp), code: i32, settings: &Settings, ring: usize) {
        self.append((attempt, at), &Said::End(code), 0, settings, ring);
    }

    fn append(
        &mut self,
        (attempt, at): (u32, Timestamp),
        said: &Said,
        length: usize,
        settings: &Settings,
        ring: usize,
    ) {
        let full = self.segments.back().is_none_or(|segment| {
            segment.attempt != attempt
                || segment.text + length > settings.log_segment_bytes
                // A program that prints mostly empty lines: the records weigh more than what they hold.
                || segment.bytes.len() + length + LogRecord::OVERHEAD > LogSegment::MAX_BYTES
        });
        if full {
            let bytes = LogSegment::head(self.next, attempt, at);
            self.segments.push_back(Segment { number: self.next, attempt, begins: at, bytes, text: 0, stored: 0 });
            self.next += 1;
            // What the ring would overwrite anyway need not be kept; two rings' worth are never held.
            while self.segments.len() > ring.max(2) {
                self.segments.pop_front();
            }
        }
        if let Some(segment) = self.segments.back_mut() {
            LogRecord::encode(said, at, segment.begins, &mut segment.bytes);
            segment.text += length;
        }
    }

    fn read_progress(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                let line = std::mem::take(&mut self.line);
                if let Some(reading) = read_line(&String::from_utf8_lossy(&line)) {
                    self.merge(reading);
                }
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(*byte);
            }
        }
    }

    fn merge(&mut self, reading: Reading) {
        let known = self.progress.take();
        // A loss on a line of its own belongs to the step that was printed last.
        let Some(step) = reading.step.or(known.as_ref().map(|progress| progress.step)) else {
            return;
        };
        self.progress = Some(Progress {
            step,
            total: reading.total.or(known.as_ref().and_then(|progress| progress.total)),
            loss: reading.loss.or(known.and_then(|progress| progress.loss)),
        });
    }

    /// Writes the oldest segment that is not stored whole. `urgent` = do not wait for the interval.
    pub fn advance(
        &mut self,
        now: Duration,
        tickets: &[Ticket],
        settings: &Settings,
        urgent: bool,
        out: &mut Vec<Action>,
    ) {
        if self.in_flight.is_some() || tickets.is_empty() {
            return;
        }
        let newest = self.next.saturating_sub(1);
        let Some(segment) = self.segments.iter().find(|segment| segment.stored < segment.bytes.len()) else {
            return;
        };
        let hurry = self.failures == 0 && (urgent || segment.number < newest);
        if !hurry && now < self.write_at {
            return;
        }
        let slot = usize::try_from(segment.number % tickets.len() as u64).unwrap_or_default();
        self.in_flight = Some((segment.number, segment.bytes.len()));
        self.write_at = now + settings.log;
        out.push(Action::WriteLog {
            segment: segment.number,
            ticket: tickets[slot].clone(),
            body: segment.bytes.clone(),
        });
    }

    /// The answer to a write.
    pub fn log_written(&mut self, now: Duration, number: u64, stored: bool) {
        let Some((_, length)) = self.in_flight.take_if(|(segment, _)| *segment == number) else {
            return;
        };
        if !stored {
            self.failures += 1;
            self.write_at = now + backoff(self.failures);
            return;
        }
        self.failures = 0;
        self.written = self.written.max(number + 1);
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
            segment.stored = length;
        }
        let newest = self.next.saturating_sub(1);
        self.segments.retain(|segment| segment.number == newest || segment.stored < segment.bytes.len());
    }

    /// When [`Output::advance`] has something to do by itself.
    pub fn wake(&self) -> Option<Duration> {
        (self.in_flight.is_none() && !self.flushed()).then_some(self.write_at)
    }
}
