//! Seeing that a save is complete: it was renamed into place, or nothing in it has changed for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use jiff::Timestamp;
use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::Sender as AsyncSender;
use tradewind_core::{Clock, SystemClock};

use super::Event;
use super::files::Listing;
use crate::logic::{Input, Now, SeenSave};
use tradewind_protocol::Pattern;

const SHORTEST_SCAN: Duration = Duration::from_millis(50);
const LONGEST_SCAN: Duration = Duration::from_secs(1);

/// What is known of one name.
#[derive(Debug)]
struct Known {
    listing: Listing,
    changed_at: Duration,
    first_seen: Timestamp,
    told: Option<Listing>,
}

/// The checkpoint directory as it was seen so far.
#[derive(Debug)]
pub struct Watch {
    checkpoints: PathBuf,
    pattern: Pattern,
    quiet: Duration,
    known: BTreeMap<String, Known>,
    renamed: BTreeSet<String>,
    /// The newest save that was told: when it last changed, and its step.
    newest_told: (Duration, Option<u64>),
    /// No save began before this.
    since: Timestamp,
}

/// Which saves count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Renamed or quiet.
    Settled,
    /// Everything: the program has ended in order.
    All,
}

impl Watch {
    /// Begins to watch. What is there already is no new save.
    pub fn new(checkpoints: PathBuf, pattern: Pattern, quiet: Duration, now: Now) -> Self {
        let (known, renamed) = (BTreeMap::new(), BTreeSet::new());
        let newest_told = (Duration::ZERO, None);
        let mut watch = Self { checkpoints, pattern, quiet, known, renamed, newest_told, since: now.wall };
        watch.look(now);
        for known in watch.known.values_mut() {
            known.told = Some(known.listing.clone());
        }
        watch
    }

    /// These appeared by a rename.
    pub fn renamed(&mut self, paths: &[PathBuf]) {
        for path in paths {
            self.note_rename(path);
        }
    }

    fn note_rename(&mut self, path: &Path) {
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) =
            name.filter(|name| path.parent() == Some(&self.checkpoints) && self.pattern.step(name).is_some())
        {
            self.renamed.insert(name.to_owned());
        }
    }

    /// Looks at the directory and returns the saves that are complete now, oldest first. One that turns out complete after a newer one was
    /// told (it was quiet, the newer one renamed) is not worth telling any more: it would pass for the newest.
    pub fn scan(&mut self, now: Now, trust: Trust) -> Vec<SeenSave> {
        self.look(now);
        let mut seen = Vec::new();
        for (name, known) in &mut self.known {
            let news = known.told.as_ref() != Some(&known.listing) && !known.listing.files.is_empty();
            // A program that prunes removes file after file: what is left of an old save is no new one.
            let pruned = known.told.as_ref().is_some_and(|told| known.listing.is_rest_of(told));
            let quiet = now.monotonic.saturating_sub(known.changed_at) >= self.quiet;
            let complete = trust == Trust::All || quiet || self.renamed.contains(name);
            let Some(step) = self.pattern.step(name).filter(|_| news && !pruned && complete) else { continue };
            let born = known.listing.born(&self.checkpoints.join(name)).unwrap_or(known.first_seen);
            let save = SeenSave {
                name: name.clone(),
                step,
                kind: known.listing.kind,
                continues: known.told.as_ref().is_some_and(|told| told.inode == known.listing.inode),
                began_at: born.clamp(self.since.min(now.wall), now.wall),
                complete_at: now.wall,
            };
            if (known.changed_at, step) >= self.newest_told {
                seen.push((known.changed_at, step, save));
            }
            self.renamed.remove(name);
            known.told = Some(known.listing.clone());
        }
        seen.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));
        if let Some((changed_at, step, _)) = seen.last() {
            self.newest_told = (*changed_at, *step);
        }
        seen.into_iter().map(|(_, _, save)| save).collect()
    }

    /// Brings what is known up to date.
    fn look(&mut self, now: Now) {
        let mut there = BTreeSet::new();
        for entry in std::fs::read_dir(&self.checkpoints).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| self.pattern.step(name).is_some()) else { continue };
            let Ok(Some(listing)) = Listing::of(&entry.path()) else { continue };
            there.insert(name.to_owned());
            match self.known.get_mut(name) {
                Some(known) if known.listing == listing => {}
                Some(known) => (known.listing, known.changed_at) = (listing, now.monotonic),
                None => {
                    let known = Known { listing, changed_at: now.monotonic, first_seen: now.wall, told: None };
                    self.known.insert(name.to_owned(), known);
                }
            }
        }
        self.known.retain(|name, _| there.contains(name));
        self.renamed.retain(|name| there.contains(name));
    }
}

enum Message {
    Renamed(Vec<PathBuf>),
    Final(Trust),
    Stop,
}

/// The thread that watches.
#[derive(Debug, Clone)]
pub struct Watchman {
    messages: Sender<Message>,
}

impl Watchman {
    /// Starts it for program number n, which goes with everything it tells. What is in the directory now is no new save.
    pub fn start(
        checkpoints: PathBuf,
        pattern: Pattern,
        quiet: Duration,
        clock: SystemClock,
        events: (u64, AsyncSender<Event>),
    ) -> Self {
        let (messages, inbox) = channel();
        let own = messages.clone();
        // Here and not on the thread: nothing that the program writes may be taken for what was there before.
        let watch = Watch::new(checkpoints, pattern, quiet, now(clock));
        std::thread::spawn(move || run(watch, clock, &own, &inbox, &events));
        Self { messages }
    }

    /// Looks a last time and says what was found, then that it is finished, and ends.
    pub fn final_scan(&self, trust_unsettled: bool) {
        let _ = self.messages.send(Message::Final(if trust_unsettled { Trust::All } else { Trust::Settled }));
    }

    /// Ends the thread.
    pub fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
    }
}

/// Both clocks.
pub fn now(clock: SystemClock) -> Now {
    Now { wall: clock.now(), monotonic: clock.monotonic() }
}

fn run(
    mut watch: Watch,
    clock: SystemClock,
    own: &Sender<Message>,
    inbox: &Receiver<Message>,
    (program, events): &(u64, AsyncSender<Event>),
) {
    let tell = |input| events.blocking_send(Event::Of(*program, input)).is_ok();
    let every = (watch.quiet / 2).clamp(SHORTEST_SCAN, LONGEST_SCAN);
    let mut notifier: Option<(RecommendedWatcher, u64)> = None;
    loop {
        follow(&mut notifier, &watch.checkpoints, own);
        let (trust, last) = match inbox.recv_timeout(every) {
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Message::Final(trust)) => (trust, true),
            Ok(Message::Renamed(paths)) => {
                watch.renamed(&paths);
                (Trust::Settled, false)
            }
            Err(RecvTimeoutError::Timeout) => (Trust::Settled, false),
        };
        if last {
            // Renames that happened just before the end are still in the queue behind us.
            while let Ok(Message::Renamed(paths)) = inbox.recv_timeout(SHORTEST_SCAN) {
                watch.renamed(&paths);
            }
        }
        for save in watch.scan(now(clock), trust) {
            if !tell(Input::SaveSeen(save)) {
                return;
            }
        }
        if last {
            // What appears later is not of this program: it may be what the next one restores.
            tell(Input::ScanFinished);
            return;
        }
    }
}

/// Keeps the kernel's notices on the directory, also when it is made late or made anew. Without notices the scans suffice.
fn follow(notifier: &mut Option<(RecommendedWatcher, u64)>, checkpoints: &Path, own: &Sender<Message>) {
    let Ok(inode) = std::fs::metadata(checkpoints).map(|metadata| metadata.ino()) else {
        *notifier = None;
        return;
    };
    if notifier.as_ref().is_some_and(|(_, watched)| *watched == inode) {
        return;
    }
    let own = own.clone();
    let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let mut paths = event.paths;
        let arrived = match event.kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => paths,
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) if paths.len() == 2 => vec![paths.remove(1)],
            _ => return,
        };
        let _ = own.send(Message::Renamed(arrived));
    });
    if let Ok(mut watcher) = made
        && watcher.watch(checkpoints, RecursiveMode::NonRecursive).is_ok()
    {
        *notifier = Some((watcher, inode));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(2);

    fn at(seconds: i64) -> Now {
        // Far ahead of the files' birth, so that no clamp hides a mistake.
        let wall = Timestamp::new(4_000_000_000 + seconds, 0).unwrap();
        Now { wall, monotonic: Duration::from_secs(seconds.unsigned_abs()) }
    }

    fn names(seen: &[SeenSave]) -> Vec<&str> {
        seen.iter().map(|save| save.name.as_str()).collect()
    }

    fn begin(directory: &Path) -> Watch {
        Watch::new(directory.to_owned(), Pattern::new("step-{step}").unwrap(), QUIET, at(0))
    }

    #[test]
    fn what_is_there_at_the_start_is_no_save_until_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("step-1"), "old").unwrap();
        let mut watch = begin(directory.path());
        assert!(watch.scan(at(10), Trust::All).is_empty());
        std::fs::write(directory.path().join("step-1"), "new one").unwrap();
        assert_eq!(names(&watch.scan(at(11), Trust::All)), ["step-1"]);
        assert!(watch.scan(at(12), Trust::All).is_empty(), "told once");
    }

    #[test]
    fn a_directory_is_complete_when_it_is_quiet_or_was_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = begin(directory.path());
        let save = directory.path().join("step-20");
        std::fs::create_dir_all(save.join("shards")).unwrap();
        assert!(watch.scan(at(9), Trust::All).is_empty(), "nothing in it yet");
        std::fs::write(save.join("shards/0"), "a").unwrap();
        assert!(watch.scan(at(10), Trust::Settled).is_empty());
        std::fs::write(save.join("shards/1"), "b").unwrap();
        assert!(watch.scan(at(11), Trust::Settled).is_empty());
        assert!(watch.scan(at(12), Trust::Settled).is_empty(), "it changed a second ago");
        let seen = watch.scan(at(13), Trust::Settled);
        assert_eq!((names(&seen), seen[0].step), (vec!["step-20"], Some(20)));

        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        std::fs::write(directory.path().join("tmp/0"), "c").unwrap();
        std::fs::rename(directory.path().join("tmp"), directory.path().join("step-30")).unwrap();
        watch.renamed(&[directory.path().join("step-30")]);
        assert_eq!(names(&watch.scan(at(13), Trust::Settled)), ["step-30"]);
    }

    #[test]
    fn pruning_is_no_save_and_unsettled_saves_are_left_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = begin(directory.path());
        let save = directory.path().join("step-1");
        std::fs::create_dir(&save).unwrap();
        for file in ["a", "b", "c"] {
            std::fs::write(save.join(file), file).unwrap();
        }
        assert_eq!(names(&watch.scan(at(1), Trust::All)), ["step-1"]);
        std::fs::remove_file(save.join("b")).unwrap();
        assert!(watch.scan(at(2), Trust::All).is_empty());
        assert!(watch.scan(at(20), Trust::Settled).is_empty());

        std::fs::write(directory.path().join("step-2"), "half").unwrap();
        assert!(watch.scan(at(21), Trust::Settled).is_empty());
        std::fs::write(directory.path().join("step-3"), "x").unwrap();
        assert_eq!(names(&watch.scan(at(21), Trust::All)), ["step-2", "step-3"], "in the order of their steps");
    }

    #[test]
    fn an_older_save_is_not_told_after_a_newer_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = begin(directory.path());
        for step in 1..=3 {
            std::fs::write(directory.path().join(format!("step-{step}")), "x").unwrap();
        }
        watch.renamed(&[directory.path().join("step-2")]);
        assert_eq!(names(&watch.scan(at(1), Trust::Settled)), ["step-2"], "the others are not quiet yet");
        assert_eq!(names(&watch.scan(at(9), Trust::Settled)), ["step-3"], "step-1 would pass for the newest");
        std::fs::write(directory.path().join("step-1"), "a program that has begun anew").unwrap();
        assert_eq!(names(&watch.scan(at(10), Trust::All)), ["step-1"]);
    }

    #[test]
    fn links_and_other_names_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = begin(directory.path());
        std::os::unix::fs::symlink("/etc", directory.path().join("step-7")).unwrap();
        std::fs::write(directory.path().join("step-8.tmp"), "x").unwrap();
        assert!(watch.scan(at(20), Trust::All).is_empty());
    }
}
