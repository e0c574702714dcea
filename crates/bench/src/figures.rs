//! The figures: a table for people, JSON for programs.

use serde_json::{Map, Value};

/// Figures by part, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<(String, String)>,
    values: Map<String, Value>,
}

impl Figures {
    /// A line of the table.
    pub fn row(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.rows.push((what.into(), value.into()));
    }

    /// A part of the JSON document.
    pub fn value(&mut self, part: &str, value: Value) {
        self.values.insert(part.to_owned(), value);
    }

    /// The JSON document.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The table.
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        let line = |(what, value): &(String, String)| format!("{what:<width$}  {value}");
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The smallest of `sorted` that is not exceeded by `percent` of them (nearest rank); `None` without any.
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(100.0));
        assert_eq!(percentile(&values, 99), Some(198.0));
        assert_eq!(percentile(&values, 100), Some(200.0));
        assert_eq!(percentile(&[7.0], 99), Some(7.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn the_table_is_aligned() {
        let mut figures = Figures::default();
        figures.row("a", "1");
        figures.row("longer", "2");
        assert_eq!(figures.table(), "a       1\nlonger  2");
    }
}
