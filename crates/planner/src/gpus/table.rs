//! The figures. One row a model, in the order of their kind; see the module above for the units and the sources.

use super::Gpu;

/// One row: name, MiB, GB/s, FP16, BF16, FP8 in tenths of TFLOPS, W, compute capability in tenths, other names.
const fn row(
    name: &'static str,
    memory_gib: u64,
    bandwidth_gbs: u64,
    [fp16_tenths, bf16_tenths, fp8_tenths]: [u64; 3],
    watts: u32,
    compute_capability: u32,
    aliases: &'static [&'static str],
) -> Gpu {
    Gpu {
        name,
        size_of: None,
        memory_mib: memory_gib * 1024,
        bandwidth_gbs,
        fp16_tenths,
        bf16_tenths,
        fp8_tenths,
        watts,
        compute_capability,
        aliases,
    }
}

/// The same for a model that is sold under one name in several sizes.
const fn sized(of: &'static str, gpu: Gpu) -> Gpu {
    Gpu { size_of: Some(of), ..gpu }
}

/// Kepler to Turing: no BF16, no FP8; before Volta no tensor cores either, and FP32 stands for FP16 where that is slower. K80, M60 and
/// K520 are cards of two chips: one chip is what providers count as a GPU.
const BEFORE_AMPERE: [Gpu; 18] = [
    row("K520", 4, 160, [25, 0, 0], 112, 30, &["GRIDK520"]),
    row("K80", 12, 240, [44, 0, 0], 150, 37, &[]),
    row("M60", 8, 160, [48, 0, 0], 150, 52, &[]),
    row("P4", 8, 192, [55, 0, 0], 75, 61, &[]),
    row("P40", 24, 346, [120, 0, 0], 250, 61, &[]),
    row("P100", 16, 732, [187, 0, 0], 250, 60, &["P100PCIE16GB", "P10016GB"]),
    row("GTX1080TI", 11, 484, [113, 0, 0], 250, 61, &["1080TI"]),
    row("V100", 16, 900, [1120, 0, 0], 250, 70, &["V100PCIE", "V100SXM2"]),
    sized("V100", row("V100-16GB", 16, 900, [1120, 0, 0], 250, 70, &["V100PCIE16GB", "V100SXM216GB"])),
    sized("V100", row("V100-32GB", 32, 900, [1120, 0, 0], 250, 70, &["V100PCIE32GB", "V100SXM232GB"])),
    row("T4", 16, 320, [650, 0, 0], 70, 75, &[]),
    row("T4G", 16, 320, [650, 0, 0], 70, 75, &[]),
    row("RTX2080TI", 11, 616, [538, 0, 0], 250, 75, &["2080TI"]),
    row("TITANRTX", 24, 672, [1305, 0, 0], 280, 75, &[]),
    row("RTX4000", 8, 416, [570, 0, 0], 160, 75, &["QRTX4000", "QUADRORTX4000"]),
    row("RTX5000", 16, 448, [892, 0, 0], 265, 75, &["QRTX5000", "QUADRORTX5000"]),
    row("RTX6000", 24, 672, [1305, 0, 0], 295, 75, &["QRTX6000", "QUADRORTX6000"]),
    row("RTX8000", 48, 672, [1305, 0, 0], 295, 75, &["QRTX8000", "QUADRORTX8000"]),
];

/// Ampere: BF16 as fast as FP16, no FP8.
const AMPERE: [Gpu; 22] = [
    row("A2", 16, 200, [180, 180, 0], 60, 86, &[]),
    row("A10", 24, 600, [1250, 1250, 0], 150, 86, &["A1024GB"]),
    row("A10G", 24, 600, [700, 700, 0], 300, 86, &[]),
    row("A16", 16, 200, [179, 179, 0], 62, 86, &[]),
    row("A30", 24, 933, [1650, 1650, 0], 165, 80, &[]),
    row("A40", 48, 696, [1497, 1497, 0], 300, 86, &[]),
    row("A100", 40, 1555, [3120, 3120, 0], 250, 80, &["A100PCIE", "A100SXM", "A100SXM4"]),
    sized(
        "A100",
        row(
            "A100-40GB",
            40,
            1555,
            [3120, 3120, 0],
            250,
            80,
            &["A100PCIE40GB", "A100SXM40GB", "A100SXM440GB", "A10040GBSXM4"],
        ),
    ),
    sized(
        "A100",
        row(
            "A100-80GB",
            80,
            1935,
            [3120, 3120, 0],
            300,
            80,
            &["A100PCIE80GB", "A100SXM80GB", "A100SXM480GB", "A10080GBPCIE", "A10080GBSXM", "A10080GBSXM4"],
        ),
    ),
    row("RTXA2000", 6, 288, [319, 319, 0], 70, 86, &["A2000"]),
    row("RTXA4000", 16, 448, [767, 767, 0], 140, 86, &["A4000"]),
    row("RTXA4500", 20, 640, [946, 946, 0], 200, 86, &["A4500"]),
    row("RTXA5000", 24, 768, [1111, 1111, 0], 230, 86, &["A5000"]),
    row("RTXA6000", 48, 768, [1548, 1548, 0], 300, 86, &["A6000"]),
    row("RTX3060", 12, 360, [256, 256, 0], 170, 86, &["3060"]),
    row("RTX3060TI", 8, 448, [324, 324, 0], 200, 86, &["3060TI"]),
    row("RTX3070", 8, 448, [406, 406, 0], 220, 86, &["3070"]),
    row("RTX3070TI", 8, 608, [435, 435, 0], 290, 86, &["3070TI"]),
    row("RTX3080", 10, 760, [595, 595, 0], 320, 86, &["3080"]),
    row("RTX3080TI", 12, 912, [682, 682, 0], 350, 86, &["3080TI"]),
    row("RTX3090", 24, 936, [710, 710, 0], 350, 86, &["3090"]),
    row("RTX3090TI", 24, 1008, [800, 800, 0], 450, 86, &["3090TI"]),
];

/// Ada: FP8 twice as fast as FP16.
const ADA: [Gpu; 18] = [
    row("L4", 24, 300, [1210, 1210, 2420], 72, 89, &[]),
    row("L40", 48, 864, [1810, 1810, 3620], 300, 89, &[]),
    row("L40S", 48, 864, [3620, 3620, 7330], 350, 89, &[]),
    row("RTX2000ADA", 16, 224, [480, 480, 960], 70, 89, &["RTX2000ADAGENERATION"]),
    row("RTX4000SFFADA", 20, 280, [767, 767, 1534], 70, 89, &["RTX4000ADASFF", "RTX4000SFFADAGENERATION"]),
    row("RTX4000ADA", 20, 360, [1069, 1069, 2138], 130, 89, &["RTX4000ADAGENERATION"]),
    row("RTX5000ADA", 32, 576, [2611, 2611, 5222], 250, 89, &["RTX5000ADAGENERATION"]),
    row("RTX6000ADA", 48, 960, [3642, 3642, 7285], 300, 89, &["RTX6000ADAGENERATION", "6000ADA"]),
    row("RTX4060", 8, 272, [302, 302, 605], 115, 89, &["4060"]),
    row("RTX4060TI", 8, 288, [441, 441, 883], 160, 89, &["4060TI"]),
    row("RTX4070", 12, 504, [583, 583, 1166], 200, 89, &["4070"]),
    row("RTX4070SUPER", 12, 504, [710, 710, 1419], 220, 89, &["RTX4070S", "4070S"]),
    row("RTX4070TI", 12, 504, [802, 802, 1604], 285, 89, &["4070TI"]),
    row("RTX4070TISUPER", 16, 672, [882, 882, 1764], 285, 89, &["RTX4070STI", "RTX4070TIS", "4070STI"]),
    row("RTX4080", 16, 717, [975, 975, 1950], 320, 89, &["4080"]),
    row("RTX4080SUPER", 16, 736, [1044, 1044, 2088], 320, 89, &["RTX4080S", "4080S"]),
    row("RTX4090D", 24, 1008, [1470, 1470, 2940], 425, 89, &["4090D"]),
    row("RTX4090", 24, 1008, [1652, 1652, 3303], 450, 89, &["4090"]),
];

/// Hopper and Blackwell.
const HOPPER_AND_LATER: [Gpu; 15] = [
    row(
        "H100",
        80,
        2000,
        [7560, 7560, 15_130],
        350,
        90,
        &["H100PCIE", "H100SXM", "H100SXM5", "H10080GB", "H10080GBHBM3"],
    ),
    row("H100NVL", 94, 3900, [8350, 8350, 16_710], 400, 90, &["H10094GB"]),
    row("H200", 141, 4800, [9890, 9890, 19_790], 700, 90, &["H200SXM", "H200SXM5"]),
    row("H200NVL", 141, 4800, [8350, 8350, 16_710], 600, 90, &[]),
    row("GH200", 96, 4000, [9890, 9890, 19_790], 1000, 90, &["GH20096GB"]),
    row("B200", 180, 7700, [22_500, 22_500, 45_000], 1000, 100, &["B200SXM", "B200SXM6"]),
    row("GB200", 186, 8000, [25_000, 25_000, 50_000], 1200, 100, &[]),
    row("B300", 288, 8000, [22_500, 22_500, 45_000], 1100, 103, &["B300SXM6", "B300SXM6AC"]),
    row(
        "RTXPRO6000",
        96,
        1597,
        [4800, 4800, 9600],
        600,
        120,
        &[
            "RTXPRO6000S",
            "RTXPRO6000WS",
            "RTXPRO6000WK",
            "RTXPRO6000BLACKWELL",
            "RTXPRO6000BLACKWELLSERVEREDITION",
            "RTXPRO6000BLACKWELLWORKSTATIONEDITION",
        ],
    ),
    row("RTXPRO6000MAXQ", 96, 1792, [4400, 4400, 8800], 300, 120, &["RTXPRO6000BLACKWELLMAXQWORKSTATIONEDITION"]),
    row("RTX5060TI", 8, 448, [474, 474, 948], 180, 120, &["5060TI"]),
    row("RTX5070", 12, 672, [617, 617, 1235], 250, 120, &["5070"]),
    row("RTX5070TI", 16, 896, [879, 879, 1758], 300, 120, &["5070TI"]),
    row("RTX5080", 16, 960, [1126, 1126, 2251], 360, 120, &["5080"]),
    row("RTX5090", 32, 1792, [2095, 2095, 4190], 575, 120, &["5090"]),
];

/// AMD's: they run no CUDA, so their compute capability is 0.
const AMD: [Gpu; 3] = [
    row("V520", 8, 512, [147, 0, 0], 225, 0, &["RADEONPROV520"]),
    row(
        "MI300X",
        192,
        5300,
        [13_070, 13_070, 26_149],
        750,
        0,
        &["MI300XOAM", "INSTINCTMI300X", "AMDINSTINCTMI300XOAM"],
    ),
    row("MI355X", 288, 8000, [25_166, 25_166, 50_332], 1400, 0, &["INSTINCTMI355X", "AMDINSTINCTMI355XOAM"]),
];

/// All rows.
pub(super) const ROWS: [&[Gpu]; 5] = [&BEFORE_AMPERE, &AMPERE, &ADA, &HOPPER_AND_LATER, &AMD];
