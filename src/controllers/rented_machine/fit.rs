//! Whether a machine is what was rented, by what its agent sees before anything is started. Pure.

use tradewind_api::rented_machine::Workload;
use tradewind_protocol::HostFacts;

/// Share of what was asked for that will do, in per cent: kernels, file systems and drivers keep some of it for themselves.
const ENOUGH: u64 = 90;
const MIB: u64 = 1 << 20;

/// What the machine lacks; `None` if it has everything, as far as anybody can tell.
pub fn lacks(workload: &Workload, host: &HostFacts) -> Option<String> {
    let asked = |amount: i64, unit: u64| u64::try_from(amount).unwrap_or(0).saturating_mul(unit);
    let short = |there: Option<u64>, asked: u64| there.filter(|there| *there < asked / 100 * ENOUGH);
    let gpus = u32::try_from(workload.gpus).unwrap_or(0);
    if let Some(there) = host.gpus.filter(|there| *there < gpus) {
        return Some(format!("it shows {there} of {gpus} rented GPUs"));
    }
    let disk = asked(workload.disk_gib, 1024 * MIB);
    if let Some(there) = short(host.disk_bytes, disk) {
        return Some(format!("its disk has {} MiB, {} were rented", there / MIB, disk / MIB));
    }
    let memory = asked(workload.memory_mib, MIB);
    if let Some(there) = short(host.memory_bytes, memory) {
        return Some(format!("it has {} MiB of memory, {} are asked for", there / MIB, memory / MIB));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_what_is_not_known_is_not_missing() {
        let workload = Workload { disk_gib: 100, memory_mib: 10_000, gpus: 2, ..Workload::default() };
        let facts = |gpus, disk_gib: Option<u64>, memory_mib: Option<u64>| HostFacts {
            gpus,
            disk_bytes: disk_gib.map(|n| n << 30),
            memory_bytes: memory_mib.map(|n| n << 20),
        };
        for (host, expected) in [
            (HostFacts::default(), None),
            (facts(Some(2), Some(91), Some(9_001)), None),
            (facts(Some(8), Some(5000), Some(1 << 20)), None),
            (facts(Some(1), None, None), Some("it shows 1 of 2 rented GPUs")),
            (facts(None, Some(89), None), Some("its disk has 91136 MiB, 102400 were rented")),
            (facts(None, None, Some(8_900)), Some("it has 8900 MiB of memory, 10000 are asked for")),
        ] {
            assert_eq!(lacks(&workload, &host).as_deref(), expected, "{host:?}");
        }
        assert_eq!(lacks(&Workload::default(), &facts(Some(0), Some(0), Some(0))), None, "nothing is asked for");
    }
}
