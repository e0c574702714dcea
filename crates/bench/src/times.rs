//! How long `make test` and `make demo` took, as the Makefile has written down.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use crate::figures::Figures;

/// One line of `times.jsonl`.
#[derive(Debug, Deserialize)]
struct Time {
    what: String,
    cold: bool,
    seconds: u64,
}

/// Takes the newest time of each kind. What never ran has no figure.
pub fn read(directory: &Path, figures: &mut Figures) -> Result<()> {
    let text = std::fs::read_to_string(directory.join("times.jsonl")).unwrap_or_default();
    let times = newest(&text)?;
    for what in ["make test", "make demo"] {
        for cold in [true, false] {
            let state = if cold { "cold" } else { "warm" };
            let told = times.get(&(what.to_owned(), cold)).map_or("not run here yet".to_owned(), |s| format!("{s} s"));
            figures.row(format!("{what}, {state}"), told);
        }
    }
    let values: Vec<_> =
        times.iter().map(|((what, cold), seconds)| json!({ "what": what, "cold": cold, "seconds": seconds })).collect();
    figures.value("times", values.into());
    Ok(())
}

fn newest(text: &str) -> Result<BTreeMap<(String, bool), u64>> {
    let mut times = BTreeMap::new();
    for line in text.lines() {
        let time: Time = serde_json::from_str(line).with_context(|| format!("reading {line:?} of times.jsonl"))?;
        times.insert((time.what, time.cold), time.seconds);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_kind_counts() {
        let line = |cold, seconds| format!("{{\"what\":\"make demo\",\"cold\":{cold},\"seconds\":{seconds}}}\n");
        let times = newest(&[line(true, 900), line(false, 70), line(false, 60)].concat()).unwrap();
        assert_eq!(times.into_values().collect::<Vec<_>>(), [60, 900]);
        assert!(newest("nonsense").is_err());
    }
}
