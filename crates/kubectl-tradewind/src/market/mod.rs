//! Offers for the commands that need no cluster: out of files, or as a market shows them now.

mod account;
mod csv;
mod json;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tradewind_core::{Clock, Offer};
use tradewind_planner::explain;
use tradewind_providers::OfferQuery;

pub use self::account::Asked;
use crate::Trouble;

/// More than any market's list has: twenty thousand offers take about 12 MB.
const MOST_BYTES: u64 = 256 << 20;
/// Reasons why rows are left out that are told one by one.
const REASONS: usize = 3;

/// Where offers come from.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Where offers come from (one of these, or several)")]
pub struct Sources {
    /// A file: JSON as `kubectl tradewind offers -o json` prints it, or a price list in CSV; `-` is standard input.
    #[arg(long = "offers", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A market as it is now: vast (its key in VAST_API_KEY) or runpod (in RUNPOD_API_KEY). With =URL whoever is there is asked instead,
    /// such as a simulator, and gets the key.
    #[arg(long = "provider", value_name = "TYPE[=URL]", value_parser = Asked::parse)]
    pub providers: Vec<Asked>,
}

/// Offers, and what could not be taken for one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Market {
    /// What can be rented.
    pub offers: Vec<Offer>,
    /// Rows that make no sense, counted by what they are, after "are" or "is".
    pub left_out: BTreeMap<String, u32>,
    /// What had to be assumed, in sentences.
    pub assumed: Vec<String>,
}

impl Market {
    /// Reads all sources.
    pub async fn read(sources: &Sources, query: &OfferQuery, clock: Arc<dyn Clock>) -> Result<Self, Trouble> {
        if sources.files.is_empty() && sources.providers.is_empty() {
            return Err(Trouble::Usage(
                "where should offers come from? Name a file with --offers, or a market with --provider, such as\n  \
                 --offers offers.json\n  --provider vast                            (the key of your account in VAST_API_KEY)\n  \
                 --provider vast=http://127.0.0.1:9001      (a simulator: tradewind-sim serve --market deploy/demo/market.json)"
                    .to_owned(),
            ));
        }
        let mut market = Self::default();
        for path in &sources.files {
            let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
            market.add(Self::of_text(&name, &bytes(path)?)?);
        }
        for asked in &sources.providers {
            market.add(asked.offers(query, &clock).await?);
        }
        Ok(market)
    }

    /// Reads one file, whose name is only for messages.
    pub fn of_text(name: &str, bytes: &[u8]) -> Result<Self, Trouble> {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return Err(Trouble::Usage(format!(
                "{name} is packed: gunzip -c {name} | kubectl tradewind ... --offers -"
            )));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Trouble::Usage(format!("{name} is no text: byte {} is not UTF-8", error.valid_up_to())))?;
        let text = text.trim_start_matches('\u{feff}');
        let read = match text.trim_start().chars().next() {
            None => Err("is empty".to_owned()),
            Some('[' | '{') => json::read(text),
            Some(_) => csv::read(text),
        };
        read.map_err(|problem| Trouble::Usage(format!("{name} {problem}")))
    }

    fn add(&mut self, other: Self) {
        self.offers.extend(other.offers);
        for (reason, count) in other.left_out {
            self.leave_out(reason, count);
        }
        for assumed in other.assumed {
            if !self.assumed.contains(&assumed) {
                self.assumed.push(assumed);
            }
        }
    }

    fn leave_out(&mut self, reason: String, count: u32) {
        let counted = self.left_out.entry(reason).or_default();
        *counted = counted.saturating_add(count);
    }

    /// Rows that make no sense.
    pub fn unread(&self) -> u32 {
        self.left_out.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The same in lines, most rows first: `3 are without a price`. What does not fit into a few lines shares the last one.
    pub fn unread_lines(&self) -> Vec<String> {
        explain::counted(self.left_out.iter().map(|(reason, count)| (*count, reason.as_str())), REASONS)
    }
}

/// The content of a file or of standard input.
pub fn bytes(path: &Path) -> Result<Vec<u8>, Trouble> {
    if path.is_dir() {
        return Err(Trouble::Usage(format!("{} is a directory: name its files", path.display())));
    }
    let mut content = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MOST_BYTES + 1).read_to_end(&mut content)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut content))
    };
    read.map_err(|error| Trouble::Usage(format!("{} cannot be read: {error}", path.display())))?;
    if u64::try_from(content.len()).is_ok_and(|len| len > MOST_BYTES) {
        return Err(Trouble::Usage(format!("{} is larger than {} MiB", path.display(), MOST_BYTES >> 20)));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lines_tell_why_rows_are_left_out() {
        let reasons = |counts: &[(&str, u32)]| {
            let left_out = counts.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
            Market { left_out, ..Market::default() }.unread_lines()
        };
        assert_eq!(reasons(&[("odd", 1), ("worse", 3)]), ["3 are worse", "1 is odd"]);
        assert_eq!(
            reasons(&[("a", 1), ("b", 5), ("c", 4), ("d", 2)]),
            ["5 are b", "4 are c", "3 are left out for 2 other reasons"]
        );
        assert!(reasons(&[]).is_empty());
    }

    #[test]
    fn what_is_no_list_of_offers_is_said_in_a_sentence() {
        let problem = |bytes: &[u8]| Market::of_text("x", bytes).unwrap_err().to_string();
        assert!(problem(&[0x1f, 0x8b, 8, 0]).contains("gunzip -c x"));
        assert!(problem(&[b'[', 0xff]).contains("byte 1 is not UTF-8"));
        assert_eq!(problem(b" \n"), "x is empty");
        assert!(problem(b"[{\"provider\": ").contains("is cut off"));
        assert!(problem(b"\x00\x01\x02").contains("neither"), "{}", problem(b"\x00\x01\x02"));
    }
}
