//! The work queue as many tasks see it: watches put keys in, the driver takes them out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tradewind_core::Clock;

use super::queue::{Queue, Work};

/// A [`Queue`] behind a lock, with a bell.
pub struct Inbox {
    queue: Mutex<Queue>,
    bell: Notify,
    clock: Arc<dyn Clock>,
}

impl Inbox {
    /// An empty one.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { queue: Mutex::new(Queue::default()), bell: Notify::new(), clock }
    }

    /// Makes these keys due now.
    pub fn ask(&self, work: impl IntoIterator<Item = Work>) {
        let now = self.clock.monotonic();
        let mut any = false;
        {
            let mut queue = self.lock();
            for one in work {
                queue.add(one, now);
                any = true;
            }
        }
        if any {
            self.bell.notify_one();
        }
    }

    /// Forgets everything: whoever starts to lead begins with what the caches hold then.
    pub fn clear(&self) {
        *self.lock() = Queue::default();
    }

    /// Takes the due key that waits longest among those whose controller `may` take one.
    pub(super) fn take(&self, may: impl Fn(&str) -> bool) -> Option<Work> {
        self.lock().take_if(self.clock.monotonic(), may)
    }

    pub(super) fn done(&self, work: &Work, wake: Option<Duration>) {
        let now = self.clock.monotonic();
        self.lock().done(work, now, wake);
    }

    pub(super) fn failed(&self, work: &Work, benign: bool) {
        let now = self.clock.monotonic();
        self.lock().failed(work, now, benign);
    }

    /// How long until the next key is due among those whose controller `may` take one; `None` = nothing waits.
    pub(super) fn next_in(&self, may: impl Fn(&str) -> bool) -> Option<Duration> {
        self.lock().next_due_if(may).map(|at| at.saturating_sub(self.clock.monotonic()))
    }

    /// Waits until somebody has asked for something.
    pub(super) async fn rings(&self) {
        self.bell.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
