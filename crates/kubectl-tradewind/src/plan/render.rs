//! The screen of `plan`. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use tradewind::controllers::training_job::deadline::minute;
use tradewind_core::Money;

use super::view::{Decision, PlanView};
use crate::choice::{self, First};
use crate::screen::{Ink, Shade};
use crate::text::{count, dollars, until, wrapped};

/// The decision, its cost taken apart, the others, what does not fit, and what was assumed.
pub fn render(view: &PlanView, now: Timestamp, ink: Ink) -> String {
    let (word, shade) = match view.decision {
        Decision::Rent => ("Rent", Shade::Good),
        Decision::Wait => ("Wait", Shade::Waiting),
        Decision::Nowhere => ("Nowhere", Shade::Bad),
        Decision::InCluster => ("In the cluster", Shade::Good),
        Decision::Refused => ("Refused", Shade::Bad),
    };
    let mut text = format!("{}  {}\n", ink.paint(&view.name, Shade::Strong), ink.paint(word, shade));
    text.push_str(&wrapped(&message(view, now), ""));
    for before in &view.before {
        text.push_str(&wrapped(before, ""));
    }
    if let Some(deadline) = view.deadline {
        let _ = writeln!(text, "Must be complete {} ({}).", until(now, deadline), minute(deadline));
    }
    for (word, why, shade) in [("Late", &view.late, Shade::Bad), ("At risk", &view.at_risk, Shade::Waiting)] {
        if let Some(why) = why {
            text.push_str(&ink.paint(wrapped(&format!("{word}: {why}."), "").trim_end(), shade));
            text.push('\n');
        }
    }
    if let Some(patience) = view.patience_until.filter(|_| view.decision != Decision::Wait) {
        let _ = writeln!(text, "May wait for something cheaper until {}.", minute(patience));
    }
    if let (Some(offer), Some(cost)) = (&view.offer, &view.cost) {
        let now_is = if view.decision == Decision::Rent { "chosen" } else { "if rented now" };
        let first = First {
            what: format!("{} ({now_is})", choice::summary(offer)),
            price_per_hour: Some(offer.price_per_hour),
            expected_finish: view.expected_finish,
        };
        let _ = write!(text, "\n{}", choice::cost(cost, false, ink));
        let _ = write!(text, "\n{}", choice::offers(&first, &view.alternatives, now, ink));
        let cheaper = view.alternatives.iter().any(|other| other.extra_cost < Money::ZERO);
        let said = view.late.is_some() || view.message.contains("by the deadline");
        if cheaper && view.decision == Decision::Rent && view.deadline.is_some() && !said {
            text.push_str("What costs less is not chosen since it is not sure to be in time.\n");
        }
    }
    if !view.rejected.is_empty() {
        let head = format!("Of {}, {} fit", count(i64::from(view.offers), "offer"), view.fit);
        let _ = write!(text, "\n{}", choice::lines(&head, &view.rejected));
    }
    if !view.assumed.is_empty() {
        let _ = write!(text, "\n{}", choice::lines("Assumed", &view.assumed));
    }
    text
}

/// The sentence. Of a machine that would be rented the tables below say the rest.
fn message(view: &PlanView, now: Timestamp) -> String {
    let (Decision::Rent, Some(offer), Some(cost)) = (view.decision, &view.offer, &view.cost) else {
        let said = view.message.as_str();
        return match view.decision {
            Decision::Wait | Decision::InCluster => format!("It {said}."),
            _ => format!("{said}."),
        };
    };
    let finish = view.expected_finish.map_or_else(String::new, |at| format!(", complete {}", until(now, at)));
    let because = view.message.split_once("; ").map_or_else(String::new, |(_, because)| format!("; {because}"));
    format!(
        "{} for {} an hour: about {} in all{finish}{because}.",
        choice::summary(offer),
        dollars(offer.price_per_hour),
        choice::about(cost.total)
    )
}
