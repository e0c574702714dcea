//! Texts that are kept in `goldens/`.

use std::path::Path;

#[expect(clippy::disallowed_methods, reason = "a test's knob")]
fn is_blessed() -> bool {
    std::env::var_os("TRADEWIND_BLESS").is_some()
}

/// Compares with `goldens/<name>`, or writes it anew.
pub fn same(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
    if is_blessed() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let wanted =
        std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("TRADEWIND_BLESS=1 makes {}", path.display()));
    assert!(text == wanted, "goldens/{name} differs\n--- wanted\n{wanted}\n--- now\n{text}");
}
