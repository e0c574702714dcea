//! The way of one request through the proxy.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::Mutex;

use super::{
    Shared,
    record::Direction,
    rules::{Action, Applied, Head},
    traffic::Flight,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a rule closes this connection")]
pub(super) struct Cut;

pub(super) struct Forwarder {
    upstream: SocketAddr,
    client: Client<HttpConnector, Body>,
    shared: Arc<Shared>,
    /// A lock for each key that was written, if writes go one by one.
    keys: Option<Mutex<HashMap<String, Arc<Mutex<()>>>>>,
}

/// What the rules make of a request once their waiting is over.
#[derive(Default)]
struct Verdict {
    throttle: Option<u64>,
    held_answer: Option<Applied>,
    cut_answer: bool,
    answer_after: Option<u16>,
}

impl Forwarder {
    pub fn new(upstream: SocketAddr, shared: Arc<Shared>, one_write_per_key: bool) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(5))
            .build(connector);
        Self { upstream, client, shared, keys: one_write_per_key.then(Mutex::default) }
    }

    /// Takes a request in and gives its answer back; an error closes the connection.
    pub async fn exchange(&self, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or_else(|| "/".into(), |t| t.as_str().to_owned());
        let head = Head { method: parts.method, target, headers: parts.headers };
        let flight = Arc::new(self.shared.traffic.enter(head.clone()));
        if let Some(recorder) = &self.shared.recorder {
            recorder.request_head(flight.id, &head);
        }
        let mut verdict = Verdict::default();
        for applied in self.shared.rules.meet(&head) {
            match self.apply(applied, &mut verdict).await {
                Outcome::GoOn => {}
                Outcome::Cut => return Err(Cut),
                Outcome::Answer(status) => return Ok(self.own_answer(&flight, status, "")),
            }
        }
        let answer = self.hand_on(&head, body, &flight, verdict.throttle).await;
        if let Some(mut held) = verdict.held_answer {
            held.removed().await;
        }
        if verdict.cut_answer {
            if let Ok(answer) = answer {
                // The server's work is complete only once its answer was read.
                let _ = answer.into_body().collect().await;
            }
            return Err(Cut);
        }
        match (verdict.answer_after, answer) {
            (Some(status), Ok(answer)) => {
                let _ = answer.into_body().collect().await;
                Ok(self.own_answer(&flight, status, ""))
            }
            (None, Ok(answer)) => Ok(self.hand_back(answer, flight, verdict.throttle)),
            (_, Err(Refusal::ClientGone)) => Err(Cut),
            (_, Err(Refusal::Upstream(why))) => {
                Ok(self.own_answer(&flight, 502, &format!("proxy: the server behind does not answer: {why}\n")))
            }
        }
    }

    async fn apply(&self, mut applied: Applied, verdict: &mut Verdict) -> Outcome {
        match applied.action {
            Action::Delay(time) => tokio::time::sleep(time).await,
            Action::Hold => applied.removed().await,
            Action::Throttle(rate) => verdict.throttle = Some(rate.max(1)),
            Action::HoldAnswer => verdict.held_answer = Some(applied),
            Action::DropAnswer => verdict.cut_answer = true,
            Action::AnswerAfter(status) => verdict.answer_after = Some(status),
            Action::Drop => return Outcome::Cut,
            Action::Answer(status) => return Outcome::Answer(status),
        }
        Outcome::GoOn
    }

    /// Sends the request to the server behind. With locks on, a write is read whole before it waits for its turn, as in a
    /// store where it takes effect when its last byte is there: a slow sender blocks nobody.
    async fn hand_on(
        &self,
        head: &Head,
        body: Incoming,
        flight: &Arc<Flight>,
        throttle: Option<u64>,
    ) -> Result<Response<Incoming>, Refusal> {
        let shared = self.shared.clone();
        let counted = flight.clone();
        let pieces = observed(body, throttle, move |piece| {
            counted.note(|e| e.request_bytes += piece.len() as u64);
            if let Some(recorder) = &shared.recorder {
                recorder.piece(counted.id, Direction::Request, piece);
            }
        });
        let writes = [Method::PUT, Method::POST, Method::DELETE].contains(&head.method);
        let Some(keys) = &self.keys else {
            return self.send(head, StreamBody::new(pieces.map(|p| p.map(Frame::data))).boxed_unsync()).await;
        };
        if !writes {
            // The server keeps tags apart from the bytes: a reader in the middle of a write got old bytes with the new tag.
            let lock = lock_of(keys, head).await;
            let _turn = lock.lock().await;
            return self.send(head, StreamBody::new(pieces.map(|p| p.map(Frame::data))).boxed_unsync()).await;
        }
        let mut whole = Vec::new();
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece.map_err(|_| Refusal::ClientGone)?);
        }
        let lock = lock_of(keys, head).await;
        let turn = lock.lock().await;
        let answer = self.send(head, Full::new(whole.into()).map_err(|never| match never {}).boxed_unsync()).await;
        drop(turn);
        answer
    }

    async fn send(&self, head: &Head, body: Body) -> Result<Response<Incoming>, Refusal> {
        let uri: Uri = format!("http://{}{}", self.upstream, head.target)
            .parse()
            .map_err(|e| Refusal::Upstream(format!("{e}")))?;
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = head.headers.clone();
        request.headers_mut().remove(header::CONNECTION);
        self.client.request(request).await.map_err(|e| Refusal::Upstream(format!("{e:?}")))
    }

    /// The server's answer on its way to the client. The exchange is over when its body is, or is dropped.
    fn hand_back(&self, answer: Response<Incoming>, flight: Arc<Flight>, throttle: Option<u64>) -> Response<Body> {
        let (mut parts, body) = answer.into_parts();
        flight.note(|e| e.status = Some(parts.status.as_u16()));
        if let Some(recorder) = &self.shared.recorder {
            recorder.response_head(flight.id, parts.status, &parts.headers);
        }
        parts.headers.remove(header::CONNECTION);
        let shared = self.shared.clone();
        let pieces = observed(body, throttle, move |piece| {
            flight.note(|e| e.response_bytes += piece.len() as u64);
            if let Some(recorder) = &shared.recorder {
                recorder.piece(flight.id, Direction::Response, piece);
            }
        });
        Response::from_parts(parts, StreamBody::new(pieces.map(|p| p.map(Frame::data))).boxed_unsync())
    }

    /// An answer that the proxy gives in the server's place.
    fn own_answer(&self, flight: &Flight, status: u16, text: &str) -> Response<Body> {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        answer.headers_mut().insert("x-tradewind-proxy", HeaderValue::from_static("answered here"));
        flight.note(|e| e.status = Some(status.as_u16()));
        if let Some(recorder) = &self.shared.recorder {
            recorder.response_head(flight.id, status, answer.headers());
            recorder.piece(flight.id, Direction::Response, text.as_bytes());
        }
        answer
    }
}

async fn lock_of(keys: &Mutex<HashMap<String, Arc<Mutex<()>>>>, head: &Head) -> Arc<Mutex<()>> {
    let key = head.target.split('?').next().unwrap_or_default().to_owned();
    keys.lock().await.entry(key).or_default().clone()
}

enum Outcome {
    GoOn,
    Cut,
    Answer(u16),
}

enum Refusal {
    ClientGone,
    Upstream(String),
}

/// A body's pieces, shown to `see` as they pass, at no more than `throttle` bytes a second.
fn observed(
    body: Incoming,
    throttle: Option<u64>,
    see: impl FnMut(&Bytes) + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let pieces = BodyStream::new(body).filter_map(|frame| {
        std::future::ready(match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(error.into())),
        })
    });
    stream::unfold((pieces, see), move |(mut pieces, mut see)| async move {
        let piece = pieces.next().await?;
        if let Ok(bytes) = &piece {
            if let Some(rate) = throttle {
                tokio::time::sleep(Duration::from_micros(bytes.len() as u64 * 1_000_000 / rate)).await;
            }
            see(bytes);
        }
        Some((piece, (pieces, see)))
    })
}
