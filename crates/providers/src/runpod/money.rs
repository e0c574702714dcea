//! RunPod's own bill.

use std::collections::BTreeMap;

use jiff::Timestamp;
use reqwest::Method;
use tradewind_core::Money;

use super::RunPod;
use super::client::{next_page, unreadable};
use super::config::operation;
use super::error;
use super::wire::Bill;
use crate::amounts::balance;
use crate::{Charge, ProviderResult};

/// A row is about 200 bytes, and there is one for each pod and hour.
const MAX_BILL_BYTES: usize = 32 << 20;

impl RunPod {
    pub(super) async fn billed_since(&self, since: Timestamp) -> ProviderResult<Option<Vec<Charge>>> {
        let mut call = self.call(operation::CHARGES, Method::GET, "/v2/billing/pods".to_owned());
        let since = Timestamp::from_second(since.as_second()).unwrap_or(since);
        call.query = vec![("startTime", since.to_string()), ("bucketSize", "hour".to_owned())];
        call.max_answer_bytes = MAX_BILL_BYTES;
        let answer = self.read(&call).await?;
        let bill: Bill = serde_json::from_slice(&answer.body).map_err(|e| unreadable(operation::CHARGES, &e))?;
        let counted = bill.metadata.and_then(|metadata| metadata.record_count);
        let short = counted.is_some_and(|count| count > bill.records.len() as u64);
        if short || next_page(bill.pagination)?.is_some() {
            return Err(error::malformed(operation::CHARGES, "the bill has more rows than it shows"));
        }
        let mut sums: BTreeMap<String, Money> = BTreeMap::new();
        for row in bill.records {
            let amount = balance(row.total_amount);
            let amount = amount.ok_or_else(|| error::malformed(operation::CHARGES, "an amount that is none"))?;
            let sum = sums.entry(row.pod_id).or_default();
            *sum = sum.saturating_add(amount);
        }
        Ok(Some(sums.into_iter().map(|(id, amount)| Charge { id, amount }).collect()))
    }
}
