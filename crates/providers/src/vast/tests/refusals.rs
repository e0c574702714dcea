use serde_json::json;
use tradewind_core::Capacity;

use super::{API_KEY, LATER, SIGNED, request, vast};
use crate::http::scripted::{Act, Server, ok};
use crate::http::{Answer, Redactor};
use crate::vast::error::rent_outcome;
use crate::{GpuProvider, Refusal, RentOutcome};

fn outcome(status: u16, body: &str, spot: bool) -> RentOutcome {
    let answer = Answer { status, retry_after: None, body: body.as_bytes().to_vec() };
    rent_outcome(&answer, spot, &Redactor::default())
}

#[test]
fn words_decide_before_statuses() {
    use Refusal::{Invalid, OutOfCredit, OutOfStock, PriceRose, RateLimited, Unauthorised};
    for (status, error, msg, why) in [
        (400, "invalid_args", "error 404/3603: no_such_ask Instance type by id 1234567 is not available.", OutOfStock),
        (404, "invalid_args", "error 404/3603: no_such_ask Instance type by id 1234567 is not available.", OutOfStock),
        (410, "no_such_ask", "error 410/3907: no_such_ask Instance type 1234567 is no longer available.", OutOfStock),
        (410, "", "", OutOfStock),
        (200, "resources_unavailable", "", OutOfStock),
        (400, "invalid_price", "the bid is below the minimum", PriceRose),
        (400, "insufficient_credit", "Your account lacks credit; see the billing page.", OutOfCredit),
        (402, "payment", "pay", OutOfCredit),
        (400, "spend_rate_limit", "new accounts may spend less", OutOfCredit),
        (429, "", "API requests too frequent endpoint threshold=4.5", RateLimited),
        (400, "rate_limit_exceeded", "", RateLimited),
        (401, "auth_error", "Invalid user key", Unauthorised),
        (403, "auth_error", "Invalid user key", Unauthorised),
        (404, "auth_error", "Invalid user key", Unauthorised),
        (404, "", "Session expired. Please log in again.", Unauthorised),
        (403, "", "Missing route access for PUT /api/v0/asks/", Unauthorised),
        (
            403,
            "invalid_args",
            "error 403/3586: Offer 1234567 is not your own. Hosts can only rent their own machines.",
            Invalid,
        ),
        (400, "invalid_args", "error 400/3467: Invalid args: 'id' is required and must be a valid offer ID", Invalid),
        (400, "no_ssh_key_for_vm", "", Invalid),
        (418, "something_new", "", Invalid),
    ] {
        for leftover in [None, Some(77)] {
            let body = json!({"success": false, "error": error, "msg": msg, "ask_id": 1, "new_contract": leftover})
                .to_string();
            let RentOutcome::Refused { why: got, leftover: left, .. } = outcome(status, &body, false) else {
                panic!("{status} {body}: {:?}", outcome(status, &body, false));
            };
            assert_eq!(left, leftover.map(|id| id.to_string()), "{status} {body}: a machine was made");
            // A machine that was made says more than words that we do not know.
            let known = why != Invalid || leftover.is_none();
            assert_eq!(got, if known { why } else { OutOfStock }, "{status} {body}");
        }
    }
}

#[test]
fn a_machine_made_by_a_losing_bid_is_named() {
    let body = r#"{"success": false, "error": "unheard_of", "new_contract": 31337}"#;
    for status in [200, 400, 410, 500, 503] {
        let RentOutcome::Refused { why, leftover, .. } = outcome(status, body, true) else { panic!("{status}") };
        assert_eq!(
            (why, leftover.as_deref()),
            (if status == 410 { Refusal::OutOfStock } else { Refusal::PriceRose }, Some("31337")),
            "{status}"
        );
    }
}

#[test]
fn what_nobody_understood_is_unknown() {
    for (status, body) in [
        (200, "{}"),
        (200, r#"{"success": true}"#),
        (200, r#"{"success": true, "new_contract": null}"#),
        (200, r#"{"success": true, "new_contract": "../1"}"#),
        (200, r#"{"success": true, "new_contract": -4}"#),
        (200, r#"{"success": true, "new_contract": 4"#),
        (200, "<html>busy</html>"),
        (200, "[]"),
        (200, ""),
        (202, "{}"),
        (302, ""),
        (400, "<html>bad gateway</html>"),
        (403, "<html>blocked</html>"),
        (404, "not here"),
        (404, "{}"),
        (408, r#"{"error": "timeout"}"#),
        (410, ""),
        (500, r#"{"success": false, "error": "internal"}"#),
        (502, "bad gateway"),
        (504, ""),
    ] {
        assert!(
            matches!(outcome(status, body, true), RentOutcome::Unknown { .. }),
            "{status} {body}: {:?}",
            outcome(status, body, true)
        );
    }
}

#[test]
fn success_is_an_id() {
    for body in [
        r#"{"success": true, "new_contract": 42}"#,
        r#"{"new_contract": 42}"#,
        r#"{"success": true, "new_contract": "42", "instance_api_key": "k"}"#,
    ] {
        assert_eq!(outcome(200, body, true), RentOutcome::Rented { id: "42".to_owned() });
    }
}

#[test]
fn turned_away_at_the_door_is_a_refusal_whatever_the_body() {
    let refused = |status, body| match outcome(status, body, false) {
        RentOutcome::Refused { why, leftover: None, .. } => why,
        other => panic!("{status} {body}: {other:?}"),
    };
    assert_eq!(refused(429, "API requests too frequent"), Refusal::RateLimited);
    assert_eq!(refused(429, ""), Refusal::RateLimited);
    assert_eq!(refused(401, "<html>"), Refusal::Unauthorised);
}

#[tokio::test]
async fn a_spot_rental_is_sent_as_the_documents_say() {
    let server = Server::new(vec![ok(r#"{"success": true, "new_contract": 42}"#)]).await;
    let request = request(Capacity::Spot);
    let outcome = vast(&server).rent(&request, LATER).await;
    assert_eq!(outcome, RentOutcome::Rented { id: "42".to_owned() });
    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/api/v0/asks/12345678/"));
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {API_KEY}")));
    assert_eq!(
        seen.json(),
        json!({
            "client_id": "me", "image": "busybox", "disk": 21.48, "label": request.key.to_string(), "runtype": "args",
            "onstart": "/bin/sh", "args": ["-c", request.bootstrap], "env": {"TRADEWIND_CONTROL_URL": SIGNED},
            "cancel_unavail": true, "price": 0.122_223,
        })
    );
}

#[tokio::test]
async fn an_on_demand_rental_names_no_price_and_a_bid_stays_under_its_cap() {
    let server = Server::new(vec![ok(r#"{"success": true, "new_contract": 42}"#)]).await;
    let vast = vast(&server);
    vast.rent(&request(Capacity::OnDemand), LATER).await;
    let mut spot = request(Capacity::Spot);
    spot.price_cap = "0.12".parse().unwrap();
    vast.rent(&spot, LATER).await;
    let sent = server.seen();
    assert_eq!(sent[0].json().get("price"), None, "its mere presence makes it interruptible");
    assert_eq!(sent[1].json()["price"], json!(0.12));
}

#[tokio::test]
async fn what_the_market_would_refuse_is_not_sent() {
    let server = Server::new(vec![ok("{}")]).await;
    let vast = vast(&server);
    let most = vast.capabilities().max_command_chars;
    let good = request(Capacity::OnDemand);
    type Spoil = fn(&mut crate::RentRequest, usize);
    let spoil: [(&str, Spoil, Refusal); 8] = [
        ("command", |r, most| r.bootstrap = "x".repeat(most + 1), Refusal::Invalid),
        ("image", |r, _| r.image = "i".repeat(1025), Refusal::Invalid),
        ("no image", |r, _| r.image = String::new(), Refusal::Invalid),
        ("env", |r, _| drop(r.env.0.insert("A".to_owned(), "x".repeat(32_768))), Refusal::Invalid),
        ("env name", |r, _| drop(r.env.0.insert("-v /:/host".to_owned(), "1".to_owned())), Refusal::Invalid),
        ("offer id", |r, _| r.offer.id = "../users".to_owned(), Refusal::Invalid),
        ("price", |r, _| r.price_cap = r.price_cap - tradewind_core::Money::from_micros(1), Refusal::PriceRose),
        (
            "bid",
            |r, _| {
                r.offer.capacity = Capacity::Spot;
                r.offer.price_per_hour = tradewind_core::Money::from_micros(999);
            },
            Refusal::Invalid,
        ),
    ];
    for (what, spoil, expected) in spoil {
        let mut request = good.clone();
        spoil(&mut request, most);
        let outcome = vast.rent(&request, LATER).await;
        assert!(
            matches!(&outcome, RentOutcome::Refused { why, leftover: None, .. } if *why == expected),
            "{what}: {outcome:?}"
        );
    }
    assert!(server.seen().is_empty());
    let mut longest = good;
    longest.bootstrap = "x".repeat(most);
    vast.rent(&longest, LATER).await;
    assert_eq!(server.seen().len(), 1, "the longest command that the capabilities promise is sent");
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_the_call_is_not_repeated() {
    for (what, act) in [
        ("closed", Act::Close),
        ("silent", Act::Hang),
        ("cut", Act::Cut(br#"{"success": true, "new_contract": 42"#.to_vec())),
        ("endless", Act::Flood),
        ("502", Act::Answer(502, "", b"bad gateway".to_vec())),
    ] {
        let server = Server::new(vec![act]).await;
        let outcome = vast(&server).rent(&request(Capacity::Spot), LATER).await;
        assert!(matches!(outcome, RentOutcome::Unknown { .. }), "{what}: {outcome:?}");
        assert_eq!(server.seen().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn an_echo_of_our_secrets_stays_out_of_the_message() {
    let echo = json!({"success": false, "error": "invalid_args", "msg": format!("key {API_KEY} env TRADEWIND_CONTROL_URL={SIGNED} and 'X-Amz-Signature=5ec2e7c0ffee5ec2e7'")});
    let server = Server::new(vec![Act::Answer(400, "", echo.to_string().into_bytes())]).await;
    let request = request(Capacity::Spot);
    let text = format!("{:?} {request:?}", vast(&server).rent(&request, LATER).await);
    assert!(text.contains("invalid_args"), "{text}");
    assert!(
        !text.contains(API_KEY) && !text.contains("/machines/1/control.json") && !text.contains("5ec2e7"),
        "{text}"
    );
}

#[tokio::test]
async fn too_late_and_unreachable_are_refusals() {
    let server = Server::new(vec![ok("{}")]).await;
    let late = vast(&server);
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let outcome = late.rent(&request(Capacity::Spot), std::time::Duration::ZERO).await;
    assert!(matches!(outcome, RentOutcome::Refused { why: Refusal::RateLimited, leftover: None, .. }), "{outcome:?}");
    assert!(server.seen().is_empty());
    drop(server);
    let outcome = late.rent(&request(Capacity::Spot), LATER).await;
    // The listener may still be closing; once it is, nobody is there.
    let unreachable = matches!(outcome, RentOutcome::Refused { why: Refusal::Unreachable, leftover: None, .. });
    assert!(unreachable || matches!(outcome, RentOutcome::Unknown { .. }), "{outcome:?}");
}
