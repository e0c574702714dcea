//! Files that are generated from code are what the code says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

use std::path::Path;

#[test]
fn crds_are_up_to_date() {
    up_to_date("crds", tradewind_api::crd::files());
}

#[test]
fn the_reference_is_up_to_date() {
    up_to_date("docs/reference", tradewind_api::reference::files());
}

/// The directory has these files with this content, and no others.
fn up_to_date(place: &str, expected: Vec<(impl AsRef<str>, String)>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
    let is_stale =
        |name: &str, text: &String| std::fs::read_to_string(directory.join(name)).ok().as_ref() != Some(text);
    let stale: Vec<&str> = expected
        .iter()
        .map(|(name, text)| (name.as_ref(), text))
        .filter(|(n, t)| is_stale(n, t))
        .map(|(n, _)| n)
        .collect();
    assert!(stale.is_empty(), "{stale:?} in {place}/ differ from crates/api: run 'make generate'");
    for entry in std::fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            expected.iter().any(|(known, _)| known.as_ref() == name),
            "{place}/{name} belongs to no kind: remove it"
        );
    }
}
