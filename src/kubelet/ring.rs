//! Reading the ring of a machine's output while the machine writes it.
//!
//! The agent stores segments one after the other: a segment is complete once the next one is there. So a segment is read again after its
//! successor was seen, and only then left behind.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use tradewind_checkpoints::{Mailbox, MailboxError, SegmentRead};
use tradewind_protocol::LogSegment;

use super::lines::Pieces;
use crate::controllers::rented_machine::serve::LOG_RING;

/// A reader's place in the ring of one machine.
pub struct Ring {
    mailbox: Mailbox,
    machine: String,
    etags: Vec<Option<String>>,
    /// The segment that is being read, and how many of its records are.
    at: Option<(u64, usize)>,
}

/// What is new.
#[derive(Debug, Default)]
pub struct News {
    /// Output.
    pub pieces: Pieces,
    /// The program was faster than the reader: some of its output is lost.
    pub lost: bool,
}

impl Ring {
    /// At the beginning.
    pub fn new(mailbox: Mailbox, machine: &str) -> Self {
        let slots = usize::try_from(LOG_RING).unwrap_or_default();
        Self { mailbox, machine: machine.to_owned(), etags: vec![None; slots], at: None }
    }

    /// Everything that the ring holds, in order. The reader's place is behind it.
    pub async fn load(&mut self) -> Result<Vec<LogSegment>, MailboxError> {
        let mut found = BTreeMap::new();
        self.etags.fill(None);
        // What was read before its successor may have grown since. Twice the memory of a ring is never held: what has not changed is not
        // sent again.
        for _ in 0..2 {
            let looks = (0..LOG_RING).zip(&self.etags).map(|(slot, etag)| {
                let (mailbox, machine) = (&self.mailbox, &self.machine);
                async move { mailbox.read_log_slot(machine, slot, etag.as_deref()).await }
            });
            let answers = try_join_all(looks).await?;
            for (answer, known) in answers.into_iter().zip(&mut self.etags) {
                if let SegmentRead::Changed { segment, etag } = answer {
                    found.insert(segment.number, segment);
                    *known = etag;
                }
            }
        }
        self.at = found.last_key_value().map(|(number, segment)| (*number, segment.records.len()));
        Ok(found.into_values().collect())
    }

    /// Adds to `news` what an attempt has said since the last look. If it fails, what was found until then is there, and the next look goes
    /// on behind it.
    pub async fn next(&mut self, attempt: u32, news: &mut News) -> Result<(), MailboxError> {
        loop {
            let Some((number, taken)) = self.at else { return self.reload(None, attempt, news).await };
            let next = self.look(number + 1).await?.filter(|next| next.number > number);
            let again = self.look(number).await;
            if again.is_err() {
                // It was seen, but not taken.
                self.unsee(number + 1);
            }
            match again? {
                Some(again) if again.number == number => {
                    self.at = Some((number, again.records.len().max(taken)));
                    news.pieces.add(again, taken, attempt);
                }
                Some(_) => return self.reload(Some(number), attempt, news).await,
                None => {}
            }
            match next {
                None => return Ok(()),
                Some(next) if next.number == number + 1 => {
                    self.at = Some((next.number, next.records.len()));
                    news.pieces.add(next, 0, attempt);
                }
                Some(_) => return self.reload(Some(number), attempt, news).await,
            }
        }
    }

    /// The ring has gone round since the last look, or nothing was there.
    async fn reload(&mut self, behind: Option<u64>, attempt: u32, news: &mut News) -> Result<(), MailboxError> {
        let segments = self.load().await?;
        news.lost |= behind.is_some();
        for segment in segments {
            if behind.is_none_or(|behind| segment.number > behind) {
                news.pieces.add(segment, 0, attempt);
            }
        }
        Ok(())
    }

    fn unsee(&mut self, number: u64) {
        let slot = usize::try_from(number % u64::from(LOG_RING)).unwrap_or_default();
        if let Some(known) = self.etags.get_mut(slot) {
            *known = None;
        }
    }

    async fn look(&mut self, number: u64) -> Result<Option<LogSegment>, MailboxError> {
        let slot = number % u64::from(LOG_RING);
        let Some(known) = usize::try_from(slot).ok().and_then(|slot| self.etags.get_mut(slot)) else { return Ok(None) };
        let slot = u32::try_from(slot).unwrap_or_default();
        Ok(match self.mailbox.read_log_slot(&self.machine, slot, known.as_deref()).await? {
            SegmentRead::Changed { segment, etag } => {
                *known = etag;
                Some(segment)
            }
            SegmentRead::Absent | SegmentRead::Unchanged => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;

    use super::*;
    use crate::test_machine::store;

    async fn write(store: &dyn tradewind_checkpoints::Store, number: u64, attempt: u32, lines: std::ops::Range<u64>) {
        let lines: Vec<String> = lines.map(|line| format!("F0 {line}\n")).collect();
        let object = format!("tradewind-log2 {number} {attempt} 1000\n{}", lines.concat());
        store.put(&format!("logs/m/{}", number % 8), object.into()).await.unwrap();
    }

    fn numbers(pieces: &Pieces) -> Vec<u64> {
        pieces.pieces.iter().map(|p| String::from_utf8_lossy(&p.text).parse().unwrap()).collect()
    }

    async fn news(ring: &mut Ring) -> (Vec<u64>, bool) {
        let mut news = News::default();
        ring.next(0, &mut news).await.unwrap();
        (numbers(&news.pieces), news.lost)
    }

    #[test]
    fn a_reader_that_keeps_up_sees_every_line_once_and_in_order() {
        let store = store();
        let mut ring = Ring::new(Mailbox::new(Arc::new(store.clone())), "m");
        let all = async {
            assert_eq!(news(&mut ring).await, (vec![], false));
            write(&store, 0, 0, 0..2).await;
            assert_eq!(news(&mut ring).await, (vec![0, 1], false));
            assert_eq!(news(&mut ring).await, (vec![], false));
            // It grows, is complete, and two more follow between two looks.
            write(&store, 0, 0, 0..5).await;
            write(&store, 1, 0, 5..9).await;
            write(&store, 2, 0, 9..10).await;
            assert_eq!(news(&mut ring).await, ((2..10).collect(), false));
            for number in 3..30 {
                write(&store, number, 0, number * 10..number * 10 + 1).await;
                assert_eq!(news(&mut ring).await, (vec![number * 10], false));
            }
        };
        all.now_or_never().expect("a store in memory answers at once");
    }

    #[test]
    fn a_reader_that_was_too_slow_goes_on_with_what_is_left_and_says_so() {
        let store = store();
        let mut ring = Ring::new(Mailbox::new(Arc::new(store.clone())), "m");
        let all = async {
            write(&store, 0, 0, 0..1).await;
            assert_eq!(news(&mut ring).await.0, [0]);
            for number in 1..12 {
                write(&store, number, 0, number..number + 1).await;
            }
            assert_eq!(news(&mut ring).await, ((4..12).collect(), true));
            assert_eq!(news(&mut ring).await, (vec![], false));
            // Another attempt on the same machine is not ours.
            write(&store, 12, 1, 50..51).await;
            assert_eq!(news(&mut ring).await, (vec![], false));
            let loaded = ring.load().await.unwrap();
            assert_eq!(loaded.iter().map(|s| s.number).collect::<Vec<_>>(), (5..13).collect::<Vec<_>>());
        };
        all.now_or_never().expect("a store in memory answers at once");
    }
}
