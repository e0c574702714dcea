use serde_json::json;
use tradewind_core::Money;

use super::{API_KEY, LATER, SIGNED, pod, request, runpod};
use crate::http::scripted::{Act, Server};
use crate::http::{Answer, Redactor};
use crate::runpod::convert::Cloud;
use crate::runpod::error::rent_outcome;
use crate::{GpuProvider, Refusal, RentOutcome, RentRequest};

fn outcome(status: u16, body: &str) -> RentOutcome {
    let answer = Answer { status, retry_after: None, body: body.as_bytes().to_vec() };
    rent_outcome(&answer, Money::from_micros(700_000), &Redactor::default())
}

#[test]
fn statuses_and_words_as_the_table_says() {
    use Refusal::{Invalid, OutOfCredit, OutOfStock, RateLimited, Unauthorised, Unreachable};
    for (status, detail, why) in [
        (
            400,
            "There are no longer any instances available with the requested specifications. Please refresh and try again.",
            OutOfStock,
        ),
        (400, "There are no instances currently available", OutOfStock),
        (400, "create pod: There are no instances available with the request specifications.", OutOfStock),
        (400, "could not find any pods with required specifications", OutOfStock),
        (
            400,
            "This machine does not have the resources to deploy your pod. Please try a different machine.",
            OutOfStock,
        ),
        (400, "There are not enough free GPUs on the host machine to start this pod.", OutOfStock),
        (400, "allowedCudaVersions and minCudaVersion are mutually exclusive", Invalid),
        (400, "Insufficient balance to deploy this pod. You need at least $0.50", OutOfCredit),
        (402, "payment required", OutOfCredit),
        (401, "missing bearer token", Unauthorised),
        (403, "access denied", OutOfStock),
        (403, "this API key may only read", Unauthorised),
        (404, "template not found", Invalid),
        (405, "The requested method is not allowed for this path.", Invalid),
        (409, "conflict", Invalid),
        (410, "this API version has been retired", Unreachable),
        (413, "body too large", Invalid),
        (422, "Request validation failed.", Invalid),
        (429, "rate limit exceeded for the minute window", RateLimited),
    ] {
        let body = json!({"title": "T", "status": status, "detail": detail, "errors": ["$.x: wrong"]}).to_string();
        let RentOutcome::Refused { why: got, message, leftover: None } = outcome(status, &body) else {
            panic!("{status} {detail}: {:?}", outcome(status, &body));
        };
        assert_eq!(got, why, "{status} {detail}");
        if status == 410 {
            assert!(message.contains("retired this API"), "{message}");
        } else {
            assert!(
                message.starts_with(&detail.chars().take(60).collect::<String>()) && message.ends_with("$.x: wrong"),
                "{message}"
            );
        }
    }
    for (status, why) in
        [(401, Unauthorised), (402, OutOfCredit), (410, Unreachable), (413, Invalid), (429, RateLimited)]
    {
        let found = outcome(status, "<html>");
        assert!(matches!(&found, RentOutcome::Refused { why: got, leftover: None, .. } if *got == why), "{found:?}");
    }
}

#[test]
fn what_nobody_understood_is_unknown() {
    for (status, body) in [
        (201, "{}"),
        (201, r#"{"id": null}"#),
        (201, r#"{"id": "../pods"}"#),
        (201, r#"{"id": 12}"#),
        (201, r#"{"id": "abc""#),
        (201, "[]"),
        (201, ""),
        (202, "{}"),
        (204, ""),
        (302, ""),
        (400, "<html>bad request</html>"),
        (400, "{}"),
        (403, "<html>blocked</html>"),
        (404, "not here"),
        (408, r#"{"detail": "timeout"}"#),
        (422, ""),
        (
            500,
            r#"{"title": "Internal Server Error", "status": 500, "detail": "There are no instances currently available"}"#,
        ),
        (502, "bad gateway"),
        (504, ""),
    ] {
        let found = outcome(status, body);
        assert!(matches!(found, RentOutcome::Unknown { .. }), "{status} {body}: {found:?}");
    }
}

#[test]
fn success_is_an_id_and_a_price_that_was_offered() {
    let rented = RentOutcome::Rented { id: "abc123def456gh".to_owned() };
    for (status, cost) in
        [(201, json!(0.69)), (200, json!(0.7)), (201, json!(0.0)), (201, json!(null)), (201, json!("dear"))]
    {
        let body = json!({"id": "abc123def456gh", "cost": cost}).to_string();
        assert_eq!(outcome(status, &body), rented, "{status} {body}");
    }
    let RentOutcome::Refused { why, leftover, message } = outcome(201, r#"{"id": "abc123def456gh", "cost": 0.71}"#)
    else {
        panic!("a pod that costs more than its cap is not taken")
    };
    assert_eq!((why, leftover.as_deref()), (Refusal::PriceRose, Some("abc123def456gh")));
    assert!(message.contains("$0.71"), "{message}");
}

fn created() -> Act {
    Act::Answer(201, "", pod("abc123def456gh").to_string().into_bytes())
}

#[tokio::test]
async fn a_rental_is_sent_as_the_documents_say() {
    let server = Server::new(vec![created()]).await;
    let runpod = runpod(&server);
    let secure = request(Cloud::Secure);
    assert_eq!(runpod.rent(&secure, LATER).await, RentOutcome::Rented { id: "abc123def456gh".to_owned() });
    let mut anywhere = request(Cloud::Community);
    anywhere.offer.id = anywhere.offer.id.replace("EU-RO-1", "*");
    runpod.rent(&anywhere, LATER).await;
    let seen = server.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("POST", "/v2/pods"));
    assert_eq!(seen[0].header("authorization"), Some(&*format!("Bearer {API_KEY}")));
    let key = secure.key.to_string();
    assert_eq!(
        seen[0].json(),
        json!({
            "name": key, "image": "busybox", "cloud": "SECURE", "dataCenterIds": ["EU-RO-1"], "disk": 22,
            "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 2, "minRamPerGpu": 24, "minVcpuCountPerGpu": 4},
            "env": {"TRADEWIND_CONTROL_URL": SIGNED, "TRADEWIND_ORDER": key},
            "entrypoint": ["/bin/sh"], "cmd": ["-c", secure.bootstrap],
        })
    );
    let sent = seen[1].json();
    assert_eq!((&sent["cloud"], sent.get("dataCenterIds")), (&json!("COMMUNITY"), None));
}

#[tokio::test]
async fn what_the_market_would_refuse_is_not_sent() {
    type Spoil = fn(&mut RentRequest, usize);
    let server = Server::new(vec![created()]).await;
    let runpod = runpod(&server);
    let most = runpod.capabilities().max_command_chars;
    let spoil: [(&str, Spoil, Refusal); 9] = [
        ("command", |r, most| r.bootstrap = "x".repeat(most + 1), Refusal::Invalid),
        ("no image", |r, _| r.image = String::new(), Refusal::Invalid),
        ("size", |r, _| drop(r.env.0.insert("A".to_owned(), "x".repeat(102_400))), Refusal::Invalid),
        ("variables", |r, _| r.env.0.extend((0..50).map(|n| (format!("V{n}"), String::new()))), Refusal::Invalid),
        ("variable's name", |r, _| drop(r.env.0.insert("A=B".to_owned(), String::new())), Refusal::Invalid),
        ("offer id", |r, _| r.offer.id = "12345678".to_owned(), Refusal::Invalid),
        ("offer's count", |r, _| r.offer.gpu_count = 1, Refusal::Invalid),
        ("offer's cloud", |r, _| r.offer.id = r.offer.id.replace("SECURE", "COMMUNITY"), Refusal::Invalid),
        ("price", |r, _| r.price_cap = r.price_cap - Money::from_micros(1), Refusal::PriceRose),
    ];
    for (what, spoil, expected) in spoil {
        let mut request = request(Cloud::Secure);
        spoil(&mut request, most);
        let outcome = runpod.rent(&request, LATER).await;
        let refused = matches!(&outcome, RentOutcome::Refused { why, leftover: None, .. } if *why == expected);
        assert!(refused, "{what}: {outcome:?}");
    }
    let mut dear = request(Cloud::Community);
    dear.price_cap = dear.price_cap - Money::from_micros(1);
    let outcome = runpod.rent(&dear, LATER).await;
    assert!(
        matches!(outcome, RentOutcome::Refused { why: Refusal::PriceRose, .. }),
        "a fixed price is no bid: {outcome:?}"
    );
    assert!(server.seen().is_empty());
    let mut longest = request(Cloud::Secure);
    longest.bootstrap = "x".repeat(most);
    runpod.rent(&longest, LATER).await;
    assert_eq!(server.seen().len(), 1, "the longest command that the capabilities promise is sent");
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_the_call_is_not_repeated() {
    let whole = pod("abc123def456gh").to_string();
    for (what, act) in [
        ("closed", Act::Close),
        ("silent", Act::Hang),
        ("cut", Act::Cut(whole.as_bytes()[..whole.len() / 2].to_vec())),
        ("endless", Act::Flood),
        ("502", Act::Answer(502, "", b"bad gateway".to_vec())),
        ("half, and called whole", Act::Answer(201, "", whole.as_bytes()[..whole.len() / 2].to_vec())),
    ] {
        let server = Server::new(vec![act]).await;
        let outcome = runpod(&server).rent(&request(Cloud::Secure), LATER).await;
        assert!(matches!(outcome, RentOutcome::Unknown { .. }), "{what}: {outcome:?}");
        assert_eq!(server.seen().len(), 1, "{what}");
    }
    let server = Server::new(vec![Act::Answer(429, "retry-after: 1\r\n", vec![]), created()]).await;
    let outcome = runpod(&server).rent(&request(Cloud::Secure), LATER).await;
    assert!(matches!(outcome, RentOutcome::Refused { why: Refusal::RateLimited, leftover: None, .. }), "{outcome:?}");
    assert_eq!(server.seen().len(), 1, "who orders again writes a new order first");
}

#[tokio::test]
async fn an_echo_of_our_secrets_stays_out_of_the_message() {
    let echo = json!({"title": "T", "status": 422, "detail": format!("key {API_KEY} env TRADEWIND_CONTROL_URL={SIGNED}"),
        "errors": ["$.env: 'X-Amz-Signature=5ec2e7c0ffee5ec2e7' is wrong"]});
    let server = Server::new(vec![Act::Answer(422, "", echo.to_string().into_bytes())]).await;
    let request = request(Cloud::Secure);
    let text = format!("{:?} {request:?}", runpod(&server).rent(&request, LATER).await);
    assert!(text.contains("Invalid") && text.contains("is wrong"), "{text}");
    assert!(
        !text.contains(API_KEY) && !text.contains("/machines/1/control.json") && !text.contains("5ec2e7"),
        "{text}"
    );
}

#[tokio::test]
async fn too_late_and_unreachable_are_refusals() {
    let server = Server::new(vec![created()]).await;
    let late = runpod(&server);
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let outcome = late.rent(&request(Cloud::Secure), std::time::Duration::ZERO).await;
    assert!(matches!(outcome, RentOutcome::Refused { why: Refusal::RateLimited, leftover: None, .. }), "{outcome:?}");
    assert!(server.seen().is_empty());
    drop(server);
    let outcome = late.rent(&request(Cloud::Secure), LATER).await;
    // The listener may still be closing; once it is, nobody is there.
    let unreachable = matches!(outcome, RentOutcome::Refused { why: Refusal::Unreachable, leftover: None, .. });
    assert!(unreachable || matches!(outcome, RentOutcome::Unknown { .. }), "{outcome:?}");
}
