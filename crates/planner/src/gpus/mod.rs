//! What is known of GPU models before a job has run on them: figures, and the names that providers give them.
//!
//! Throughput is the vendors' own, dense (without sparsity) and with FP32 accumulation, which training uses. Where one name covers a
//! PCIe, an SXM, or a server and a workstation card, the slower one counts. Sources, all from the vendors:
//! - V100, P100, P4, P40, K80, M60, T4, A2, A10, A10G (made for AWS), A16, A30, A40, A100, L4, L40, L40S, H100, H100 NVL, H200, GH200: NVIDIA's
//!   data sheets of these cards; GRID K520: its board specification; T4G: AWS sells it as a T4 beside ARM processors; B200 and B300: HGX
//!   sheet, an eighth; GB200: NVL72 sheet, a 72nd part;
//! - GeForce: the architecture papers of Turing, Ampere GA102, Ada and Blackwell RTX, and for cards that these leave out two times (FP8: four
//!   times) the FP32 rate of the product page, which is the ratio that the papers show;
//! - RTX A and Quadro RTX: data sheets; RTX Ada: data sheets, whose "tensor performance" is FP8 with sparsity: a half for FP8, a quarter for
//!   FP16; RTX PRO 6000: data sheets of the server and the Max-Q edition, four and eight times the FP32 rate (as its architecture paper shows);
//! - MI300X, MI355X, Radeon Pro V520: AMD's data sheets.
//!
//! Aliases are what Vast, RunPod, Lambda and the price lists of SkyPilot make of the names, after
//! [`GpuModel::normalise`] and without signs between letters.

mod table;

use std::cmp::Reverse;
use std::sync::LazyLock;

use tradewind_core::GpuModel;

/// One GPU model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Name in our spelling.
    pub name: &'static str,
    /// The name under which it is sold in several sizes: `A100` for `A100-40GB`. Who asks for that name takes every size.
    pub size_of: Option<&'static str>,
    /// Memory of one GPU in MiB, the smaller where there are two.
    pub memory_mib: u64,
    /// Memory bandwidth in GB/s.
    pub bandwidth_gbs: u64,
    /// FP16 throughput with FP32 accumulation in tenths of TFLOPS, dense.
    pub fp16_tenths: u64,
    /// The same of BF16; 0 = the hardware has none.
    pub bf16_tenths: u64,
    /// The same of FP8; 0 = the hardware has none.
    pub fp8_tenths: u64,
    /// Power class: the board's limit in watts, of one GPU.
    pub watts: u32,
    /// CUDA compute capability in tenths (89 = 8.9); 0 = not CUDA.
    pub compute_capability: u32,
    /// Other names: upper case, letters and digits only.
    pub aliases: &'static [&'static str],
}

/// Rows by every name, in the order of the names, so that a look-up is a binary search.
static BY_NAME: LazyLock<Vec<(String, &'static Gpu)>> = LazyLock::new(|| {
    let mut names: Vec<(String, &'static Gpu)> = all()
        .flat_map(|gpu| {
            std::iter::once(gpu.name).chain(gpu.aliases.iter().copied()).map(move |name| (plain(name), gpu))
        })
        .collect();
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    names
});

/// All models of the table.
pub fn all() -> impl Iterator<Item = &'static Gpu> {
    table::ROWS.iter().flat_map(|rows| rows.iter())
}

/// Letters and digits only: what is left is the same in all spellings.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// The row of a model under any of its names; `None` if it is not in the table.
pub fn find(model: &GpuModel) -> Option<&'static Gpu> {
    let name = model.as_str();
    let found = |name: &str| {
        let at = BY_NAME.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
        BY_NAME.get(at).map(|(_, gpu)| *gpu)
    };
    if name.bytes().all(|b| b.is_ascii_alphanumeric()) { found(name) } else { found(&plain(name)) }
}

/// A model with its row, looked up once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) model: &'a GpuModel,
    pub(crate) row: Option<&'static Gpu>,
    /// Its speed by the table, in thousandths of an RTX 4090.
    pub(crate) speed_milli: Option<u32>,
}

impl<'a> Known<'a> {
    pub(crate) fn new(model: &'a GpuModel) -> Self {
        let row = find(model);
        Self { model, row, speed_milli: row.map(crate::speed::speed_of) }
    }

    /// Whether both names mean the same model.
    pub(crate) fn is(self, other: Known<'_>) -> bool {
        match (self.row, other.row) {
            (Some(a), Some(b)) => std::ptr::eq(a, b) || a.name == b.name,
            (None, None) => self.model == other.model,
            _ => false,
        }
    }

    /// Whether somebody who asks for `self` takes `offered`: the same model, or a size of it.
    pub(crate) fn admits(self, offered: Known<'_>) -> bool {
        let a_size =
            || offered.row.and_then(|row| row.size_of).is_some_and(|of| self.row.is_some_and(|row| row.name == of));
        self.is(offered) || a_size()
    }
}

/// Whether somebody who asks for `asked` takes `offered`: the same model under any of its names, or one of its sizes.
pub fn admits(asked: &GpuModel, offered: &GpuModel) -> bool {
    Known::new(asked).admits(Known::new(offered))
}

/// Names of the table that are nearest to this one, nearest first, at most `most`; empty if none is near. For telling a user what a
/// mistyped model may have meant.
pub fn nearest_names(model: &GpuModel, most: usize) -> Vec<&'static str> {
    let wanted = plain(&model.as_str().to_ascii_uppercase());
    // A third of the letters wrong is another name, not a slip.
    let allowed = (wanted.len() / 3).clamp(1, 4);
    // Of equally near ones the faster is meant more often.
    let mut near: Vec<(usize, Reverse<u64>, &'static str)> = BY_NAME
        .iter()
        .filter(|(name, _)| name.len().abs_diff(wanted.len()) <= allowed)
        .map(|(name, gpu)| (distance(name.as_bytes(), wanted.as_bytes()), Reverse(gpu.fp16_tenths), gpu.name))
        .filter(|(distance, ..)| *distance <= allowed)
        .collect();
    near.sort_unstable();
    let mut names: Vec<&'static str> = Vec::new();
    for (.., name) in near {
        if names.len() < most && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Names that are told of one that may have been meant.
pub(crate) const MEANT: usize = 3;

/// What a name that is not in the table may have meant: `did you mean RTX4090 or RTX4090D?`. `None` if nothing is near.
pub fn meant(model: &GpuModel) -> Option<String> {
    let near = nearest_names(model, MEANT);
    (!near.is_empty()).then(|| format!("did you mean {}?", near.join(" or ")))
}

/// Letters to insert, delete or replace until `a` is `b` (Levenshtein), a swap of neighbours counted once (optimal string alignment).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn row(name: &str) -> Option<&'static str> {
        find(&GpuModel::normalise(name, 0)).map(|gpu| gpu.name)
    }

    #[test]
    fn names_are_in_our_spelling_and_mean_one_model_each() {
        let mut seen = BTreeSet::new();
        for gpu in all() {
            assert_eq!(GpuModel::normalise(gpu.name, 0).as_str(), gpu.name);
            assert!(seen.insert(plain(gpu.name)), "{} is twice in the table", gpu.name);
            for alias in gpu.aliases {
                assert_eq!(plain(alias), *alias, "an alias of {}", gpu.name);
                assert!(seen.insert((*alias).to_owned()), "{alias} is the name of two models");
            }
            if let Some(of) = gpu.size_of {
                assert_eq!(row(of), Some(of), "the name that {} is a size of", gpu.name);
            }
        }
    }

    #[test]
    fn figures_are_plausible() {
        for gpu in all() {
            let name = gpu.name;
            assert!(gpu.memory_mib >= 4096 && gpu.bandwidth_gbs >= 100 && gpu.fp16_tenths > 0, "{name}");
            assert!((50..=1500).contains(&gpu.watts), "{name}: {} W", gpu.watts);
            assert!(gpu.bf16_tenths == 0 || gpu.bf16_tenths == gpu.fp16_tenths, "{name}: both run on the same units");
            assert!(
                gpu.fp8_tenths == 0 || (19..=21).contains(&(gpu.fp8_tenths * 10 / gpu.fp16_tenths)),
                "{name}: FP8 is twice FP16"
            );
            assert_eq!(gpu.bf16_tenths > 0, gpu.compute_capability >= 80 || name.starts_with("MI3"), "{name}");
            assert_eq!(gpu.fp8_tenths > 0, gpu.compute_capability >= 89 || name.starts_with("MI3"), "{name}");
        }
    }

    #[test]
    fn each_provider_is_understood_in_its_own_spelling() {
        for (spelling, name) in [
            ("RTX 4090", "RTX4090"),
            ("NVIDIA GeForce RTX 4090", "RTX4090"),
            ("RTX 4070S Ti", "RTX4070TISUPER"),
            ("RTX4070S-Ti", "RTX4070TISUPER"),
            ("RTX 6000Ada", "RTX6000ADA"),
            ("RTX6000-Ada", "RTX6000ADA"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX6000ADA"),
            ("A6000", "RTXA6000"),
            ("RTX A6000", "RTXA6000"),
            ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
            ("NVIDIA A100 80GB PCIe", "A100-80GB"),
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("H100-NVL", "H100NVL"),
            ("V100 SXM2 32GB", "V100-32GB"),
            ("Tesla V100-PCIE-16GB", "V100-16GB"),
            ("AMD Instinct MI300X OAM", "MI300X"),
            ("RTX PRO 6000 WS", "RTXPRO6000"),
            ("NVIDIA B300 SXM6 AC", "B300"),
        ] {
            assert_eq!(row(spelling), Some(name), "{spelling}");
        }
        assert_eq!(row("Quantum 9"), None);
    }

    #[test]
    fn who_asks_for_a_name_takes_every_size_and_no_other_card() {
        let model = |name: &str| GpuModel::normalise(name, 0);
        for (asked, offered, admitted) in [
            ("A100", "A100-80GB", true),
            ("A100", "A100-40GB", true),
            ("A100-80GB", "A100", false),
            ("A100-80GB", "A100-40GB", false),
            ("A6000", "RTX A6000", true),
            ("RTX6000", "RTX6000ADA", false),
            ("Quantum 9", "quantum_9", true),
            ("Quantum 9", "RTX4090", false),
        ] {
            assert_eq!(admits(&model(asked), &model(offered)), admitted, "{asked} takes {offered}");
        }
    }

    #[test]
    fn a_slip_finds_what_was_meant() {
        let near = |name: &str| nearest_names(&GpuModel::normalise(name, 0), 3);
        assert_eq!(near("RTX 4909")[0], "RTX4090");
        assert_eq!(near("RTX409")[0], "RTX4090");
        assert_eq!(near("A1000-80GB")[0], "A100-80GB");
        assert_eq!(near("6000 Ada Gen")[0], "RTX6000ADA");
        assert!(near("a quantum computer").is_empty());
        assert!(near("").is_empty());
        assert!(near("RTX4090").len() <= 3);
        assert_eq!(distance(b"ABCD", b"ABDC"), 1);
        assert_eq!(distance(b"", b"ABC"), 3);
    }
}
