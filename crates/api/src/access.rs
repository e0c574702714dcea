//! Who may use a rental account, by the labels of Namespaces. Pure.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tradewind_core::Money;

use crate::training_job::MinTrust;

/// What the jobs of some namespaces may do on an account.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Which namespaces, by their labels. `{}` selects all of them.
    pub namespace_selector: NamespaceSelector,
    /// How much they may spend on this account, all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<AccessLimits>,
    /// Their jobs never run on a host of this account that is trusted less, whatever they say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_trust: Option<MinTrust>,
}

/// How much some namespaces may spend on an account, in dollars.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.perHour) || has(self.perDay)").message("must say perHour, perDay or both"))]
pub struct AccessLimits {
    /// Dollars an hour, over all their machines not yet gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars_given")]
    pub per_hour: Option<Money>,
    /// Dollars in any 24 hours, by whole hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars_given")]
    pub per_day: Option<Money>,
}

/// Labels that a Namespace must have: all of `matchLabels` and all of `matchExpressions`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Labels with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::match_labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelCondition>,
}

/// One condition on a label.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)")
        .message("In and NotIn need values, Exists and DoesNotExist must have none").field_path(".values")
)]
pub struct LabelCondition {
    /// The label's key.
    #[schemars(schema_with = "crate::schema::label_key")]
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: LabelOperator,
    /// Values, for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::label_values")]
    pub values: Vec<String>,
}

/// How a label is compared: In, NotIn, Exists, DoesNotExist.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    /// The label is there with one of the values.
    In,
    /// The label is not there, or with another value.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl NamespaceSelector {
    /// Whether a Namespace with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|condition| condition.holds(labels))
    }
}

impl LabelCondition {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            LabelOperator::In => listed,
            LabelOperator::NotIn => !listed,
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// The place in the list and the entry that holds for a Namespace with these labels: the first that selects it.
pub fn entry_for<'a>(access: &'a [Access], labels: &BTreeMap<String, String>) -> Option<(usize, &'a Access)> {
    access.iter().enumerate().find(|(_, entry)| entry.namespace_selector.matches(labels))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selectors_select_as_kubernetes_does() {
        let one = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let team_a = labels(&[("team", "a"), ("tier", "gold")]);
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"team": "a"}}), true),
            (json!({"matchLabels": {"team": "a", "tier": "silver"}}), false),
            (json!({"matchLabels": {"other": "a"}}), false),
            (one("team", "In", &["b", "a"]), true),
            (one("team", "In", &["b"]), false),
            (one("other", "In", &["b"]), false),
            (one("team", "NotIn", &["a"]), false),
            (one("team", "NotIn", &["b"]), true),
            (one("other", "NotIn", &["b"]), true),
            (one("team", "Exists", &[]), true),
            (one("other", "Exists", &[]), false),
            (one("team", "DoesNotExist", &[]), false),
            (one("other", "DoesNotExist", &[]), true),
            (
                json!({"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
                false,
            ),
        ] {
            let read: NamespaceSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(read.matches(&team_a), expected, "{selector}");
        }
    }

    #[test]
    fn the_first_entry_that_selects_holds() {
        let access: Vec<Access> = serde_json::from_value(json!([
            {"namespaceSelector": {"matchLabels": {"team": "a"}}, "limits": {"perHour": "1"}},
            {"namespaceSelector": {"matchLabels": {"tier": "gold"}}},
        ]))
        .unwrap();
        let at = |pairs: &[(&str, &str)]| entry_for(&access, &labels(pairs)).map(|(at, _)| at);
        assert_eq!(at(&[("team", "a"), ("tier", "gold")]), Some(0));
        assert_eq!(at(&[("tier", "gold")]), Some(1));
        assert_eq!(at(&[("team", "b")]), None);
    }
}
