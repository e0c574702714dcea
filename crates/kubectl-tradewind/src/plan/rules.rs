//! The few words of CEL in which the rules of our schema are written, so that a dry run refuses with the API server's own sentences.
//!
//! What is not understood here, or compares with an older object, has no answer: the API server will give it.

use regex::Regex;
use serde_json::{Number, Value};
use tradewind_core::Money;

/// Parentheses deeper than any rule of ours.
const DEEPEST: u32 = 32;

/// Whether `value` keeps a rule; `None` = not known here.
pub fn keeps(rule: &str, value: &Value) -> Option<bool> {
    if rule.contains("oldSelf") {
        return None;
    }
    let mut reader = Reader { rest: rule, value, depth: 0 };
    let answer = reader.any()?;
    reader.rest.trim().is_empty().then_some(())?;
    answer?.as_bool()
}

/// What an expression is; `None` = not known, or not there.
type Out = Option<Value>;

/// Reads and evaluates at once. Methods give `None` where the text is not understood, `Some(None)` where its value is not known.
struct Reader<'a> {
    rest: &'a str,
    value: &'a Value,
    depth: u32,
}

fn truth(out: &Out) -> Option<bool> {
    out.as_ref().and_then(Value::as_bool)
}

impl<'a> Reader<'a> {
    fn takes(&mut self, sign: &str) -> bool {
        self.rest = self.rest.trim_start();
        let Some(rest) = self.rest.strip_prefix(sign) else { return false };
        self.rest = rest;
        true
    }

    /// `a || b`: true if one is, whatever the other.
    fn any(&mut self) -> Option<Out> {
        let mut left = self.all()?;
        while self.takes("||") {
            let right = self.all()?;
            left = match (truth(&left), truth(&right)) {
                (Some(true), _) | (_, Some(true)) => Some(true.into()),
                (Some(false), Some(false)) => Some(false.into()),
                _ => None,
            };
        }
        Some(left)
    }

    /// `a && b`: false if one is, whatever the other.
    fn all(&mut self) -> Option<Out> {
        let mut left = self.compared()?;
        while self.takes("&&") {
            let right = self.compared()?;
            left = match (truth(&left), truth(&right)) {
                (Some(false), _) | (_, Some(false)) => Some(false.into()),
                (Some(true), Some(true)) => Some(true.into()),
                _ => None,
            };
        }
        Some(left)
    }

    fn compared(&mut self) -> Option<Out> {
        let left = self.single()?;
        for sign in ["==", "!=", "<=", ">=", "<", ">"] {
            if self.takes(sign) {
                let right = self.single()?;
                return Some(left.zip(right).and_then(|(a, b)| compare(sign, &a, &b)));
            }
        }
        Some(left)
    }

    fn single(&mut self) -> Option<Out> {
        if self.takes("!") {
            let out = self.single()?;
            return Some(truth(&out).map(|truth| Value::Bool(!truth)));
        }
        let mut out = self.first()?;
        while self.takes(".") {
            let name = self.word()?;
            if self.takes("(") {
                let argument = self.argument()?;
                out = out.zip(argument).and_then(|(value, argument)| call(name, &value, &argument));
            } else {
                out = out.and_then(|value| value.get(name).cloned());
            }
        }
        Some(out)
    }

    fn first(&mut self) -> Option<Out> {
        if self.takes("(") {
            return self.argument();
        }
        if self.takes("'") {
            let (text, rest) = self.rest.split_once('\'')?;
            self.rest = rest;
            return (!text.contains('\\')).then(|| Some(text.into()));
        }
        let word = self.word()?;
        if word == "self" {
            return Some(Some(self.value.clone()));
        }
        if let Ok(number) = word.parse::<i64>() {
            return Some(Some(number.into()));
        }
        if !self.takes("(") {
            return None;
        }
        let argument = self.argument()?;
        Some(match (word, argument) {
            ("has", argument) => Some(argument.is_some_and(|value| !value.is_null()).into()),
            ("size", Some(Value::String(text))) => Some(text.chars().count().into()),
            ("size", Some(Value::Array(list))) => Some(list.len().into()),
            ("isQuantity", Some(Value::String(text))) => Some(text.parse::<Money>().is_ok().into()),
            ("quantity", Some(Value::String(text))) => {
                text.parse::<Money>().ok().map(|amount| Value::Number(Number::from(amount.micros())))
            }
            _ => None,
        })
    }

    /// What stands between parentheses, of which the first was taken.
    fn argument(&mut self) -> Option<Out> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let out = self.any()?;
        self.depth -= 1;
        self.takes(")").then_some(out)
    }

    fn word(&mut self) -> Option<&'a str> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }
}

fn compare(sign: &str, a: &Value, b: &Value) -> Out {
    let order = || Some(a.as_i64()?.cmp(&b.as_i64()?));
    let answer = match sign {
        "==" => a == b,
        "!=" => a != b,
        "<=" => order()?.is_le(),
        ">=" => order()?.is_ge(),
        "<" => order()?.is_lt(),
        _ => order()?.is_gt(),
    };
    Some(answer.into())
}

fn call(method: &str, value: &Value, argument: &Value) -> Out {
    match method {
        // CEL's expressions are RE2's, of which this library understands what our rules use.
        "matches" => Some(Regex::new(argument.as_str()?).ok()?.is_match(value.as_str()?).into()),
        "compareTo" => Some(Value::from(value.as_i64()?.cmp(&argument.as_i64()?) as i64)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_kept_or_broken() {
        let spec = json!({ "workers": 4, "placement": { "inCluster": "Prefer", "providers": ["a"] }, "budget": { "total": "1.00", "perHour": "2.5" } });
        for (rule, kept) in [
            ("self.workers == 4", Some(true)),
            ("!has(self.workers) || self.workers == 1", Some(false)),
            ("!has(self.gpu) || self.gpu.count == 1", Some(true)),
            ("self.gpu.count == 1", None),
            ("self.gpu.count == 1 || self.workers >= 4", Some(true)),
            ("self.gpu.count == 1 && self.workers > 4", Some(false)),
            ("size(self.placement.providers) == 0", Some(false)),
            ("self.placement.inCluster != 'Only'", Some(true)),
            ("self.placement.inCluster.matches('^P.*r$')", Some(true)),
            ("(self.workers == 1 || (has(self.budget) && self.budget.total.matches('[1-9]')))", Some(true)),
            ("quantity(self.budget.perHour).compareTo(quantity(self.budget.total)) <= 0", Some(false)),
            ("isQuantity(self.budget.total)", Some(true)),
            ("self.workers == oldSelf.workers", None),
            ("self.all(key, size(key) < 3)", None),
            ("has(self.workers", None),
            ("'unended", None),
            ("", None),
        ] {
            assert_eq!(keeps(rule, &spec), kept, "{rule}");
        }
        assert_eq!(keeps(&"(".repeat(100_000), &spec), None);
    }

    #[test]
    fn every_rule_about_a_job_alone_is_understood() {
        fn walk(schema: &Value, rules: &mut Vec<String>) {
            match schema {
                Value::Object(map) => {
                    for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                        rules.extend(rule["rule"].as_str().map(str::to_owned));
                    }
                    map.values().for_each(|value| walk(value, rules));
                }
                Value::Array(list) => list.iter().for_each(|value| walk(value, rules)),
                _ => {}
            }
        }
        let crds = tradewind_api::crd::all();
        let (_, crd) = crds.iter().find(|(name, _)| name.contains("trainingjobs")).unwrap();
        let mut rules = Vec::new();
        walk(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], &mut rules);
        assert!(rules.len() > 20, "{}", rules.len());
        for rule in rules.iter().filter(|rule| !rule.contains("oldSelf")) {
            // With every text and every object there at once each part of a rule is read.
            let mut reader = Reader { rest: rule, value: &json!({}), depth: 0 };
            assert!(reader.any().is_some() && reader.rest.trim().is_empty(), "{rule}: {}", reader.rest);
        }
    }
}
