use serde_json::{Value, json};

use super::{API_KEY, fixture, vast};
use crate::http::scripted::{Act, Seen, Server, ok};
use crate::{GpuProvider, Machine, ProviderError, ProviderResult};

fn answer(status: u16, body: &Value) -> Act {
    Act::Answer(status, "", body.to_string().into_bytes())
}

async fn describe(act: Act) -> ProviderResult<Option<Machine>> {
    let server = Server::new(vec![act]).await;
    vast(&server).describe("312").await
}

async fn list(pages: Vec<Act>) -> ProviderResult<Vec<Machine>> {
    let server = Server::new(pages).await;
    vast(&server).list_owned().await
}

#[tokio::test]
async fn gone_is_only_what_the_market_says_is_gone() {
    let example = &fixture("instances")["instances"][0];
    assert!(describe(ok(json!({"instances": example}).to_string())).await.unwrap().is_some());
    for gone in [
        ok(r#"{"instances": null}"#),
        answer(404, &json!({"success": false, "error": "no_such_instance", "msg": "Instance not found"})),
    ] {
        assert_eq!(describe(gone).await.unwrap(), None);
    }
    for (what, act) in [
        ("bad key, 404", answer(404, &json!({"error": "not_found", "msg": "Invalid user key"}))),
        ("bad key, 401", answer(401, &json!({}))),
        ("bad key, 403", answer(403, &json!({"error": "auth_error"}))),
        ("expired", answer(404, &json!({"msg": "Session expired. Please log in again."}))),
    ] {
        let error = describe(act).await.unwrap_err();
        assert!(matches!(error, ProviderError::Unauthorised { .. }), "{what}: {error:?}");
    }
    let cases = [
        ("no field", ok("{}")),
        ("a list", ok(r#"{"instances": []}"#)),
        (
            "another id",
            ok(json!({"instances": fixture("instances")["instances"][0]}).to_string().replace("312", "313")),
        ),
        ("no id", ok(r#"{"instances": {}}"#)),
        ("null", ok("null")),
        ("nothing", ok("")),
        ("a proxy's 404", Act::Answer(404, "", b"<html>not found</html>".to_vec())),
        ("a 404 without words", answer(404, &json!({}))),
        ("success false", ok(r#"{"success": false, "error": "strange", "instances": null}"#)),
        ("204", Act::Answer(204, "", vec![])),
        ("503", Act::Answer(503, "", vec![])),
        ("cut", Act::Cut(br#"{"instances": null}"#.to_vec())),
        ("closed", Act::Close),
        ("silent", Act::Hang),
        ("endless", Act::Flood),
        ("deep", ok(format!("{{\"instances\": {}", "[".repeat(1_000_000)))),
        ("50 MB", ok(vec![b' '; 50 << 20])),
    ]
    .map(|(what, act)| async move {
        let found = describe(act).await;
        assert!(found.is_err(), "{what}: {found:?}");
        assert!(!format!("{found:?}").contains(API_KEY), "{what}");
    });
    futures::future::join_all(cases).await;
    let server = Server::new(vec![ok("{}")]).await;
    for id in ["", "../users/current", "1?x=", "1 ", "-1", "+1", "99999999999999999999999"] {
        assert!(vast(&server).describe(id).await.is_err(), "{id:?}");
        assert!(vast(&server).terminate(id).await.is_err(), "{id:?}");
        assert!(vast(&server).logs(id, 1).await.is_err(), "{id:?}");
    }
    assert!(server.seen().is_empty(), "{:?}", server.seen());
}

fn page(ids: &[u64], next: Option<&str>, total: u64) -> Act {
    let rows: Vec<Value> = ids.iter().map(|id| json!({"id": id, "actual_status": "running", "label": "x"})).collect();
    ok(json!({"success": true, "instances": rows, "next_token": next, "total_instances": total}).to_string())
}

#[tokio::test]
async fn a_list_is_whole_or_an_error() {
    let server = Server::new(vec![page(&[1, 2], Some("a b&c="), 3), page(&[3], None, 3)]).await;
    let ids: Vec<String> = vast(&server).list_owned().await.unwrap().into_iter().map(|m| m.id).collect();
    assert_eq!(ids, ["1", "2", "3"]);
    let targets: Vec<String> = server.seen().into_iter().map(|seen: Seen| seen.target).collect();
    assert_eq!(targets[1], format!("{}&after_token=a+b%26c%3D", targets[0]));
    assert_eq!(list(vec![ok(r#"{"instances": null, "total_instances": 0}"#)]).await.unwrap(), []);
    assert_eq!(list(vec![ok(fixture("instances").to_string())]).await.unwrap().len(), 1);
    assert_eq!(
        list(vec![page(&[1], Some("a"), 1), page(&[1], None, 1)]).await.unwrap().len(),
        1,
        "one machine on two pages is one"
    );
    for (what, pages) in [
        ("second page fails", vec![page(&[1], Some("a"), 2), answer(400, &json!({"error": "invalid_token"}))]),
        ("second page cut", vec![page(&[1], Some("a"), 2), Act::Cut(vec![b'{'])]),
        ("pages in a circle", vec![page(&[1], Some("a"), 1), page(&[2], Some("a"), 1)]),
        ("fewer than their total", vec![page(&[1], None, 2)]),
        ("null, but a total", vec![ok(r#"{"instances": null, "total_instances": 3}"#)]),
        ("no field", vec![ok(r#"{"success": true}"#)]),
        ("wrong type", vec![ok(r#"{"instances": {"id": 1}}"#)]),
        ("a row without id", vec![ok(r#"{"instances": [{"label": "x"}]}"#)]),
        ("a row that is none", vec![ok(r#"{"instances": [null]}"#)]),
        ("success false", vec![ok(r#"{"success": false, "instances": []}"#)]),
        ("bad key", vec![answer(404, &json!({"msg": "Invalid user key"}))]),
    ] {
        let found = list(pages).await;
        assert!(found.is_err(), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn pages_without_end_end() {
    let server = Server::by(|_, n| page(&[n as u64], Some(&n.to_string()), 1)).await;
    let error = vast(&server).list_owned().await.unwrap_err();
    assert!(error.to_string().contains("too many pages"), "{error}");
    assert_eq!(server.seen().len(), 400);
}

#[tokio::test]
async fn ending_what_is_gone_is_fine_and_a_bad_key_is_not() {
    for (what, act) in [
        ("done", ok(r#"{"success": true}"#)),
        ("gone, 404", answer(404, &json!({"success": false, "error": "not_found", "msg": "Instance not found"}))),
        ("gone, 404, old word", answer(404, &json!({"success": false, "error": "no_such_instance"}))),
        ("gone, 200", ok(r#"{"success": false, "error": "no_such_instance"}"#)),
    ] {
        let server = Server::new(vec![act]).await;
        vast(&server).terminate("5").await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let seen = &server.seen()[0];
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str(), &*seen.body),
            ("DELETE", "/api/v0/instances/5/", &b"{}"[..])
        );
    }
    let cases = [
        ("bad key as 404", answer(404, &json!({"error": "not_found", "msg": "Invalid user key"}))),
        ("a proxy's 404", Act::Answer(404, "", b"not found".to_vec())),
        ("no", ok(r#"{"success": false, "error": "locked"}"#)),
        ("no word", ok("{}")),
        ("not JSON", ok("OK")),
        ("500", Act::Answer(500, "", vec![])),
        ("closed", Act::Close),
    ]
    .map(|(what, act)| async move {
        let server = Server::new(vec![act]).await;
        assert!(vast(&server).terminate("5").await.is_err(), "{what}");
    });
    futures::future::join_all(cases).await;
    let server = Server::new(vec![Act::Close, Act::Answer(502, "", vec![]), ok(r#"{"success": true}"#)]).await;
    vast(&server).terminate("5").await.expect("ending may be repeated");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn the_account_has_an_id_and_perhaps_a_credit() {
    for (body, id, credit) in [
        (r#"{"id": 99, "credit": 12.5, "api_key": "x"}"#, "99", Some("12.50")),
        (r#"{"id": 99, "credit": -0.25}"#, "99", Some("-0.25")),
        (r#"{"id": 99, "credit": null}"#, "99", None),
        (r#"{"id": "99"}"#, "99", None),
    ] {
        let server = Server::new(vec![ok(body)]).await;
        let account = vast(&server).account().await.unwrap();
        assert_eq!(
            (account.id.as_deref(), account.credit.map(|c| c.to_string()).as_deref()),
            (Some(id), credit),
            "{body}"
        );
    }
    for bad in ["{}", r#"{"id": null}"#, "[]", r#"{"id": {}}"#] {
        let server = Server::new(vec![ok(bad)]).await;
        assert!(matches!(vast(&server).account().await, Err(ProviderError::Malformed { .. })), "{bad}");
    }
}

#[tokio::test]
async fn logs_are_fetched_without_the_key_once_they_are_there() {
    let server = Server::by(|request, n| match (request.method.as_str(), n) {
        ("PUT", _) => {
            ok(json!({"success": true, "result_url": format!("http://{}/file?sig=1", request.header("host").unwrap())})
                .to_string())
        }
        (_, 1) => Act::Answer(404, "", vec![]),
        (_, 2) => Act::Answer(403, "", vec![]),
        _ => ok("one\ntwo\nthree\n"),
    })
    .await;
    assert_eq!(vast(&server).logs("5", 2).await.unwrap().as_deref(), Some("two\nthree"));
    let seen = server.seen();
    assert_eq!((seen[0].target.as_str(), seen[0].json()), ("/api/v0/instances/request_logs/5/", json!({"tail": "2"})));
    assert!(seen[1..].iter().all(|s| s.header("authorization").is_none() && s.target == "/file?sig=1"), "{seen:?}");
}

#[tokio::test]
async fn logs_come_from_the_market_and_from_nobody_else() {
    let inside = Server::new(vec![ok("secret of the cluster")]).await;
    let server = Server::new(vec![ok(
        json!({"success": true, "result_url": format!("{}secret?X-Sig=abc", inside.url)}).to_string(),
    )])
    .await;
    let error = vast(&server).logs("5", 2).await.unwrap_err();
    assert!(matches!(error, ProviderError::Malformed { .. }) && !error.to_string().contains("X-Sig"), "{error}");
    assert!(inside.seen().is_empty());
    let vast = vast(&server);
    for (url, allowed) in [
        ("https://s3.amazonaws.com/vast.ai/instance_logs/1.log", true),
        ("https://vast-logs.s3.us-east-1.amazonaws.com/1.log?X-Amz-Signature=1", true),
        ("https://logs.vast.ai/1.log", true),
        ("http://s3.amazonaws.com/1.log", false),
        ("https://s3.amazonaws.com:8443/1.log", false),
        ("https://s3.amazonaws.com.evil.example/1.log", false),
        ("https://evil.example/s3.amazonaws.com", false),
        ("https://metadata.us-east-1.compute.amazonaws.com/1.log", false),
        ("https://notvast.ai/1.log", false),
        ("http://169.254.169.254/latest/meta-data", false),
        ("file:///etc/passwd", false),
    ] {
        assert_eq!(vast.may_fetch(&url.parse().unwrap()), allowed, "{url}");
    }
    let server = Server::new(vec![answer(404, &json!({"error": "invalid_id", "msg": "Invalid instance id."}))]).await;
    assert_eq!(super::vast(&server).logs("5", 2).await.unwrap(), None);
}

#[tokio::test]
async fn charges_are_summed_by_machine_over_all_pages() {
    let row = |source: &str, amount: Value| json!({"start": 1, "end": 2, "type": "instance", "source": source, "amount": amount, "items": []});
    let page = |rows: &[Value], next: Option<&str>| {
        ok(json!({"success": true, "results": rows, "next_token": next}).to_string())
    };
    let first = [row("instance-7", json!(0.1)), row("volume-7", json!(5)), row("instance-8", json!(1))];
    let server = Server::new(vec![page(&first, Some("t")), page(&[row("instance-7", json!(0.2))], None)]).await;
    let charges = vast(&server).charges("2026-11-21T12:00:00Z".parse().unwrap()).await.unwrap().unwrap();
    let found: Vec<(&str, String)> = charges.iter().map(|c| (c.id.as_str(), c.amount.to_string())).collect();
    assert_eq!(found, [("7", "0.30".to_owned()), ("8", "1.00".to_owned())]);
    let seen = server.seen();
    let target: reqwest::Url = format!("http://x{}", seen[1].target).parse().unwrap();
    let query: std::collections::BTreeMap<String, String> = target.query_pairs().into_owned().collect();
    assert_eq!((target.path(), &*query["limit"], &*query["after_token"]), ("/api/v0/charges/", "500", "t"));
    let filters: Value = serde_json::from_str(&query["select_filters"]).unwrap();
    assert_eq!((&filters["day"]["gte"], &filters["type"]), (&json!(1_795_262_400), &json!({"in": ["instance"]})));
    for (what, pages) in [
        ("second page fails", vec![page(&first, Some("t")), answer(400, &json!({"error": "invalid_token"}))]),
        ("pages in a circle", vec![page(&first, Some("t"))]),
        ("no amount", vec![page(&[row("instance-7", json!(null))], None)]),
        ("no rows", vec![ok(r#"{"success": true}"#)]),
        ("may not see bills", vec![answer(403, &json!({"error": "auth_error"}))]),
    ] {
        let server = Server::new(pages).await;
        let found = vast(&server).charges("2026-11-21T12:00:00Z".parse().unwrap()).await;
        assert!(found.is_err(), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn a_machine_can_end_itself_with_its_own_key() {
    let server = Server::new(vec![ok("{}")]).await;
    let end = vast(&server).self_end("312").unwrap();
    assert_eq!((end.method.as_str(), end.bearer_env.as_str()), ("DELETE", "CONTAINER_API_KEY"));
    assert_eq!(end.url, format!("{}api/v0/instances/312/", server.url));
    assert_eq!(vast(&server).self_end("../users"), None);
    assert!(server.seen().is_empty());
}
