//! Sizes of the binaries, as they were built.

use anyhow::{Context, Result};
use serde_json::json;
use tradewind_harness::Binaries;

use crate::figures::Figures;

/// Looks at each file.
pub fn measure(figures: &mut Figures) -> Result<()> {
    let binaries = Binaries::locate()?;
    let mut values = serde_json::Map::new();
    for (name, path) in [("operator", &binaries.operator), ("agent", &binaries.agent), ("simulator", &binaries.sim)] {
        let bytes = std::fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.len();
        let note = if path.components().any(|part| part.as_os_str() == "debug") { " (a debug build)" } else { "" };
        figures.row(format!("size of the {name}"), format!("{}.{} MB{note}", bytes / 1_000_000, bytes / 100_000 % 10));
        values.insert(name.to_owned(), json!(bytes));
    }
    figures.value("binaryBytes", values.into());
    Ok(())
}
