//! RunPod's request limits: three windows per user, told in headers of every answer to a known key. The numbers are the ones that the
//! official document gives as examples; a client must read the headers.

use crate::market::SimTime;

/// Name, quota and length in seconds of each window.
const WINDOWS: [(&str, u64, u64); 3] = [("minute", 60, 60), ("hour", 3_000, 3_600), ("day", 50_000, 86_400)];

/// One user's use of the windows.
#[derive(Debug, Default)]
pub struct Limits {
    windows: [Window; 3],
}

#[derive(Debug, Default)]
struct Window {
    since: SimTime,
    used: u64,
}

/// What the limits say to a request.
pub struct Verdict {
    /// `RateLimit` and `RateLimit-Policy`.
    pub headers: [(&'static str, String); 2],
    /// The window that is used up, and the seconds until it opens again.
    pub refused: Option<(&'static str, u64)>,
}

impl Limits {
    /// Counts a request, unless a window is used up.
    pub fn admit(&mut self, now: SimTime) -> Verdict {
        let mut refused = None;
        for (window, (name, quota, seconds)) in self.windows.iter_mut().zip(WINDOWS) {
            if window.used == 0 || now.micros_since(window.since) >= seconds * 1_000_000 {
                *window = Window { since: now, used: 0 };
            }
            if window.used >= quota {
                refused = Some((name, left(now, window.since, seconds)));
            }
        }
        if refused.is_none() {
            for window in &mut self.windows {
                window.used += 1;
            }
        }
        let (mut state, mut policy) = (Vec::new(), Vec::new());
        for (window, (name, quota, seconds)) in self.windows.iter().zip(WINDOWS) {
            state.push(format!("\"{name}\";r={};t={}", quota - window.used, left(now, window.since, seconds)));
            policy.push(format!("\"{name}\";q={quota};w={seconds}"));
        }
        Verdict { headers: [("ratelimit", state.join(", ")), ("ratelimit-policy", policy.join(", "))], refused }
    }
}

fn left(now: SimTime, since: SimTime, seconds: u64) -> u64 {
    (seconds * 1_000_000).saturating_sub(now.micros_since(since)).div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_fill_and_open_again() {
        let mut limits = Limits::default();
        let at = |seconds: f64| SimTime::ZERO.after_seconds(seconds);
        for _ in 0..60 {
            assert_eq!(limits.admit(at(10.5)).refused, None);
        }
        let verdict = limits.admit(at(22.0));
        assert_eq!(verdict.refused, Some(("minute", 49)));
        assert_eq!(verdict.headers[0].1, "\"minute\";r=0;t=49, \"hour\";r=2940;t=3589, \"day\";r=49940;t=86389");
        assert_eq!(verdict.headers[1].1, "\"minute\";q=60;w=60, \"hour\";q=3000;w=3600, \"day\";q=50000;w=86400");
        assert_eq!(limits.admit(at(71.0)).refused, None);
    }
}
