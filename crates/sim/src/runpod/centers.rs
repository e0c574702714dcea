//! Data centres: what the catalogue tells of them.

use serde_json::{Value, json};

/// Data centres that RunPod lists (its documents of August 2026) and whether they have global networking.
const KNOWN: [(&str, bool); 26] = [
    ("AP-JP-1", false),
    ("CA-MTL-1", false),
    ("CA-MTL-2", false),
    ("CA-MTL-3", true),
    ("EU-CZ-1", true),
    ("EU-FR-1", true),
    ("EU-NL-1", true),
    ("EU-RO-1", true),
    ("EU-SE-1", true),
    ("EUR-IS-1", false),
    ("EUR-IS-2", true),
    ("EUR-IS-3", false),
    ("EUR-NO-1", false),
    ("OC-AU-1", true),
    ("US-CA-2", true),
    ("US-DE-1", false),
    ("US-GA-1", true),
    ("US-GA-2", true),
    ("US-IL-1", true),
    ("US-KS-2", true),
    ("US-KS-3", false),
    ("US-NC-1", true),
    ("US-TX-1", false),
    ("US-TX-3", true),
    ("US-TX-4", true),
    ("US-WA-1", true),
];

/// The catalogue's words for continents.
pub const REGIONS: [&str; 9] =
    ["NORTH_AMERICA", "SOUTH_AMERICA", "EUROPE", "ASIA", "MIDDLE_EAST", "AFRICA", "OCEANIA", "ANTARCTICA", "UNKNOWN"];

/// Ids of the listed data centres.
pub fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(id, _)| *id)
}

/// Has global networking. One that only a market file knows has not.
pub fn has_global_network(id: &str) -> bool {
    KNOWN.iter().any(|(known, global)| *known == id && *global)
}

/// ISO code of the country: the second part of `EU-RO-1`, but the first of `US-KS-2` and `CA-MTL-3`.
pub fn country(id: &str) -> &str {
    let mut parts = id.split('-');
    match (parts.next(), parts.next()) {
        (Some(first @ ("US" | "CA")), _) => first,
        (_, Some(second)) => second,
        (first, None) => first.unwrap_or_default(),
    }
}

fn region(id: &str) -> &'static str {
    match id.split('-').next().unwrap_or_default() {
        "US" | "CA" => "NORTH_AMERICA",
        "SA" => "SOUTH_AMERICA",
        "EU" | "EUR" => "EUROPE",
        "AP" | "SEA" => "ASIA",
        "ME" => "MIDDLE_EAST",
        "AF" => "AFRICA",
        "OC" => "OCEANIA",
        _ => "UNKNOWN",
    }
}

/// A data centre as the catalogue shows it, without availability.
pub fn row(id: &str) -> Value {
    json!({"id": id, "name": id, "region": region(id), "globalNetwork": has_global_network(id), "networkVolumeTypes": ["STANDARD"],
        "compliance": []})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_the_country() {
        for (id, code) in
            [("EU-RO-1", "RO"), ("US-KS-2", "US"), ("CA-MTL-3", "CA"), ("EUR-IS-1", "IS"), ("AP-JP-1", "JP")]
        {
            assert_eq!(country(id), code);
        }
        assert!(known().all(|id| region(id) != "UNKNOWN"));
    }
}
