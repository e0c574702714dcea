//! The screen of `why`. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use tradewind::controllers::training_job::deadline::minute;

use super::view::WhyView;
use crate::choice::{self, First};
use crate::screen::{Ink, Shade};
use crate::status::shade;
use crate::text::{until, wrapped};

/// The sentence, the expected cost taken apart, the others, and what does not fit. `wide`: also the parts that cost nothing, and the moment at
/// which it was expected to be complete.
pub fn render(view: &WhyView, wide: bool, now: Timestamp, ink: Ink) -> String {
    let mut text = format!(
        "{}  {}\n",
        ink.paint(&view.name, Shade::Strong),
        ink.paint(&format!("{:?}", view.phase), shade(view.phase))
    );
    let place = view.place.as_deref().unwrap_or("nowhere yet");
    text.push_str(&wrapped(&format!("{place}: {}", view.why), ""));
    if let Some(deadline) = view.deadline {
        let _ = writeln!(text, "Must be complete {} ({}).", until(now, deadline), minute(deadline));
    }
    if let Some(finish) = view.expected_finish.filter(|_| wide) {
        let _ = writeln!(text, "As expected when it was chosen: complete about {}.", minute(finish));
    }
    if let Some(cost) = &view.cost {
        text.push('\n');
        text.push_str(&choice::cost(cost, wide, ink));
    }
    if view.place.is_some() && (view.cost.is_some() || !view.alternatives.is_empty()) {
        let chosen =
            [view.gpu.as_deref(), view.place.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" of ");
        let first = First {
            what: format!("{chosen} (chosen)"),
            price_per_hour: view.price_per_hour,
            expected_finish: view.expected_finish,
        };
        text.push('\n');
        text.push_str(&choice::offers(&first, &view.alternatives, now, ink));
    }
    if !view.rejected.is_empty() {
        text.push('\n');
        text.push_str(&choice::lines("Of the other offers", &view.rejected));
    }
    text
}
