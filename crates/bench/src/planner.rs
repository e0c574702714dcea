//! What `planner-bench` has printed: the Makefile runs it first and keeps its words in `planner.log`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::figures::Figures;

/// Takes its lines over: `  what  value` under a heading for the offers that it was measured with.
pub fn read(directory: &Path, figures: &mut Figures) {
    let text = std::fs::read_to_string(directory.join("planner.log")).unwrap_or_default();
    let parts = parse(&text);
    if parts.is_empty() {
        figures.row("planner", "not run here yet, or without real offers (TRADEWIND_SHARED)");
    }
    let mut document = Map::new();
    for (heading, rows) in parts {
        figures.row(format!("planner: {heading}"), "");
        for (what, value) in &rows {
            figures.row(format!("  planner: {what}"), *value);
        }
        let rows: Map<String, Value> = rows.into_iter().map(|(what, value)| (what.to_owned(), value.into())).collect();
        document.insert(heading.to_owned(), rows.into());
    }
    figures.value("planner", document.into());
}

type Part<'a> = (&'a str, Vec<(&'a str, &'a str)>);

fn parse(text: &str) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    for line in text.lines().skip_while(|line| !line.starts_with("planner-bench:")).skip(1) {
        match line.strip_prefix("  ").and_then(|row| row.split_once("  ")) {
            Some((what, value)) => {
                if let Some((_, rows)) = parts.last_mut() {
                    rows.push((what.trim(), value.trim()));
                }
            }
            None if !line.is_empty() => parts.push((line, Vec::new())),
            None => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_found_again() {
        let text = "   Compiling x\nplanner-bench: one core\n\nreal offers: 3 offers\n  index built                 0.3 ms\n  memory  1 MB\n\nover time\n  cold, spot pools: 1  p50 1 ms\n";
        let parts = parse(text);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0], ("real offers: 3 offers", vec![("index built", "0.3 ms"), ("memory", "1 MB")]));
        assert_eq!(parts[1].1, [("cold, spot pools: 1", "p50 1 ms")]);
        assert!(parse("").is_empty());
    }
}
