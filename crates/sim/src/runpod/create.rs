//! The body of `POST /v2/pods`, read as strictly as the official document (and what is known to be newer) allows.

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::catalogue::Cuda;
use super::schema::{Field, Shape, may, must, read};
use crate::market::{Place, PortWish, RentSpec, Workload};
use crate::vast::split_words;

/// Variables of a pod, at most (documents).
const MOST_VARIABLES: usize = 50;
/// HTTP ports of a pod, at most (documents).
const MOST_HTTP_PORTS: usize = 10;
/// Container disk in GB, where the call does not say (the document names no default; this is the console's).
const DISK_GB: u64 = 20;

const TEXTS: Shape = Shape::List(&Shape::Text(0), usize::MAX);
const NETWORK: Shape = Shape::Object(&[must("volumeId", Shape::Text(0)), must("path", Shape::Text(0))]);

/// `Mounts` of the document.
pub const MOUNTS: Shape = Shape::Object(&[
    may("persistent", Shape::Object(&[must("size", Shape::Whole(10)), must("path", Shape::Text(0))])),
    may("network", Shape::List(&NETWORK, 1)),
]);

/// Fields of create and update alike: `ContainerConfig` of the document, and `cmd` and `entrypoint`, which are newer than it.
pub const CONTAINER: [Field; 8] = [
    may("image", Shape::Text(0)),
    may("args", Shape::Text(0)),
    may("cmd", TEXTS),
    may("entrypoint", TEXTS),
    may("disk", Shape::Whole(1)),
    may("env", Shape::TextMap),
    may("ports", TEXTS),
    may("registry", Shape::TextOrNull),
];

/// `CreatePodRequest` of the document. `minRamPerGpu` and `minVcpuCountPerGpu` are newer than it.
const CREATE: Shape = Shape::Object(&[
    CONTAINER[0],
    CONTAINER[1],
    CONTAINER[2],
    CONTAINER[3],
    CONTAINER[4],
    CONTAINER[5],
    CONTAINER[6],
    CONTAINER[7],
    must("name", Shape::Text(1)),
    may("cloud", Shape::Word(&["SECURE", "COMMUNITY"])),
    may("cpu", Shape::Object(&[must("id", Shape::Text(1)), must("vcpuCount", Shape::Whole(2))])),
    may("dataCenterIds", TEXTS),
    may("globalNetworking", Shape::Flag),
    may(
        "gpu",
        Shape::Object(&[
            must("id", Shape::Text(0)),
            may("count", Shape::Whole(1)),
            may("allowedCudaVersions", Shape::List(&Shape::Version, usize::MAX)),
            may("minCudaVersion", Shape::Version),
            may("minRamPerGpu", Shape::Whole(1)),
            may("minVcpuCountPerGpu", Shape::Whole(1)),
        ]),
    ),
    may("mounts", MOUNTS),
    may("startJupyter", Shape::Flag),
    may("startSsh", Shape::Flag),
    may("templateId", Shape::Text(1)),
]);

/// What the account has that a creation needs.
pub struct Means {
    /// Registered public keys.
    pub ssh_keys: Vec<String>,
    /// A password for Jupyter.
    pub password: String,
}

/// A creation that fits the schema and breaks no rule.
#[derive(Debug)]
pub struct Creation {
    /// What to rent; its offer is the GPU type.
    pub spec: RentSpec,
    /// Where.
    pub place: Place,
    /// The condition on CUDA versions.
    pub cuda: Cuda,
    /// Least memory in GB and least virtual CPUs for each GPU.
    pub per_gpu: (u64, u64),
    /// Only data centres with global networking will do.
    pub global_networking: bool,
}

/// Reads a create call.
pub fn parse(body: &[u8], means: &Means) -> Result<Creation, Answer> {
    let mut fields = read(CREATE, body)?;
    let rule = |sentence: &str| Answer::problem(400, sentence);
    if !fields.contains_key("templateId") && !fields.contains_key("image") {
        return Err(Answer::unprocessable(&["$: property 'image' is missing".to_owned()]));
    }
    if fields.contains_key("templateId") {
        return Err(Answer::not_found("template"));
    }
    if fields.contains_key("gpu") == fields.contains_key("cpu") {
        return Err(rule("exactly one of gpu or cpu must be set"));
    }
    let mounts = fields.get("mounts").cloned().unwrap_or_else(|| json!({}));
    check_mounts(&mounts)?;
    let Some(gpu) = fields.get("gpu").cloned() else {
        let persistent = mounts.get("persistent").is_some();
        // The catalogue has no CPU flavours, so none can be placed.
        return Err(if persistent {
            rule("mounts.persistent is not supported on CPU pods")
        } else {
            Answer::no_capacity()
        });
    };
    let cuda = cuda(&gpu)?;
    let flag = |name: &str| fields.get(name).and_then(Value::as_bool) == Some(true);
    let (ssh, jupyter, global_networking) = (flag("startSsh"), flag("startJupyter"), flag("globalNetworking"));
    let env = fields.entry("env").or_insert_with(|| json!({}));
    if let Value::Object(env) = env {
        if ssh && !means.ssh_keys.is_empty() {
            env.entry("PUBLIC_KEY").or_insert_with(|| json!(means.ssh_keys.join("\n")));
        }
        if jupyter {
            env.entry("JUPYTER_PASSWORD").or_insert_with(|| json!(means.password));
        }
    }
    let workload = workload(&fields)?;
    let whole = |value: &Value, otherwise: u64| value.as_u64().unwrap_or(otherwise);
    let place = Place {
        regions: texts(fields.get("dataCenterIds")),
        community: fields.get("cloud").is_some_and(|cloud| cloud == "COMMUNITY"),
        gpus: u32::try_from(whole(&gpu["count"], 1)).unwrap_or(u32::MAX),
        volume_milli_gb: volume_milli_gb(&mounts),
    };
    let spec = RentSpec {
        offer: gpu["id"].as_str().unwrap_or_default().to_owned(),
        label: fields.get("name").and_then(Value::as_str).map(str::to_owned),
        bid_micros_per_hour: None,
        disk_milli_gb: disk_milli_gb(&workload.wire),
        workload,
        park: false,
        start: true,
    };
    let per_gpu = (whole(&gpu["minRamPerGpu"], 0), whole(&gpu["minVcpuCountPerGpu"], 0));
    Ok(Creation { spec, place, cuda, per_gpu, global_networking })
}

/// The size of a persistent mount.
pub fn volume_milli_gb(mounts: &Value) -> u64 {
    mounts["persistent"]["size"].as_u64().unwrap_or(0).saturating_mul(1000)
}

/// The size of the container's disk.
pub fn disk_milli_gb(wire: &Map<String, Value>) -> u64 {
    wire.get("disk").and_then(Value::as_u64).unwrap_or(DISK_GB).saturating_mul(1000)
}

/// Rules on mounts that the schema does not hold.
pub fn check_mounts(mounts: &Value) -> Result<(), Answer> {
    let network = mounts.get("network").and_then(Value::as_array);
    if network.is_some() && mounts.get("persistent").is_some() {
        return Err(Answer::problem(400, "mounts.persistent and mounts.network are mutually exclusive"));
    }
    match network.map(Vec::len) {
        None => Ok(()),
        Some(0) => Err(Answer::problem(400, "mounts.network must not be empty")),
        Some(_) => Err(Answer::not_found("network volume")),
    }
}

fn cuda(gpu: &Value) -> Result<Cuda, Answer> {
    let exact = texts(gpu.get("allowedCudaVersions"));
    let least = gpu["minCudaVersion"].as_str().map(str::to_owned);
    if !exact.is_empty() && least.is_some() {
        return Err(Answer::problem(400, "gpu.allowedCudaVersions and gpu.minCudaVersion are mutually exclusive"));
    }
    Ok(Cuda { exact, least })
}

fn texts(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Fields of the body that a pod shows again.
const SHOWN: [&str; 11] =
    ["image", "args", "cmd", "entrypoint", "disk", "env", "ports", "registry", "mounts", "globalNetworking", "locked"];

/// What a pod runs, from fields that fit the schema.
pub fn workload(fields: &Map<String, Value>) -> Result<Workload, Answer> {
    let shown = |(name, _): &(&String, &Value)| SHOWN.contains(&name.as_str());
    let wire: Map<String, Value> =
        fields.iter().filter(shown).map(|(name, value)| (name.clone(), value.clone())).collect();
    let rule = |sentence: String| Answer::problem(400, sentence);
    if let Some(id) = wire.get("registry").and_then(Value::as_str) {
        return Err(rule(format!("registry '{id}' not found")));
    }
    let env: Vec<(String, String)> = wire
        .get("env")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    if env.len() > MOST_VARIABLES {
        return Err(rule(format!("env must have at most {MOST_VARIABLES} variables")));
    }
    if let Some((name, _)) =
        env.iter().find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0'))
    {
        return Err(rule(format!("env has a variable that no process can have: '{name}'")));
    }
    let mut ports = Vec::new();
    for text in texts(wire.get("ports")) {
        ports.push(port(&text).ok_or_else(|| rule(format!("ports: '{text}' is not <port>/http or <port>/tcp")))?);
    }
    if ports.iter().filter(|port| port.protocol == "http").count() > MOST_HTTP_PORTS {
        return Err(rule(format!("ports must name at most {MOST_HTTP_PORTS} HTTP ports")));
    }
    let image = wire.get("image").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Workload { image, argv: command(&wire)?, env, ports, wire })
}

/// A port above 70000 asks for the same number outside (documents).
fn port(text: &str) -> Option<PortWish> {
    let (number, protocol) = text.split_once('/')?;
    let container: u32 = number.parse().ok().filter(|n| (1..=65_535).contains(n) || (70_001..100_000).contains(n))?;
    ["http", "tcp"].contains(&protocol).then(|| PortWish { container, protocol: protocol.to_owned() })
}

/// The container's command. `entrypoint` and `cmd` stand for the image's own; `args` is what follows the entrypoint: words, or a JSON
/// object with both lists in it. A simulated image has neither, and lives on without a command.
fn command(wire: &Map<String, Value>) -> Result<Vec<String>, Answer> {
    let args = wire.get("args").and_then(Value::as_str).unwrap_or_default();
    let lists: Value = serde_json::from_str(args).ok().filter(Value::is_object).unwrap_or(Value::Null);
    let given = |name: &str| wire.get(name).or_else(|| lists.get(name)).map(|list| texts(Some(list)));
    let mut argv = given("entrypoint").unwrap_or_default();
    match given("cmd") {
        Some(cmd) => argv.extend(cmd),
        None if lists.is_null() => {
            argv.extend(split_words(args).ok_or_else(|| Answer::problem(400, "args has an open quote"))?);
        }
        None => {}
    }
    if argv.is_empty() {
        argv = ["/bin/sh", "-c", "while :; do sleep 3600; done"].map(str::to_owned).to_vec();
    }
    Ok(argv)
}

#[cfg(test)]
mod tests {
    use super::super::answer::Body;
    use super::*;

    fn told(body: Value) -> (u16, String) {
        let means = Means { ssh_keys: Vec::new(), password: String::new() };
        let answer = parse(body.to_string().as_bytes(), &means).unwrap_err();
        let Body::Problem(problem) = answer.body else { panic!("no problem document") };
        (answer.status, problem.to_string())
    }

    fn with(more: Value) -> Value {
        let mut body = json!({"name": "x", "image": "busybox", "gpu": {"id": "NVIDIA L4"}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    fn argv(more: Value) -> Vec<String> {
        let means = Means { ssh_keys: Vec::new(), password: String::new() };
        parse(with(more).to_string().as_bytes(), &means).unwrap().spec.workload.argv
    }

    #[test]
    fn commands_come_in_several_forms() {
        assert_eq!(argv(json!({"entrypoint": ["/bin/sh"], "cmd": ["-c", "exit 3"]})), ["/bin/sh", "-c", "exit 3"]);
        assert_eq!(argv(json!({"args": "sh -c 'exit 3'"})), ["sh", "-c", "exit 3"]);
        assert_eq!(argv(json!({"entrypoint": ["/bin/sh"], "args": "-c true"})), ["/bin/sh", "-c", "true"]);
        assert_eq!(argv(json!({"args": r#"{"entrypoint":["a"],"cmd":["b","c d"]}"#})), ["a", "b", "c d"]);
        assert_eq!(argv(json!({}))[0], "/bin/sh");
    }

    #[test]
    fn flags_put_variables_into_the_environment() {
        let means = Means { ssh_keys: vec!["ssh-ed25519 AAAA".to_owned()], password: "p".to_owned() };
        let body = with(json!({"startSsh": true, "startJupyter": true, "env": {"JUPYTER_PASSWORD": "own"}}));
        let env = parse(body.to_string().as_bytes(), &means).unwrap().spec.workload.env;
        assert!(env.contains(&("PUBLIC_KEY".to_owned(), "ssh-ed25519 AAAA".to_owned())));
        assert!(env.contains(&("JUPYTER_PASSWORD".to_owned(), "own".to_owned())));
    }

    #[test]
    fn slips_are_422_and_broken_rules_400() {
        let mut without_image = with(json!({}));
        without_image.as_object_mut().unwrap().remove("image");
        for (body, status, says) in [
            (with(json!({"nmae": "y"})), 422, "property 'nmae' is unsupported"),
            (with(json!({"gpu": {"id": "x", "bid": 1}})), 422, "$.gpu: property 'bid' is unsupported"),
            (with(json!({"gpu": {"id": "x", "count": 0}})), 422, "$.gpu.count: value must be at least 1"),
            (with(json!({"cloud": "ALL"})), 422, "$.cloud: value must be one of 'SECURE', 'COMMUNITY'"),
            (with(json!({"disk": 1.5})), 422, "$.disk: value must be an integer"),
            (with(json!({"env": {"A": 1}})), 422, "$.env.A: value must be a string"),
            (with(json!({"mounts": {"persistent": {"size": 9, "path": "/w"}}})), 422, "$.mounts.persistent.size"),
            (without_image, 422, "property 'image' is missing"),
            (with(json!({"cpu": {"id": "cpu3c", "vcpuCount": 2}})), 400, "exactly one of gpu or cpu"),
            (with(json!({"templateId": "t"})), 404, "template not found"),
            (with(json!({"mounts": {"network": [{"volumeId": "v", "path": "/w"}]}})), 404, "network volume not found"),
            (
                with(json!({"mounts": {"network": [], "persistent": {"size": 10, "path": "/w"}}})),
                400,
                "mutually exclusive",
            ),
            (
                with(json!({"gpu": {"id": "x", "minCudaVersion": "12.4", "allowedCudaVersions": ["12.4"]}})),
                400,
                "mutually exclusive",
            ),
            (with(json!({"ports": ["53/udp"]})), 400, "'53/udp' is not"),
            (with(json!({"ports": ["66000/tcp"]})), 400, "'66000/tcp' is not"),
            (with(json!({"registry": "r"})), 400, "registry 'r' not found"),
            (json!([]), 422, "$: value must be an object"),
        ] {
            let (found, problem) = told(body.clone());
            assert!(found == status && problem.contains(says), "{body}: {found} {problem}");
        }
    }
}
