//! The lease of an agent: drawn anew long before it runs out, and at once where it became much shorter.
//!
//! The agent counts from the moment it first hears of a control document, by its own monotonic clock. Every renewal is a new document, so
//! they are rare: a machine whose operator vanishes ends between nine tenths of its line and the whole of it.

use std::time::Duration;

use tradewind_protocol::Control;

use super::{Memory, Serving};

/// The longest time between two renewals.
const RARELY: Duration = Duration::from_hours(1);
/// A lease that never runs out: more than a hundred years.
pub(super) const NEVER_S: u64 = u32::MAX as u64;

/// Time after which a line of so many seconds is drawn anew.
fn renew_after(line_s: u64) -> Duration {
    (Duration::from_secs(line_s) / 10).min(RARELY)
}

impl Serving<'_> {
    /// Draws the line anew when it is time; the document is then written again even if it says nothing else.
    pub(super) fn renew_lease(&self, control: &mut Control, memory: &mut Memory) {
        let Some(line) = self.whom.lease_s else { return };
        let now = self.ctx.clock.monotonic();
        let old = memory.lease_drawn.is_none_or(|at| now.saturating_sub(at) >= renew_after(control.lease_s));
        // A budget that was cut, or a shorter absence allowed: that cannot wait.
        if old || line < control.lease_s / 2 {
            control.lease_s = line;
            memory.lease_drawn = Some(now);
            memory.control_unwritten = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_drawn_anew_each_hour_and_short_ones_at_a_tenth() {
        assert_eq!(renew_after(86_400), Duration::from_hours(1));
        assert_eq!(renew_after(20), Duration::from_secs(2));
    }
}
