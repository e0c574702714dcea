//! Keeps the market's memory in the mailbox, so that it survives the operator: a host that failed a minute ago is not rented again because
//! another process leads now.
//!
//! Only who leads runs this. Losing the newest minute of it to a crash costs at most one more look at a bad host; so it is written at most
//! once a minute, only when something was learned, and once more at an orderly end.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_checkpoints::{Mailbox, StoreError};
use tradewind_cluster::Key;

use super::memory::{MAX_BYTES, Moment, Remembered};
use crate::context::Context;
use crate::runtime::{Failure, Reconciler, Wake};

/// Time between two writes.
const EVERY: Duration = Duration::from_mins(1);

/// The keeper.
pub struct MarketKeeper {
    ctx: Arc<Context>,
}

impl MarketKeeper {
    /// Its name in the queue.
    pub const NAME: &'static str = "market_memory";
    /// There is one memory.
    pub const SINGLE: &'static str = "market";

    /// A keeper over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    /// Its one key.
    pub fn key() -> Key {
        Key::cluster(Self::SINGLE)
    }

    async fn run(&self) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(mailbox) = &ctx.mailbox else { return Ok(Wake::OnChange) };
        if !ctx.market.is_recalled() {
            recall(ctx, mailbox).await?;
        }
        let Some(written_at) = ctx.market.unwritten_since() else { return Ok(Wake::OnChange) };
        let due = written_at.map_or(Duration::ZERO, |at| at + EVERY);
        let wait = due.saturating_sub(ctx.clock.monotonic());
        if !wait.is_zero() {
            return Ok(Wake::After(wait, "what was learned is written down"));
        }
        write(ctx, mailbox).await?;
        Ok(Wake::OnChange)
    }
}

fn moment(ctx: &Context) -> Moment {
    Moment { monotonic: ctx.clock.monotonic(), wall: ctx.clock.now() }
}

/// Reads what the process before knew. If that cannot be read now, jobs are placed without it, and it is tried again.
async fn recall(ctx: &Context, mailbox: &Mailbox) -> Result<(), Failure> {
    let read = mailbox.read_market(&ctx.settings.install, MAX_BYTES).await;
    let waited = !ctx.market.may_plan();
    ctx.market.set_asked();
    if waited {
        ctx.wake_waiting_jobs();
    }
    match read {
        Ok(None) => ctx.market.set_recalled(),
        Ok(Some(bytes)) => {
            match Remembered::decode(&bytes) {
                Some(remembered) => ctx.market.recall(remembered, moment(ctx)),
                None => told_unreadable(bytes.len() as u64),
            }
            ctx.market.set_recalled();
        }
        Err(StoreError::TooLarge { size_bytes, .. }) => {
            told_unreadable(size_bytes);
            ctx.market.set_recalled();
        }
        Err(error) => {
            let message = format!("placing jobs without what was known of hosts, tried again: {error}");
            return Err(Failure::new("MarketMemoryUnread", message));
        }
    }
    Ok(())
}

fn told_unreadable(size_bytes: u64) {
    tracing::warn!(
        reason = "MarketMemoryUnreadable",
        size_bytes,
        "Starting with nothing known of hosts: what is in the mailbox is no memory of ours and will be overwritten"
    );
}

async fn write(ctx: &Context, mailbox: &Mailbox) -> Result<(), Failure> {
    let (revision, remembered) = ctx.market.to_remember(moment(ctx));
    let written = mailbox.write_market(&ctx.settings.install, remembered.encode()).await;
    written.map_err(|error| Failure::new("MarketMemoryUnwritten", error.to_string()))?;
    ctx.market.set_written(revision, ctx.clock.monotonic());
    Ok(())
}

/// Writes what has not been written yet: the last thing that a leader does before it lets go.
pub async fn flush(ctx: &Context) -> Result<(), Failure> {
    match &ctx.mailbox {
        // What was never read must not be overwritten by the little that is known now.
        Some(mailbox) if ctx.market.is_recalled() && ctx.market.unwritten_since().is_some() => {
            write(ctx, mailbox).await
        }
        _ => Ok(()),
    }
}

impl Reconciler for MarketKeeper {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn reconcile<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run())
    }
}
