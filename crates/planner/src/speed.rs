//! How fast GPU models are next to each other, for as long as a job has not been measured.
//!
//! Speed = √(FP16 tensor throughput × memory bandwidth), both relative to an RTX 4090, in thousandths: training is bound partly by
//! arithmetic and partly by memory, and the geometric mean favours neither. Figures are the vendors' own, dense (without sparsity)
//! and with FP32 accumulation, which training uses: NVIDIA's architecture papers for Ampere GA102, Ada and Blackwell RTX
//! (GeForce), the data sheets of V100, T4, A10, A30, A40, A100, L4, L40, L40S, H100, H200, B200 and the RTX A and RTX Ada series,
//! AMD's of the MI300X. Where a name covers a PCIe and an SXM card, the slower one counts.

use tradewind_core::GpuModel;

/// Speed taken for a model that is not in the table, in thousandths of an RTX 4090.
pub const UNKNOWN_SPEED_MILLI: u32 = 500;

/// Name in our spelling, FP16 tensor throughput in tenths of TFLOPS, memory bandwidth in GB/s.
const FIGURES: [(&str, u64, u64); 41] = [
    ("A10", 1250, 600),
    ("A30", 1650, 933),
    ("A40", 1497, 696),
    ("A100", 3120, 1555),
    ("A100-40GB", 3120, 1555),
    ("A100-80GB", 3120, 1935),
    ("A4000", 767, 448),
    ("A5000", 1111, 768),
    ("A6000", 1548, 768),
    ("RTXA4000", 767, 448),
    ("RTXA5000", 1111, 768),
    ("RTXA6000", 1548, 768),
    ("RTX6000ADA", 3642, 960),
    ("B200", 22_500, 7700),
    ("GH200", 9890, 4000),
    ("H100", 7560, 2000),
    ("H100NVL", 8350, 3900),
    ("H200", 9890, 4800),
    ("H200NVL", 8350, 4800),
    ("L4", 1210, 300),
    ("L40", 1810, 864),
    ("L40S", 3620, 864),
    ("MI300X", 13_070, 5300),
    ("RTX3060", 256, 360),
    ("RTX3070", 406, 448),
    ("RTX3080", 595, 760),
    ("RTX3080TI", 682, 912),
    ("RTX3090", 710, 936),
    ("RTX3090TI", 800, 1008),
    ("RTX4060TI", 441, 288),
    ("RTX4070", 583, 504),
    ("RTX4070TI", 802, 504),
    ("RTX4080", 975, 717),
    ("RTX4090", REFERENCE.0, REFERENCE.1),
    ("RTX5070TI", 879, 896),
    ("RTX5080", 1126, 960),
    ("RTX5090", 2095, 1792),
    ("T4", 650, 320),
    ("V100", 1120, 900),
    ("V100-16GB", 1120, 900),
    ("V100-32GB", 1120, 900),
];

/// The RTX 4090's throughput and bandwidth, in the units of [`FIGURES`].
const REFERENCE: (u64, u64) = (1652, 1008);

/// Where a candidate's running time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpeedBasis {
    /// The work was given for this model, for no model in particular, or runs on the CPU: not scaled.
    AsGiven,
    /// Scaled by the built-in table.
    Table,
    /// Scaled, but this offer's model or the one that the work was given for is not in the table and was taken at
    /// [`UNKNOWN_SPEED_MILLI`].
    Assumed,
}

/// Speed of a model in thousandths of an RTX 4090; `None` if it is not in the table.
pub fn speed_milli(gpu: &GpuModel) -> Option<u32> {
    let (_, tensor, bandwidth) = FIGURES.iter().find(|(name, ..)| *name == gpu.as_str())?;
    let squared = 1_000_000 * tensor * bandwidth / (REFERENCE.0 * REFERENCE.1);
    u32::try_from(squared.isqrt()).ok()
}

/// How long `seconds` of work on `on` take on `gpu`, rounded up, and how that is known.
pub(crate) fn scale(seconds: u64, on: Option<&GpuModel>, gpu: Option<&GpuModel>) -> (u64, SpeedBasis) {
    let (Some(on), Some(gpu)) = (on, gpu) else { return (seconds, SpeedBasis::AsGiven) };
    if on == gpu {
        return (seconds, SpeedBasis::AsGiven);
    }
    let (from, to) = (speed_milli(on), speed_milli(gpu));
    let basis = if from.is_some() && to.is_some() { SpeedBasis::Table } else { SpeedBasis::Assumed };
    let from = u128::from(from.unwrap_or(UNKNOWN_SPEED_MILLI));
    let to = u128::from(to.unwrap_or(UNKNOWN_SPEED_MILLI));
    let scaled = (u128::from(seconds) * from).div_ceil(to);
    (u64::try_from(scaled).unwrap_or(u64::MAX), basis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milli(name: &str) -> u32 {
        speed_milli(&GpuModel::normalise(name, 0)).unwrap()
    }

    #[test]
    fn the_reference_is_a_thousand_and_generations_are_in_order() {
        assert_eq!(milli("RTX 4090"), 1000);
        assert_eq!(milli("RTX 3090"), 631, "√(71.0/165.2 × 936/1008)");
        assert_eq!(milli("RTX A6000"), milli("A6000"), "both spellings are in use");
        let rising = ["T4", "L4", "RTX 3090", "V100", "RTX 4090", "RTX 5090", "A100-80GB", "H100", "H200", "B200"];
        for pair in rising.windows(2) {
            assert!(milli(pair[0]) < milli(pair[1]), "{} must be slower than {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn names_are_in_our_spelling_and_once_each() {
        let mut names: Vec<&str> = FIGURES.iter().map(|(name, ..)| *name).collect();
        for name in &names {
            assert_eq!(GpuModel::normalise(name, 0).as_str(), *name);
            assert!(milli(name) > 0, "{name}: a speed of 0 would divide by zero");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FIGURES.len());
    }

    #[test]
    fn scaling_says_how_it_knows() {
        let (fast, slow) = (GpuModel::normalise("RTX4090", 0), GpuModel::normalise("RTX3090", 0));
        let odd = GpuModel::normalise("Quantum 9", 0);
        for (on, gpu, expected, basis) in [
            (Some(&fast), Some(&fast), 3600, SpeedBasis::AsGiven),
            (Some(&odd), Some(&odd), 3600, SpeedBasis::AsGiven),
            (None, Some(&slow), 3600, SpeedBasis::AsGiven),
            (Some(&fast), Some(&slow), 5706, SpeedBasis::Table),
            (Some(&fast), Some(&odd), 7200, SpeedBasis::Assumed),
            (Some(&odd), Some(&fast), 1800, SpeedBasis::Assumed),
        ] {
            assert_eq!(scale(3600, on, gpu), (expected, basis), "{on:?} -> {gpu:?}");
        }
        assert_eq!(scale(u64::MAX, Some(&fast), Some(&slow)).0, u64::MAX);
    }
}
