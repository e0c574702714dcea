//! Faults: what can go wrong between a customer and a market. Used by the HTTP servers and by the in-process provider.

use serde_json::{Value, json};

/// The verbs that a fault can hit. Vast.ai's `reboot`, `recycle` and `command` calls have names of their own beside the common verbs.
pub const OPERATIONS: [&str; 15] = [
    "offers",
    "rent",
    "describe",
    "list",
    "terminate",
    "start",
    "stop",
    "label",
    "bid",
    "logs",
    "account",
    "charges",
    "reboot",
    "recycle",
    "command",
];

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing happens; an error is answered.
    Before,
    /// It happens; an error is answered.
    After,
    /// It happens; the connection closes without an answer.
    Lost,
    /// It happens; the success body is cut in half.
    Garbled,
    /// It happens; the answer comes late.
    Hang,
}

impl When {
    const ALL: [(&'static str, Self); 5] = [
        ("before", Self::Before),
        ("after", Self::After),
        ("lost", Self::Lost),
        ("garbled", Self::Garbled),
        ("hang", Self::Hang),
    ];

    /// The word in fault files.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, when)| *when == self).map_or("before", |(word, _)| word)
    }
}

/// A fault that waits for calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// The account's name, or `*`.
    pub provider: String,
    /// The verb, or `*`.
    pub op: String,
    /// How.
    pub when: When,
    /// Calls that it will still hit.
    pub times: u32,
    /// HTTP status of the error.
    pub status: u16,
    /// Message of the error.
    pub message: String,
    /// How long a hang lasts.
    pub seconds: f64,
}

/// Why a fault was refused: one sentence with field and value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}, found {found}")]
pub struct BadFault {
    /// The field.
    pub field: String,
    /// What would be right.
    pub problem: String,
    /// The value.
    pub found: String,
}

/// The faults that wait.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    waiting: Vec<Fault>,
}

impl Fault {
    /// Reads a fault. `providers` are the names that exist.
    pub fn parse(json: &Value, providers: &[&str]) -> Result<Self, BadFault> {
        let bad = |field: &str, problem: &str| BadFault {
            field: field.to_owned(),
            problem: problem.to_owned(),
            found: if field == "fault" { json.to_string() } else { json[field].to_string() },
        };
        let object = json.as_object().ok_or_else(|| bad("fault", "must be an object"))?;
        for name in object.keys() {
            if !["provider", "op", "when", "times", "status", "message", "seconds"].contains(&name.as_str()) {
                return Err(bad(name, "unknown field"));
            }
        }
        let text = |field: &str, default: &str| match &json[field] {
            Value::Null => Ok(default.to_owned()),
            Value::String(text) => Ok(text.clone()),
            _ => Err(bad(field, "must be a text")),
        };
        let provider = text("provider", "*")?;
        if provider != "*" && !providers.contains(&provider.as_str()) {
            return Err(bad("provider", "no such provider"));
        }
        let op = text("op", "*")?;
        if op != "*" && !OPERATIONS.contains(&op.as_str()) {
            return Err(bad("op", &format!("must be * or one of {}", OPERATIONS.join(", "))));
        }
        let word = text("when", "before")?;
        let when = When::ALL.iter().find(|(known, _)| *known == word).map(|(_, when)| *when);
        let whole = |field: &str, default: u64, least: u64, most: u64| match &json[field] {
            Value::Null => Ok(default),
            value => value
                .as_u64()
                .filter(|n| (least..=most).contains(n))
                .ok_or_else(|| bad(field, &format!("must be a whole number from {least} to {most}"))),
        };
        Ok(Self {
            provider,
            op,
            when: when.ok_or_else(|| bad("when", "must be before, after, lost, garbled or hang"))?,
            times: u32::try_from(whole("times", 1, 1, 1_000_000)?).unwrap_or(u32::MAX),
            status: u16::try_from(whole("status", 500, 200, 599)?).unwrap_or(500),
            message: text("message", "simulated fault")?,
            seconds: match &json["seconds"] {
                Value::Null => 30.0,
                value => value
                    .as_f64()
                    .filter(|s| (0.0..=86_400.0).contains(s))
                    .ok_or_else(|| bad("seconds", "must be a number from 0 to 86400"))?,
            },
        })
    }

    /// The fault as control shows it.
    pub fn to_json(&self) -> Value {
        json!({"provider": self.provider, "op": self.op, "when": self.when.as_str(), "times": self.times, "status": self.status,
            "message": self.message, "seconds": self.seconds})
    }
}

impl Faults {
    /// Adds a fault behind those that wait.
    pub fn add(&mut self, fault: Fault) {
        self.waiting.push(fault);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Those that wait, in order.
    pub fn waiting(&self) -> &[Fault] {
        &self.waiting
    }

    /// The fault that hits this call, if any: the oldest that fits, used up by one.
    pub fn take(&mut self, provider: &str, op: &str) -> Option<Fault> {
        let fits = |f: &Fault| (f.provider == "*" || f.provider == provider) && (f.op == "*" || f.op == op);
        let position = self.waiting.iter().position(fits)?;
        let fault = self.waiting[position].clone();
        self.waiting[position].times -= 1;
        if self.waiting[position].times == 0 {
            self.waiting.remove(position);
        }
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_next_calls_and_is_used_up() {
        let mut faults = Faults::default();
        faults.add(Fault::parse(&json!({"op": "rent", "when": "lost", "times": 2}), &["vast"]).unwrap());
        faults.add(Fault::parse(&json!({"provider": "vast"}), &["vast"]).unwrap());
        assert_eq!(faults.take("vast", "rent").unwrap().when, When::Lost);
        assert_eq!(faults.take("vast", "list").unwrap().when, When::Before);
        assert_eq!(faults.take("vast", "rent").unwrap().when, When::Lost);
        assert!(faults.take("vast", "rent").is_none());
    }

    #[test]
    fn slips_are_named() {
        for (fault, says) in [
            (json!({"op": "rents"}), "op: must be * or one of"),
            (json!({"when": "soon"}), "when: must be before, after, lost, garbled or hang, found \"soon\""),
            (json!({"times": 0}), "times: must be a whole number"),
            (json!({"provider": "aws"}), "provider: no such provider, found \"aws\""),
            (json!({"tiems": 1}), "tiems: unknown field, found 1"),
            (json!([]), "fault: must be an object, found []"),
        ] {
            let refusal = Fault::parse(&fault, &["vast"]).unwrap_err().to_string();
            assert!(refusal.starts_with(says), "{refusal}");
        }
    }
}
