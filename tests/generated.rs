//! Files that are generated from code are what the code says.

use std::path::Path;

#[test]
fn crds_are_up_to_date() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let expected = tradewind_api::crd::files();
    let stale: Vec<&str> = expected
        .iter()
        .filter(|(name, text)| std::fs::read_to_string(directory.join(name)).ok().as_deref() != Some(text))
        .map(|(name, _)| *name)
        .collect();
    assert!(
        stale.is_empty(),
        "{stale:?} in crds/ differ from crates/api: run 'cargo run --bin tradewind-operator -- crds'"
    );
    for entry in std::fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(expected.iter().any(|(known, _)| *known == name), "crds/{name} belongs to no kind: remove it");
    }
}
