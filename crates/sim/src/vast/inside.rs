//! Looking into a machine: its log, and the few commands that Vast.ai lets one run from outside.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::answer::Answer;
use super::shell;
use crate::market::{Market, Purpose, bits};
use crate::world::World;

/// Bytes of a log that are looked at.
const LOG_BYTES: u64 = 1 << 20;

/// `PUT /api/v0/instances/request_logs/{id}/`.
pub fn logs(world: &World, market: &mut Market, account: &str, id: u64, body: &[u8], url: &str) -> Answer {
    let asked: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    if !owns(market, account, id) {
        return Answer::error(404, "invalid_id", "Invalid instance id.");
    }
    if !asked.is_object() {
        return Answer::invalid_args("Invalid args: invalid json");
    }
    let tail = match &asked["tail"] {
        Value::Null => usize::MAX,
        // A text in the official document; the SDK sends what it was given.
        value => match value.as_str().map_or_else(|| value.as_u64(), |text| text.parse().ok()) {
            Some(lines) => usize::try_from(lines).unwrap_or(usize::MAX),
            None => return Answer::invalid_args("Invalid args: 'tail' must be a number of lines"),
        },
    };
    let filter = asked["filter"].as_str().unwrap_or_default();
    let text = if asked["daemon_logs"] == "true" {
        format!("simulated daemon log of instance {id}\n")
    } else {
        read_end(&world.runner.directory(account, &id.to_string()).join("log"))
    };
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(filter)).collect();
    let kept: String = lines[lines.len().saturating_sub(tail)..].iter().flat_map(|line| [*line, "\n"]).collect();
    let result = keep(world, market, id, kept, url);
    Answer::success().with("result_url", json!(result)).with("msg", json!("Request for logs has been queued."))
}

/// `PUT /api/v0/instances/command/{id}/`: `ls`, `du` and `rm` within the machine's directory.
pub fn command(world: &World, market: &mut Market, account: &str, id: u64, body: &[u8], url: &str) -> Answer {
    let Ok(asked) = serde_json::from_slice::<Value>(body) else {
        return Answer::error(483, "invalid_args", "Invalid json_body");
    };
    let Some(line) = asked["command"].as_str().filter(|line| line.chars().count() <= 512) else {
        return Answer::invalid_args("Invalid command given.");
    };
    let directory = world.runner.directory(account, &id.to_string());
    if !owns(market, account, id) || !directory.is_dir() {
        return Answer::error(400, "invalid_container_id", "Invalid container id.");
    }
    let Some(words) = allowed(line, &directory) else { return Answer::invalid_args("Invalid command given.") };
    let text = Command::new(&words[0]).args(&words[1..]).current_dir(&directory).output().map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    );
    let result = keep(world, market, id, text, url);
    Answer::success()
        .with("result_url", json!(result))
        .with("writeable_path", json!("/"))
        .with("msg", json!("Command is executing, wait a few seconds and then view the result_url"))
}

fn owns(market: &Market, account: &str, id: u64) -> bool {
    market.machine(id).is_some_and(|machine| machine.account == account && !machine.has_ended())
}

fn keep(world: &World, market: &Market, id: u64, text: String, url: &str) -> String {
    let token = format!(
        "{:016x}",
        bits(market.seed(), "results", id ^ market.now().as_micros(), Purpose::InstanceKey) ^ market.events().last()
    );
    world.store_result(token.clone(), text);
    format!("{url}/results/{token}")
}

fn read_end(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The words of an allowed command, its paths turned into paths that cannot leave the machine's directory. In a real container an
/// absolute path starts at the container's root; here that is the directory.
fn allowed(line: &str, directory: &Path) -> Option<Vec<String>> {
    let words = shell::split(line)?;
    let (program, arguments) = words.split_first()?;
    if !["ls", "du", "rm"].contains(&program.as_str()) {
        return None;
    }
    let root = directory.canonicalize().ok()?;
    let mut safe = vec![program.clone()];
    for argument in arguments {
        if let Some(flags) = argument.strip_prefix('-') {
            let plain = !flags.is_empty() && flags.chars().all(|c| c.is_ascii_alphanumeric());
            safe.push(plain.then(|| argument.clone())?);
            continue;
        }
        let relative: PathBuf =
            Path::new(argument).components().filter(|c| !matches!(c, Component::RootDir | Component::CurDir)).collect();
        if relative.components().any(|c| !matches!(c, Component::Normal(_))) {
            return None;
        }
        let path = root.join(&relative);
        // A link on the way must not lead out.
        let parent = if relative.as_os_str().is_empty() { root.clone() } else { path.parent()?.canonicalize().ok()? };
        let leads_out = program != "rm" && path.canonicalize().is_ok_and(|target| !target.starts_with(&root));
        if !parent.starts_with(&root) || leads_out || (program == "rm" && path == root) {
            return None;
        }
        safe.push(format!("./{}", relative.display()));
    }
    Some(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stay_inside() {
        let scratch = tempfile::tempdir().unwrap();
        let machine = scratch.path().join("machine");
        std::fs::create_dir(&machine).unwrap();
        std::os::unix::fs::symlink("..", machine.join("out")).unwrap();
        assert_eq!(allowed("ls -la /data", &machine).unwrap(), ["ls", "-la", "./data"]);
        assert_eq!(allowed("ls", &machine).unwrap(), ["ls"]);
        for bad in ["cat x", "rm -rf /", "rm -rf .", "ls ../x", "ls out", "rm out/x", "ls --color=always", ""] {
            assert!(allowed(bad, &machine).is_none(), "{bad}");
        }
    }
}
