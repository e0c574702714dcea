//! The kinds of providers: what differs between their markets, and how they write a machine's id.

/// What RunPod's ids are made of: numbers times this, so that neighbours look nothing alike. Odd, hence invertible modulo 2^64.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Length of a RunPod pod id.
const POD_ID_LENGTH: usize = 14;

/// The wire format and the habits of an account's provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Vast.ai.
    Vast,
    /// RunPod.
    Runpod,
}

impl Kind {
    /// Every kind that is simulated.
    pub const ALL: [Self; 2] = [Self::Vast, Self::Runpod];

    /// The word in market files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vast => "vast",
            Self::Runpod => "runpod",
        }
    }

    /// The kind of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// A machine's id as the provider writes it: a number at Vast.ai, 14 letters and digits at RunPod.
    pub fn machine_id(self, id: u64) -> String {
        match self {
            Self::Vast => id.to_string(),
            Self::Runpod => pod_id(id),
        }
    }

    /// The machine that the provider writes so.
    pub fn parse_machine_id(self, text: &str) -> Option<u64> {
        match self {
            Self::Vast => text.parse().ok(),
            Self::Runpod => pod_number(text),
        }
    }

    /// Compute is billed while a machine boots (RunPod), not only once it runs (Vast.ai).
    pub const fn bills_boot(self) -> bool {
        matches!(self, Self::Runpod)
    }

    /// A start that cannot be had now waits for its turn (Vast.ai) instead of failing (RunPod).
    pub const fn queues_starts(self) -> bool {
        matches!(self, Self::Vast)
    }

    /// Machines can be rented by bid.
    pub const fn has_spot(self) -> bool {
        matches!(self, Self::Vast)
    }
}

fn pod_id(id: u64) -> String {
    let mut rest = id.wrapping_mul(SCATTER);
    let mut digits = vec![b'0'; POD_ID_LENGTH];
    for digit in digits.iter_mut().rev() {
        let value = u8::try_from(rest % 36).unwrap_or(0);
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        rest /= 36;
    }
    String::from_utf8_lossy(&digits).into_owned()
}

fn pod_number(text: &str) -> Option<u64> {
    if text.len() != POD_ID_LENGTH || !text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) {
        return None;
    }
    let scattered = u64::from_str_radix(text, 36).ok()?;
    Some(scattered.wrapping_mul(inverse(SCATTER)))
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the bits that are right.
const fn inverse(odd: u64) -> u64 {
    let mut guess = odd;
    let mut step = 0;
    while step < 5 {
        guess = guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess)));
        step += 1;
    }
    guess
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
            for id in [0, 1, 20_000_001, 20_000_002, u64::MAX] {
                assert_eq!(kind.parse_machine_id(&kind.machine_id(id)), Some(id));
            }
        }
        let id = Kind::Runpod.machine_id(20_000_001);
        assert_eq!(id.len(), 14);
        for odd in ["", "7", "zzzzzzzzzzzzzz", &id.to_uppercase(), &format!("{id}0")] {
            assert_eq!(Kind::Runpod.parse_machine_id(odd), None, "{odd}");
        }
    }
}
