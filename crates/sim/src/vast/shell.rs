//! Splitting of Docker flags that arrive as one text (`-e A=b -p 8000:8000`).

/// Words of a command line: blanks separate, single and double quotes and backslashes hold together. `None` for an open quote.
pub fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_in_a_shell() {
        assert_eq!(split("-e A=b  -p 8000:8000").unwrap(), ["-e", "A=b", "-p", "8000:8000"]);
        assert_eq!(split(r#"-e A='b c' "" x\ y"#).unwrap(), ["-e", "A=b c", "", "x y"]);
        assert_eq!(split("'open"), None);
    }
}
