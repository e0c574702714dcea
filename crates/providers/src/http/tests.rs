use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, Url};
use tradewind_core::{Clock, ManualClock, SecretString, SystemClock};

use super::scripted::{Act, Server, ok};
use super::*;

const KEY: &str = "vast-key-0123456789";

#[derive(Default)]
struct Log(Mutex<Vec<(&'static str, CallOutcome)>>);

impl CallObserver for Log {
    fn call_ended(&self, call: &ObservedCall) {
        self.0.lock().unwrap().push((call.operation, call.outcome));
    }
}

fn client(url: &Url, clock: Arc<dyn Clock>, limits: &[EndpointLimit]) -> (Http, Arc<Log>) {
    let log = Arc::new(Log::default());
    let gate = Arc::new(RateGate::new(limits, Arc::clone(&clock)));
    let settings = HttpSettings { provider: "vast", base_url: url.clone(), gate, observer: log.clone(), clock };
    (Http::new(settings).unwrap(), log)
}

fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

fn call(key: &SecretString, timeout: Duration) -> Call<'_> {
    Call {
        operation: "rent",
        method: Method::PUT,
        path: "/api/v0/asks/1/".to_owned(),
        query: vec![("token", "s3cret&x=1".to_owned())],
        body: Some(br#"{"env":{"A":"signed-url-secret"}}"#.to_vec()),
        bearer: Some(key),
        timeout,
        max_answer_bytes: 1 << 20,
        lane: Lane::Other,
    }
}

const LATER: Duration = Duration::from_hours(1);

#[tokio::test]
async fn sends_what_it_was_told_and_reads_any_status() {
    let server = Server::new(vec![Act::Answer(418, "retry-after: 7\r\n", b"teapot".to_vec())]).await;
    let (http, log) = client(&server.url, system(), &[]);
    let key = SecretString::from(KEY);
    let answer = http.send_once(&call(&key, Duration::from_secs(5)), LATER).await.unwrap();
    assert_eq!((answer.status, answer.retry_after, &*answer.body), (418, Some(Duration::from_secs(7)), &b"teapot"[..]));
    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/api/v0/asks/1/?token=s3cret%26x%3D1"));
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {KEY}")));
    assert_eq!(seen.header("content-length"), Some("33"), "a guarded body has a known length");
    assert_eq!(seen.header("transfer-encoding"), None);
    assert_eq!(seen.body, br#"{"env":{"A":"signed-url-secret"}}"#);
    assert_eq!(*log.0.lock().unwrap(), [("rent", CallOutcome::Refused)]);
}

#[tokio::test]
async fn tells_what_may_have_happened_from_what_cannot() {
    let key = SecretString::from(KEY);
    for (what, act, may, word) in [
        ("cut body", Act::Cut(b"{\"new_contract\": 12".to_vec()), true, "could not be read"),
        ("closed without answer", Act::Close, true, "cut"),
        ("no answer in time", Act::Hang, true, "timed out"),
        ("endless body", Act::Flood, true, "larger than"),
        ("50 MB", ok(vec![b'['; 50 << 20]), true, "larger than"),
    ] {
        let server = Server::new(vec![act]).await;
        let (http, _) = client(&server.url, system(), &[]);
        let failure = http.send_once(&call(&key, Duration::from_millis(1500)), LATER).await.unwrap_err();
        assert_eq!(failure.may_have_happened(), may, "{what}: {failure}");
        let text = format!("{failure} {failure:?}");
        assert!(text.contains(word), "{what}: {text}");
        for secret in [KEY, "s3cret", "signed-url-secret", "127.0.0.1"] {
            assert!(!text.contains(secret), "{what}: {text} holds {secret}");
        }
        assert_eq!(server.seen().len(), 1, "{what}: a call that is sent once is sent once");
    }
}

#[tokio::test]
async fn a_refused_connection_is_certainly_not_sent() {
    let url = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap()).parse::<Url>().unwrap()
    };
    let (http, log) = client(&url, system(), &[]);
    let failure = http.send_once(&call(&SecretString::from(KEY), Duration::from_secs(5)), LATER).await.unwrap_err();
    assert!(matches!(failure, CallFailure::NotSent { .. }), "{failure:?}");
    assert!(failure.to_string().contains("refused"), "{failure}");
    assert_eq!(*log.0.lock().unwrap(), [("rent", CallOutcome::NotSent)]);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Server::new(vec![ok("{}")]).await;
    let location: &'static str = Box::leak(format!("location: {}\r\n", elsewhere.url).into_boxed_str());
    let server = Server::new(vec![Act::Answer(302, location, Vec::new())]).await;
    let (http, _) = client(&server.url, system(), &[]);
    let answer = http.send_once(&call(&SecretString::from(KEY), Duration::from_secs(5)), LATER).await.unwrap();
    assert_eq!(answer.status, 302);
    assert!(elsewhere.seen().is_empty(), "the key went to where the redirect points");
}

#[tokio::test]
async fn repeats_reads_until_they_succeed_and_honours_retry_after() {
    let again = Act::Answer(429, "retry-after: 1\r\n", b"API requests too frequent".to_vec());
    let server = Server::new(vec![Act::Close, Act::Answer(503, "", vec![]), again, ok("{}")]).await;
    let (http, log) = client(&server.url, system(), &[]);
    let clock = system();
    let answer =
        http.send_repeatedly(&call(&SecretString::from(KEY), Duration::from_secs(5)), Duration::from_secs(20)).await;
    assert_eq!(answer.unwrap().status, 200);
    assert!(clock.monotonic() >= Duration::from_secs(1), "Retry-After was not waited for");
    use CallOutcome::{NoAnswer, Ok, RateLimited, ServerError};
    assert_eq!(
        *log.0.lock().unwrap(),
        [("rent", NoAnswer), ("rent", ServerError), ("rent", RateLimited), ("rent", Ok)]
    );
}

#[tokio::test]
async fn gives_up_at_the_end_of_its_time_with_the_last_answer() {
    let server = Server::new(vec![Act::Answer(503, "retry-after: 3000\r\n", b"busy".to_vec())]).await;
    let (http, _) = client(&server.url, system(), &[]);
    let key = SecretString::from(KEY);
    let answer = http.send_repeatedly(&call(&key, Duration::from_secs(5)), Duration::from_secs(20)).await.unwrap();
    assert_eq!((answer.status, server.seen().len()), (503, 1), "there is no time for a second try");
    let silent = Server::new(vec![Act::Hang]).await;
    let (http, _) = client(&silent.url, system(), &[]);
    let failure =
        http.send_repeatedly(&call(&key, Duration::from_mins(1)), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(failure, CallFailure::Unanswered { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let server = Server::new(vec![Act::Answer(400, "", b"{}".to_vec())]).await;
    let (http, _) = client(&server.url, system(), &[]);
    let answer =
        http.send_repeatedly(&call(&SecretString::from(KEY), Duration::from_secs(5)), Duration::from_secs(5)).await;
    assert_eq!((answer.unwrap().status, server.seen().len()), (400, 1));
}

fn limit(operation: &'static str, interval: Duration) -> EndpointLimit {
    EndpointLimit { operation, interval, burst: NonZeroU32::MIN, penalty: interval }
}

#[tokio::test]
async fn nothing_is_sent_after_its_time() {
    let server = Server::new(vec![ok("{}")]).await;
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH, 1));
    clock.advance(Duration::from_secs(10));
    let (http, _) = client(&server.url, clock, &[limit("rent", Duration::from_mins(1))]);
    let key = SecretString::from(KEY);
    let call = call(&key, Duration::from_secs(5));
    let over = http.send_once(&call, Duration::from_secs(9)).await.unwrap_err();
    assert_eq!(over, CallFailure::TooLate { wait: None });
    http.send_once(&call, Duration::from_secs(11)).await.unwrap();
    let behind = http.send_once(&call, Duration::from_secs(11)).await.unwrap_err();
    assert!(
        matches!(behind, CallFailure::TooLate { wait: Some(wait) } if wait > Duration::from_secs(50)),
        "{behind:?}"
    );
    assert_eq!(server.seen().len(), 1);
}

/// The clock jumps past the deadline after the first look at it, as a freeze between check and first byte would have it.
struct Jumps(Mutex<u32>);

impl Clock for Jumps {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }
    fn monotonic(&self) -> Duration {
        let mut looks = self.0.lock().unwrap();
        *looks += 1;
        // send_once looks first, then the gate, then try_once for the elapsed time, then the body's guard.
        Duration::from_secs(if *looks <= 2 { 1 } else { 100 })
    }
    fn entropy(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn a_freeze_while_connecting_holds_the_body_back() {
    let server = Server::new(vec![ok("{}")]).await;
    let (http, _) = client(&server.url, Arc::new(Jumps(Mutex::new(0))), &[]);
    let key = SecretString::from(KEY);
    let failure = http.send_once(&call(&key, Duration::from_secs(5)), Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(failure, CallFailure::TooLate { wait: None });
    assert!(server.seen().is_empty(), "a whole request arrived");
}

#[tokio::test]
async fn endings_wait_for_nobody() {
    let server = Server::by(|request, _| if request.method == "DELETE" { ok("{}") } else { Act::Hang }).await;
    let (http, _) = client(&server.url, system(), &[limit("read", Duration::from_millis(1))]);
    let http = Arc::new(http);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let http = Arc::clone(&http);
        readers.spawn(async move {
            let key = SecretString::from(KEY);
            let read =
                Call { operation: "read", method: Method::GET, body: None, ..call(&key, Duration::from_secs(30)) };
            http.send_repeatedly(&read, Duration::from_secs(30)).await.ok();
        });
    }
    let full = tokio::time::timeout(Duration::from_secs(10), async {
        while server.seen().len() < 16 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    full.await.unwrap_or_else(|_| panic!("only {} of 16 seats were taken", server.seen().len()));
    let key = SecretString::from(KEY);
    let ending = Call {
        operation: "terminate",
        method: Method::DELETE,
        lane: Lane::Ending,
        ..call(&key, Duration::from_secs(5))
    };
    let ended =
        tokio::time::timeout(Duration::from_secs(3), http.send_repeatedly(&ending, Duration::from_secs(3))).await;
    assert_eq!(ended.expect("the ending waited behind reads").unwrap().status, 200);
    assert!(server.seen().iter().filter(|s| s.method == "GET").count() <= 16, "more calls at once than seats");
}

#[tokio::test]
async fn calls_to_one_endpoint_keep_their_distance() {
    let server = Server::new(vec![ok("{}")]).await;
    let clock = system();
    let (http, _) = client(&server.url, Arc::clone(&clock), &[limit("rent", Duration::from_millis(300))]);
    let key = SecretString::from(KEY);
    let start = clock.monotonic();
    for _ in 0..3 {
        http.send_repeatedly(&call(&key, Duration::from_secs(5)), Duration::from_secs(5)).await.unwrap();
    }
    let took = clock.monotonic().saturating_sub(start);
    assert!(took >= Duration::from_millis(600), "three calls took {took:?}");
}

#[test]
fn a_base_url_is_an_address_and_nothing_else() {
    for bad in
        ["ftp://host/", "https://user@host/", "https://user:pw@host", "https://host/?q=1", "https://host/#f", "data:x"]
    {
        let settings = HttpSettings {
            provider: "vast",
            base_url: bad.parse().unwrap(),
            gate: Arc::new(RateGate::off(system())),
            observer: Arc::new(()),
            clock: system(),
        };
        assert!(matches!(Http::new(settings), Err(SetupError::BaseUrl)), "{bad}");
    }
}

/// Endings keep their part of a common limit, however much else is called, and go first when there is more to end than that.
#[tokio::test]
async fn endings_come_first_where_all_calls_have_one_limit() {
    let clock = Arc::new(ManualClock::new("2026-11-21T12:00:00Z".parse().unwrap(), 1));
    let s = Duration::from_secs;
    let limit = CommonLimit { interval: s(2), burst: 5, for_endings: 2, penalty: s(7) };
    let gate = RateGate::new(&[], clock.clone()).with_common(limit);
    let admit = |lane| {
        let (gate, now) = (&gate, clock.monotonic());
        async move { gate.admit("any", lane, now).await.map(drop).is_ok() }
    };
    let mut others = 0;
    while admit(Lane::Other).await {
        others += 1;
    }
    let mut endings = 0;
    while admit(Lane::Ending).await {
        endings += 1;
    }
    assert_eq!((others, endings), (3, 2));
    clock.advance(s(2));
    assert!(!admit(Lane::Other).await, "the first place that is free again is for endings");
    assert!(admit(Lane::Ending).await && !admit(Lane::Ending).await);
    clock.advance(s(6));
    assert!(admit(Lane::Other).await && !admit(Lane::Other).await);
    gate.pause("any", None);
    clock.advance(s(6));
    assert!(!admit(Lane::Ending).await, "after a 429 everybody stays away");
    clock.advance(s(1));
    assert!(admit(Lane::Ending).await);
}

#[tokio::test]
async fn a_used_up_window_holds_the_next_call_back() {
    let header = "ratelimit: \"minute\";r=0;t=30, \"hour\";r=2800;t=1812\r\n";
    let server = Server::new(vec![Act::Answer(200, header, b"{}".to_vec())]).await;
    let clock = system();
    let limit = CommonLimit { interval: Duration::from_millis(1), burst: 9, for_endings: 1, penalty: Duration::ZERO };
    let gate = Arc::new(RateGate::off(Arc::clone(&clock)).with_common(limit));
    let settings = HttpSettings {
        provider: "p",
        base_url: server.url.clone(),
        gate,
        observer: Arc::new(()),
        clock: clock.clone(),
    };
    let http = Http::new(settings).unwrap();
    let key = SecretString::from(KEY);
    http.send_once(&call(&key, Duration::from_secs(5)), LATER).await.unwrap();
    let soon = clock.monotonic() + Duration::from_secs(20);
    let failure = http.send_once(&call(&key, Duration::from_secs(5)), soon).await.unwrap_err();
    assert!(
        matches!(failure, CallFailure::TooLate { wait: Some(wait) } if wait > Duration::from_secs(20)),
        "{failure:?}"
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_stream_is_read_until_it_is_enough_quiet_large_or_late() {
    let key = SecretString::from(KEY);
    let lines = |n: usize| move |body: &[u8]| body.split(|b| *b == b'\n').count() > n;
    let s = Duration::from_secs;
    for (what, act, enough, size) in [
        ("endless", Act::Flood, 1, 1 << 20),
        ("silent", Act::Hang, 1, 0),
        ("whole", ok("a\nb\n"), 5, 4),
        ("cut", Act::Cut(b"a\nb".to_vec()), 5, 3),
    ] {
        let server = Server::new(vec![act]).await;
        let (http, _) = client(&server.url, system(), &[]);
        let read = http.read_stream(&call(&key, s(2)), s(1), &lines(enough)).await;
        match read {
            Ok(answer) => assert_eq!((answer.status, answer.body.len()), (200, size), "{what}"),
            Err(failure) => assert!(what == "silent" && failure.may_have_happened(), "{what}: {failure}"),
        }
        assert_eq!(server.seen()[0].header("accept"), Some("text/event-stream"));
    }
    let server = Server::new(vec![Act::Answer(404, "", b"no".to_vec())]).await;
    let (http, _) = client(&server.url, system(), &[]);
    let answer = http.read_stream(&call(&key, s(2)), s(1), &lines(9)).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (404, &b"no"[..]));
}
