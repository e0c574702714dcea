//! The real plug-in with files of offers, and against a simulated market. No API server is anywhere.
#![expect(clippy::unwrap_used, reason = "what cannot be had fails the test")]

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tradewind_sim::serve::{Settings, serve};

struct Answer {
    out: String,
    err: String,
    code: i32,
}

async fn run(words: &[&str], input: &str, environment: &[(&str, &str)]) -> Answer {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-tradewind"))
        .args(words)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that reads nothing is gone before all is written.
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.ok();
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code().unwrap_or(-1) }
}

async fn ask(words: &str) -> Answer {
    run(&words.split_whitespace().collect::<Vec<_>>(), "", &[]).await
}

const SAMPLE: &str = "deploy/samples/lora-sd-scripts.yaml";
const OFFERS: &str = "crates/kubectl-tradewind/tests/offers/market.json";

#[tokio::test]
async fn a_plan_needs_no_cluster() {
    let answer = ask(&format!("plan -f {SAMPLE} --offers {OFFERS}")).await;
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert!(answer.out.starts_with("portrait-lora  Rent\n1xRTX"), "{}", answer.out);
    let json = ask(&format!("plan -f {SAMPLE} -f deploy/samples/gang.yaml --offers {OFFERS} -o json")).await;
    let view: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(view["plans"][0]["decision"], "Rent");
    assert_eq!(view["plans"][1]["decision"], "InCluster");
    let yaml = ask(&format!("plan -f {SAMPLE} --offers {OFFERS} -o yaml")).await;
    assert!(yaml.out.starts_with("plans:\n"), "{}", yaml.out);
}

#[tokio::test]
async fn manifests_come_from_standard_input_with_anything_beside_them() {
    let job = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(SAMPLE)).unwrap();
    let both = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s3}}\n---\n{job}\n---\n{}",
        job.replace("portrait-lora", "second")
    );
    let answer = run(&["plan", "-f", "-", "--offers", OFFERS], &both, &[]).await;
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(
        answer.out.contains("\nsecond  Rent\n") && answer.out.ends_with("Passed over: Secret s3\n"),
        "{}",
        answer.out
    );
    let twice = run(&["plan", "-f", "-", "--offers", "-"], &both, &[]).await;
    assert!(twice.code == 2 && twice.err.contains("can be read once"), "{}", twice.err);
    let wrong = run(&["plan", "-f", "-", "--offers", OFFERS], &job.replace("gpu:", "gpus:"), &[]).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (2, ""));
    assert!(wrong.err.contains("spec.gpus: there is no such field; did you mean gpu?"), "{}", wrong.err);
}

#[tokio::test]
async fn without_offers_both_ways_to_them_are_named() {
    for words in [format!("plan -f {SAMPLE}"), "offers --gpu RTX4090".to_owned()] {
        let answer = ask(&words).await;
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words}");
        for part in ["--offers offers.json", "--provider vast", "VAST_API_KEY"] {
            assert!(answer.err.contains(part), "{part}: {}", answer.err);
        }
    }
    let gone = ask("offers --offers nowhere.json").await;
    assert!(gone.code == 2 && gone.err.contains("nowhere.json cannot be read"), "{}", gone.err);
}

#[tokio::test]
async fn hostile_offers_are_left_out_or_refused_and_never_a_panic() {
    let good = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/offers/market.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&good).unwrap();
    let row = |patch: Value| {
        let mut row = rows[0].clone();
        row.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        row
    };
    let huge = row(
        json!({ "pricePerHour": "9223372036854.775807", "memoryMib": u64::MAX, "cpuMillis": u64::MAX, "diskGib": u64::MAX }),
    );
    let texts = [
        // What cannot be read at all has no answer.
        (good[..good.len() / 2].to_owned(), 2, "is cut off"),
        ("[".repeat(20_000), 2, "is no JSON"),
        ("{\"offers\": 7}".to_owned(), 2, "no list of offers"),
        ("\u{0}\u{1}".to_owned(), 2, "neither JSON nor a CSV"),
        (String::new(), 2, "is empty"),
        // What has no good row has an answer, and it is bad.
        ("[]".to_owned(), 1, "None of 0 offers fits."),
        (json!([row(json!({ "pricePerHour": "-0.10" }))]).to_string(), 1, "1 is at a price below $0.001"),
        (json!([huge]).to_string(), 1, "1 is at a price below $0.001 or above $1000.00 per"),
        (
            json!([row(json!({ "diskGib": u64::MAX }))]).to_string(),
            1,
            "1 is described with figures that no machine has",
        ),
        (good.replace("\"0.22\"", "NaN").replace("\"0.40\"", "-Infinity"), 0, "are unreadable (pricePerHour)"),
        (good.replace("24564", "1e400"), 2, "is no JSON"),
        (good.replace("24564", "-24564"), 0, "unreadable (gpuMemoryMib)"),
        (
            "cloud,gpu,gpu_count,price\nx,RTX4090,1,inf\nx,RTX4090,-1,1\nx,RTX4090,1e400,1\n\"x".to_owned(),
            1,
            "4 offers do not fit",
        ),
    ];
    for (text, code, part) in texts {
        let shown: String = text.chars().take(60).collect();
        let answer = run(&["offers", "--offers", "-", "-o", "wide"], &text, &[]).await;
        assert_eq!(answer.code, code, "{shown}: {}{}", answer.out, answer.err);
        assert!(answer.out.contains(part) || answer.err.contains(part), "{shown}: {}{}", answer.out, answer.err);
        let plan = run(&["plan", "-f", SAMPLE, "--offers", "-"], &text, &[]).await;
        assert!((0..=2).contains(&plan.code) && !plan.err.contains("panicked"), "{shown}: {}", plan.err);
    }
}

/// Serves the market of the demo until the test is over, and gives the addresses of its accounts.
async fn simulator(directory: &Path) -> Value {
    let settings = Settings {
        market: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo/market.json"),
        seed: 0,
        listen: "127.0.0.1:0".parse().unwrap(),
        state: Some(directory.to_owned()),
        time_scale: 1.0,
        faults: None,
        shim: "/nonexistent".into(),
        path: "/usr/bin:/bin".into(),
    };
    let (told, line) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let ended = serve(settings, |line| {
            told.send(line.to_owned()).ok();
        });
        ended.await.ok();
    });
    serde_json::from_str::<Value>(&line.await.unwrap()).unwrap()["providers"].take()
}

#[tokio::test]
async fn a_simulated_market_is_asked_as_the_real_one() {
    let directory = tempfile::tempdir().unwrap();
    let accounts = simulator(directory.path()).await;
    let text = |account: &str, field: &str| accounts[account][field].as_str().unwrap().to_owned();
    let (vast, runpod) = (format!("vast={}", text("vast", "url")), format!("runpod={}", text("runpod", "url")));
    let keys = (text("vast", "apiKey"), text("runpod", "apiKey"));
    let keys = [("VAST_API_KEY", keys.0.as_str()), ("RUNPOD_API_KEY", keys.1.as_str())];

    let words = [
        "offers",
        "--gpu",
        "RTX4090",
        "--min-memory",
        "24Gi",
        "--provider",
        &vast,
        "--provider",
        &runpod,
        "-o",
        "json",
    ];
    let answer = run(&words, "", &keys).await;
    assert_eq!(answer.code, 0, "{}", answer.err);
    let view: Value = serde_json::from_str(&answer.out).unwrap();
    let offers = view["offers"].as_array().unwrap();
    let of = |name: &str| offers.iter().filter(|offer| offer["provider"] == name).count();
    assert!(of("vast") >= 5 && of("runpod") >= 1, "{}", answer.out);
    let prices: Vec<f64> =
        offers.iter().map(|offer| offer["pricePerHour"].as_str().unwrap().parse().unwrap()).collect();
    assert!(prices.is_sorted(), "{prices:?}");

    let plan = run(&["plan", "-f", SAMPLE, "--provider", &vast], "", &keys).await;
    assert_eq!(plan.code, 0, "{}", plan.err);
    assert!(plan.out.contains(" of vast (") && plan.out.contains("EXPECTED COST"), "{}", plan.out);

    let wrong = run(&["offers", "--provider", &vast], "", &[("VAST_API_KEY", "a-wrong-key")]).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (2, ""));
    assert!(wrong.err.contains("VAST_API_KEY") && !wrong.err.contains("a-wrong-key"), "{}", wrong.err);
    let without = run(&["offers", "--provider", &runpod], "", &[]).await;
    assert!(without.code == 2 && without.err.contains("RUNPOD_API_KEY"), "{}", without.err);
    let nobody = run(&["offers", "--provider", "vast=http://127.0.0.1:9"], "", &keys).await;
    assert!(nobody.code == 2 && nobody.err.contains("vast cannot be reached"), "{}", nobody.err);
}
