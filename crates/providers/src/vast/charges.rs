//! The market's own bill, and how a machine ends itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::json;
use tradewind_core::Money;

use super::Vast;
use super::client::{number, unreadable};
use super::config::operation;
use super::error;
use super::wire::ChargePage;
use crate::amounts::balance;
use crate::{Charge, ProviderResult, SelfEnd};

/// The variable in which Vast.ai gives each container a key that may read, stop and destroy that container's own instance.
const CONTAINER_KEY: &str = "CONTAINER_API_KEY";
/// Contracts on one page (the documented maximum) and pages we are willing to read.
const PAGE: u32 = 500;
const MAX_PAGES: usize = 100;
const MAX_PAGE_BYTES: usize = 8 << 20;

impl Vast {
    pub(super) async fn charged_since(&self, since: Timestamp) -> ProviderResult<Option<Vec<Charge>>> {
        let day = json!({"gte": since.as_second(), "lte": self.clock.now().as_second()});
        let filters = json!({"day": day, "type": {"in": ["instance"]}}).to_string();
        let malformed = |what| error::malformed(operation::CHARGES, what);
        let mut sums: BTreeMap<String, Money> = BTreeMap::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.charge_page(&filters, token.as_deref()).await?;
            for row in page.results {
                // Volumes are listed beside instances where the filter is not honoured.
                let Some(id) = row.source.strip_prefix("instance-") else { continue };
                let amount = balance(row.amount).ok_or_else(|| malformed("an amount that is none"))?;
                let sum = sums.entry(id.to_owned()).or_default();
                *sum = sum.saturating_add(amount);
            }
            match page.next_token.filter(|next| !next.is_empty()) {
                Some(next) if token.as_ref() == Some(&next) => return Err(malformed("the pages run in a circle")),
                Some(next) => token = Some(next),
                None => return Ok(Some(sums.into_iter().map(|(id, amount)| Charge { id, amount }).collect())),
            }
        }
        Err(malformed("too many pages"))
    }

    async fn charge_page(&self, filters: &str, token: Option<&str>) -> ProviderResult<ChargePage> {
        let mut call = self.call(operation::CHARGES, Method::GET, "/api/v0/charges/".to_owned());
        call.query = vec![("select_filters", filters.to_owned()), ("limit", PAGE.to_string())];
        call.query.extend(token.map(|token| ("after_token", token.to_owned())));
        call.max_answer_bytes = MAX_PAGE_BYTES;
        let answer = self.read(&call).await?;
        serde_json::from_slice(&answer.body).map_err(|e| unreadable(operation::CHARGES, &e))
    }

    /// Destroying with the container's own key was seen to work (field report, 2026-09-20); it needs a container that still runs.
    pub(super) fn end_from_within(&self, id: &str) -> Option<SelfEnd> {
        let id = number(operation::TERMINATE, id).ok()?;
        let base = self.http.base_url().as_str().trim_end_matches('/');
        Some(SelfEnd {
            method: Method::DELETE.to_string(),
            url: format!("{base}/api/v0/instances/{id}/"),
            bearer_env: CONTAINER_KEY.to_owned(),
        })
    }
}
