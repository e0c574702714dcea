//! The mailbox and the probe.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use jiff::Timestamp;
use tradewind_checkpoints::store::Answer;
use tradewind_checkpoints::{
    Fetched, Mailbox, MailboxError, ObjectInfo, ProbeFailure, PutOutcome, ReportRead, SegmentRead, Store, StoreError,
    probe,
};
use tradewind_core::{Clock, InstallId};
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::{AgentPhase, Control, Desired, Report, SlotBatch, Start, Ticket, VERSION};

use crate::stage::{BUCKET, Stage, now};

const MACHINE: &str = "machine-1";
const HOUR: Duration = Duration::from_hours(1);

fn mailbox(stage: &Stage) -> Mailbox {
    Mailbox::new(Arc::new(stage.place()))
}

fn report(sequence: u64) -> Report {
    Report {
        version: VERSION,
        machine: MACHINE.to_owned(),
        boot: "boot-1".to_owned(),
        boot_key: "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=".to_owned(),
        sequence,
        control_seen: 0,
        attempt: None,
        phase: AgentPhase::Booted,
        at: Timestamp::UNIX_EPOCH,
        progress: None,
        exit: None,
        restore: None,
        offer: None,
        waiting: Vec::new(),
        uploading: None,
        slots_left: 0,
        slots_used: 0,
        log_segments: 0,
        warnings: Vec::new(),
        restarted: false,
        silent: false,
        quiet_s: 0,
        host: None,
        address: None,
        save_took: None,
    }
}

fn control(mailbox: &Mailbox, sequence: u64) -> Control {
    Control {
        version: VERSION,
        machine: MACHINE.to_owned(),
        sequence,
        lease_s: 60,
        desired: Desired::Wait,
        attempt: 0,
        control_get: now(mailbox.control_ticket(MACHINE, HOUR)).unwrap(),
        report_put: now(mailbox.report_put_ticket(MACHINE, HOUR)).unwrap(),
        report_get: now(mailbox.report_get_ticket(MACHINE, HOUR)).unwrap(),
        start: None,
        start_boot: None,
        slots: Vec::new(),
        logs: now(mailbox.log_tickets(MACHINE, 3, HOUR)).unwrap(),
        committed: None,
        refused: None,
        self_end: None,
    }
}

fn start(command: &str) -> Start {
    Start {
        version: VERSION,
        machine: MACHINE.to_owned(),
        boot: "boot-1".to_owned(),
        run_id: "run-1".to_owned(),
        attempt: 0,
        command: vec![command.to_owned()],
        env: BTreeMap::new(),
        sealed_env: None,
        working_dir: None,
        stop_grace_s: 30,
        checkpoint: None,
        restore: Vec::new(),
        data_prefix: data_prefix(0, MACHINE),
    }
}

#[test]
fn control_goes_out_and_the_report_comes_in_through_tickets() {
    let stage = Stage::default();
    let mailbox = mailbox(&stage);
    let first = control(&mailbox, 1);
    now(mailbox.write_control(&first)).unwrap();
    assert_eq!(now(mailbox.read_control(MACHINE)).unwrap(), Some(first.clone()));
    let Fetched::Changed { bytes, .. } = stage.server.redeem_get(&first.control_get.url, None).unwrap() else {
        panic!("no control");
    };
    assert_eq!(Control::decode(&bytes).unwrap(), first);

    assert_eq!(now(mailbox.read_report(MACHINE, None)).unwrap(), ReportRead::Absent);
    let send = |bytes: Vec<u8>| stage.server.redeem_put(&first.report_put.url, Bytes::from(bytes), false).unwrap();
    send(serde_json::to_vec(&report(1)).unwrap());
    let ReportRead::Changed { report: read, etag } = now(mailbox.read_report(MACHINE, None)).unwrap() else {
        panic!("no report");
    };
    assert_eq!(*read, report(1));
    assert_eq!(now(mailbox.read_report(MACHINE, etag.as_deref())).unwrap(), ReportRead::Unchanged);
    for hostile in [
        b"{".to_vec(),
        vec![b' '; Report::MAX_BYTES + 1],
        serde_json::to_vec(&Report { machine: "other".to_owned(), ..report(2) }).unwrap(),
    ] {
        send(hostile);
        let read = now(mailbox.read_report(MACHINE, etag.as_deref())).unwrap();
        assert!(matches!(read, ReportRead::Malformed { .. }), "{read:?}");
    }
}

#[test]
fn what_is_written_once_stays_what_it_was() {
    let stage = Stage::default();
    let mailbox = mailbox(&stage);
    assert_eq!(now(mailbox.write_start(&start("first"))).unwrap(), start("first"));
    assert_eq!(now(mailbox.write_start(&start("second"))).unwrap(), start("first"), "written before a crash");
    let ticket = now(mailbox.start_ticket(MACHINE, "boot-1", 0, HOUR)).unwrap();
    assert!(matches!(stage.server.redeem_get(&ticket.url, None), Ok(Fetched::Changed { .. })));
    let batch = |count| SlotBatch {
        version: VERSION,
        machine: MACHINE.to_owned(),
        attempt: 0,
        first: 0,
        puts: vec![ticket.clone(); count],
    };
    assert_eq!(now(mailbox.write_slots(&batch(2))).unwrap().end(), 2);
    assert_eq!(now(mailbox.write_slots(&batch(5))).unwrap().end(), 2);
    let invalid = now(mailbox.write_slots(&batch(0))).unwrap_err();
    assert!(matches!(invalid, MailboxError::Invalid(_)), "{invalid}");
}

#[test]
fn the_ring_of_logs_is_read_as_far_as_it_goes() {
    let stage = Stage::default();
    let mailbox = mailbox(&stage);
    let tickets = now(mailbox.log_tickets(MACHINE, 3, HOUR)).unwrap();
    let write = |number: u64| {
        let object = format!("tradewind-log2 {number} 1 5\nF0 line {number}\n");
        let slot = usize::try_from(number % 3).unwrap();
        stage.server.redeem_put(&tickets[slot].url, Bytes::from(object), false).unwrap();
    };
    (0..5).for_each(write);
    let numbers = |from, written| {
        let tail = now(mailbox.read_log_segments(MACHINE, from, written, 3)).unwrap();
        (tail.segments.iter().map(|segment| segment.number).collect::<Vec<_>>(), tail.next)
    };
    assert_eq!(numbers(0, 5), (vec![2, 3, 4], 5));
    assert_eq!(numbers(4, 5), (vec![4], 5));
    assert_eq!(numbers(5, 5), (vec![], 5));
    write(5);
    assert_eq!(numbers(0, 5), (vec![3, 4], 5), "segment 2 was overwritten after the report");
    assert_eq!(numbers(0, u64::MAX).0, Vec::<u64>::new(), "a machine that lies costs three reads");
    let SegmentRead::Changed { segment, etag } = now(mailbox.read_log_slot(MACHINE, 2, None)).unwrap() else {
        panic!("a segment");
    };
    assert_eq!((segment.number, segment.text()), (5, b"line 5\n".to_vec()));
    assert_eq!(now(mailbox.read_log_slot(MACHINE, 2, etag.as_deref())).unwrap(), SegmentRead::Unchanged);
    assert_eq!(now(mailbox.read_log_slot(MACHINE, 7, None)).unwrap(), SegmentRead::Absent);
}

#[test]
fn output_outlives_its_machine_until_it_is_removed() {
    let stage = Stage::default();
    let mailbox = mailbox(&stage);
    let (ours, theirs) = (InstallId::derive("a", "r"), InstallId::derive("b", "r"));
    let tickets = now(mailbox.log_tickets(MACHINE, 3, HOUR)).unwrap();
    stage.server.redeem_put(&tickets[0].url, Bytes::from_static(b"tradewind-log2 0 1 5\nF0 x\n"), false).unwrap();
    now(mailbox.keep_logs(&ours, MACHINE)).unwrap();
    now(mailbox.forget(MACHINE)).unwrap();
    assert!(now(mailbox.list_machines()).unwrap().is_empty(), "output is no machine");
    assert!(matches!(now(mailbox.read_log_slot(MACHINE, 0, None)).unwrap(), SegmentRead::Changed { .. }));
    let kept = |install| now(mailbox.kept_logs(install)).unwrap().into_iter().map(|k| k.machine).collect::<Vec<_>>();
    assert_eq!((kept(&ours), kept(&theirs)), (vec![MACHINE.to_owned()], vec![]), "each install has its own");
    now(mailbox.remove_logs(&ours, MACHINE)).unwrap();
    now(mailbox.remove_logs(&ours, MACHINE)).unwrap();
    assert!(kept(&ours).is_empty());
    assert_eq!(now(mailbox.read_log_slot(MACHINE, 0, None)).unwrap(), SegmentRead::Absent);
}

#[test]
fn a_folder_is_forgotten_as_unused_only_once_all_of_it_is_old() {
    let stage = Stage::default();
    let mailbox = mailbox(&stage);
    let began = stage.clock.now();
    now(mailbox.write_control(&control(&mailbox, 1))).unwrap();
    stage.clock.advance(HOUR);
    now(mailbox.write_start(&start("x"))).unwrap();
    let later = stage.clock.now();
    let second = Duration::from_secs(1);
    for young in [began, began + second, later] {
        assert!(!now(mailbox.forget_unused(MACHINE, young)).unwrap(), "something is not older than {young}");
    }
    assert!(now(mailbox.read_control(MACHINE)).unwrap().is_some(), "nothing of it goes before all of it");
    assert!(now(mailbox.forget_unused(MACHINE, later + second)).unwrap());
    assert!(now(mailbox.list_machines()).unwrap().is_empty());
    assert!(!now(mailbox.forget_unused(MACHINE, later + second)).unwrap(), "there is nothing");
}

#[test]
fn machines_are_listed_and_forgotten() {
    let stage = Stage::default();
    let mailbox = mailbox(&stage);
    now(mailbox.write_control(&control(&mailbox, 1))).unwrap();
    now(mailbox.write_start(&start("x"))).unwrap();
    let long: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let published = now(mailbox.publish_agent(Bytes::from(long.clone()))).unwrap();
    assert_eq!(tradewind_checkpoints::AgentBinary::of(&long[..]).unwrap(), published, "read in pieces");
    let looked_at = tradewind_checkpoints::AgentBinary::of(&b"agent"[..]).unwrap();
    assert!(!now(mailbox.has_agent(&looked_at)).unwrap());
    let binary = now(mailbox.publish_agent(Bytes::from_static(b"agent"))).unwrap();
    assert!(looked_at == binary && now(mailbox.has_agent(&looked_at)).unwrap());
    assert_eq!(binary, now(mailbox.publish_agent(Bytes::from_static(b"agent"))).unwrap());
    assert_eq!(now(mailbox.list_machines()).unwrap(), [MACHINE]);
    now(mailbox.forget(MACHINE)).unwrap();
    now(mailbox.forget(MACHINE)).unwrap();
    assert!(now(mailbox.list_machines()).unwrap().is_empty());
    let ticket = now(mailbox.agent_ticket(&binary.sha256, HOUR)).unwrap();
    let Fetched::Changed { bytes, .. } = stage.server.redeem_get(&ticket.url, None).unwrap() else {
        panic!("no agent")
    };
    assert_eq!(bytes, "agent");
}

/// A store that overwrites where it must not.
struct Careless<S>(S);

impl<S: Store> Store for Careless<S> {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>> {
        self.0.get(key, max_bytes)
    }
    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched> {
        self.0.get_if_changed(key, etag, max_bytes)
    }
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        self.0.put(key, bytes)
    }
    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome> {
        async move { self.0.put(key, bytes).await.map(|()| PutOutcome::Written) }.boxed()
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        self.0.head(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>> {
        self.0.list(prefix, limit)
    }
    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>> {
        self.0.list_folders(prefix, limit)
    }
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.0.delete(key)
    }
    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.0.sign_get(key, lifetime)
    }
    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.0.sign_put(key, lifetime)
    }
}

#[test]
fn a_probe_tells_what_is_missing_and_leaves_nothing() {
    let stage = Stage::default();
    stage.tamper("probe/old", Some(b"left by a probe that died"));
    stage.advance(Duration::from_hours(2));
    now(probe(&stage.place(), 7)).unwrap();
    assert!(stage.server.objects(BUCKET).is_empty());
    let careless = now(probe(&Careless(stage.place()), 8)).unwrap_err();
    assert_eq!(careless, ProbeFailure::NoConditionalWrites);
    assert!(stage.server.objects(BUCKET).is_empty());
    stage.server.deny(BUCKET, true);
    assert_eq!(now(probe(&stage.place(), 9)).unwrap_err().reason(), "StoreDenied");
    stage.server.remove_bucket(BUCKET);
    let missing = now(probe(&stage.place(), 10)).unwrap_err();
    assert_eq!(missing, ProbeFailure::BucketNotFound { bucket: BUCKET.to_owned() });
    assert!(missing.to_string().contains("Create it"));
    let unknown = StoreError::Unavailable { verb: "put", key: "k".to_owned(), detail: "Connection refused".to_owned() };
    assert_eq!(ProbeFailure::from(unknown).reason(), "StoreUnavailable");
}
