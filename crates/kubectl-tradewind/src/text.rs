//! Times, money and sizes as people read them.

use jiff::Timestamp;
use tradewind_core::Money;

/// What kubectl says where there is nothing.
pub const NONE: &str = "<none>";

/// A stretch of time in at most two units, as kubectl tells ages.
pub fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let s = seconds.max(0);
    let two = |big: i64, unit: &str, small: i64, sub: &str| match s % big / small {
        0 => format!("{}{unit}", s / big),
        rest => format!("{}{unit}{rest}{sub}", s / big),
    };
    match s {
        _ if s < 2 * MINUTE => format!("{s}s"),
        _ if s < 10 * MINUTE => two(MINUTE, "m", 1, "s"),
        _ if s < 3 * HOUR => format!("{}m", s / MINUTE),
        _ if s < 8 * HOUR => two(HOUR, "h", MINUTE, "m"),
        _ if s < 2 * DAY => format!("{}h", s / HOUR),
        _ if s < 8 * DAY => two(DAY, "d", HOUR, "h"),
        _ => format!("{}d", s / DAY),
    }
}

/// How long ago it was.
pub fn ago(now: Timestamp, then: Timestamp) -> String {
    span(now.duration_since(then).as_secs())
}

/// In how long it will be, or since when it is due.
pub fn until(now: Timestamp, then: Timestamp) -> String {
    match then.duration_since(now).as_secs() {
        s if s >= 0 => format!("in {}", span(s)),
        s => format!("{} ago", span(-s)),
    }
}

/// Dollars: two decimals, and up to four where it is about cents.
pub fn dollars(money: Money) -> String {
    let sign = if money.micros() < 0 { "-" } else { "" };
    let micros = money.micros().unsigned_abs();
    if micros >= 1_000_000 {
        let cents = (micros + 5_000) / 10_000;
        return format!("{sign}${}.{:02}", cents / 100, cents % 100);
    }
    let mut text = format!("{:04}", (micros + 50) / 100);
    if text.len() > 4 {
        return format!("{sign}$1.00");
    }
    while text.len() > 2 && text.ends_with('0') {
        text.pop();
    }
    format!("{sign}$0.{text}")
}

/// Bytes in binary units.
pub fn bytes(count: i64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut tenths = count.max(0).saturating_mul(10);
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        rest if tenths < 1000 => format!("{}.{rest} {}", tenths / 10, UNITS[unit]),
        _ => format!("{} {}", tenths / 10, UNITS[unit]),
    }
}

/// Width of a terminal that nobody has made wider.
const WIDTH: usize = 80;

/// A sentence in lines of a usual terminal, broken at spaces; each line begins with `indent`, those after the first with two more spaces if
/// there is one.
pub fn wrapped(sentence: &str, indent: &str) -> String {
    let hang = if indent.is_empty() { String::new() } else { format!("{indent}  ") };
    let mut lines = vec![indent.to_owned()];
    let mut is_empty = true;
    for word in sentence.split(' ') {
        let width = lines.last().map_or(0, |line| line.chars().count());
        if !is_empty && width + 1 + word.chars().count() > WIDTH {
            lines.push(hang.clone());
            is_empty = true;
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if is_empty { "" } else { " " });
            line.push_str(word);
        }
        is_empty = false;
    }
    lines.join("\n") + "\n"
}

/// `1 preemption`, `2 preemptions`.
pub fn count(n: i64, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

/// Names that look like this one, best first, at most three.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(usize, &str)> = names
        .into_iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), other))
        // A third of the letters may be wrong; or one is the beginning of the other.
        .filter(|(far, other)| *far * 3 <= name.len().max(3) || other.starts_with(name) || name.starts_with(other))
        .collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3_599, "59m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (100_000, "27h"),
            (200_000, "2d7h"),
            (800_000, "9d"),
            (-5, "0s"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn money_and_sizes_are_short() {
        let micros = |m| dollars(Money::from_micros(m));
        assert_eq!(
            [micros(0), micros(210_000), micros(3_140), micros(12_345_678)],
            ["$0.00", "$0.21", "$0.0031", "$12.35"]
        );
        assert_eq!([micros(999_990), micros(-20_000)], ["$1.00", "-$0.02"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(13_000_000)], ["0 B", "1023 B", "1.5 KiB", "12.3 MiB"]);
        assert_eq!(bytes(700 << 20), "700 MiB");
    }

    #[test]
    fn sentences_are_broken_at_spaces() {
        let long = "word ".repeat(40);
        let lines = wrapped(long.trim_end(), "  ");
        assert!(lines.lines().all(|line| line.chars().count() <= WIDTH), "{lines}");
        assert!(lines.lines().skip(1).all(|line| line.starts_with("    word")), "{lines}");
        assert_eq!(lines.split_whitespace().count(), 40);
        assert_eq!(wrapped("short", ""), "short\n");
        assert_eq!(wrapped(&"x".repeat(100), ""), "x".repeat(100) + "\n", "a word stays whole");
    }

    #[test]
    fn near_names_are_found_and_others_are_not() {
        let names = ["my-run", "my-gang", "resnet", "my-run-2"];
        assert_eq!(nearest("my-rnu", names), ["my-run"]);
        assert_eq!(nearest("my-run", ["my-run-2", "x"]), ["my-run-2"]);
        assert!(nearest("bert", names).is_empty());
    }
}
