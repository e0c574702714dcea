//! One spelling per GPU model, whatever a provider calls it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A GPU model in our spelling: upper case, no spaces, memory as a suffix where one name has several sizes
/// (`RTX4090`, `A100-80GB`, `H100`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuModel(String);

impl GpuModel {
    /// Our spelling of a model that a user or a provider wrote, given the memory of one card in MiB where it is known (else 0).
    ///
    /// `"RTX 4090"`, `"rtx_4090"` and `"NVIDIA GeForce RTX 4090"` are all `RTX4090`. An A100 is `A100-40GB` or `A100-80GB` by its
    /// memory, since providers use one name for both.
    pub fn normalise(name: &str, memory_mib: u64) -> Self {
        let upper = name.to_ascii_uppercase();
        let mut words: Vec<&str> =
            upper.split(|c: char| c.is_whitespace() || c == '_').filter(|w| !w.is_empty()).collect();
        words.retain(|w| !matches!(*w, "NVIDIA" | "GEFORCE" | "TESLA" | "PCIE" | "SXM" | "SXM2" | "SXM4" | "SXM5"));
        let joined = words.concat();
        if joined == "A100" && memory_mib > 0 {
            let size = if memory_mib > 60_000 { "80GB" } else { "40GB" };
            return Self(format!("A100-{size}"));
        }
        Self(joined)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling() {
        for (name, memory, ours) in [
            ("RTX 4090", 24_564, "RTX4090"),
            ("rtx_4090", 0, "RTX4090"),
            ("NVIDIA GeForce RTX 4090", 24_564, "RTX4090"),
            ("A100 SXM4", 81_559, "A100-80GB"),
            ("A100 PCIE", 40_536, "A100-40GB"),
            ("A100-80GB", 0, "A100-80GB"),
            ("H100 SXM", 81_559, "H100"),
        ] {
            assert_eq!(GpuModel::normalise(name, memory).as_str(), ours, "{name}");
        }
    }
}
