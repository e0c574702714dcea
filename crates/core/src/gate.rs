//! A place to cut: every external call of a controller passes a gate, where the world simulation may crash it.
//!
//! A port that can be cut asks a [`Gate`] before each call and follows its [`Verdict`]; [`pass`] does both. A crash is
//! a future that stays pending for ever: the world notices that the reconcile does not go on and drops it.

use std::fmt;
use std::future::{Future, pending};

/// One external call, about to be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// Which port is called, such as `cluster`, `provider` or `store`.
    pub port: &'static str,
    /// What it is asked to do, such as `create`.
    pub verb: &'static str,
    /// What it is asked about: a path, a name or an identifier, in the port's own words.
    pub key: String,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.port, self.verb, self.key)
    }
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Verdict {
    /// The call is made and its answer arrives.
    #[default]
    Pass,
    /// The caller dies before the call has any effect.
    CrashBefore,
    /// The call has its effect; the caller dies before the answer arrives.
    CrashAfterEffect,
    /// The call has its effect and the caller dies with the answer in its hands. For the call itself this is a [`Verdict::Pass`]: a gate
    /// that gives this verdict answers [`Verdict::CrashBefore`] to every later call of the same process, and the world ends
    /// the process even if it makes no further call.
    CrashAfterAnswer,
    /// The call has its effect, but the answer is lost: the caller sees that the outcome is unknown.
    LostAnswer,
    /// The call has no effect, but the caller only sees that the outcome is unknown.
    FailBefore,
}

/// Decides what becomes of each call of a process.
pub trait Gate: Send + Sync {
    /// The verdict for the call at `point`, asked exactly once per call, when its future is first polled.
    fn before(&self, point: &Point) -> Verdict;
}

/// A gate that lets everything through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open;

impl Gate for Open {
    fn before(&self, _point: &Point) -> Verdict {
        Verdict::Pass
    }
}

/// Makes one call through a gate. `unknown` builds the port's error for "may have happened" from a sentence.
///
/// Ready at the first poll if `call` is, and pending for ever where the verdict is a crash.
pub async fn pass<T, E>(
    gate: &dyn Gate,
    point: Point,
    call: impl Future<Output = Result<T, E>>,
    unknown: impl FnOnce(String) -> E,
) -> Result<T, E> {
    match gate.before(&point) {
        Verdict::Pass | Verdict::CrashAfterAnswer => call.await,
        Verdict::CrashBefore => pending().await,
        Verdict::CrashAfterEffect => {
            let _ = call.await;
            pending().await
        }
        Verdict::LostAnswer => {
            let _ = call.await;
            Err(unknown(format!("the answer to {point} was lost")))
        }
        Verdict::FailBefore => Err(unknown(format!("no answer to {point}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    struct Fixed(Verdict);

    impl Gate for Fixed {
        fn before(&self, _point: &Point) -> Verdict {
            self.0
        }
    }

    #[test]
    fn each_verdict_has_its_effect_and_its_answer() {
        let table = [
            (Verdict::Pass, true, Poll::Ready(Ok(7))),
            (Verdict::CrashBefore, false, Poll::Pending),
            (Verdict::CrashAfterEffect, true, Poll::Pending),
            (Verdict::CrashAfterAnswer, true, Poll::Ready(Ok(7))),
            (Verdict::LostAnswer, true, Poll::Ready(Err("the answer to cluster create pods/a was lost".to_owned()))),
            (Verdict::FailBefore, false, Poll::Ready(Err("no answer to cluster create pods/a".to_owned()))),
        ];
        for (verdict, effect, answer) in table {
            let done = Cell::new(false);
            let call = async {
                done.set(true);
                Ok(7)
            };
            let point = Point { port: "cluster", verb: "create", key: "pods/a".to_owned() };
            let gate = Fixed(verdict);
            let polled = {
                let mut future = pin!(pass(&gate, point, call, |sentence| sentence));
                future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            };
            assert_eq!(done.get(), effect, "effect of {verdict:?}");
            assert_eq!(polled, answer, "answer of {verdict:?}");
        }
    }
}
