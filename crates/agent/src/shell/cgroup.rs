//! Whether the kernel killed something of this container for want of memory, by the container's own cgroup.

use std::path::Path;

/// Where a container sees the counters of its cgroup, version 2 first, below `/sys/fs/cgroup`.
const FILES: [&str; 2] = ["memory.events", "memory/memory.oom_control"];

/// Processes that were killed so far; `None` if nothing counts them (no cgroup, or a version 1 kernel before 4.13).
pub fn oom_kills(directory: &Path) -> Option<u64> {
    FILES.iter().find_map(|file| count(&std::fs::read_to_string(directory.join(file)).ok()?))
}

fn count(text: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_and_others_tell_nothing() {
        for (file, text, expected) in [
            (FILES[0], "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 4\n", Some(1)),
            (FILES[1], "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some(3)),
            (FILES[1], "oom_kill_disable 0\nunder_oom 0\n", None),
            (FILES[0], "oom_kill many\n", None),
            ("memory.max", "oom_kill 1\n", None),
        ] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join("memory")).unwrap();
            std::fs::write(directory.path().join(file), text).unwrap();
            assert_eq!(oom_kills(directory.path()), expected, "{file} {text}");
        }
    }
}
