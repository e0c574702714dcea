//! `$(NAME)` in commands and in values of the environment, by the rules of Kubernetes: unknown names stay as they are, `$$(NAME)` is the text `$(NAME)`.

/// Replaces every `$(NAME)` whose name `lookup` knows.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(escaped) = rest.strip_prefix('$') {
            out.push('$');
            rest = escaped;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if let Some(value) = lookup(name) {
                out.push_str(value);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_rules_of_kubernetes() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            _ => None,
        };
        for (text, expected) in [
            ("--from=$(A)", "--from=1"),
            ("$(A)$(A)", "11"),
            ("$(NOPE)", "$(NOPE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(A)"),
            ("$A $ $(A", "$A $ $(A"),
            ("", ""),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
