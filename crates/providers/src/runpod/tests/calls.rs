use serde_json::{Value, json};

use super::{API_KEY, answer, changed, key, pod, problem, runpod};
use crate::http::scripted::{Act, Server, ok};
use crate::{Charge, GpuProvider, Machine, MachineState, ProviderError, ProviderResult};

async fn describe(act: Act) -> ProviderResult<Option<Machine>> {
    let server = Server::new(vec![act]).await;
    runpod(&server).describe("p1").await
}

async fn list(pages: Vec<Act>) -> ProviderResult<Vec<Machine>> {
    let server = Server::new(pages).await;
    runpod(&server).list_owned().await
}

#[tokio::test]
async fn gone_is_only_what_the_market_says_is_gone() {
    assert_eq!(describe(ok(pod("p1").to_string())).await.unwrap().unwrap().state, MachineState::Running);
    for (what, gone) in [
        ("404", problem(404, "pod not found")),
        ("an older 404", answer(404, &json!({"error": "pod not found"}))),
        ("deleted for good", ok(changed(pod("p1"), &json!({"status": "TERMINATED"})).to_string())),
    ] {
        assert_eq!(describe(gone).await.unwrap(), None, "{what}");
    }
    for (what, act) in [("401", problem(401, "missing bearer token")), ("403", problem(403, "access denied"))] {
        let error = describe(act).await.unwrap_err();
        assert!(matches!(error, ProviderError::Unauthorised { .. }), "{what}: {error:?}");
    }
    let retired = describe(problem(410, "gone")).await.unwrap_err();
    assert!(matches!(&retired, ProviderError::Refused { message, .. } if message.contains("retired")), "{retired:?}");
    let cases = [
        ("another id", ok(pod("p2").to_string())),
        ("no id", ok("{}")),
        ("null", ok("null")),
        ("nothing", ok("")),
        ("a proxy's 404", Act::Answer(404, "", b"<html>not found</html>".to_vec())),
        ("a 404 without words", answer(404, &json!({}))),
        ("a 404 that says otherwise", answer(404, &json!({"status": 502, "detail": "upstream"}))),
        ("410 without words", Act::Answer(410, "", vec![])),
        ("204", Act::Answer(204, "", vec![])),
        ("503", Act::Answer(503, "", vec![])),
        ("cut", Act::Cut(br#"{"id": "p1""#.to_vec())),
        ("closed", Act::Close),
        ("silent", Act::Hang),
        ("endless", Act::Flood),
        ("deep", ok(format!("{{\"id\": {}", "[".repeat(1_000_000)))),
    ]
    .map(|(what, act)| async move {
        let found = describe(act).await;
        assert!(found.is_err(), "{what}: {found:?}");
        assert!(!format!("{found:?}").contains(API_KEY), "{what}");
    });
    futures::future::join_all(cases).await;
    let server = Server::new(vec![ok("{}")]).await;
    for id in ["", "../account/ssh-keys", "a?x=", "a ", "a/logs", &"a".repeat(65)] {
        assert!(runpod(&server).describe(id).await.is_err(), "{id:?}");
        assert!(runpod(&server).terminate(id).await.is_err(), "{id:?}");
        assert!(runpod(&server).logs(id, 1).await.is_err(), "{id:?}");
    }
    assert!(server.seen().is_empty(), "{:?}", server.seen());
}

fn page(ids: &[&str], pagination: Value) -> Act {
    let pods: Vec<Value> = ids.iter().map(|id| pod(id)).collect();
    let mut body = json!({"pods": pods, "pagination": pagination});
    if body["pagination"].is_null() {
        body.as_object_mut().unwrap().remove("pagination");
    }
    ok(body.to_string())
}

#[tokio::test]
async fn a_list_is_whole_or_an_error() {
    let more = |cursor: &str| json!({"nextCursor": cursor, "hasNextPage": true});
    let last = json!({"nextCursor": null, "hasNextPage": false});
    let server = Server::new(vec![page(&["a", "b"], more("x y&z=")), page(&["c"], last.clone())]).await;
    let ids: Vec<String> = runpod(&server).list_owned().await.unwrap().into_iter().map(|m| m.id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let targets: Vec<String> = server.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/v2/pods?includeClusterPods=true", "/v2/pods?includeClusterPods=true&cursor=x+y%26z%3D"]);
    for (what, pages, count) in [
        ("none", vec![page(&[], json!(null))], 0),
        ("without pages, as the saved document has it", vec![page(&["a"], json!(null))], 1),
        ("a cursor alone", vec![page(&["a"], json!({"nextCursor": "x"})), page(&["b"], json!({"nextCursor": ""}))], 2),
        ("the end, with a cursor", vec![page(&["a"], json!({"nextCursor": "x", "hasNextPage": false}))], 1),
        ("one pod on two pages", vec![page(&["a"], more("x")), page(&["a"], last.clone())], 1),
        (
            "one that is deleted",
            vec![ok(json!({"pods": [pod("a"), changed(pod("b"), &json!({"status": "TERMINATED"}))]}).to_string())],
            1,
        ),
    ] {
        assert_eq!(list(pages).await.unwrap().len(), count, "{what}");
    }
    for (what, pages) in [
        ("second page fails", vec![page(&["a"], more("x")), problem(422, "invalid cursor")]),
        ("second page cut", vec![page(&["a"], more("x")), Act::Cut(vec![b'{'])]),
        ("second page without list", vec![page(&["a"], more("x")), ok("{}")]),
        ("pages in a circle", vec![page(&["a"], more("x")), page(&["b"], more("x"))]),
        ("a next page without a way", vec![page(&["a"], json!({"hasNextPage": true}))]),
        ("strange pages", vec![page(&["a"], json!("more"))]),
        ("null", vec![ok(r#"{"pods": null}"#)]),
        ("no field", vec![ok("{}")]),
        ("wrong type", vec![ok(r#"{"pods": {"id": "a"}}"#)]),
        ("a row without id", vec![ok(r#"{"pods": [{"name": "x"}]}"#)]),
        ("a row that is none", vec![ok(r#"{"pods": [null]}"#)]),
        ("404", vec![problem(404, "not found")]),
        ("410", vec![problem(410, "gone")]),
        ("bad key", vec![problem(401, "no")]),
    ] {
        let found = list(pages).await;
        assert!(found.is_err(), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn pages_without_end_end() {
    let server = Server::by(|_, n| page(&[&format!("p{n}")], json!({"nextCursor": n.to_string()}))).await;
    let error = runpod(&server).list_owned().await.unwrap_err();
    assert!(error.to_string().contains("too many pages"), "{error}");
    assert_eq!(server.seen().len(), 400);
}

#[tokio::test]
async fn foreign_pods_are_listed_and_not_ours() {
    let ours = changed(pod("a"), &json!({"name": key().to_string()}));
    let found = list(vec![ok(json!({"pods": [ours, pod("b")]}).to_string())]).await.unwrap();
    let keys: Vec<bool> = found.iter().map(|m| m.key == Some(key())).collect();
    assert_eq!(keys, [true, false]);
}

#[tokio::test]
async fn ending_what_is_gone_is_fine_and_a_retired_api_is_not() {
    for (what, act) in [("done", Act::Answer(204, "", vec![])), ("gone", problem(404, "pod not found"))] {
        let server = Server::new(vec![act]).await;
        runpod(&server).terminate("p1").await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let seen = &server.seen()[0];
        assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("DELETE", "/v2/pods/p1", 0));
    }
    let cases = [
        ("bad key", problem(401, "no")),
        ("retired", problem(410, "gone")),
        ("in a cluster", problem(409, "Pod belongs to a cluster")),
        ("a proxy's 404", Act::Answer(404, "", b"not found".to_vec())),
        ("500", Act::Answer(500, "", vec![])),
        ("closed", Act::Close),
    ]
    .map(|(what, act)| async move {
        let server = Server::new(vec![act]).await;
        assert!(runpod(&server).terminate("p1").await.is_err(), "{what}");
    });
    futures::future::join_all(cases).await;
    let server = Server::new(vec![Act::Close, Act::Answer(502, "", vec![]), Act::Answer(204, "", vec![])]).await;
    runpod(&server).terminate("p1").await.expect("ending may be repeated");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn an_account_has_neither_id_nor_credit_and_its_key_is_tried() {
    let server = Server::new(vec![ok(r#"{"keys": []}"#)]).await;
    let account = runpod(&server).account().await.unwrap();
    assert_eq!((account.id, account.credit), (None, None));
    assert_eq!(server.seen()[0].target, "/v2/account/ssh-keys");
    for bad in ["{}", "[]", r#"{"keys": null}"#] {
        let server = Server::new(vec![ok(bad)]).await;
        assert!(matches!(runpod(&server).account().await, Err(ProviderError::Malformed { .. })), "{bad}");
    }
    let server = Server::new(vec![problem(403, "access denied")]).await;
    assert!(matches!(runpod(&server).account().await, Err(ProviderError::Unauthorised { .. })));
    assert_eq!(runpod(&server).self_end("p1"), None);
}

#[tokio::test]
async fn logs_are_the_beginning_of_a_stream() {
    let event =
        |n: u32| format!("id: {n}\ndata: {{\"ts\":\"{n}\",\"source\":\"container\",\"line\":\"line {n}\"}}\n\n");
    let stream: String = (1..=5).map(event).collect();
    let server = Server::new(vec![ok(stream.clone())]).await;
    assert_eq!(runpod(&server).logs("p1", 2).await.unwrap().as_deref(), Some("line 4\nline 5"));
    let seen = &server.seen()[0];
    assert_eq!((seen.target.as_str(), seen.header("accept")), ("/v2/pods/p1/logs?tail=2", Some("text/event-stream")));
    let server = Server::new(vec![Act::Cut(stream.into_bytes())]).await;
    assert_eq!(runpod(&server).logs("p1", 9).await.unwrap().unwrap().lines().count(), 5, "it never ends by itself");
    let server = Server::new(vec![problem(404, "pod not found")]).await;
    assert_eq!(runpod(&server).logs("p1", 9).await.unwrap(), None);
    for act in [problem(400, "no logs"), Act::Close, Act::Hang, problem(401, "no")] {
        let server = Server::new(vec![act]).await;
        assert!(runpod(&server).logs("p1", 9).await.is_err());
    }
}

#[tokio::test]
async fn a_bill_is_summed_by_pod_and_never_half() {
    let row = |pod: &str, amount: Value| {
        json!({"startTime": "2026-11-21T12:00:00Z", "endTime": "2026-11-21T13:00:00Z", "podId": pod, "totalAmount": amount,
        "gpuAmount": 0, "cpuAmount": 0, "diskAmount": 0})
    };
    let bill =
        |rows: Vec<Value>, count: usize| ok(json!({"records": rows, "metadata": {"recordCount": count}}).to_string());
    let rows = vec![row("a", json!(0.1)), row("b", json!(1)), row("a", json!(0.2)), row("b", json!(-0.5))];
    let server = Server::new(vec![bill(rows, 4)]).await;
    let charges = runpod(&server).charges("2026-11-21T12:34:56.789Z".parse().unwrap()).await.unwrap().unwrap();
    let charge = |id: &str, amount: &str| Charge { id: id.to_owned(), amount: amount.parse().unwrap() };
    assert_eq!(charges, [charge("a", "0.30"), charge("b", "0.50")]);
    assert_eq!(server.seen()[0].target, "/v2/billing/pods?startTime=2026-11-21T12%3A34%3A56Z&bucketSize=hour");
    for (what, act) in [
        ("fewer than counted", bill(vec![row("a", json!(1))], 2)),
        ("no amount", bill(vec![row("a", json!(null))], 1)),
        ("no pod", bill(vec![json!({"totalAmount": 1})], 1)),
        ("more pages", ok(json!({"records": [], "pagination": {"nextCursor": "x"}}).to_string())),
        ("no rows", ok("{}")),
        ("bad key", problem(403, "access denied")),
    ] {
        let server = Server::new(vec![act]).await;
        let found = runpod(&server).charges("2026-11-21T12:00:00Z".parse().unwrap()).await;
        assert!(found.is_err(), "{what}: {found:?}");
    }
}
