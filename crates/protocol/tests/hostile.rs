//! Documents from machines that are old, broken or hostile: decoding never panics, and what it lets through is safe to use.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tradewind_protocol::manifest::{
    DataKey, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, chunk_size, data_prefix, parse_data_folder, slot_key,
};
use tradewind_protocol::{
    AgentPhase, CheckpointOffer, CheckpointSettings, Chunk, Control, Desired, Document, EntryKind, Exit, HostFacts,
    LogEntry, Manifest, ManifestFile, Progress, Report, RestoreCandidate, SelfEnd, SlotBatch, Start, Ticket, VERSION,
    Writer, clean_text,
};

const MACHINE: &str = "0b5f4b1e-8c1c-4b52-8f52-5f0d8a6c9a11";

fn ticket() -> Ticket {
    Ticket {
        url: "https://store.example.com/bucket/key?signature=topsecret".to_owned(),
        expires: Timestamp::UNIX_EPOCH,
    }
}

fn chunk(slot: u64, size_bytes: u64) -> Chunk {
    Chunk { key: slot_key(&data_prefix(3, MACHINE), slot), size_bytes, sha256: "0a".repeat(32) }
}

fn file(path: &str, chunks: Vec<Chunk>) -> ManifestFile {
    let size_bytes = chunks.iter().map(|chunk| chunk.size_bytes).sum();
    ManifestFile { path: path.to_owned(), size_bytes, mode: 0o644, chunks, rank: None }
}

fn manifest() -> Manifest {
    Manifest {
        version: VERSION,
        run_id: "run-1".to_owned(),
        attempt: 3,
        machine: MACHINE.to_owned(),
        step: 400,
        name: "step-400".to_owned(),
        kind: EntryKind::Directory,
        files: vec![
            file("a/weights.bin", vec![chunk(0, 8 << 20), chunk(1, 5)]),
            file("a/x", vec![]),
            file("config.json", vec![chunk(2, 7)]),
        ],
        saved_at: Timestamp::UNIX_EPOCH,
        save_began_at: Timestamp::UNIX_EPOCH,
        parent: Some(4),
        writers: vec![],
    }
}

fn report() -> Report {
    Report {
        version: VERSION,
        machine: MACHINE.to_owned(),
        boot: "boot-1".to_owned(),
        boot_key: "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=".to_owned(),
        sequence: 9,
        control_seen: 4,
        attempt: Some(3),
        phase: AgentPhase::Running,
        at: Timestamp::UNIX_EPOCH,
        progress: Some(Progress { step: 410, total: Some(1000), loss: Some("2.31".to_owned()) }),
        exit: Some(Exit {
            code: 1,
            told_to_stop: false,
            at: Timestamp::UNIX_EPOCH,
            log_tail: "boom\n".to_owned(),
            oom_killed: Some(true),
        }),
        restore: None,
        offer: Some(CheckpointOffer { number: 2, manifest: manifest() }),
        uploading: None,
        slots_left: 61,
        slots_used: 3,
        log_segments: 5,
        warnings: vec!["disk nearly full".to_owned()],
        restarted: false,
        silent: true,
        quiet_s: 77,
        host: Some(HostFacts { disk_bytes: Some(1 << 40), memory_bytes: None, gpus: Some(2) }),
        address: Some(std::net::Ipv4Addr::LOCALHOST.into()),
        save_took: Some(tradewind_protocol::report::SaveTook { offer: 2, millis: 4100 }),
        waiting: Vec::new(),
    }
}

fn control() -> Control {
    Control {
        version: VERSION,
        machine: MACHINE.to_owned(),
        sequence: 4,
        lease_s: 600,
        desired: Desired::Stop { reason: "Suspended".to_owned(), grace_s: 30 },
        attempt: 3,
        control_get: ticket(),
        report_put: ticket(),
        report_get: ticket(),
        start: Some(ticket()),
        start_boot: Some("boot-1".to_owned()),
        slots: vec![ticket()],
        logs: vec![ticket()],
        committed: None,
        refused: None,
        self_end: Some(SelfEnd {
            method: "DELETE".to_owned(),
            url: "https://provider.example.com/instances/7/".to_owned(),
            bearer_env: "CONTAINER_API_KEY".to_owned(),
        }),
    }
}

fn start() -> Start {
    let keys: Vec<String> = manifest().distinct_chunks().into_keys().map(str::to_owned).collect();
    Start {
        version: VERSION,
        machine: MACHINE.to_owned(),
        boot: "boot-1".to_owned(),
        run_id: "run-1".to_owned(),
        attempt: 4,
        command: vec!["python3".to_owned(), "train.py".to_owned()],
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        sealed_env: None,
        working_dir: Some("/work".to_owned()),
        stop_grace_s: 30,
        checkpoint: Some(CheckpointSettings {
            path: "out".to_owned(),
            pattern: "step-{step}".to_owned(),
            resume_args: vec!["--resume".to_owned()],
            interval_s: 900,
            quiet_ms: 2000,
            restore_only: false,
            together: false,
        }),
        restore: vec![RestoreCandidate {
            seq: 7,
            manifest: manifest(),
            chunks: keys.into_iter().map(|key| (key, ticket())).collect(),
        }],
        data_prefix: data_prefix(4, MACHINE),
    }
}

fn slots() -> SlotBatch {
    SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt: 3, first: 64, puts: vec![ticket(); 3] }
}

fn entry() -> LogEntry {
    LogEntry::Checkpoint { manifest: manifest(), at: Timestamp::UNIX_EPOCH }
}

/// A document as JSON, with the way to read it.
struct Sample {
    name: &'static str,
    value: Value,
    decode: fn(&[u8]) -> Result<Value, String>,
}

fn plain<T: serde::Serialize>(read: Result<T, tradewind_protocol::Invalid>) -> Result<Value, String> {
    read.map(|document| json!(document)).map_err(|invalid| invalid.to_string())
}

fn documents() -> [Sample; 6] {
    let sample = |name, value, decode| Sample { name, value, decode };
    [
        sample("report", json!(report()), |b| plain(Report::decode(b, MACHINE))),
        sample("control", json!(control()), |b| plain(Control::decode(b))),
        sample("start", json!(start()), |b| plain(Start::decode(b, MACHINE, "boot-1"))),
        sample("slots", json!(slots()), |b| plain(SlotBatch::decode(b, MACHINE))),
        sample("log entry", json!(entry()), |b| plain(LogEntry::decode(b))),
        sample(
            "log entry of a gang",
            json!(LogEntry::Checkpoint { manifest: merged(), at: Timestamp::UNIX_EPOCH }),
            |b| plain(LogEntry::decode(b)),
        ),
    ]
}

#[test]
fn good_documents_survive_a_round_trip() {
    for Sample { name, value, decode } in documents() {
        let read = decode(&serde_json::to_vec(&value).unwrap()).unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
        assert_eq!(read, value, "{name}");
    }
    assert_eq!(LogEntry::decode(&entry().encode().unwrap()).unwrap(), entry());
    assert_eq!(Report::decode(&report().encode().unwrap(), MACHINE).unwrap(), report());
    assert_eq!(Control::decode(&control().encode().unwrap()).unwrap(), control());
    assert_eq!(Start::decode(&start().encode().unwrap(), MACHINE, "boot-1").unwrap(), start());
    assert_eq!(SlotBatch::decode(&slots().encode().unwrap(), MACHINE).unwrap(), slots());
}

#[test]
fn documents_of_an_older_peer_are_read() {
    let mut old = json!(report());
    for field in ["silent", "quietS", "host"] {
        assert!(old.as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    assert!(old["exit"].as_object_mut().unwrap().remove("oomKilled").is_some());
    let read = Report::decode(&serde_json::to_vec(&old).unwrap(), MACHINE).unwrap();
    assert_eq!((read.silent, read.quiet_s, read.host, read.exit.unwrap().oom_killed), (false, 0, None, None));
    let mut old = json!(control());
    assert!(old.as_object_mut().unwrap().remove("selfEnd").is_some());
    assert_eq!(Control::decode(&serde_json::to_vec(&old).unwrap()).unwrap().self_end, None);
}

#[test]
fn the_way_to_end_a_rental_is_a_plain_request() {
    for (field, method, url, bearer) in [
        ("selfEnd.method", "GET", "https://x/1", "KEY"),
        ("selfEnd.method", "delete", "https://x/1", "KEY"),
        ("selfEnd.method", "", "https://x/1", "KEY"),
        ("selfEnd.url", "DELETE", "file:///etc/passwd", "KEY"),
        ("selfEnd.url", "DELETE", "memory://x", "KEY"),
        ("selfEnd.url", "DELETE", "https://", "KEY"),
        ("selfEnd.url", "DELETE", "https://x/ 1", "KEY"),
        ("selfEnd.url", "DELETE", "https://x/\n1", "KEY"),
        ("selfEnd.bearerEnv", "DELETE", "https://x/1", ""),
        ("selfEnd.bearerEnv", "DELETE", "https://x/1", "1KEY"),
        ("selfEnd.bearerEnv", "DELETE", "https://x/1", "A=B"),
        ("selfEnd.bearerEnv", "DELETE", "https://x/1", "A\0"),
        ("selfEnd.bearerEnv", "DELETE", "https://x/1", "\u{c4}"),
    ] {
        let end = SelfEnd { method: method.to_owned(), url: url.to_owned(), bearer_env: bearer.to_owned() };
        let invalid = Control { self_end: Some(end), ..control() }.encode().unwrap_err();
        assert_eq!(invalid.field, field, "{method} {url} {bearer}");
    }
    for (method, url, bearer) in [("POST", "http://127.0.0.1:1/x?y=z", "_k"), ("PUT", "https://x/1", "K9")] {
        let end = SelfEnd { method: method.to_owned(), url: url.to_owned(), bearer_env: bearer.to_owned() };
        Control { self_end: Some(end), ..control() }.encode().unwrap();
    }
}

#[test]
fn another_machine_or_boot_is_refused() {
    let report = report().encode().unwrap();
    assert_eq!(Report::decode(&report, "other").unwrap_err().field, "machine");
    let start = start().encode().unwrap();
    assert_eq!(Start::decode(&start, MACHINE, "boot-2").unwrap_err().field, "boot");
    assert_eq!(Start::decode(&start, "other", "boot-1").unwrap_err().field, "machine");
    assert_eq!(SlotBatch::decode(&slots().encode().unwrap(), "other").unwrap_err().field, "machine");
    let mut stolen = self::report();
    stolen.offer.as_mut().unwrap().manifest.machine = "other".to_owned();
    assert_eq!(stolen.encode().unwrap_err().field, "offer.manifest.machine");
}

#[test]
fn offers_that_wait_are_few_ordered_and_the_workers_own() {
    let of = |number: u64| CheckpointOffer { number, ..self::report().offer.unwrap() };
    let with = |waiting: Vec<u64>, offer: u64| Report {
        waiting: waiting.into_iter().map(of).collect(),
        offer: Some(of(offer)),
        ..self::report()
    };
    let full = with((1..8).collect(), 8);
    let known = Report::decode(&full.encode().unwrap(), MACHINE).unwrap();
    assert_eq!(known.offers().map(|offer| offer.number).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert_eq!(with((1..9).collect(), 9).encode().unwrap_err().field, "waiting");
    for (waiting, offer) in [(vec![2], 2), (vec![3], 2), (vec![2, 1], 3), (vec![0], 1)] {
        assert_eq!(with(waiting, offer).encode().unwrap_err().field, "offer.number");
    }
    let mut stolen = full;
    stolen.waiting[3].manifest.machine = "other".to_owned();
    assert_eq!(stolen.encode().unwrap_err().field, "offer.manifest.machine");
    // A version before told of one offer, and knew nothing of a list.
    let old = String::from_utf8(self::report().encode().unwrap()).unwrap();
    assert!(!old.contains("waiting") && Report::decode(old.as_bytes(), MACHINE).unwrap().offers().count() == 1);
}

#[test]
fn another_version_is_named() {
    for version in [0, VERSION + 1, u32::MAX] {
        // Also where nothing else of the document is understood.
        for text in
            [format!("{{\"version\":{version}}}"), format!("{{\"version\":{version},\"machine\":{{\"new\":[1]}}}}")]
        {
            let invalid = Control::decode(text.as_bytes()).unwrap_err();
            assert_eq!(invalid.field, "version", "{invalid}");
        }
    }
}

#[test]
fn errors_do_not_repeat_the_content() {
    let mut value = serde_json::to_value(control()).unwrap();
    value["sequence"] = json!("https://store.example.com/?signature=topsecret");
    let invalid = Control::decode(&serde_json::to_vec(&value).unwrap()).unwrap_err();
    assert!(!invalid.to_string().contains("topsecret"), "{invalid}");
    assert!(invalid.to_string().contains("line 1"), "{invalid}");
    assert!(!format!("{:?}", control()).contains("topsecret"));
}

#[test]
fn bombs_are_refused() {
    let deep = [b"[".repeat(200_000), b"{\"a\":".repeat(100_000), br#"{"version":1,"machine":"#.to_vec()].concat();
    let wide = format!("{{\"version\":1,\"warnings\":[{}\"\"]}}", "\"\",".repeat(Report::MAX_BYTES / 3 - 100));
    let nested = format!("{{\"version\":1,\"machine\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    for bytes in [
        deep.as_slice(),
        wide.as_bytes(),
        nested.as_bytes(),
        b"",
        b"null",
        b"\xff\xfe",
        &vec![b' '; Start::MAX_BYTES + 1],
    ] {
        for Sample { name, decode, .. } in documents() {
            assert!(decode(bytes).is_err(), "{name}");
        }
    }
}

#[test]
fn manifests_that_break_a_rule_are_refused() {
    type Change = fn(&mut Manifest);
    let table: [(&str, &str, Change); 24] = [
        ("absolute path", "files.path", |m| m.files[0].path = "/etc/passwd".to_owned()),
        ("path goes up", "files.path", |m| m.files[0].path = "a/../../x".to_owned()),
        ("dot segment", "files.path", |m| m.files[0].path = "./x".to_owned()),
        ("empty segment", "files.path", |m| m.files[0].path = "a//x".to_owned()),
        ("trailing slash", "files.path", |m| m.files[0].path = "a/".to_owned()),
        ("empty path in a directory", "files.path", |m| m.files[0].path = String::new()),
        ("control character", "files.path", |m| m.files[0].path = "a\nb".to_owned()),
        ("NUL", "files.path", |m| m.files[0].path = "a\0b".to_owned()),
        ("long path", "files.path", |m| m.files[0].path = "a/".repeat(600) + "x"),
        ("same path twice", "files", |m| m.files[1].path = m.files[0].path.clone()),
        ("not sorted", "files", |m| m.files.swap(0, 2)),
        ("file in a file", "files.path", |m| m.files[1].path = "a/weights.bin/x".to_owned()),
        ("name with slash", "name", |m| m.name = "../x".to_owned()),
        ("name is dots", "name", |m| m.name = "..".to_owned()),
        ("empty name", "name", |m| m.name = String::new()),
        ("two files for a file", "files", |m| m.kind = EntryKind::File),
        ("sum of sizes", "files.sizeBytes", |m| m.files[0].size_bytes += 1),
        ("empty chunk", "chunks.sizeBytes", |m| m.files[2].chunks[0].size_bytes = 0),
        ("huge chunk", "chunks.sizeBytes", |m| m.files[2].chunks[0].size_bytes = u64::MAX),
        ("sha in capitals", "chunks.sha256", |m| m.files[2].chunks[0].sha256 = "0A".repeat(32)),
        ("key of the log", "chunks.key", |m| m.files[2].chunks[0].key = "log/0000000000.json".to_owned()),
        ("key of a later attempt", "chunks.key", |m| m.files[2].chunks[0].key = "data/4-abcdef/00000000".to_owned()),
        ("setuid", "files.mode", |m| m.files[0].mode = 0o4755),
        ("one key, two contents", "chunks", |m| m.files[2].chunks[0].key = m.files[0].chunks[0].key.clone()),
    ];
    for (what, field, change) in table {
        let mut manifest = manifest();
        change(&mut manifest);
        let invalid = manifest.validate().expect_err(what);
        assert_eq!(invalid.field, field, "{what}: {invalid}");
    }
    let mut single = manifest();
    single.kind = EntryKind::File;
    single.files = vec![file("", vec![chunk(0, 3)])];
    single.validate().unwrap();
    let mut many = manifest();
    many.files = (0..20_001).map(|n| file(&format!("{n:06}"), vec![])).collect();
    assert_eq!(many.validate().unwrap_err().field, "files");
    many.files = vec![file("x", (0..100_001).map(|slot| chunk(slot, 1)).collect())];
    assert_eq!(many.validate().unwrap_err().field, "chunks");
}

/// Two workers that wrote together, each with its own version of the weights.
fn merged() -> Manifest {
    let mut merged = manifest();
    let own = |rank| ManifestFile { rank: Some(rank), ..file("a/weights.bin", vec![chunk(u64::from(rank), 5)]) };
    merged.files.splice(0..1, [own(0), own(1)]);
    let writer = |machine: &str| Writer { machine: machine.to_owned(), slots_below: 3, name: None };
    merged.writers = vec![writer(MACHINE), writer("worker-1")];
    merged
}

#[test]
fn manifests_of_several_writers_are_checked_too() {
    type Change = fn(&mut Manifest);
    let table: [(&str, &str, Change); 12] = [
        ("rank of nobody", "files.rank", |m| m.files[1].rank = Some(2)),
        ("rank without writers", "files.rank", |m| m.writers.clear()),
        ("same rank twice", "files", |m| m.files[0].rank = Some(1)),
        ("ranks not sorted", "files", |m| m.files.swap(0, 1)),
        ("for all and for one", "files", |m| m.files[0].rank = None),
        ("file in a version of a file", "files.path", |m| m.files[2].path = "a/weights.bin/x".to_owned()),
        ("another first writer", "writers", |m| m.writers.swap(0, 1)),
        ("one writer twice", "writers", |m| m.writers[1].machine = MACHINE.to_owned()),
        ("writer with a path", "writers.machine", |m| m.writers[1].machine = "../x".to_owned()),
        ("slots without end", "writers.slotsBelow", |m| m.writers[1].slots_below = u64::MAX),
        ("directory with two names", "writers.name", |m| m.writers[1].name = Some("x".to_owned())),
        ("file with a path for a name", "writers.name", |m| {
            m.kind = EntryKind::File;
            m.files = vec![file("", vec![])];
            m.writers[1].name = Some("../x".to_owned());
        }),
    ];
    for (what, field, change) in table {
        let mut manifest = merged();
        manifest.validate().unwrap();
        change(&mut manifest);
        let invalid = manifest.validate().expect_err(what);
        assert_eq!(invalid.field, field, "{what}: {invalid}");
    }
    let mut files = merged();
    files.kind = EntryKind::File;
    files.files = (0..2).map(|rank| ManifestFile { rank: Some(rank), ..file("", vec![]) }).collect();
    files.writers[1].name = Some("rank-1".to_owned());
    files.validate().unwrap();
    let mut many = merged();
    let writer = |n| Writer { machine: format!("worker-{n}"), slots_below: 0, name: None };
    many.writers.extend((2..513).map(writer));
    assert_eq!(many.validate().unwrap_err().field, "writers");
    many.writers.pop();
    many.validate().unwrap();
}

#[test]
fn one_worker_neither_offers_nor_restores_what_is_of_several() {
    let mut report = report();
    report.offer.as_mut().unwrap().manifest = merged();
    assert_eq!(report.encode().unwrap_err().field, "offer.manifest.writers");
    let mut start = start();
    let manifest = merged();
    start.restore[0].chunks = manifest.distinct_chunks().into_keys().map(|key| (key.to_owned(), ticket())).collect();
    start.restore[0].manifest = manifest;
    assert_eq!(start.encode().unwrap_err().field, "restore.manifest.writers");
}

#[test]
fn manifests_of_one_machine_look_as_they_always_did() {
    let value = json!(manifest());
    assert!(value.get("writers").is_none() && value["files"][0].get("rank").is_none(), "{value}");
    let old = LogEntry::decode(&serde_json::to_vec(&json!(entry())).unwrap()).unwrap();
    assert_eq!(old, entry());
}

#[test]
fn keys_have_one_spelling() {
    let prefix = data_prefix(12, MACHINE);
    let key = slot_key(&prefix, 7);
    let place = DataKey::parse(&key).unwrap();
    assert_eq!((place.attempt, place.slot), (12, 7));
    assert_eq!(parse_data_folder(prefix.trim_start_matches("data/").trim_end_matches('/')), Some((12, place.machine)));
    assert_ne!(data_prefix(1, "uid-00000001"), data_prefix(1, "uid-00000002"), "uids that begin alike");
    for bad in [
        "data/012-abcdef/00000001",
        "data/+1-abcdef/00000001",
        "data/1-abcde/00000001",
        "data/1-ABCDEF/00000001",
        "data/1-abcdef/0000001",
        "data/1-abcdef/+0000001",
        "data/1-abcdef/00000001/x",
        "data/4294967295-abcdef/00000001",
        "data/1-abcdef",
        "/data/1-abcdef/00000001",
    ] {
        assert_eq!(DataKey::parse(bad), None, "{bad}");
    }
}

#[test]
fn chunks_grow_with_the_file() {
    assert_eq!(chunk_size(0), MIN_CHUNK_BYTES);
    assert_eq!(chunk_size(u64::MAX), MAX_CHUNK_BYTES);
    let hundred_gb = 100_000_000_000_u64;
    let count = hundred_gb.div_ceil(chunk_size(hundred_gb));
    assert!((100..=999).contains(&count), "{count} chunks for 100 GB");
    assert_eq!(chunk_size(hundred_gb), chunk_size(hundred_gb + 1000), "a little growth keeps the cuts");
}

#[test]
fn texts_for_people_are_harmless_and_bounded() {
    let mut hostile = report();
    hostile.warnings = vec!["\u{1b}[2Jall gone\u{202e}\r\n".to_owned()];
    hostile.exit.as_mut().unwrap().log_tail = "a\u{7}b\tc\n".to_owned();
    let read = Report::decode(&serde_json::to_vec(&hostile).unwrap(), MACHINE).unwrap();
    assert_eq!(read.warnings, ["[2Jall gone\n"]);
    assert_eq!(read.exit.unwrap().log_tail, "ab\tc\n");
    assert_eq!(clean_text("abc\u{e4}", 2), "c\u{e4}");
    let long = |change: fn(&mut Report)| {
        let mut report = report();
        change(&mut report);
        report.encode().unwrap_err().field
    };
    assert_eq!(long(|r| r.warnings = vec![String::new(); 9]), "warnings");
    assert_eq!(long(|r| r.warnings = vec!["x".repeat(301)]), "warnings");
    assert_eq!(long(|r| r.exit.as_mut().unwrap().log_tail = "\u{e4}".repeat(2001)), "exit.logTail");
    assert_eq!(long(|r| r.progress.as_mut().unwrap().loss = Some("9".repeat(33))), "progress.loss");
    assert_eq!(long(|r| r.boot_key = "AAAA".to_owned()), "bootKey");
    assert_eq!(long(|r| r.boot = "../x".to_owned()), "boot");
    assert_eq!(long(|r| r.attempt = Some(u32::MAX)), "attempt");
}

#[test]
fn control_and_start_are_checked_too() {
    let bad = |change: fn(&mut Control)| {
        let mut control = control();
        change(&mut control);
        control.encode().unwrap_err().field
    };
    assert_eq!(bad(|c| c.report_put.url = "file:///etc/passwd".to_owned()), "reportPut");
    assert_eq!(bad(|c| c.control_get.url = "https://x/ y".to_owned()), "controlGet");
    assert_eq!(bad(|c| c.start_boot = None), "startBoot");
    assert_eq!(bad(|c| c.slots = vec![ticket(); 65]), "slots");
    let bad = |change: fn(&mut Start)| {
        let mut start = start();
        change(&mut start);
        start.encode().unwrap_err().field
    };
    assert_eq!(bad(|s| s.command.clear()), "command");
    assert_eq!(bad(|s| drop(s.env.insert("A=B".to_owned(), String::new()))), "env");
    assert_eq!(bad(|s| s.data_prefix = data_prefix(3, MACHINE)), "dataPrefix");
    assert_eq!(bad(|s| drop(s.restore[0].chunks.pop_first())), "restore.chunks");
    assert_eq!(bad(|s| s.checkpoint.as_mut().unwrap().pattern = "a/b".to_owned()), "checkpoint.pattern");
}

/// A small JSON value of any shape.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(Value::from("../x")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Replaces the `n`-th value below `value`, counted depth first.
fn replace(value: &mut Value, n: &mut usize, new: &Value) -> bool {
    if *n == 0 {
        *value = new.clone();
        return true;
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| replace(item, n, new)),
        Value::Object(map) => map.values_mut().any(|item| replace(item, n, new)),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for Sample { decode, .. } in documents() {
            prop_assert!(decode(&bytes).is_err());
        }
    }

    #[test]
    fn random_json_never_panics(value in any_value()) {
        let bytes = serde_json::to_vec(&value).unwrap();
        for Sample { decode, .. } in documents() {
            prop_assert!(decode(&bytes).is_err());
        }
    }

    /// One value anywhere in a good document is replaced: what is still let through encodes and decodes to itself.
    #[test]
    fn changed_documents_never_panic(place in 0_usize..200, new in any_value(), cut in 0_usize..3000) {
        for Sample { name, mut value, decode } in documents() {
            replace(&mut value, &mut place.clone(), &new);
            let mut bytes = serde_json::to_vec(&value).unwrap();
            if let Ok(read) = decode(&bytes) {
                let again = decode(&serde_json::to_vec(&read).unwrap());
                prop_assert_eq!(again, Ok(read), "{}", name);
            }
            bytes.truncate(cut);
            let _ = decode(&bytes);
        }
    }

    /// Whatever paths a manifest names: if it is let through, they can be written below one directory without meeting each other.
    #[test]
    fn accepted_paths_stay_inside(paths in prop::collection::btree_set("[a-c./\\PC]{0,6}", 0..6)) {
        let mut manifest = manifest();
        manifest.files = paths.iter().map(|path| file(path, vec![])).collect();
        if manifest.validate().is_ok() {
            for path in &paths {
                let path = std::path::Path::new(path);
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{:?}", path);
                for other in &paths {
                    let other = std::path::Path::new(other);
                    prop_assert!(other == path || !other.starts_with(path), "{:?} lies in {:?}", other, path);
                }
            }
        }
    }
}
