//! The body of `PUT /api/v0/asks/{id}/`, read as strictly as the official document allows: an unknown or ill-typed field is refused.

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::shell;
use crate::market::{PortWish, RentSpec, Workload, micros_of_dollars};

/// Least disk in GB, also what a call without `disk` gets.
const LEAST_DISK_GB: f64 = 8.0;

/// Names and JSON types of the body's fields. `env` may be a text of Docker flags or, as the official CLI sends it, an object.
const FIELDS: [(&str, Type); 24] = [
    ("client_id", Type::Text),
    ("image", Type::Text),
    ("template_hash_id", Type::Text),
    ("template_id", Type::Whole),
    ("label", Type::Text),
    ("disk", Type::Number),
    ("runtype", Type::Text),
    ("target_state", Type::Text),
    ("price", Type::Number),
    ("env", Type::Env),
    ("cancel_unavail", Type::Flag),
    ("vm", Type::Flag),
    ("onstart", Type::Text),
    ("args", Type::Texts),
    ("args_str", Type::Text),
    ("use_jupyter_lab", Type::Flag),
    ("jupyter_dir", Type::Text),
    ("python_utf8", Type::Flag),
    ("lang_utf8", Type::Flag),
    ("force", Type::Flag),
    ("user", Type::Text),
    ("image_login", Type::Text),
    ("extra", Type::Text),
    ("volume_info", Type::Object),
];

/// Run types of the document, and the strings that the official CLI sends instead.
const RUNTYPES: [&str; 10] = [
    "ssh",
    "jupyter",
    "args",
    "ssh_proxy",
    "ssh_direct",
    "jupyter_proxy",
    "jupyter_direct",
    "ssh_direc ssh_proxy",
    "jupyter_proxy ssh_proxy",
    "jupyter_direc ssh_direc ssh_proxy",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Texts,
    Number,
    Whole,
    Flag,
    Env,
    Object,
}

impl Type {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            Self::Number => value.is_number(),
            Self::Whole => value.is_u64(),
            Self::Flag => value.is_boolean(),
            Self::Env => {
                value.is_string() || value.as_object().is_some_and(|object| object.values().all(Value::is_string))
            }
            Self::Object => value.is_object(),
        }
    }
}

/// Reads a create call for the offer `ask`. `has_ssh_key` matters to VMs only.
pub fn parse(ask: u64, body: &[u8], has_ssh_key: bool) -> Result<RentSpec, Answer> {
    let refuse = |error: &str, why: String| {
        Answer::error(400, error, format!("error 400/3467: Invalid args: {why}")).with("ask_id", json!(ask))
    };
    let bad = |why: String| refuse("invalid_args", why);
    let parsed: Value = serde_json::from_slice(body).map_err(|_| bad("the body is not JSON".to_owned()))?;
    let Value::Object(given) = parsed else { return Err(bad("the body is not an object".to_owned())) };
    // The official client sends null for whatever was not asked for.
    let fields: Map<String, Value> = given.into_iter().filter(|(_, value)| !value.is_null()).collect();
    for (name, value) in &fields {
        let known =
            FIELDS.iter().find(|(field, _)| field == name).ok_or_else(|| bad(format!("unknown field '{name}'")))?;
        if !known.1.fits(value) {
            return Err(bad(format!("'{name}' has the wrong type")));
        }
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
    let image = text("image").filter(|image| !image.is_empty());
    if text("template_hash_id").is_some() || fields.contains_key("template_id") {
        return Err(bad("no such template (templates are not simulated)".to_owned()));
    }
    if fields.contains_key("volume_info") {
        return Err(bad("no such volume (volumes are not simulated)".to_owned()));
    }
    let image = image.ok_or_else(|| bad("'image' is required".to_owned()))?;
    if (flag("vm") == Some(true) || image.starts_with("docker.io/vastai/kvm:")) && !has_ssh_key {
        return Err(refuse("no_ssh_key_for_vm", "a VM needs an ssh key in the account".to_owned()));
    }
    let args: Vec<String> = fields
        .get("args")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |args| args.iter().filter_map(|arg| arg.as_str().map(str::to_owned)).collect());
    check_lengths(&fields, image, &args).map_err(&bad)?;
    let price = fields.get("price").and_then(Value::as_f64);
    if price.is_some_and(|price| !(0.001..=128.0).contains(&price)) {
        return Err(refuse("invalid_price", "'price' must be from 0.001 to 128.0".to_owned()));
    }
    let disk = fields.get("disk").and_then(Value::as_f64).unwrap_or(LEAST_DISK_GB);
    if disk < LEAST_DISK_GB {
        return Err(bad(format!("'disk' must be at least {LEAST_DISK_GB}")));
    }
    let start = match text("target_state") {
        None | Some("running") => true,
        Some("stopped") => false,
        Some(_) => return Err(bad("'target_state' must be running or stopped".to_owned())),
    };
    let given_runtype =
        text("runtype").unwrap_or(if args.is_empty() && text("args_str").is_none() { "ssh" } else { "args" });
    if !RUNTYPES.contains(&given_runtype) {
        return Err(bad(format!("'runtype' {given_runtype} is unknown")));
    }
    let pairs = env_pairs(fields.get("env")).map_err(&bad)?;
    let (env, ports) = split_env(&pairs).map_err(&bad)?;
    let wire = [
        ("image_args", json!(args)),
        ("image_runtype", json!(given_runtype)),
        ("onstart", json!(text("onstart"))),
        ("extra_env", json!(pairs)),
    ];
    Ok(RentSpec {
        offer: ask.to_string(),
        label: text("label").map(str::to_owned),
        bid_micros_per_hour: price.map(micros_of_dollars),
        disk_milli_gb: micros_of_dollars(disk) / 1000,
        workload: Workload {
            image: image.to_owned(),
            argv: command(given_runtype == "args", text("onstart"), &args, text("args_str")),
            env,
            ports,
            wire: wire.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        },
        // Defaults to false for interruptibles and to true for on-demand that is to run (official document).
        park: !flag("cancel_unavail").unwrap_or(price.is_none() && start),
        start,
    })
}

/// Limits of `x-input-validation`.
fn check_lengths(fields: &Map<String, Value>, image: &str, args: &[String]) -> Result<(), String> {
    let length = |name: &str| fields.get(name).and_then(Value::as_str).map_or(0, |text| text.chars().count());
    let command = length("onstart") + length("args_str") + args.iter().map(|arg| arg.chars().count()).sum::<usize>();
    for (what, length, most) in [
        ("'image'", image.chars().count(), 1024),
        ("'label'", length("label"), 256),
        ("'onstart'", length("onstart"), 4048),
        ("'args', 'args_str' and 'onstart' together", command, 4096),
    ] {
        if length > most {
            return Err(format!("{what} must be at most {most} characters, not {length}"));
        }
    }
    Ok(())
}

/// The environment as the pairs that instance rows show again in `extra_env`: variables, and Docker flags with the value `1`.
fn env_pairs(env: Option<&Value>) -> Result<Vec<(String, String)>, String> {
    let pairs: Vec<(String, String)> = match env {
        None => Vec::new(),
        Some(Value::Object(object)) => {
            object.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
        }
        Some(text) => {
            let words = shell::split(text.as_str().unwrap_or_default()).ok_or("'env' has an open quote")?;
            let mut pairs = Vec::new();
            let mut words = words.into_iter();
            while let Some(flag) = words.next() {
                let value = words.next().ok_or_else(|| format!("'env' ends with {flag}"))?;
                match flag.as_str() {
                    "-e" => {
                        let (name, value) = value.split_once('=').ok_or("'env' has a variable without =")?;
                        pairs.push((name.to_owned(), value.to_owned()));
                    }
                    "-p" | "-h" => pairs.push((format!("{flag} {value}"), "1".to_owned())),
                    other => return Err(format!("'env' has the unknown flag {other}")),
                }
            }
            pairs
        }
    };
    let total: usize = pairs.iter().map(|(name, value)| name.chars().count() + value.chars().count()).sum();
    if total > 32_768 {
        return Err(format!("'env' must be at most 32768 characters, not {total}"));
    }
    if let Some((name, _)) = pairs.iter().find(|(name, _)| name.is_empty() || name.chars().count() > 256) {
        return Err(format!("'env' has a name of {} characters", name.chars().count()));
    }
    Ok(pairs)
}

type Split = (Vec<(String, String)>, Vec<PortWish>);

fn split_env(pairs: &[(String, String)]) -> Result<Split, String> {
    let (mut env, mut ports) = (Vec::new(), Vec::new());
    for (name, value) in pairs {
        if let Some(mapping) = name.strip_prefix("-p ") {
            ports.push(port(mapping.trim()).ok_or_else(|| format!("'env' has the odd port mapping {mapping}"))?);
        } else if name.starts_with('-') {
            // Other Docker flags, such as a host name, mean nothing to a plain process.
        } else if name.contains('=') || name.contains('\0') || value.contains('\0') {
            return Err("'env' has a variable that no process can have".to_owned());
        } else {
            env.push((name.clone(), value.clone()));
        }
    }
    if ports.len() > 64 {
        return Err(format!("'env' must map at most 64 ports, not {}", ports.len()));
    }
    Ok((env, ports))
}

fn port(mapping: &str) -> Option<PortWish> {
    let (ports, protocol) = mapping.split_once('/').unwrap_or((mapping, "tcp"));
    let (outside, inside) = ports.split_once(':')?;
    outside.parse::<u32>().ok()?;
    let container = inside.parse::<u32>().ok().filter(|port| *port > 0 && *port < 100_000)?;
    ["tcp", "udp"].contains(&protocol).then(|| PortWish { container, protocol: protocol.to_owned() })
}

/// What a machine runs. With `args` the words of `onstart` replace the image's entrypoint and `args` follow; otherwise `onstart` is a
/// script beside the ssh server, and the container lives on when it ends.
fn command(plain: bool, onstart: Option<&str>, args: &[String], args_str: Option<&str>) -> Vec<String> {
    let sh = |words: &[&str]| ["/bin/sh", "-c"].iter().chain(words).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    const FOR_EVER: &str = "while :; do sleep 3600; done";
    if !plain {
        return match onstart {
            Some(script) => sh(&["/bin/sh -c \"$0\"; while :; do sleep 3600; done", script]),
            None => sh(&[FOR_EVER]),
        };
    }
    if let Some(line) = args_str {
        return sh(&[&format!("exec {} {line}", onstart.unwrap_or_default())]);
    }
    let argv: Vec<String> =
        onstart.unwrap_or_default().split_whitespace().map(str::to_owned).chain(args.iter().cloned()).collect();
    if argv.is_empty() { sh(&[FOR_EVER]) } else { argv }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: Value) -> String {
        let answer = parse(7, body.to_string().as_bytes(), false).unwrap_err();
        assert_eq!(answer.status, 400);
        String::from_utf8(answer.bytes().0).unwrap()
    }

    #[test]
    fn what_the_official_client_sends_is_accepted() {
        let body = json!({"client_id": "me", "image": "busybox", "env": {"A": "b", "-p 8000:8000": "1", "-h name": "1"}, "price": null, "disk": 10,
            "label": "x", "extra": null, "onstart": "/bin/sh", "image_login": null, "python_utf8": false, "lang_utf8": false,
            "use_jupyter_lab": false, "jupyter_dir": null, "force": false, "cancel_unavail": true, "template_hash_id": null, "user": null,
            "runtype": "args", "args": ["-c", "true"]});
        let spec = parse(7, body.to_string().as_bytes(), false).unwrap();
        assert_eq!(spec.workload.argv, ["/bin/sh", "-c", "true"]);
        assert_eq!(spec.workload.env, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(spec.workload.ports, [PortWish { container: 8000, protocol: "tcp".to_owned() }]);
        assert_eq!((spec.bid_micros_per_hour, spec.disk_milli_gb, spec.park), (None, 10_000, false));
    }

    #[test]
    fn docker_flags_may_come_as_one_text() {
        let body = json!({"image": "x", "price": 0.25, "env": "-e A='b c' -p 70001:70001/udp"});
        let spec = parse(7, body.to_string().as_bytes(), false).unwrap();
        assert_eq!(spec.workload.env, [("A".to_owned(), "b c".to_owned())]);
        assert_eq!(spec.workload.ports, [PortWish { container: 70_001, protocol: "udp".to_owned() }]);
        assert_eq!((spec.bid_micros_per_hour, spec.park), (Some(250_000), true));
        assert_eq!(spec.workload.wire["image_runtype"], "ssh");
    }

    #[test]
    fn slips_are_refused() {
        for (body, says) in [
            (json!({"image": "x", "lable": "y"}), "unknown field 'lable'"),
            (json!({"image": 3}), "'image' has the wrong type"),
            (json!({"image": "x", "price": "0.3"}), "'price' has the wrong type"),
            (json!({"image": "x", "args": "sleep"}), "'args' has the wrong type"),
            (json!({"image": "x", "env": {"A": 1}}), "'env' has the wrong type"),
            (json!({"image": "x", "disk": 4}), "'disk' must be at least 8"),
            (json!({"image": "x", "runtype": "shell"}), "'runtype' shell is unknown"),
            (json!({"image": "x", "label": "l".repeat(257)}), "'label' must be at most 256 characters"),
            (
                json!({"image": "x", "args": ["a".repeat(4000)], "onstart": "b".repeat(97)}),
                "together must be at most 4096",
            ),
            (json!({"image": "x", "env": {"A": "a".repeat(32_768)}}), "'env' must be at most 32768"),
            (json!({"image": "x", "env": {"-p 80": "1"}}), "odd port mapping"),
            (json!({"disk": 10}), "'image' is required"),
            (json!([1]), "the body is not an object"),
        ] {
            let told = refusal(body);
            assert!(told.contains(says) && told.contains("invalid_args") && told.contains("\"ask_id\":7"), "{told}");
        }
        assert!(refusal(json!({"image": "x", "price": 0.0})).contains("invalid_price"));
        assert!(refusal(json!({"image": "x", "vm": true})).contains("no_ssh_key_for_vm"));
    }
}
