//! Request bodies, held against their schema: every slip is collected with its path, and an unknown field is one.

use serde_json::{Map, Value};

/// What a value must be.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// A text of at least so many characters.
    Text(usize),
    /// A text or null.
    TextOrNull,
    /// True or false.
    Flag,
    /// A whole number of at least this.
    Whole(i64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `major.minor`.
    Version,
    /// A list of at most so many.
    List(&'static Shape, usize),
    /// Texts by name.
    TextMap,
    /// An object of these fields and no others.
    Object(&'static [Field]),
    /// A public key as a line of `authorized_keys`.
    PublicKey,
}

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it must be.
    pub shape: Shape,
    /// It must be there.
    pub required: bool,
}

/// A field that may be left out.
pub const fn may(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, required: false }
}

/// A field that must be there.
pub const fn must(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, required: true }
}

/// Reads a body; what is wrong with it otherwise.
pub fn read(shape: Shape, body: &[u8]) -> Result<Map<String, Value>, super::answer::Answer> {
    let parsed: Value = serde_json::from_slice(body)
        .map_err(|_| super::answer::Answer::problem(400, "The request body is not valid JSON."))?;
    let mut errors = Vec::new();
    check(shape, &parsed, "$", &mut errors);
    match parsed {
        Value::Object(fields) if errors.is_empty() => Ok(fields),
        _ => Err(super::answer::Answer::unprocessable(&errors)),
    }
}

/// True for `major.minor`.
pub fn is_version(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.split_once('.').is_some_and(|(major, minor)| digits(major) && digits(minor))
}

fn check(shape: Shape, value: &Value, path: &str, errors: &mut Vec<String>) {
    let problem = match shape {
        Shape::Text(least) => match value.as_str() {
            None => Some("value must be a string".to_owned()),
            Some(text) if text.chars().count() < least => {
                Some(format!("value must be at least {least} characters long"))
            }
            Some(_) => None,
        },
        Shape::TextOrNull => {
            (!value.is_string() && !value.is_null()).then(|| "value must be a string or null".to_owned())
        }
        Shape::Flag => (!value.is_boolean()).then(|| "value must be a boolean".to_owned()),
        Shape::Whole(least) => match value.as_i64() {
            None => Some("value must be an integer".to_owned()),
            Some(number) if number < least => Some(format!("value must be at least {least}")),
            Some(_) => None,
        },
        Shape::Word(words) => (!value.as_str().is_some_and(|word| words.contains(&word))).then(|| {
            let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            format!("value must be one of {}", quoted.join(", "))
        }),
        Shape::Version => {
            (!value.as_str().is_some_and(is_version)).then(|| "value must match the pattern ^\\d+\\.\\d+$".to_owned())
        }
        Shape::PublicKey => (!value.as_str().is_some_and(is_public_key))
            .then(|| "value must be a public key: <type> <base64-key> [comment]".to_owned()),
        Shape::List(item, most) => return check_list(*item, most, value, path, errors),
        Shape::TextMap => return check_map(value, path, errors),
        Shape::Object(fields) => return check_object(fields, value, path, errors),
    };
    if let Some(problem) = problem {
        errors.push(format!("{path}: {problem}"));
    }
}

fn check_list(item: Shape, most: usize, value: &Value, path: &str, errors: &mut Vec<String>) {
    let Some(list) = value.as_array() else { return errors.push(format!("{path}: value must be an array")) };
    if list.len() > most {
        errors.push(format!("{path}: maximum number of items is {most}"));
    }
    for (position, value) in list.iter().enumerate() {
        check(item, value, &format!("{path}[{position}]"), errors);
    }
}

fn check_map(value: &Value, path: &str, errors: &mut Vec<String>) {
    let Some(map) = value.as_object() else { return errors.push(format!("{path}: value must be an object")) };
    for (name, value) in map {
        check(Shape::Text(0), value, &format!("{path}.{name}"), errors);
    }
}

fn check_object(fields: &[Field], value: &Value, path: &str, errors: &mut Vec<String>) {
    let Some(object) = value.as_object() else { return errors.push(format!("{path}: value must be an object")) };
    for (name, value) in object {
        match fields.iter().find(|field| field.name == name) {
            Some(field) => check(field.shape, value, &format!("{path}.{name}"), errors),
            None => errors.push(format!("{path}: property '{name}' is unsupported")),
        }
    }
    for field in fields.iter().filter(|field| field.required && !object.contains_key(field.name)) {
        errors.push(format!("{path}: property '{}' is missing", field.name));
    }
}

/// `^(ssh|ecdsa|sk)-[^\s]+ [^\s]+([ \t][^\n\r]*)?$` of the document.
fn is_public_key(line: &str) -> bool {
    let Some((kind, rest)) = line.split_once(' ') else { return false };
    let named =
        ["ssh-", "ecdsa-", "sk-"].iter().any(|start| kind.strip_prefix(start).is_some_and(|name| !name.is_empty()));
    let key = rest.split([' ', '\t']).next().unwrap_or_default();
    named && !key.is_empty() && !line.contains(['\n', '\r']) && !kind.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_slip_is_named_with_its_path() {
        const SHAPE: Shape = Shape::Object(&[
            must("name", Shape::Text(1)),
            may("kind", Shape::Word(&["a", "b"])),
            may("inner", Shape::Object(&[must("size", Shape::Whole(10))])),
            may("list", Shape::List(&Shape::Version, 2)),
            may("env", Shape::TextMap),
            may("keys", Shape::List(&Shape::PublicKey, usize::MAX)),
        ]);
        let told = |value: Value| {
            let mut errors = Vec::new();
            check(SHAPE, &value, "$", &mut errors);
            errors
        };
        assert!(told(json!({"name": "x", "kind": "a", "inner": {"size": 10}, "list": ["12.4"], "env": {"A": ""}, "keys": ["ssh-ed25519 AAAA me"]})).is_empty());
        assert_eq!(
            told(
                json!({"name": "", "kind": "c", "inner": {"size": 9, "more": 1}, "list": ["12", "1.2", "1.3"], "env": {"A": 1}, "keys": ["AAAA"]})
            ),
            [
                "$.env.A: value must be a string",
                "$.inner: property 'more' is unsupported",
                "$.inner.size: value must be at least 10",
                "$.keys[0]: value must be a public key: <type> <base64-key> [comment]",
                "$.kind: value must be one of 'a', 'b'",
                "$.list: maximum number of items is 2",
                "$.list[0]: value must match the pattern ^\\d+\\.\\d+$",
                "$.name: value must be at least 1 characters long",
            ]
        );
        assert_eq!(told(json!({})), ["$: property 'name' is missing"]);
        assert_eq!(told(json!([])), ["$: value must be an object"]);
    }
}
