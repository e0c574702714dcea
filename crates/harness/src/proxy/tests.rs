//! The proxy in front of a small server that counts and echoes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::*;
use crate::{http_json::call, leaks::Secrets};

const SOON: Duration = Duration::from_secs(10);

/// Answers with what it got; counts the requests, and how many were inside at once.
#[derive(Default)]
struct Server {
    requests: AtomicUsize,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
}

impl Server {
    async fn start() -> (Arc<Self>, String) {
        let server = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let answering = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = answering.clone();
                let service = service_fn(move |request| server.clone().answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        (server, format!("http://{address}"))
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_inside.fetch_max(inside, Ordering::SeqCst);
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.inside.fetch_sub(1, Ordering::SeqCst);
        let echo = json!({
            "method": parts.method.as_str(), "target": parts.uri.to_string(), "length": body.len(),
            "host": parts.headers[header::HOST].to_str().unwrap(),
        });
        Ok(Response::new(Full::new(echo.to_string().into())))
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn get(proxy: &Proxy, path: &str) -> crate::Result<(StatusCode, Bytes)> {
    call(Method::GET, &format!("{}{path}", proxy.url()), None).await
}

#[tokio::test]
async fn hands_on_unchanged_and_keeps_the_host() {
    let (_server, url) = Server::start().await;
    let proxy = Proxy::start(&url, ProxyOptions::default()).unwrap();
    let target = "/b/a%20b/%C3%BC?x=%2F&empty";
    let (status, body) = call(Method::PUT, &format!("{}{target}", proxy.url()), Some(&json!("four"))).await.unwrap();
    let echo: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 200);
    let host = proxy.url().replace("http://", "");
    assert_eq!(echo, json!({ "method": "PUT", "target": target, "length": 6, "host": host }));
    let exchange = &proxy.wait_exchanges(&Match::method("PUT"), 1, SOON).await.unwrap()[0];
    assert_eq!((exchange.status, exchange.request_bytes), (Some(200), 6));
    assert_eq!(exchange.response_bytes, body.len() as u64);
    assert!(proxy.exchanges(&Match::method("GET")).is_empty() && proxy.recorded().unwrap().is_empty());
}

#[tokio::test]
async fn answers_502_while_nobody_is_behind() {
    let port = crate::ports::free_port().unwrap();
    let proxy = Proxy::start(&format!("http://127.0.0.1:{port}"), ProxyOptions::default()).unwrap();
    let (status, body) = get(&proxy, "/").await.unwrap();
    assert_eq!(status, 502);
    assert!(String::from_utf8_lossy(&body).contains("does not answer"));
}

#[tokio::test]
async fn records_both_directions_and_finds_a_planted_secret() {
    let (_server, url) = Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    let record = Some(directory.path().join("recording"));
    let proxy = Proxy::start(&url, ProxyOptions { record, ..ProxyOptions::default() }).unwrap();
    let large = format!("{}hunter2-hunter2{}", "a".repeat(300_000), "b".repeat(300_000));
    let (large, url) = (json!(large), proxy.url());
    let calls = (0..8).map(|n| {
        let (url, large) = (format!("{url}/{n}"), large.clone());
        async move { call(Method::POST, &url, Some(&large)).await.unwrap().0 }
    });
    assert!(futures::future::join_all(calls).await.iter().all(StatusCode::is_success));
    proxy.wait_exchanges(&Match::any(), 8, SOON).await.unwrap();
    let recorded = proxy.recorded().unwrap();
    assert_eq!(recorded.len(), 8);
    for exchange in &recorded {
        assert!(exchange.request.starts_with(b"POST /") && exchange.request.len() > 600_000);
        let answer = String::from_utf8_lossy(&exchange.response);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with('}'), "{answer}");
    }
    let leaks =
        Secrets::new([("password", "hunter2-hunter2"), ("other", "not-in-here")]).find_in_exchanges("s3", &recorded);
    assert_eq!(leaks.len(), 8);
    assert!(leaks.iter().all(|l| l.secret == "password" && l.place.starts_with("s3: request ")), "{leaks:?}");
}

#[tokio::test]
async fn rules_answer_drop_and_count() {
    let (server, url) = Server::start().await;
    let proxy = Proxy::start(&url, ProxyOptions::default()).unwrap();
    let answer = proxy.rule_times(Match::method("GET").target("^/a"), Action::Answer(503), 2);
    for expected in [503, 503, 200] {
        assert_eq!(get(&proxy, "/a").await.unwrap().0, expected);
    }
    assert_eq!((answer.hits(), server.requests()), (2, 1));
    assert_eq!(get(&proxy, "/b").await.unwrap().0, 200);

    let drop_rule = proxy.rule(Match::any().target("/zombie/"), Action::Drop);
    assert!(get(&proxy, "/x/zombie/1").await.is_err());
    assert_eq!(server.requests(), 2);
    drop_rule.remove();
    assert_eq!(get(&proxy, "/x/zombie/1").await.unwrap().0, 200);

    let lost = proxy.rule_times(Match::any(), Action::DropAnswer, 1);
    assert!(get(&proxy, "/lost").await.is_err());
    assert_eq!((lost.hits(), server.requests()), (1, 4), "the server did it, nobody knows");
    lost.remove();
    let after = proxy.rule(Match::any().header("host", "127"), Action::AnswerAfter(500));
    assert_eq!(get(&proxy, "/after").await.unwrap().0, 500);
    assert_eq!(server.requests(), 5);
    after.remove();
    let statuses: Vec<_> =
        proxy.exchanges(&Match::any().target("zombie|lost|after")).iter().map(|e| e.status).collect();
    assert_eq!(statuses, [None, Some(200), None, Some(500)]);
}

#[tokio::test]
async fn a_held_request_is_under_way_until_released() {
    let (server, url) = Server::start().await;
    let proxy = Arc::new(Proxy::start(&url, ProxyOptions::default()).unwrap());
    let held = Match::method("GET").target("^/held");
    let rule = proxy.rule(held.clone(), Action::Hold);
    assert!(proxy.wait_in_flight(&held, Duration::from_millis(50)).await.is_err());
    let calling = tokio::spawn({
        let proxy = proxy.clone();
        async move { get(&proxy, "/held").await }
    });
    let seen = proxy.wait_in_flight(&held, SOON).await.unwrap();
    assert_eq!((seen.head.target.as_str(), server.requests()), ("/held", 0));
    rule.remove();
    assert_eq!(calling.await.unwrap().unwrap().0, 200);
    proxy.wait_exchanges(&held, 1, SOON).await.unwrap();
    assert!(proxy.in_flight(&Match::any()).is_empty());
}

#[tokio::test]
async fn brakes_slow_a_body_and_show_how_far_it_is() {
    let (_server, url) = Server::start().await;
    let proxy = Arc::new(Proxy::start(&url, ProxyOptions::default()).unwrap());
    let _slow = proxy.rule(Match::method("PUT"), Action::Throttle(1_000_000));
    let _late = proxy.rule(Match::method("GET"), Action::Delay(Duration::from_millis(150)));
    let began = Instant::now();
    let calling = tokio::spawn({
        let url = proxy.url();
        async move { call(Method::PUT, &url, Some(&json!("x".repeat(500_000)))).await }
    });
    let part_way = || {
        let bytes = proxy.in_flight(&Match::method("PUT")).first().map_or(0, |f| f.request_bytes);
        std::future::ready(if bytes > 0 && bytes < 400_000 { Ok(()) } else { Err(format!("{bytes} bytes")) })
    };
    eventually("a look at half the upload", SOON, part_way).await.unwrap();
    assert_eq!(calling.await.unwrap().unwrap().0, 200);
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
    let began = Instant::now();
    get(&proxy, "/").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn writes_to_one_key_go_one_by_one_and_a_slow_sender_blocks_nobody() {
    let (server, url) = Server::start().await;
    let proxy = Proxy::start(&url, ProxyOptions { one_write_per_key: true, ..ProxyOptions::default() }).unwrap();
    // This sender never finishes.
    let mut stuck = TcpStream::connect(proxy.url().replace("http://", "")).await.unwrap();
    stuck.write_all(b"PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    proxy.wait_in_flight(&Match::method("PUT"), SOON).await.unwrap();
    let url = proxy.url();
    let calls = (0..6).map(|n| {
        let url = format!("{url}/b/k?attempt={n}");
        async move { call(Method::PUT, &url, Some(&json!(n))).await.unwrap().0 }
    });
    assert!(futures::future::join_all(calls).await.iter().all(StatusCode::is_success));
    assert_eq!(server.most_inside.load(Ordering::SeqCst), 1);
    let calls = (0..6).map(|n| {
        let url = format!("{url}/b/{n}");
        async move { call(Method::PUT, &url, Some(&json!(n))).await.unwrap().0 }
    });
    futures::future::join_all(calls).await;
    assert!(server.most_inside.load(Ordering::SeqCst) > 1, "other keys do not wait");

    // A client that goes away half-way has written nothing.
    let before = server.requests();
    stuck.shutdown().await.unwrap();
    let _ = stuck.read(&mut [0]).await;
    let half = proxy.wait_exchanges(&Match::any().target("^/b/k$"), 1, SOON).await.unwrap();
    assert_eq!((half[0].status, half[0].request_bytes, server.requests()), (None, 4, before));
}

#[tokio::test]
async fn a_proxy_that_goes_lets_go_of_what_it_holds() {
    let (_server, url) = Server::start().await;
    let proxy = Proxy::start(&url, ProxyOptions::default()).unwrap();
    let _rule = proxy.rule(Match::any(), Action::Hold);
    let address = proxy.url();
    let calling = tokio::spawn(async move { call(Method::GET, &address, None).await });
    proxy.wait_in_flight(&Match::any(), SOON).await.unwrap();
    tokio::task::spawn_blocking(move || drop(proxy)).await.unwrap();
    // It may have been answered while the proxy went, or cut; it must not hang.
    let _ = tokio::time::timeout(SOON, calling).await.expect("the held call ends").unwrap();
}

#[test]
fn a_recording_that_was_cut_off_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "1 > 100\nshort\n").unwrap();
    assert!(read_recording(file.path()).is_err());
    std::fs::write(file.path(), "nonsense\n").unwrap();
    assert!(read_recording(file.path()).unwrap_err().to_string().contains("not a piece's line"));
}
