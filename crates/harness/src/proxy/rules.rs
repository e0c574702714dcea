//! Which requests are hindered, and how.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::Method;
use regex::Regex;
use tokio::sync::watch;

/// Which requests a rule or a question is about. Everything that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    method: Option<Method>,
    target: Option<Regex>,
    header: Option<(String, Regex)>,
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with this method, by name.
    ///
    /// # Panics
    /// If it is no method's name: a mistake in the test.
    pub fn method(name: &str) -> Self {
        Self { method: Some(name.parse().expect("a method's name")), ..Self::default() }
    }

    /// Whose path and query, as sent (percent-encoded), the expression is found in. A presigned URL's path names the
    /// bucket, the machine and the key, which makes it the mark of who sends.
    ///
    /// # Panics
    /// If it is no regular expression: a mistake in the test.
    pub fn target(mut self, expression: &str) -> Self {
        self.target = Some(Regex::new(expression).expect("a regular expression"));
        self
    }

    /// Whose header `name` has a value that the expression is found in.
    ///
    /// # Panics
    /// If it is no regular expression: a mistake in the test.
    pub fn header(mut self, name: &str, expression: &str) -> Self {
        self.header = Some((name.to_ascii_lowercase(), Regex::new(expression).expect("a regular expression")));
        self
    }

    /// Says whether a request's head fits.
    pub fn fits(&self, head: &Head) -> bool {
        self.method.as_ref().is_none_or(|m| *m == head.method)
            && self.target.as_ref().is_none_or(|t| t.is_match(&head.target))
            && self.header.as_ref().is_none_or(|(name, value)| {
                head.headers.get_all(name).iter().any(|v| value.is_match(&String::from_utf8_lossy(v.as_bytes())))
            })
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.method.as_ref().map_or("of any method", Method::as_str))?;
        if let Some(target) = &self.target {
            write!(f, " to {target}")?;
        }
        if let Some((name, value)) = &self.header {
            write!(f, " with {name}: {value}")?;
        }
        Ok(())
    }
}

/// A request without its body.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its method.
    pub method: Method,
    /// Path and query as sent.
    pub target: String,
    /// Its headers.
    pub headers: http::HeaderMap,
}

/// What happens to a matching request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// It is handed on after this time.
    Delay(Duration),
    /// Its body and the answer's pass at no more than so many bytes a second.
    Throttle(u64),
    /// It is handed on once the rule is removed.
    Hold,
    /// The connection is closed at once; the server behind never sees it.
    Drop,
    /// It is handed on, and the connection is closed instead of an answer: the effect is there, nobody knows.
    DropAnswer,
    /// It is handed on, and its answer is held until the rule is removed: the effect is there, nobody knows yet.
    HoldAnswer,
    /// It is answered with this status and an empty body; the server behind never sees it.
    Answer(u16),
    /// It is handed on, and answered with this status whatever the server said.
    AnswerAfter(u16),
}

/// A rule in force.
#[derive(Clone, Debug)]
#[must_use = "a rule is removed through this value"]
pub struct Rule {
    id: u64,
    rules: Arc<Rules>,
    hits: watch::Receiver<u64>,
}

impl Rule {
    /// Ends it; requests that it holds go on. A second call does nothing.
    pub fn remove(&self) {
        self.rules.lock().list.retain(|entry| entry.id != self.id);
    }

    /// How many requests it was applied to.
    pub fn hits(&self) -> u64 {
        *self.hits.borrow()
    }
}

#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    list: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    matching: Match,
    action: Action,
    left: Option<u64>,
    hits: watch::Sender<u64>,
    /// Its receivers notice when the entry goes.
    presence: watch::Sender<()>,
}

/// An action that one request met.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub action: Action,
    presence: watch::Receiver<()>,
}

impl Applied {
    /// Waits until the rule is removed.
    pub async fn removed(&mut self) {
        while self.presence.changed().await.is_ok() {}
    }
}

impl Rules {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().expect("no code panics while it holds the rules")
    }

    pub fn add(self: &Arc<Self>, matching: Match, action: Action, times: Option<u64>) -> Rule {
        let mut rules = self.lock();
        rules.next += 1;
        let id = rules.next;
        let (hits, seen) = watch::channel(0);
        rules.list.push(Entry { id, matching, action, left: times, hits, presence: watch::channel(()).0 });
        Rule { id, rules: self.clone(), hits: seen }
    }

    pub fn clear(&self) {
        self.lock().list.clear();
    }

    /// The actions for a request, in order; counts them as met.
    pub fn meet(&self, head: &Head) -> Vec<Applied> {
        let mut rules = self.lock();
        let mut met = Vec::new();
        for entry in rules.list.iter_mut().filter(|e| e.left != Some(0) && e.matching.fits(head)) {
            entry.left = entry.left.map(|left| left - 1);
            entry.hits.send_modify(|hits| *hits += 1);
            met.push(Applied { action: entry.action, presence: entry.presence.subscribe() });
        }
        met
    }
}
