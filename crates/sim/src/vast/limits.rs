//! Vast.ai's request limits: least seconds between two requests to one endpoint, from `x-rate-limit` of the official endpoint
//! documents. One set per account, since ours is the only address.

use std::collections::{BTreeMap, VecDeque};

use serde_json::json;

use super::answer::{Answer, Body};
use crate::market::SimTime;

/// Offer searches a minute.
const SEARCHES_PER_MINUTE: usize = 10;
/// Seconds until the next creation after one that came too early.
const CREATE_PENALTY: f64 = 12.0;

/// When each endpoint may be called next.
#[derive(Debug, Default)]
pub struct Limits {
    next: BTreeMap<&'static str, SimTime>,
    searches: VecDeque<SimTime>,
}

impl Limits {
    /// Counts a call of an endpoint; the answer, if it comes too early.
    pub fn admit(&mut self, now: SimTime, endpoint: &'static str) -> Option<Answer> {
        if endpoint == "search" {
            return self.admit_search(now);
        }
        let threshold = match endpoint {
            "create" => 4.5,
            "show" => 2.0,
            "list" | "manage" | "reboot" | "recycle" | "charges" => 1.0,
            "destroy" => 3.0,
            "bid" => 5.5,
            "command" => 1.5,
            _ => return None,
        };
        let next = self.next.entry(endpoint).or_default();
        if now < *next {
            if endpoint == "create" {
                *next = now.after_seconds(CREATE_PENALTY);
            }
            let words = format!("API requests too frequent endpoint threshold={threshold:.1}");
            return Some(match endpoint {
                "destroy" => Answer::error(429, "rate_limit_exceeded", words),
                _ => Answer { status: 429, body: Body::Json(json!({"detail": words})) },
            });
        }
        *next = now.after_seconds(threshold);
        None
    }

    fn admit_search(&mut self, now: SimTime) -> Option<Answer> {
        while self.searches.front().is_some_and(|at| now.micros_since(*at) >= 60_000_000) {
            self.searches.pop_front();
        }
        if self.searches.len() >= SEARCHES_PER_MINUTE {
            return Some(Answer { status: 429, body: Body::Text("API requests too frequent".to_owned()) });
        }
        self.searches.push_back(now);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_calls_are_refused_and_early_creations_cost_more() {
        let mut limits = Limits::default();
        let at = |seconds: f64| SimTime::ZERO.after_seconds(seconds);
        assert!(limits.admit(at(0.0), "create").is_none());
        assert_eq!(limits.admit(at(4.0), "create").unwrap().status, 429);
        assert_eq!(limits.admit(at(5.0), "create").unwrap().status, 429);
        assert!(limits.admit(at(17.0), "create").is_none());
        assert!(limits.admit(at(17.0), "logs").is_none());
        for _ in 0..10 {
            assert!(limits.admit(at(20.0), "search").is_none());
        }
        assert_eq!(limits.admit(at(79.9), "search").unwrap().status, 429);
        assert!(limits.admit(at(80.0), "search").is_none());
    }
}
