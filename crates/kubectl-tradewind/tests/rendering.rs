//! What each command shows of given objects, compared with `goldens/<name>`. `TRADEWIND_BLESS=1` writes the files anew; then read them as
//! the user would who has nothing else.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what cannot be had fails the test")]

mod fixtures;
mod golden;

use jiff::Timestamp;
use kubectl_tradewind::cli::{Cli, Command, DoctorArgs, Form};
use kubectl_tradewind::cost::{self, CostView};
use kubectl_tradewind::doctor::{self, Report};
use kubectl_tradewind::screen::{Ink, formed};
use kubectl_tradewind::status::{self, Found, StatusView};
use kubectl_tradewind::why::{self, WhyView};
use serde_json::{Value, json};

use fixtures::{event, gang, job, machine, now, pod, provider, running};
use golden::same;

fn status_of(found: &Found) -> String {
    status::render(&StatusView::of(found, now()), now(), Ink::none())
}

fn found(job: Value) -> Found {
    Found { job: serde_json::from_value(job).unwrap(), machine: None, pods: Vec::new(), events: Vec::new() }
}

fn doctor_args() -> DoctorArgs {
    use clap::Parser as _;
    match Cli::try_parse_from(["kubectl-tradewind", "doctor"]).unwrap().command {
        Command::Doctor(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_job_on_its_second_machine() {
    let mut found = found(running());
    found.machine = Some(serde_json::from_value(machine("Ready")).unwrap());
    found.events = vec![
        event(
            740,
            "Normal",
            "Rented",
            "rented machine 31337 on vast for $0.32 an hour; waits for its agent's first report",
        ),
        event(200, "Normal", "Resumed", "attempt 1 goes on from checkpoint 4 (step 400)"),
        event(40, "Normal", "CheckpointCommitted", "the checkpoint of step 1200 counts from now on (attempt 1)"),
    ];
    same("status-running.txt", &status_of(&found));
    let view = StatusView::of(&found, now());
    same("status-running.json", &formed(Some(Form::Json), &view, String::new).unwrap());
    same("status-running.yaml", &formed(Some(Form::Yaml), &view, String::new).unwrap());
}

#[test]
fn why_a_job_runs_where_it_runs() {
    let mut placed = running();
    let placement = &mut placed["status"]["placement"];
    placement["cost"] = json!({
        "compute": "0.35", "setup": "0.003", "imagePull": "0.0041", "restore": "0.00", "expectedLostWork": "0.05", "storage": "0.00",
        "traffic": "0.00", "total": "0.4071",
    });
    placement["expectedFinish"] = json!("2026-11-21T12:12:00Z");
    placement["alternatives"] = json!([{ "summary": "1xRTX4090 of vast (on demand, NO)", "pricePerHour": "0.40", "extraCost": "0.0329", "expectedFinish": "2026-11-21T12:11:00Z" }]);
    placement["rejected"] = json!(["14 are below minTrust Datacenter"]);
    let holds = json!({ "type": "Placed", "status": "True", "reason": "Renting", "message": "", "lastTransitionTime": "2026-11-21T11:48:00Z" });
    placed["status"]["conditions"].as_array_mut().unwrap().push(holds);
    placed["status"]["deadline"] = json!("2026-11-21T20:43:17Z");
    let view = WhyView::of(&serde_json::from_value(placed).unwrap());
    same("why.txt", &why::render(&view, false, now(), Ink::none()));
    same("why-wide.txt", &why::render(&view, true, now(), Ink::none()));
}

#[test]
fn a_job_that_boots_shows_until_when_it_may() {
    let mut starting = running();
    starting["status"]["phase"] = json!("Starting");
    starting["status"]["message"] = json!("waits for the agent's first report");
    starting["status"]["progress"] = Value::Null;
    let mut found = found(starting);
    found.machine = Some(serde_json::from_value(machine("Booting")).unwrap());
    let text = status_of(&found);
    assert!(text.contains("Deadline    in 10m: the machine is given up if it has not reported"), "{text}");
    assert!(!text.contains("Progress"), "{text}");
}

#[test]
fn a_job_that_waits_for_an_offer() {
    let message = "no offer fits: 12 are too dear (budget.perHour 0.20), 3 are in other regions; looked at again as the market changes";
    let waiting = job(
        "wants-much",
        json!({ "budget": { "perHour": "0.20" } }),
        json!({
            "phase": "Waiting", "message": message, "observedGeneration": 0, "unschedulableSince": "2026-11-21T11:59:00Z",
            "conditions": [
                { "type": "Accepted", "status": "True", "reason": "Valid", "message": "the spec passed every check", "lastTransitionTime": "2026-11-21T11:48:00Z" },
                { "type": "Placed", "status": "False", "reason": "NoOffer", "message": message, "lastTransitionTime": "2026-11-21T11:55:00Z" },
                { "type": "Ready", "status": "False", "reason": "NoOffer", "message": message, "lastTransitionTime": "2026-11-21T11:48:00Z" },
                { "type": "Reconciling", "status": "True", "reason": "NoOffer", "message": message, "lastTransitionTime": "2026-11-21T11:48:00Z" },
                { "type": "Stalled", "status": "False", "reason": "Valid", "message": "nothing stands in the way", "lastTransitionTime": "2026-11-21T11:48:00Z" },
            ],
        }),
    );
    same("status-waiting.txt", &status_of(&found(waiting)));
}

#[test]
fn renting_is_foretold_only_where_it_may_follow_and_when_the_operator_does_it() {
    let deadlines = |spec: Value, accepted: &str| {
        let status = json!({
            "phase": "Waiting", "unschedulableSince": "2026-11-21T11:59:30Z",
            "conditions": [{ "type": "Accepted", "status": accepted, "reason": "NoMailbox", "message": "", "lastTransitionTime": "2026-11-21T11:48:00Z" }],
        });
        let view = StatusView::of(&found(job("waits", spec, status)), now());
        view.deadlines.iter().map(|d| format!("{}: {}", d.at, d.what)).collect::<Vec<_>>()
    };
    let rents = |at: &str| vec![format!("2026-11-21T{at}Z: a machine may be rented (burstAfter)")];
    assert_eq!(deadlines(json!({}), "True"), rents("12:01:30"));
    // Of ten minutes to spare the operator waits a quarter at most.
    let hurried = json!({ "placement": { "burstAfter": "5m" }, "completeWithin": "70m", "work": { "hours": "1" } });
    assert_eq!(deadlines(hurried, "True"), rents("12:02:00"));
    assert!(deadlines(json!({}), "False").is_empty(), "the operator refuses it");
    let volume = json!([{ "name": "d", "persistentVolumeClaim": { "claimName": "x" } }]);
    for never in [
        json!({ "placement": { "inCluster": "Only" } }),
        json!({ "workers": 2 }),
        json!({ "template": { "spec": { "volumes": volume } } }),
    ] {
        assert_eq!(deadlines(never.clone(), "True"), [""; 0], "{never}");
    }
}

#[test]
fn a_job_that_has_failed() {
    let message =
        "the program failed 4 times, more than failurePolicy.maxRestarts allows; last: exit code 3: loss is NaN";
    let wrong = |type_: &str, status: &str| json!({ "type": type_, "status": status, "reason": "TooManyRestarts", "message": message, "lastTransitionTime": "2026-11-21T11:50:00Z" });
    let failed = job(
        "fails",
        json!({ "ttlAfterFinished": "1h" }),
        json!({
            "phase": "Failed", "message": message, "attempt": 3, "restarts": 3, "observedGeneration": 1,
            "startedAt": "2026-11-21T11:40:00Z", "finishedAt": "2026-11-21T11:50:00Z",
            "cost": { "total": "0.04", "settled": "0.04", "summary": "$0.04" },
            "conditions": [wrong("Failed", "True"), wrong("Ready", "False"), wrong("Stalled", "True")],
            "history": [{ "attempt": 2, "where": "cluster", "ended": "ProgramFailed", "message": "exit code 3: loss is NaN", "fromStep": 0, "lastStep": 7, "at": "2026-11-21T11:49:00Z" }],
        }),
    );
    same("status-failed.txt", &status_of(&found(failed)));
}

#[test]
fn a_gang_in_the_cluster_that_waits_for_a_worker() {
    let mut found = found(gang());
    found.pods = (0..4).map(|rank| pod("llm-0", rank, if rank == 2 { "Pending" } else { "Running" })).collect();
    same("status-gang.txt", &status_of(&found));
}

#[test]
fn a_gang_that_waits_shows_until_when_and_one_that_blocks_nobody_does_not() {
    let message = "the cluster has room for 3 of 4 workers; if that is still so at 12:01:00 UTC, all are given back and tried again later (gangTimeout)";
    let mut waiting = gang();
    waiting["status"]["phase"] = json!("Waiting");
    waiting["status"]["message"] = json!(message);
    waiting["status"]["placement"] = Value::Null;
    waiting["status"]["conditions"] = json!([{ "type": "Placed", "status": "False", "reason": "WaitingForCluster", "message": message, "lastTransitionTime": "2026-11-21T11:56:00Z" }]);
    let mut found = found(waiting.clone());
    found.pods = (0..4).map(|rank| pod("llm-0", rank, if rank == 2 { "Pending" } else { "Running" })).collect();
    let refused = found.pods[2].status.as_mut().unwrap();
    let since = json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": "2026-11-21T11:56:00Z" }]);
    refused.conditions = serde_json::from_value(since).unwrap();
    same("status-gang-waiting.txt", &status_of(&found));

    // Nobody has a node, and nobody else waits: it may wait for ever.
    found.job.status.as_mut().unwrap().message = "the cluster has room for 0 of 4 workers".to_owned();
    found.pods.drain(..2);
    found.pods.truncate(1);
    assert_eq!(StatusView::of(&found, now()).deadlines, []);
    // Pods that the API server refuses: it counts from the first that was made.
    found.pods = vec![pod("llm-0", 0, "Running")];
    found.pods[0].metadata.creation_timestamp = serde_json::from_value(json!("2026-11-21T11:58:30Z")).unwrap();
    let deadlines = StatusView::of(&found, now()).deadlines;
    assert_eq!(deadlines[0].at, "2026-11-21T12:03:30Z".parse::<Timestamp>().unwrap());
}

#[test]
fn limits_of_accounts_are_told_only_where_one_may_be_used() {
    let told = |spec: Value| status_of(&found(job("j", spec, Value::Null)));
    let limits = "no budget of its own; the limits of the Providers hold";
    assert!(told(json!({})).contains(limits));
    let only = told(json!({ "placement": { "inCluster": "Only" } }));
    assert!(!only.contains(limits) && only.contains("$0.00/h now\n"), "{only}");
    let own = told(json!({ "placement": { "inCluster": "Only" }, "budget": { "perHour": "2" } }));
    assert!(own.contains("at most $2.00/h"), "{own}");
}

#[test]
fn a_later_attempt_in_the_cluster_tells_the_time_left_at_its_own_pace() {
    let mut again = running();
    again["status"]["placement"] = json!({ "summary": "cluster", "gpu": "1xGPU" });
    let rate = |job: &Value| {
        let progress = StatusView::of(&found(job.clone()), now()).progress.unwrap();
        (progress.steps_per_hour, progress.seconds_left)
    };
    assert_eq!(rate(&again), (None, None), "an operator that does not write down where it began");
    again["status"]["program"] = json!({ "since": "2026-11-21T11:56:36Z", "fromStep": 400 });
    // 840 steps in 200 s, and 1760 more to go.
    assert_eq!(rate(&again), (Some(15_120), Some(419)));
    again["status"]["phase"] = json!("Complete");
    assert_eq!(rate(&again), (None, None), "it is over");
    again["status"]["phase"] = json!("Running");
    again["status"]["program"] = json!({ "since": "2026-11-21T11:59:58Z", "fromStep": 1300 });
    assert_eq!(rate(&again), (None, None), "its progress is still that of the attempt before");
}

#[test]
fn a_job_that_nobody_has_looked_at() {
    let text = status_of(&found(job("new", json!({}), Value::Null)));
    assert!(text.contains("Pending") && text.contains("nowhere now") && text.contains("none yet"), "{text}");
    assert!(text.contains("doctor says whether it runs"), "{text}");
}

#[test]
fn what_it_costs() {
    let jobs = [running(), gang(), job("idle", json!({}), Value::Null)].map(|job| serde_json::from_value(job).unwrap());
    let providers = [provider("vast", json!({})), provider("runpod", json!({}))];
    let view = CostView::of(&jobs, Some(&providers), now());
    same("cost.txt", &cost::render(&view, false, Ink::none()));
    same("cost-all.txt", &cost::render(&view, true, Ink::none()));
    same("cost.json", &formed(Some(Form::Json), &view, String::new).unwrap());
    let blind = CostView::of(&[], None, now());
    assert!(cost::render(&blind, false, Ink::none()).contains("No TrainingJobs found.\n\nYou may not read Providers"));
}

#[test]
fn a_doctor_who_finds_nothing_and_one_who_finds_a_lot() {
    let args = doctor_args();
    let crds = tradewind_api::crd::all();
    let (_, ours) = &crds[0];
    let condition = |type_: &str, status: &str, reason: &str, message: &str| json!({ "type": type_, "status": status, "reason": reason, "message": message });
    let node = |conditions: Value| {
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "status": { "conditions": conditions } })).unwrap()
    };

    let mut fine = Report::default();
    fine.extend([doctor::kind("trainingjobs.tradewind.dev", ours, Some(ours))]);
    let well = node(json!([
        condition("Ready", "True", "OperatorRuns", ""),
        condition(
            "tradewind.dev/Mailbox",
            "True",
            "Probed",
            "s3://mail/ takes conditional writes, lists, signs and deletes"
        ),
        condition("tradewind.dev/TicketLifetime", "True", "LongEnough", "signed addresses live 72 h"),
        condition("tradewind.dev/Agent", "True", "InMailbox", "the agent 0123456789ab is in the mailbox"),
        condition("tradewind.dev/AgentImage", "True", "Given", "Pods take the agent from tradewind-operator:0.1.0"),
    ]));
    fine.extend(doctor::node("tradewind-abcd1234", Some(&well), &args));
    fine.extend(doctor::accounts(&[provider("vast", json!({}))], &args, now()));
    fine.extend(doctor::stuck(&[serde_json::from_value(running()).unwrap()], &args, now()));
    fine.count();
    assert_eq!(fine.problems + fine.warnings, 0);
    same("doctor-fine.txt", &doctor::render(&fine, Ink::none()));

    let mut ill = Report::default();
    let mut old = ours.clone();
    old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("gangTimeout");
    ill.extend([
        doctor::kind("trainingjobs.tradewind.dev", ours, Some(&old)),
        doctor::kind("trainingjobs.tradewind.dev", &old, Some(ours)),
    ]);
    ill.extend([doctor::kind("providers.tradewind.dev", ours, None)]);
    let broken = node(json!([
        condition("Ready", "False", "", ""),
        condition(
            "tradewind.dev/Mailbox",
            "False",
            "NoConditionalWrites",
            "s3://mail/ cannot be used: The store ignores If-None-Match on writes"
        ),
        condition("tradewind.dev/AgentImage", "False", "NotGiven", "no --agent-image was given"),
    ]));
    ill.extend(doctor::node("tradewind-abcd1234", Some(&broken), &args));
    ill.extend(doctor::node("tradewind-abcd1234", None, &args));
    let ready = |status: &str, reason: &str, message: &str| json!([{ "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-11-21T11:48:00Z" }]);
    ill.extend(doctor::accounts(
        &[
            provider("refused", json!({ "conditions": ready("False", "KeyRefused", "vast refuses the key: auth_error") })),
            provider("broke", json!({ "credit": "0.30" })),
            provider("spent", json!({ "spend": { "hours": [{ "at": "2026-11-21T11:00Z", "dollars": "100" }, { "at": "2026-11-20T11:00Z", "dollars": "7" }] } })),
            provider("full", json!({ "committedPerHour": "10" })),
            provider("unseen", json!({ "conditions": [] })),
        ],
        &args,
        now(),
    ));
    let refused = job(
        "typo",
        json!({}),
        json!({
            "phase": "Pending", "conditions": [{ "type": "Accepted", "status": "False", "reason": "SecretNotFound", "message": "Secret team-a/s3 does not exist; it goes on by itself once it is there", "lastTransitionTime": "2026-11-21T11:48:00Z" }],
        }),
    );
    ill.extend(doctor::stuck(
        &[
            serde_json::from_value(refused).unwrap(),
            serde_json::from_value(job("unseen", json!({}), json!({}))).unwrap(),
        ],
        &args,
        now(),
    ));
    ill.count();
    same("doctor-ill.txt", &doctor::render(&ill, Ink::none()));
    same("doctor-ill.json", &formed(Some(Form::Json), &ill, String::new).unwrap());
}

#[test]
fn what_a_job_needs_is_read_from_its_spec() {
    let mut spec = json!({ "workers": 2 });
    spec["template"] = json!({ "spec": {
        "imagePullSecrets": [{ "name": "registry" }],
        "containers": [{ "name": "train", "image": "train:1", "env": [
            { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "hub", "key": "token" } } },
            { "name": "MAYBE", "valueFrom": { "secretKeyRef": { "name": "maybe", "key": "token", "optional": true } } },
            { "name": "PLAIN", "value": "x" },
        ], "envFrom": [{ "secretRef": { "name": "all" } }] }],
        "volumes": [{ "name": "certs", "secret": { "secretName": "tls" } }, { "name": "tmp", "emptyDir": {} }],
    } });
    let job = serde_json::from_value(job("needs", spec, Value::Null)).unwrap();
    let wanted = doctor::wanted_secrets(&job);
    assert_eq!(wanted.keys().collect::<Vec<_>>(), ["all", "hub", "registry", "s3", "tls"]);
    let there = ["AWS_ACCESS_KEY_ID".to_owned(), "password".to_owned()].into();
    assert_eq!(doctor::missing_keys(&wanted["s3"], &there), ["AWS_SECRET_ACCESS_KEY"]);
    assert!(doctor::missing_keys(&wanted["all"], &there).is_empty());

    let mut closed = provider("vast", json!({}));
    let labels = |team: &str| [("team".to_owned(), team.to_owned())].into();
    assert_eq!(
        doctor::missing_access(&job, std::slice::from_ref(&closed), &labels("b")),
        None,
        "without a list everybody may"
    );
    closed.spec.access =
        serde_json::from_value(json!([{ "namespaceSelector": { "matchLabels": { "team": "a" } } }])).unwrap();
    assert_eq!(doctor::missing_access(&job, std::slice::from_ref(&closed), &labels("a")), None);
    assert_eq!(doctor::missing_access(&job, &[closed], &labels("b")), Some(vec!["vast".to_owned()]));

    let quota = |used: &str| {
        serde_json::from_value(
            json!({ "metadata": { "name": "q" }, "status": { "hard": { "pods": "10" }, "used": { "pods": used } } }),
        )
        .unwrap()
    };
    assert!(doctor::short_quotas(&job, &[quota("8")]).is_empty());
    assert_eq!(doctor::short_quotas(&job, &[quota("9")]), ["ResourceQuota q has room for 1 of pods, the job needs 2"]);
}

#[test]
fn colours_change_no_letter() {
    let found = found(running());
    let view = StatusView::of(&found, Timestamp::UNIX_EPOCH);
    let (plain, painted) = (status::render(&view, now(), Ink::none()), status::render(&view, now(), Ink::colours()));
    assert!(!plain.contains('\u{1b}') && painted.contains("\u{1b}[32mRunning\u{1b}[0m"), "{painted:?}");
    let mut left = String::new();
    let mut rest = painted.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        left.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    assert_eq!(left + rest, plain);
}
