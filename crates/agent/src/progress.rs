//! Progress in what programs print: `step 120/300`, `step=120`, `loss 2.31`, the bars of tqdm, and the progress file.

use serde::Deserialize;
use tradewind_protocol::Progress;

/// What one line tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Step reached.
    pub step: Option<u64>,
    /// Steps in all.
    pub total: Option<u64>,
    /// Loss as printed.
    pub loss: Option<String>,
}

/// Characters of a loss that are kept.
const LOSS_CHARS: usize = 32;

/// Reads one line; `None` if it tells nothing.
pub fn read_line(line: &str) -> Option<Reading> {
    let lower = line.to_ascii_lowercase();
    let mut reading = Reading::default();
    for key in ["global_step", "step", "iteration", "iter"] {
        if let Some((step, total)) = after_word(&lower, key).and_then(count) {
            (reading.step, reading.total) = (Some(step), total);
            break;
        }
    }
    if reading.step.is_none()
        && let Some((step, total)) = bar(&lower)
    {
        (reading.step, reading.total) = (Some(step), Some(total));
    }
    for key in ["train_loss", "loss"] {
        if let Some(loss) = after_word(&lower, key).and_then(number) {
            reading.loss = Some(loss);
            break;
        }
    }
    (reading != Reading::default()).then_some(reading)
}

/// Reads the file that `TRADEWIND_PROGRESS_FILE` names: `{"step": 120, "total": 300, "loss": 2.31}`.
pub fn read_file(bytes: &[u8]) -> Option<Progress> {
    #[derive(Deserialize)]
    struct File {
        step: u64,
        total: Option<u64>,
        loss: Option<serde_json::Value>,
    }
    let file: File = serde_json::from_slice(bytes).ok()?;
    let loss = file.loss.and_then(|loss| match loss {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    Some(Progress {
        step: file.step,
        total: file.total,
        loss: loss.map(|text| text.chars().take(LOSS_CHARS).collect()),
    })
}

/// What follows `word` (a whole word) and its separator (`=`, `:`, blanks, quotes).
fn after_word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let mut from = 0;
    while let Some(found) = line[from..].find(word) {
        let (start, end) = (from + found, from + found + word.len());
        let before = line[..start].chars().next_back();
        let rest = &line[end..];
        let value = rest.trim_start_matches(['=', ':', ' ', '\t', '"', '\'', '#']);
        let whole = before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
        if whole && value.len() < rest.len() {
            return Some(value);
        }
        from = end;
    }
    None
}

/// `120`, `120/300`, `120 / 300` or `120 of 300`.
fn count(text: &str) -> Option<(u64, Option<u64>)> {
    let (step, rest) = digits(text)?;
    if rest.starts_with('.') && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let rest = rest.trim_start();
    let total = rest.strip_prefix('/').or_else(|| rest.strip_prefix("of ")).map(str::trim_start);
    Some((step, total.and_then(digits).map(|(total, _)| total)))
}

/// tqdm: ` 40%|████      | 120/300 [00:10<00:15, 11.9it/s]`.
fn bar(line: &str) -> Option<(u64, u64)> {
    let (_, rest) = line.split_once("%|")?;
    let (_, rest) = rest.split_once('|')?;
    let (step, rest) = digits(rest.trim_start())?;
    let (total, _) = digits(rest.strip_prefix('/')?)?;
    Some((step, total))
}

fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok().map(|number| (number, &text[end..]))
}

/// A decimal number, `nan` or `inf`, as printed.
fn number(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '+')).unwrap_or(text.len());
    let word = text[..end].trim_end_matches('.');
    word.parse::<f64>().ok()?;
    Some(word.chars().take(LOSS_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_common_programs_are_read() {
        type Expected = Option<(Option<u64>, Option<u64>, Option<&'static str>)>;
        let table: &[(&str, Expected)] = &[
            ("step 120/300 loss 2.31", Some((Some(120), Some(300), Some("2.31")))),
            ("step=120", Some((Some(120), None, None))),
            ("Step: 7, loss: 1.5e-3", Some((Some(7), None, Some("1.5e-3")))),
            ("{'loss': 2.05, 'global_step': 40}", Some((Some(40), None, Some("2.05")))),
            ("{\"step\": 9, \"train_loss\": 0.25}", Some((Some(9), None, Some("0.25")))),
            (" 40%|████      | 120/300 [00:10<00:15, 11.9it/s, loss=2.3]", Some((Some(120), Some(300), Some("2.3")))),
            ("iter 10 of 20: loss nan", Some((Some(10), Some(20), Some("nan")))),
            ("loss 3.", Some((None, None, Some("3")))),
            ("resumed from step 120", Some((Some(120), None, None))),
            ("footstep 12", None),
            ("step 0.5 seconds", None),
            ("stepping", None),
            ("colossal loss of life", None),
            ("", None),
            ("99999999999999999999999 step 99999999999999999999999", None),
        ];
        for (line, expected) in table {
            let reading = read_line(line).map(|r| (r.step, r.total, r.loss));
            let expected = expected.map(|(step, total, loss)| (step, total, loss.map(ToOwned::to_owned)));
            assert_eq!(reading, expected, "{line}");
        }
    }

    #[test]
    fn the_progress_file_may_hold_numbers_or_texts_and_nonsense_is_ignored() {
        let full = read_file(br#"{"step": 3, "total": 9, "loss": 0.5}"#).unwrap();
        assert_eq!((full.step, full.total, full.loss.as_deref()), (3, Some(9), Some("0.5")));
        assert_eq!(read_file(br#"{"step": 3, "loss": "low"}"#).unwrap().loss.as_deref(), Some("low"));
        assert_eq!(read_file(b"{\"step\": 3"), None);
        assert_eq!(read_file(b"{\"step\": -3}"), None);
    }
}
