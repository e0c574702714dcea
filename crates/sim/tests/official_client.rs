//! A served simulator driven by Vast.ai's own published client (PyPI `vastai` 1.9.1): search, create, read, bid, label, stop, start,
//! destroy, through its functions, its typed client and its command line.
//!
//! The client is taken from the virtual environment that `TRADEWIND_TEST_VENV` names, else from the tools that `TRADEWIND_TOOLS` names,
//! else from one that this test makes in the user's cache.
#![expect(clippy::disallowed_methods, reason = "this test finds its Python through the environment")]

mod support;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::Method;
use serde_json::{Value, json};
use support::{Served, simple};
use tradewind_harness::{Error, or_skip};

const CLIENT: &str = "vastai==1.9.1";

/// The interpreter that has the client.
fn python() -> Result<PathBuf, Error> {
    if let Some(environment) = env::var_os("TRADEWIND_TEST_VENV") {
        return existing(Path::new(&environment).join("bin/python"));
    }
    if let Some(tools) = env::var_os("TRADEWIND_TOOLS") {
        return existing(Path::new(&tools).join("python-test/bin/python"));
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let cache = cache.ok_or_else(|| Error::Missing("neither XDG_CACHE_HOME nor HOME is set".to_owned()))?;
    let environment = cache.join("tradewind").join(CLIENT.replace("==", "-"));
    let marker = environment.join("complete");
    if !marker.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        run(Command::new(environment.join("bin/pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            CLIENT,
        ]))?;
        std::fs::write(&marker, CLIENT).map_err(|error| Error::Missing(error.to_string()))?;
    }
    existing(environment.join("bin/python"))
}

fn existing(path: PathBuf) -> Result<PathBuf, Error> {
    if path.exists() { Ok(path) } else { Err(Error::Missing(format!("{} does not exist", path.display()))) }
}

fn run(command: &mut Command) -> Result<(), Error> {
    let output = command.output().map_err(|error| Error::Missing(format!("{command:?}: {error}")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::Missing(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
    }
}

#[tokio::test]
async fn the_providers_own_client_works() {
    let Some(python) = or_skip(python()) else { return };
    let sim = Served::start(&simple(2), &[]);
    let home = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/official_client.py"))
        .args([&sim.url("vast"), "vast-key", "1001"])
        .env("VASTAI_NO_UPDATE_CHECK", "1")
        .env("HOME", home.path())
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_CACHE_HOME")
        .output()
        .await
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let told: Value = serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {stdout}"));
    let expected = json!({
        "search": [1001], "search_new": [1001], "create": true,
        "read": {"label": "by-client", "is_bid": true, "env": {"GREETING": "hello", "-p 8000:8000": "1"}, "price": 0.25, "port": true},
        "filters": [{"actual_status": "running", "gpu_name": "RTX 4090", "verification": "verified"}],
        "logs": "says hello\n", "bid": true, "bid_after": 0.3, "label": true, "execute": "./mark\n", "stop": true, "start": true,
        "reboot": true, "recycle": true, "destroy": true, "gone": null, "typed_search": 1, "typed_visible": true,
        "cli_search": true, "cli_read": "busybox", "cli_list": 1, "cli_user": true, "cli_charges": true, "cli_destroy": true, "cli_gone": [],
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(told[name], *value, "{name} of {told}");
    }
    assert_eq!(told["list"].as_array().unwrap().len(), 1);
    let all = sim.told(Method::GET, "/machines", Value::Null).await;
    let machines = all["machines"].as_array().unwrap();
    assert_eq!(machines.len(), 3);
    assert!(machines.iter().all(|m| m["paid"] == false), "{all}");
    let events = sim.told(Method::GET, "/events", Value::Null).await.to_string();
    assert!(
        !events.contains("hello") && !events.contains("vast-key"),
        "neither keys nor values of env may be in events"
    );
}
