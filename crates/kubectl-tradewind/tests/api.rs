//! The real plug-in against an API server that answers as a test wants.
#![expect(clippy::unwrap_used, reason = "what cannot be had fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::get;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::process::Command;

const JOBS: &str = "/apis/tradewind.dev/v1alpha1/namespaces/team-a/trainingjobs";

struct Answer {
    out: String,
    err: String,
    code: i32,
}

/// Serves and runs the plug-in once.
async fn ask(router: Router, arguments: &str) -> Answer {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let answer = ask_at(&url, arguments).await;
    server.abort();
    answer
}

async fn ask_at(url: &str, arguments: &str) -> Answer {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("config");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": url } }], "users": [{ "name": "c", "user": {} }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c", "namespace": "team-a" } }],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-tradewind"))
        .args(arguments.split_whitespace())
        .env_clear()
        .env("KUBECONFIG", &kubeconfig)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code().unwrap_or(-1) }
}

fn refusal(code: u16, reason: &str, message: &str) -> (StatusCode, axum::Json<Value>) {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message });
    (StatusCode::from_u16(code).unwrap(), axum::Json(status))
}

fn job() -> Value {
    json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": { "name": "llm", "namespace": "team-a", "uid": "u" },
        "spec": { "workers": 2, "template": {} }, "status": { "attempt": 1 },
    })
}

fn pod(attempt: i64, rank: i64) -> Value {
    json!({
        "metadata": { "name": format!("llm-{attempt}-{rank}"), "labels": { "tradewind.dev/attempt": attempt.to_string(), "tradewind.dev/rank": rank.to_string() } },
        "spec": { "containers": [{ "name": "train" }, { "name": "beside" }] },
    })
}

/// A job with two workers whose second attempt runs; the first call for a log is refused as long as the container waits.
fn with_logs() -> (Router, Arc<AtomicUsize>) {
    let pods =
        json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod(0, 0), pod(1, 0), pod(1, 1)] });
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let log = get(move |Path(name): Path<String>, Query(query): Query<HashMap<String, String>>| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            if name == "llm-0-0" && call == 0 {
                let message = "container \"train\" in pod \"llm-0-0\" is waiting to start: PodInitializing";
                return refusal(400, "BadRequest", message).into_response();
            }
            let mut asked: Vec<String> = query.iter().map(|(k, v)| format!("{k}={v}")).collect();
            asked.sort();
            format!("{name} says hello\nasked for {}\n", asked.join(" ")).into_response()
        }
    });
    let router = Router::new()
        .route(&format!("{JOBS}/llm"), get(|| async { axum::Json(job()) }))
        .route("/api/v1/namespaces/team-a/pods", get(move || async move { axum::Json(pods) }))
        .route("/api/v1/namespaces/team-a/pods/{name}/log", log);
    (router, calls)
}

#[tokio::test]
async fn logs_are_those_of_the_newest_attempt_and_its_first_worker() {
    let answer = ask(with_logs().0, "logs llm --tail 5 --since 2m --timestamps").await;
    assert_eq!(answer.code, 0, "{}", answer.err);
    let asked = "container=train sinceSeconds=120 tailLines=5 timestamps=true";
    assert_eq!(answer.out, format!("llm-1-0 says hello\nasked for {asked}\n"));
    assert!(answer.err.contains("2 workers, this is rank 0"), "{}", answer.err);
}

#[tokio::test]
async fn lines_of_all_workers_have_their_rank_before_them() {
    let answer = ask(with_logs().0, "logs llm --all-ranks").await;
    let mut lines: Vec<&str> = answer.out.lines().collect();
    lines.sort_unstable();
    let asked = "asked for container=train";
    assert_eq!(
        lines,
        [
            format!("[0] {asked}"),
            "[0] llm-1-0 says hello".into(),
            format!("[1] {asked}"),
            "[1] llm-1-1 says hello".into()
        ]
    );
    let json = ask(with_logs().0, "logs llm --rank 1 -o json").await;
    let first: Value = serde_json::from_str(json.out.lines().next().unwrap()).unwrap();
    assert_eq!(first, json!({ "pod": "llm-1-1", "attempt": 1, "rank": 1, "line": "llm-1-1 says hello" }));
}

#[tokio::test]
async fn a_program_that_has_not_started_is_waited_for_only_by_who_follows() {
    let (router, calls) = with_logs();
    let answer = ask(router, "logs llm --attempt 0").await;
    assert_eq!((answer.code, answer.out.as_str(), calls.load(Ordering::Relaxed)), (1, "", 1));
    assert!(
        answer.err.contains("the program has not started") && answer.err.contains("PodInitializing"),
        "{}",
        answer.err
    );
    let (router, calls) = with_logs();
    let answer = ask(router, "logs llm --attempt 0 -f").await;
    assert_eq!((answer.code, calls.load(Ordering::Relaxed)), (0, 2));
    assert_eq!(answer.out, "llm-0-0 says hello\nasked for container=train follow=true\n");
}

#[tokio::test]
async fn what_keeps_it_from_an_answer_is_one_sentence_and_code_2() {
    let (_, dead) = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    };
    let answer = ask_at(&dead, "status llm").await;
    assert_eq!((answer.code, answer.out.as_str()), (2, ""));
    assert!(
        answer.err.starts_with("error: the API server cannot be reached: ") && answer.err.contains("refused"),
        "{}",
        answer.err
    );

    let bare =
        ask(Router::new().fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") }), "status llm").await;
    assert_eq!(bare.code, 2);
    assert!(bare.err.contains("does not know TrainingJobs: Tradewind is not installed"), "{}", bare.err);

    let message = "trainingjobs.tradewind.dev is forbidden: User \"eve\" cannot list resource \"trainingjobs\"";
    let closed = Router::new().fallback(move || async move { refusal(403, "Forbidden", message) });
    let answer = ask(closed, "cost").await;
    assert_eq!((answer.code, answer.err), (2, format!("error: the API server refuses: {message}\n")));

    let away = Router::new().fallback(|| async { refusal(401, "Unauthorized", "Unauthorized") });
    let answer = ask(away, "doctor").await;
    assert!(answer.code == 2 && answer.err.contains("log in again"), "{}", answer.err);
}

#[tokio::test]
async fn a_user_who_may_read_only_jobs_still_sees_the_job() {
    let router = Router::new()
        .route(&format!("{JOBS}/llm"), get(|| async { axum::Json(job()) }))
        .fallback(|| async { refusal(403, "Forbidden", "no") });
    let answer = ask(router, "status llm").await;
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(
        answer.out.starts_with("llm  Pending  (namespace team-a, attempt 1)") && !answer.out.contains("Events"),
        "{}",
        answer.out
    );
}
