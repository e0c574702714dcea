//! Instance rows, and what a machine finds in its environment.

use serde_json::{Map, Value, json};

use crate::market::{Machine, Market, PortWish, State, dollars_of_micros};

/// The words of an instance's state.
struct Words {
    actual: Option<String>,
    intended: &'static str,
    current: &'static str,
    next: &'static str,
    message: Option<String>,
}

/// `actual_status` as the wire shows it now; `None` in the first moments of a boot.
pub fn status_word(market: &Market, machine: &Machine) -> Option<String> {
    if machine.has_ended() {
        return Some("destroyed".to_owned());
    }
    words(market, machine).actual
}

fn words(market: &Market, machine: &Machine) -> Words {
    let image = &machine.workload.image;
    let running = || Some(format!("success, running {image}"));
    // The platform's words about a stopped instance are often stale and still say success.
    let stale = || if machine.boots > 0 { running() } else { None };
    let triple = |actual: Option<&str>, state: &'static str, message: Option<String>| Words {
        actual: actual.map(str::to_owned),
        intended: state,
        current: state,
        next: state,
        message,
    };
    let mut words = match &machine.state {
        State::Booting { since, until, .. } => {
            let (gone, whole) = (market.now().micros_since(*since), until.micros_since(*since).max(1));
            let first = gone * 4 < whole && machine.boots == 0;
            let loaded = gone * 4 >= whole * 3;
            Words {
                actual: (!first).then(|| "loading".to_owned()),
                intended: "running",
                current: "stopped",
                next: "running",
                message: loaded.then(|| format!("Successfully loaded {image}")),
            }
        }
        State::Running => triple(Some("running"), "running", running()),
        State::Restarting { word, .. } => triple(Some(word), "running", running()),
        State::Stopped(_) => triple(Some(if machine.boots > 0 { "exited" } else { "created" }), "stopped", stale()),
        State::BootFailed { message } => triple(Some("created"), "stopped", Some(message.clone())),
        State::Offline { .. } => {
            triple(Some("offline"), if machine.wants_to_run() { "running" } else { "stopped" }, stale())
        }
        State::Ended => triple(None, "stopped", None),
    };
    if machine.status_override.is_some() {
        words.actual.clone_from(&machine.status_override);
    }
    words
}

/// An instance as reads and lists show it.
pub fn instance(market: &Market, machine: &Machine) -> Map<String, Value> {
    let now = market.now();
    let words = words(market, machine);
    let runs = machine.state == State::Running;
    let dollars = |micros: u64| dollars_of_micros(i64::try_from(micros).unwrap_or(i64::MAX));
    let (compute, disk) = (dollars(machine.compute_micros_per_hour()), dollars(machine.disk_micros_per_hour()));
    let prices = |gpu: f64| json!({"gpuCostPerHour": gpu, "diskHour": disk, "totalHour": gpu + disk, "discountTotalHour": 0, "discountedTotalPerHour": gpu + disk});
    let offer =
        market.account(&machine.account).and_then(|account| account.offers.iter().find(|o| o.id == machine.offer));
    let wire = &machine.workload.wire;
    let from_wire = |name: &str, otherwise: Value| wire.get(name).cloned().unwrap_or(otherwise);
    #[expect(clippy::cast_precision_loss, reason = "sizes and seconds fit 53 bits")]
    let (disk_gb, up_minutes, left) = (
        machine.disk_milli_gb as f64 / 1000.0,
        machine.running_since.filter(|_| runs).map(|since| now.micros_since(since) as f64 / 60e6),
        machine.contract_end.micros_since(now) as f64 / 1e6,
    );
    let field = |name: &str| machine.offer_fields.get(name).cloned().unwrap_or(Value::Null);
    let mut row: Map<String, Value> = machine
        .offer_fields
        .iter()
        .filter(|(name, _)| !OFFER_ONLY.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let own = json!({
        "id": machine.id, "label": machine.label, "actual_status": words.actual, "intended_status": words.intended,
        "cur_state": words.current, "next_state": words.next, "status_msg": words.message,
        "image_uuid": machine.workload.image, "image_args": from_wire("image_args", json!([])),
        "image_runtype": from_wire("image_runtype", json!("args")), "extra_env": from_wire("extra_env", json!([])),
        "onstart": from_wire("onstart", Value::Null), "jupyter_token": machine.instance_key.clone().split_off(16),
        "template_id": null, "template_hash_id": null, "template_name": null,
        "is_bid": machine.is_spot(), "min_bid": offer.and_then(crate::market::Offer::bid_dollars), "dph_base": compute, "dph_total": compute + disk,
        "search": prices(compute), "instance": prices(if machine.pays_compute() { compute } else { 0.0 }),
        "storage_cost": dollars(machine.storage_micros_per_gb_month), "storage_total_cost": disk,
        "disk_space": disk_gb, "disk_usage": if runs { json!(0.1) } else { json!(-1) }, "disk_util": if runs { json!(0.01) } else { json!(-1) },
        "start_date": market.unix_seconds(machine.created_at), "end_date": market.unix_seconds(machine.contract_end), "duration": left,
        "uptime_mins": up_minutes, "client_run_time": 1.1, "host_run_time": 2_592_000.0, "time_remaining": "", "time_remaining_isbid": "",
        "public_ipaddr": "127.0.0.1", "local_ipaddrs": "127.0.0.1 \n", "ssh_host": "127.0.0.1", "ssh_idx": "1",
        "ssh_port": 10_000 + machine.id % 50_000, "machine_dir_ssh_port": 22, "direct_port_start": -1, "direct_port_end": -1,
        "gpu_totalram": field("gpu_total_ram"), "gpu_util": if runs { json!(0.0) } else { Value::Null }, "gpu_temp": if runs { json!(40.0) } else { Value::Null },
        "cpu_util": 0.0, "mem_limit": if runs { json!(64.0) } else { Value::Null }, "mem_usage": if runs { json!(0.5) } else { Value::Null }, "vmem_usage": null,
        "credit_balance": null, "credit_discount": null, "volume_info": [], "country_code": null, "rentable": true,
    });
    if let Value::Object(own) = own {
        row.extend(own);
    }
    if runs {
        row.insert("ports".to_owned(), ports(&machine.host_ports));
    }
    row
}

/// Fields of an offer that an instance does not have.
const OFFER_ONLY: [&str; 12] = [
    "ask_contract_id",
    "bundled_results",
    "gpu_ids",
    "rn",
    "reliability",
    "resource_type",
    "avail_vol_ask_id",
    "avail_vol_dph",
    "avail_vol_size",
    "nw_disk_min_bw",
    "nw_disk_max_bw",
    "nw_disk_avg_bw",
];

/// The port map in Docker's shape.
fn ports(mapped: &[(PortWish, u16)]) -> Value {
    let mut map = Map::new();
    for (wish, host) in mapped {
        map.insert(
            format!("{}/{}", wish.container, wish.protocol),
            json!([{"HostIp": "0.0.0.0", "HostPort": host.to_string()}]),
        );
    }
    Value::Object(map)
}

/// What Vast.ai puts into a container's environment, and `SIM_PORT_<container port>`, where the process must listen.
pub fn injected_env(machine: &Machine, ports: &[(PortWish, u16)]) -> Vec<(String, String)> {
    let mut env = vec![
        ("CONTAINER_ID".to_owned(), machine.id.to_string()),
        ("CONTAINER_API_KEY".to_owned(), machine.instance_key.clone()),
        ("VAST_CONTAINERLABEL".to_owned(), format!("C.{}", machine.id)),
        ("PUBLIC_IPADDR".to_owned(), "127.0.0.1".to_owned()),
        ("GPU_COUNT".to_owned(), machine.offer_fields.get("num_gpus").and_then(Value::as_u64).unwrap_or(0).to_string()),
    ];
    for (wish, host) in ports {
        env.push((format!("VAST_{}_PORT_{}", wish.protocol.to_uppercase(), wish.container), host.to_string()));
        env.push((format!("SIM_PORT_{}", wish.container), host.to_string()));
    }
    env
}
