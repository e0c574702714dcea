//! Paths of a container's file system where they lie on this machine.

use std::path::{Path, PathBuf};

/// Where mounted paths really are.
#[derive(Clone, Debug, Default)]
pub(super) struct Mounts(Vec<(String, PathBuf)>);

impl Mounts {
    /// Adds one; `path` is absolute.
    pub(super) fn add(&mut self, path: &str, local: PathBuf) {
        self.0.push((path.trim_end_matches('/').to_owned(), local));
        // The deepest first: a volume may be mounted inside another.
        self.0.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    }

    /// Replaces every mounted path that stands in a text as a whole path or as the beginning of one.
    pub(super) fn rewrite(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let begins = c == '/' && !out_ends_inside_a_path(&text[..text.len() - rest.len()]);
            if begins && let Some((path, local)) = self.0.iter().find(|(path, _)| is_prefix(path, rest)) {
                out.push_str(&local.to_string_lossy());
                rest = &rest[path.len()..];
            } else {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        out
    }

    /// Where an absolute path lies, if it is in a mounted one.
    pub(super) fn local(&self, path: &str) -> Option<PathBuf> {
        let (mount, local) = self.0.iter().find(|(mount, _)| is_prefix(mount, path))?;
        let below = path[mount.len()..].trim_start_matches('/');
        Some(if below.is_empty() { local.clone() } else { local.join(Path::new(below)) })
    }
}

fn is_path_character(c: char) -> bool {
    c.is_alphanumeric() || "._-~+%@/".contains(c)
}

fn out_ends_inside_a_path(before: &str) -> bool {
    before.chars().next_back().is_some_and(is_path_character)
}

fn is_prefix(path: &str, text: &str) -> bool {
    let Some(rest) = text.strip_prefix(path) else { return false };
    rest.chars().next().is_none_or(|c| c == '/' || !is_path_character(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_mounted_paths_are_replaced() {
        let mut mounts = Mounts::default();
        mounts.add("/data", "/l/d".into());
        mounts.add("/data/deep/", "/l/e".into());
        let cases = [
            ("/data", "/l/d"),
            ("/data/x", "/l/d/x"),
            ("/data/deep/x", "/l/e/x"),
            ("/data/deeper", "/l/d/deeper"),
            ("/database /data; ls '/data'", "/database /l/d; ls '/l/d'"),
            ("--out=/data/x:/data", "--out=/l/d/x:/l/d"),
            ("http://host/data/x s3://b/data ./data", "http://host/data/x s3://b/data ./data"),
            ("ünï /data", "ünï /l/d"),
        ];
        for (text, wanted) in cases {
            assert_eq!(mounts.rewrite(text), wanted, "{text}");
        }
        assert_eq!(mounts.local("/data/deep"), Some("/l/e".into()));
        assert_eq!(mounts.local("/data/y/z"), Some("/l/d/y/z".into()));
        assert_eq!(mounts.local("/database"), None);
    }
}
