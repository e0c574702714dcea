//! Filters and orders over rows, shared by the offer search and the instance list. Values are compared by the column's type, as the
//! CLI sends numbers as texts (`{"num_gpus": {"gte": "1"}}`).

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// One condition on a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The column as the caller named it.
    pub column: String,
    operator: Operator,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    NotIn,
}

impl Condition {
    /// Reads `{"op": value, …}` for one column. The refusal is a sentence.
    pub fn parse_all(column: &str, filter: &Value) -> Result<Vec<Self>, String> {
        let object =
            filter.as_object().ok_or_else(|| format!("{column} must be an object such as {{\"eq\": value}}"))?;
        object
            .iter()
            .map(|(operator, value)| {
                let operator = match operator.as_str() {
                    "eq" => Operator::Eq,
                    "neq" => Operator::Neq,
                    "gt" => Operator::Gt,
                    "gte" => Operator::Gte,
                    "lt" => Operator::Lt,
                    "lte" => Operator::Lte,
                    "in" => Operator::In,
                    "notin" => Operator::NotIn,
                    other => return Err(format!("{other} is not a valid operator for {column}")),
                };
                let wants_list = matches!(operator, Operator::In | Operator::NotIn);
                if wants_list != value.is_array() || value.is_object() {
                    return Err(format!("{column} has a value of the wrong type"));
                }
                Ok(Self { column: column.to_owned(), operator, value: value.clone() })
            })
            .collect()
    }

    /// The cell fulfils the condition. A null cell equals only null.
    pub fn holds(&self, cell: &Value) -> bool {
        let order = || compare_to(cell, &self.value);
        let equal = |value: &Value| compare_to(cell, value) == Some(Ordering::Equal);
        match self.operator {
            Operator::Eq => equal(&self.value),
            Operator::Neq => !equal(&self.value),
            Operator::Gt => order() == Some(Ordering::Greater),
            Operator::Gte => matches!(order(), Some(Ordering::Greater | Ordering::Equal)),
            Operator::Lt => order() == Some(Ordering::Less),
            Operator::Lte => matches!(order(), Some(Ordering::Less | Ordering::Equal)),
            Operator::In => self.value.as_array().is_some_and(|list| list.iter().any(equal)),
            Operator::NotIn => self.value.as_array().is_some_and(|list| !list.iter().any(equal)),
        }
    }
}

/// Compares a cell with a caller's value by the cell's type; `None` where they cannot be compared.
fn compare_to(cell: &Value, value: &Value) -> Option<Ordering> {
    match cell {
        Value::Null => value.is_null().then_some(Ordering::Equal),
        Value::Bool(cell) => {
            let value = match value {
                Value::Bool(value) => *value,
                Value::String(text) if text.eq_ignore_ascii_case("true") => true,
                Value::String(text) if text.eq_ignore_ascii_case("false") => false,
                Value::Number(number) => number.as_f64()? != 0.0,
                _ => return None,
            };
            Some(cell.cmp(&value))
        }
        Value::Number(cell) => cell.as_f64()?.partial_cmp(&number(value)?),
        Value::String(cell) => Some(cell.as_str().cmp(value.as_str()?)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        _ => None,
    }
}

/// Order of two rows by columns; nulls last, whichever the direction.
pub fn compare_rows(a: &Map<String, Value>, b: &Map<String, Value>, order: &[(String, bool)]) -> Ordering {
    for (column, descending) in order {
        let (left, right) = (a.get(column).unwrap_or(&Value::Null), b.get(column).unwrap_or(&Value::Null));
        let ordering = match (left.is_null(), right.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => compare_to(left, right).unwrap_or(Ordering::Equal),
        };
        let ordering = if *descending { ordering.reverse() } else { ordering };
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_by_the_columns_type() {
        for (cell, filter, holds) in [
            (json!(1), json!({"gte": "1"}), true),
            (json!(0.5), json!({"lt": "0.5"}), false),
            (json!("RTX 4090"), json!({"in": ["RTX 3090", "RTX 4090"]}), true),
            (json!("NO"), json!({"notin": ["NO"]}), false),
            (json!(true), json!({"eq": "true"}), true),
            (json!(null), json!({"eq": false}), false),
            (json!(null), json!({"neq": 3}), true),
            (json!(5), json!({"gt": 1, "lt": 5}), false),
        ] {
            let conditions = Condition::parse_all("x", &filter).unwrap();
            assert_eq!(conditions.iter().all(|c| c.holds(&cell)), holds, "{cell} {filter}");
        }
        for bad in [json!(1), json!({"like": "x"}), json!({"in": 3}), json!({"eq": [1]}), json!({"eq": {}})] {
            assert!(Condition::parse_all("x", &bad).is_err(), "{bad}");
        }
    }
}
