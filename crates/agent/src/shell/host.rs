//! What the machine has, seen from within and without any GPU's tools.

use std::path::Path;

use rustix::fs::statvfs;
use tradewind_protocol::HostFacts;

/// Limits of the container's memory, version 2 first, below `/sys/fs/cgroup`. Where there is none they say `max`, or a number larger than
/// any memory.
const LIMITS: [&str; 2] = ["memory.max", "memory/memory.limit_in_bytes"];

/// Looks at the machine. `visible` = which GPUs the container was promised (`NVIDIA_VISIBLE_DEVICES`), where anybody has said so.
pub fn look(here: &Path, cgroup: &Path, proc: &Path, devices: &Path, visible: Option<&str>) -> HostFacts {
    HostFacts {
        disk_bytes: statvfs(here).ok().and_then(|fs| fs.f_blocks.checked_mul(fs.f_frsize)).filter(|bytes| *bytes > 0),
        memory_bytes: memory(cgroup, proc),
        gpus: gpus(devices, visible),
    }
}

fn memory(cgroup: &Path, proc: &Path) -> Option<u64> {
    let limit = LIMITS.iter().find_map(|file| std::fs::read_to_string(cgroup.join(file)).ok());
    let limit = limit.and_then(|text| text.trim().parse().ok());
    let whole = std::fs::read_to_string(proc.join("meminfo")).ok();
    let whole = whole.as_deref().and_then(|text| {
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    [limit, whole].into_iter().flatten().min()
}

/// Devices `nvidia0`, `nvidia1`, …; the driver makes one for each GPU that the container may open. Without any, it has none only if it was
/// promised some: other GPUs are driven by other devices, and a machine without GPU needs no driver.
fn gpus(devices: &Path, visible: Option<&str>) -> Option<u32> {
    let entries = std::fs::read_dir(devices).ok()?;
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let is_gpu = |name: &&String| {
        name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let count = u32::try_from(names.iter().filter(is_gpu).count()).ok()?;
    let promised = visible.is_some_and(|which| !["", "none", "void"].contains(&which.trim()));
    // The driver of Windows' Linux shows all GPUs as one device of another name.
    let elsewhere = names.iter().any(|name| name == "dxg");
    (count > 0 || promised && !elsewhere).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_least_of_what_is_told() {
        const MIB: u64 = 1 << 20;
        let total = Some("MemTotal:        2048 kB\nMemFree: 1 kB\n");
        for (file, limit, meminfo, expected) in [
            (LIMITS[0], "max\n", total, Some(2 * MIB)),
            (LIMITS[0], "1048576\n", total, Some(MIB)),
            (LIMITS[1], "1048576\n", total, Some(MIB)),
            (LIMITS[1], "9223372036854771712\n", total, Some(2 * MIB)),
            (LIMITS[0], "much", None, None),
            ("other", "", Some("MemTotal: lots kB"), None),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            std::fs::create_dir(path.join("memory")).unwrap();
            std::fs::write(path.join(file), limit).unwrap();
            if let Some(text) = meminfo {
                std::fs::write(path.join("meminfo"), text).unwrap();
            }
            assert_eq!(memory(path, path), expected, "{file} {limit} {meminfo:?}");
        }
    }

    #[test]
    fn only_what_was_promised_can_be_missing() {
        for (files, visible, expected) in [
            (&["nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"][..], None, Some(2)),
            (&["nvidiactl"], Some("all"), Some(0)),
            (&["null"], Some("all"), Some(0)),
            (&["null"], Some("void"), None),
            (&["null"], Some(""), None),
            (&["null"], None, None),
            (&["dxg"], Some("all"), None),
            (&["nvidia0"], Some("none"), Some(1)),
        ] {
            let directory = tempfile::tempdir().unwrap();
            for file in files {
                std::fs::write(directory.path().join(file), "").unwrap();
            }
            assert_eq!(gpus(directory.path(), visible), expected, "{files:?} {visible:?}");
        }
        assert_eq!(gpus(Path::new("/nowhere"), Some("all")), None);
    }

    #[test]
    fn this_machine_has_a_disk_and_memory() {
        let facts = look(Path::new("."), Path::new("/nowhere"), Path::new("/proc"), Path::new("/nowhere"), None);
        assert!(facts.disk_bytes > Some(1 << 20) && facts.memory_bytes > Some(1 << 20), "{facts:?}");
    }
}
