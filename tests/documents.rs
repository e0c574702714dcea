//! Documents say what the code says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tradewind_api::Reason;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The entries of docs/troubleshooting.md: word and what stands below it.
fn entries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let parts = text.split("\n### `").skip(1).map(|part| {
        let (word, body) = part.split_once("`\n").unwrap_or_else(|| panic!("a heading without its end: {part:.60}"));
        let body = body.split("\n## ").next().unwrap_or_default();
        (word.to_owned(), body.to_owned())
    });
    parts.collect()
}

#[test]
fn every_reason_is_explained_once() {
    let entries = entries();
    for reason in Reason::ALL {
        let count = entries.iter().filter(|(word, _)| word == reason.as_str()).count();
        assert_eq!(count, 1, "{reason} must have one entry in docs/troubleshooting.md");
    }
    for (word, _) in &entries {
        assert!(Reason::from_word(word).is_some(), "docs/troubleshooting.md explains {word}, which no code can say");
    }
}

#[test]
fn every_explanation_says_where_what_to_do_and_how_it_looks() {
    for (word, body) in entries() {
        for part in ["**On** ", "\n**Do** ", "\n> "] {
            assert!(body.contains(part), "{word} has no {part:?} in docs/troubleshooting.md");
        }
        let example = body.lines().filter(|line| line.starts_with("> ")).count();
        assert_eq!(example, 1, "{word} must have one example, in one line");
    }
}

/// All Markdown files of the project.
fn pages(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

/// What a heading is called in a link: small letters, digits and hyphens.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_and_named_files_are_there() {
    let mut found = vec![root().join("README.md")];
    pages(&root().join("docs"), &mut found);
    let mut anchors = BTreeMap::new();
    for page in &found {
        let text = std::fs::read_to_string(page).unwrap();
        let headings =
            text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#')));
        anchors.insert(page.clone(), headings.collect::<Vec<_>>());
    }
    let mut looked_at = 0;
    for page in &found {
        let text = std::fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            looked_at += 1;
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}, which is not there", page.display());
            let known = anchors.iter().find(|(path, _)| path.canonicalize().ok() == target.canonicalize().ok());
            if let (Some(heading), Some((_, headings))) = (heading, known) {
                assert!(headings.iter().any(|h| h == heading), "{}: no heading for {link}", page.display());
            }
        }
        // Paths in code spelling, from the root of the project.
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = ["docs/", "deploy/", "tests/", "crates/", "src/"].iter().any(|start| word.starts_with(start));
            if is_path && !word.contains(['*', '<', ' ', '{', '…']) {
                looked_at += 1;
                assert!(root().join(word).exists(), "{} names {word}, which is not there", page.display());
            }
        }
    }
    assert!(looked_at > 20, "only {looked_at} links and paths were looked at");
}
