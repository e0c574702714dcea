//! `GET /v2/pods/{id}/logs`: server-sent events, first what there is, then what comes. Lines outlive restarts and wiped disks.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::Answer;
use super::query::{Query, wrong_value};
use crate::market::{Event, Kind, Machine, Market};
use crate::world::World;

/// Lines kept of each pod.
const KEPT: usize = 10_000;
/// Bytes of a log file that are read at once; of what is longer, the end counts.
const READ_BYTES: u64 = 4 << 20;
/// Time between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(100);

/// What is known of every pod's log file.
#[derive(Debug, Default)]
pub struct PodLogs(BTreeMap<u64, PodLog>);

/// Lines of one pod, each stamped with the time at which it was first seen, no two alike: the wire resumes by that.
#[derive(Debug, Default)]
struct PodLog {
    lines: VecDeque<(Timestamp, String)>,
    file: Option<Identity>,
    consumed: u64,
    last: Option<Timestamp>,
}

/// What tells a file from another one of the same name: numbers of files are used again, so their birth counts too.
type Identity = (u64, Option<SystemTime>);

impl PodLogs {
    /// Takes in what the file has grown by. Another or shorter file than before means that the disk was wiped.
    fn look(&mut self, pod: u64, file: &Path, now: Timestamp) -> &VecDeque<(Timestamp, String)> {
        let log = self.0.entry(pod).or_default();
        // No file, nothing new.
        let _ = log.take_in(file, now);
        &log.lines
    }
}

impl PodLog {
    fn take_in(&mut self, path: &Path, now: Timestamp) -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let about = file.metadata()?;
        let identity = Some((about.ino(), about.created().ok()));
        if identity != self.file || about.len() < self.consumed {
            (self.file, self.consumed) = (identity, 0);
        }
        self.consumed = self.consumed.max(about.len().saturating_sub(READ_BYTES));
        file.seek(SeekFrom::Start(self.consumed))?;
        let mut bytes = Vec::new();
        file.take(READ_BYTES).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.consumed += whole as u64;
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            let next = self.last.and_then(|last| last.checked_add(Duration::from_micros(1)).ok());
            let at = next.map_or(now, |next| next.max(now));
            self.last = Some(at);
            self.lines.push_back((at, line.to_owned()));
        }
        self.lines.drain(..self.lines.len().saturating_sub(KEPT));
        Ok(())
    }
}

/// One line as it goes out.
#[derive(Debug, Clone)]
struct Line {
    at: Timestamp,
    source: &'static str,
    text: String,
}

/// Which lines of which pod.
#[derive(Debug, Clone)]
struct Subject {
    account: String,
    pod: u64,
    container: bool,
    system: bool,
}

/// A log to be streamed.
#[derive(Debug)]
pub struct Stream {
    /// What there was at the time of the call, as events.
    pub first: String,
    subject: Subject,
    last: Option<Timestamp>,
}

/// Begins to stream a pod's log.
pub fn open(
    world: &World,
    market: &Market,
    account: &str,
    pod: u64,
    query: &Query,
    last_event_id: Option<&str>,
) -> Result<Answer, Answer> {
    let source = query.word("source", &["container", "system"])?;
    let tail = usize::try_from(query.whole("tail", 0, 5_000)?.unwrap_or(100)).unwrap_or(usize::MAX);
    let since = query.time("since")?;
    let resume = match last_event_id {
        None => None,
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| wrong_value("Last-Event-ID", text))?),
    };
    let subject = Subject {
        account: account.to_owned(),
        pod,
        container: source != Some("system"),
        system: source != Some("container"),
    };
    let all = lines(world, market, &subject);
    let last = all.last().map(|line| line.at).or(resume);
    let kept: Vec<&Line> = match (resume, since) {
        (Some(resume), _) => all.iter().filter(|line| line.at > resume).collect(),
        (None, Some(since)) => all.iter().filter(|line| line.at >= since).collect(),
        (None, None) => all.iter().skip(all.len().saturating_sub(tail)).collect(),
    };
    let first = events(kept.into_iter());
    Ok(Answer::events(Stream { first, subject, last }))
}

fn events<'a>(lines: impl Iterator<Item = &'a Line>) -> String {
    let mut text = String::new();
    for line in lines {
        let data = json!({"ts": line.at.to_string(), "source": line.source, "line": line.text});
        let _ = write!(text, "id: {}\ndata: {data}\n\n", line.at);
    }
    text
}

/// All lines as of now, in order of time.
fn lines(world: &World, market: &Market, subject: &Subject) -> Vec<Line> {
    let now = market.timestamp(market.now());
    let id = Kind::Runpod.machine_id(subject.pod);
    let mut found = Vec::new();
    if subject.system {
        let image = market.machine(subject.pod).map_or("", |pod| pod.workload.image.as_str());
        let own = market.events().after(0).filter(|event| event.machine.as_ref() == Some(&id));
        found.extend(own.filter_map(|event| {
            Some(Line { at: market.timestamp(event.at), source: "system", text: system_line(event, image)? })
        }));
    }
    if subject.container {
        let file = world.runner.directory(&subject.account, &id).join("log");
        let mut logs = world.pod_logs();
        let kept = logs.look(subject.pod, &file, now);
        found.extend(kept.iter().map(|(at, text)| Line { at: *at, source: "container", text: text.clone() }));
    }
    found.sort_by_key(|line| line.at);
    found
}

/// The host's words about what happened to a pod: the only place on the wire where a failed pull can be seen.
fn system_line(event: &Event, image: &str) -> Option<String> {
    let message = event.details.get("message").and_then(Value::as_str);
    let line = match (event.kind, event.details.get("reason").and_then(Value::as_str)) {
        ("created", _) => format!("create container {image}"),
        ("running", _) => format!("start container for {image}: begin"),
        ("started", _) => format!("start container for {image}"),
        ("exited", _) => "container exited, restarting it".to_owned(),
        ("stopped", Some("pull failed")) => format!("error pulling image: {}", message.unwrap_or_default()),
        ("stopped", Some("boot failed")) => format!("error starting container: {}", message.unwrap_or_default()),
        ("stopped", _) => "stop container".to_owned(),
        _ => return None,
    };
    Some(line)
}

/// The stream's body after its first part: whatever comes, until the pod is gone or the client has enough.
pub fn follow(world: Arc<World>, stream: Stream) -> axum::body::Body {
    let Stream { first, subject, last } = stream;
    let begin = (Some(first), subject, last, false);
    axum::body::Body::from_stream(stream::unfold(begin, move |(first, subject, mut last, over)| {
        let world = Arc::clone(&world);
        async move {
            if let Some(first) = first.filter(|first| !first.is_empty()) {
                return Some((Ok::<_, std::io::Error>(first), (None, subject, last, false)));
            }
            if over {
                return None;
            }
            loop {
                tokio::time::sleep(LOOK).await;
                let ((found, gone), pending) = world.with(|market, _| {
                    let gone = market.machine(subject.pod).is_none_or(Machine::has_ended);
                    (lines(&world, market, &subject), gone)
                });
                drop(pending);
                let fresh: Vec<&Line> = found.iter().filter(|line| last.is_none_or(|last| line.at > last)).collect();
                if !fresh.is_empty() {
                    last = fresh.last().map(|line| line.at);
                    return Some((Ok(events(fresh.into_iter())), (None, subject, last, gone)));
                }
                if gone {
                    return None;
                }
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_outlive_a_wiped_file() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("log");
        let mut logs = PodLogs::default();
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        assert!(logs.look(1, &file, now).is_empty());
        std::fs::write(&file, "one\ntwo\nhal").unwrap();
        assert_eq!(logs.look(1, &file, now).len(), 2);
        std::fs::write(&file, "one\ntwo\nhalf\n").unwrap();
        let texts: Vec<_> = logs.look(1, &file, now).iter().map(|(_, text)| text.clone()).collect();
        assert_eq!(texts, ["one", "two", "half"]);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "one\ntwo\nhalf\nnew\n").unwrap();
        assert_eq!(logs.look(1, &file, now).len(), 3 + 4, "a new file, although it is longer than the old one");
        std::fs::write(&file, "new\n").unwrap();
        let lines = logs.look(1, &file, now);
        assert_eq!(lines.back().unwrap().1, "new");
        assert!(lines.iter().map(|(at, _)| at).is_sorted_by(|a, b| a < b), "{lines:?}");
    }
}
