//! Seeded chance without state: each draw is a function of the seed, a name and two numbers, so that the order of calls to one
//! account never changes what another account sees.

/// What a draw is for; two purposes never share a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// How long a boot takes.
    Boot,
    /// How long the host keeps the machine.
    Lifetime,
    /// Whether a rent call is refused.
    Refusal,
    /// The key that a machine gets for itself.
    InstanceKey,
    /// Whether a pod says that it runs before it does.
    EarlyWord,
    /// How a pod whose host is gone looks from outside.
    HostLoss,
}

/// 64 random bits.
pub fn bits(seed: u64, name: &str, number: u64, purpose: Purpose) -> u64 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    for part in name.bytes().map(u64::from).chain([0x100, number, purpose as u64]) {
        state = split_mix(state ^ part);
    }
    state
}

/// A number in `[0, 1)`.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
pub fn share(seed: u64, name: &str, number: u64, purpose: Purpose) -> f64 {
    (bits(seed, name, number, purpose) >> 11) as f64 / (1_u64 << 53) as f64
}

/// SplitMix64 (Steele, Lea, Flood 2014): a fixed mixing of 64 bits that no crate update can change.
const fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_differ_by_every_part() {
        let mean = (0..10_000).map(|i| share(7, "vast", i, Purpose::Boot)).sum::<f64>() / 10_000.0;
        assert!((0.49..0.51).contains(&mean), "{mean}");
        let first = bits(7, "vast", 1, Purpose::Boot);
        assert_ne!(first, bits(8, "vast", 1, Purpose::Boot));
        assert_ne!(first, bits(7, "vasu", 1, Purpose::Boot));
        assert_ne!(first, bits(7, "vast", 2, Purpose::Boot));
        assert_ne!(first, bits(7, "vast", 1, Purpose::Refusal));
    }
}
