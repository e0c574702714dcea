//! Pods as the wire shows them, and what a pod finds in its environment.

use serde_json::{Map, Value, json};

use crate::market::{Machine, Market, PortWish, Purpose, SimTime, State, dollars_of_micros, share};

/// Virtual CPUs and GB of memory that a simulated host gives to each GPU.
pub const PER_GPU: (u64, u64) = (16, 62);

/// The word of a pod's status as the wire shows it now.
pub fn status_word(market: &Market, pod: &Machine) -> String {
    match &pod.status_override {
        Some(word) if !pod.has_ended() => word.clone(),
        _ => status(market, pod).to_owned(),
    }
}

/// The status that its state gives it. A pod often says `RUNNING` from its creation on (recorded); the document has two words for
/// the time before. Chance decides.
pub fn status(market: &Market, pod: &Machine) -> &'static str {
    match &pod.state {
        State::Booting { since, until, .. } => {
            let draw = share(market.seed(), &pod.account, pod.id * 1000 + u64::from(pod.boots), Purpose::EarlyWord);
            let (gone, whole) = (market.now().micros_since(*since), until.micros_since(*since));
            match (draw < 0.5, gone * 4 < whole) {
                (true, _) => "RUNNING",
                (false, true) => "PROVISIONING",
                (false, false) => "STARTING",
            }
        }
        State::Running | State::Restarting { .. } => "RUNNING",
        State::Stopped(_) | State::Offline { .. } => "EXITED",
        State::BootFailed { .. } => "ERROR",
        State::Ended => "TERMINATED",
    }
}

/// What can be done to a pod of this status.
pub fn actions(status: &str) -> &'static [&'static str] {
    match status {
        "RUNNING" => &["stop", "restart", "terminate"],
        "EXITED" | "ERROR" => &["start", "terminate"],
        "PROVISIONING" | "STARTING" => &["stop", "terminate"],
        _ => &[],
    }
}

/// A pod as reads and lists show it.
pub fn pod(market: &Market, pod: &Machine) -> Value {
    let wire = &pod.workload.wire;
    let shown = status_word(market, pod);
    let from_wire = |name: &str, otherwise: Value| wire.get(name).cloned().unwrap_or(otherwise);
    let dollars = |micros: u64| dollars_of_micros(i64::try_from(micros).unwrap_or(i64::MAX));
    let idle = shown == "EXITED" || shown == "TERMINATED";
    let started = pod.running_since.or((status(market, pod) == "RUNNING").then_some(pod.created_at));
    let id = pod.wire_id();
    let gpus = u64::from(pod.gpus);
    let mut row = json!({
        "id": id, "name": pod.label, "status": shown, "actions": actions(status(market, pod)), "image": pod.workload.image,
        "args": from_wire("args", json!("")), "disk": pod.disk_milli_gb / 1000, "mounts": from_wire("mounts", json!({})),
        "ports": from_wire("ports", json!([])), "env": from_wire("env", json!({})), "registry": from_wire("registry", Value::Null),
        "gpu": {"id": pod.offer, "count": pod.gpus, "vcpuCount": PER_GPU.0 * gpus, "memory": PER_GPU.1 * gpus},
        "cloud": if pod.community { "COMMUNITY" } else { "SECURE" }, "dataCenterId": pod.region, "cudaVersion": from_wire("cudaVersion", Value::Null),
        "ssh": ssh(pod, shown == "RUNNING"), "template": null,
        "cost": if idle { 0.0 } else { dollars(pod.compute_micros_per_hour()) },
        "locked": from_wire("locked", json!(false)), "globalNetworking": {"enabled": false},
        "runtime": if shown == "RUNNING" { runtime(market, pod) } else { Value::Null },
        "createdAt": time(market, pod.created_at), "startedAt": started.map(|at| time(market, at)),
    });
    if wire.get("globalNetworking") == Some(&Value::Bool(true)) {
        row["globalNetworking"] = json!({"enabled": true, "ip": format!("10.0.{}.{}", pod.id / 250 % 250, 2 + pod.id % 250),
            "internalDns": format!("{id}.runpod.internal")});
    }
    for name in ["cmd", "entrypoint"] {
        if let Some(list) = wire.get(name) {
            row[name] = list.clone();
        }
    }
    row
}

/// Times of a pod have whole milliseconds (recorded).
fn time(market: &Market, at: SimTime) -> String {
    let exact = market.timestamp(at);
    jiff::Timestamp::from_millisecond(exact.as_millisecond()).unwrap_or(exact).to_string()
}

/// Telemetry: nothing until the container runs. Its uptime starts again with every start of the command.
fn runtime(market: &Market, pod: &Machine) -> Value {
    if !pod.runs() {
        return Value::Null;
    }
    let runs = pod.state == State::Running;
    let uptime = pod.command_since.filter(|_| runs).map_or(0, |since| market.now().micros_since(since) / 1_000_000);
    let ports: Vec<Value> = pod.host_ports.iter().filter(|_| runs).map(port).collect();
    let gpus: Vec<Value> = (0..pod.gpus).map(|_| json!({"util": 0, "memoryUtil": 0})).collect();
    json!({"uptime": uptime, "gpus": gpus, "cpu": {"util": 0}, "memory": {"util": 0}, "ports": ports})
}

fn port((wish, host): &(PortWish, u16)) -> Value {
    json!({"private": wish.container, "public": host, "type": wish.protocol, "ip": "127.0.0.1"})
}

fn ssh(pod: &Machine, running: bool) -> Value {
    let endpoint = |host: &str, port: u16, username: &str| {
        let port_flag = if port == 22 { String::new() } else { format!(" -p {port}") };
        json!({"host": host, "port": port, "username": username, "command": format!("ssh {username}@{host}{port_flag}")})
    };
    let mapped = pod.host_ports.iter().find(|(wish, _)| wish.container == 22 && wish.protocol == "tcp");
    let direct = mapped.filter(|_| running && pod.state == State::Running);
    json!({"proxy": endpoint("ssh.runpod.io", 22, &host_name(pod)), "direct": direct.map(|(_, port)| endpoint("127.0.0.1", *port, "root"))})
}

fn host_name(pod: &Machine) -> String {
    format!("{}-{}", pod.wire_id(), pod.instance_key.chars().take(8).collect::<String>())
}

/// What RunPod puts into a container's environment, and `SIM_PORT_<container port>`, where the process must listen.
pub fn injected_env(pod: &Machine, ports: &[(PortWish, u16)]) -> Vec<(String, String)> {
    let mut env = vec![
        ("RUNPOD_POD_ID".to_owned(), pod.wire_id()),
        ("RUNPOD_POD_HOSTNAME".to_owned(), host_name(pod)),
        ("RUNPOD_GPU_COUNT".to_owned(), pod.gpus.to_string()),
        ("RUNPOD_CPU_COUNT".to_owned(), (PER_GPU.0 * u64::from(pod.gpus)).to_string()),
        ("RUNPOD_PUBLIC_IP".to_owned(), "127.0.0.1".to_owned()),
        ("RUNPOD_API_KEY".to_owned(), pod.instance_key.clone()),
    ];
    env.extend(pod.region.clone().map(|region| ("RUNPOD_DC_ID".to_owned(), region)));
    let cuda = pod.workload.wire.get("cudaVersion").and_then(Value::as_str);
    env.extend(cuda.map(|version| ("CUDA_VERSION".to_owned(), version.to_owned())));
    for (wish, host) in ports {
        if wish.protocol == "tcp" {
            env.push((format!("RUNPOD_TCP_PORT_{}", wish.container), host.to_string()));
        }
        env.push((format!("SIM_PORT_{}", wish.container), host.to_string()));
    }
    env
}

/// The fields of a creation that the scheduler decides.
pub fn decided(wire: &mut Map<String, Value>, cuda_version: Option<&str>) {
    if let Some(version) = cuda_version {
        wire.insert("cudaVersion".to_owned(), json!(version));
    }
}
