//! Tables as kubectl prints them: upper-case heads, three spaces between columns, nothing after the last.

use crate::screen::{Ink, Shade};

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    shade: Shade,
}

impl Cell {
    /// A field in this shade.
    pub fn shaded(text: impl Into<String>, shade: Shade) -> Self {
        Self { text: text.into(), shade }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), shade: Shade::Plain }
    }
}

/// Rows under heads.
#[derive(Debug, Clone)]
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Without rows yet.
    pub fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, each line ended.
    pub fn text(&self, ink: Ink) -> String {
        let heads: Vec<Cell> = self.heads.iter().map(|head| Cell::shaded(*head, Shade::Strong)).collect();
        let lines = || std::iter::once(&heads).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let mut text = String::new();
        for row in lines() {
            for (column, cell) in row.iter().enumerate() {
                text.push_str(&ink.paint(&cell.text, cell.shade));
                if column + 1 < row.len() {
                    let width = widths.get(column).copied().unwrap_or(0);
                    text.extend(std::iter::repeat_n(' ', width - cell.text.chars().count() + 3));
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colours() {
        let mut table = Table::new(&["NAME", "WHERE"]);
        table.row(["a".into(), "vast".into()]);
        table.row([Cell::shaded("größer", Shade::Bad), "".into()]);
        assert_eq!(table.text(Ink::none()), "NAME     WHERE\na        vast\ngrößer   \n");
        let painted = table.text(Ink::colours());
        assert!(painted.contains("\u{1b}[31mgrößer\u{1b}[0m   "), "{painted:?}");
    }
}
