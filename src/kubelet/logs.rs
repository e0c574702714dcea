//! `GET /containerLogs/<namespace>/<pod>/<container>`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tradewind_cluster::Key;
use tradewind_protocol::LogSegment;

use super::Server;
use super::lines::{Pieces, Printer};
use super::place::{self, Place};
use super::query::LogQuery;
use super::ring::{News, Ring};
use crate::controllers::pod;

/// How often the mailbox is looked at for somebody who follows, at most: agents write every five seconds at most.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long the store may fail before somebody who follows is told so.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after the end of a Pod the last words of its program are waited for, where the program's own end is not seen.
const LAST_WORDS: Duration = Duration::from_secs(6);
/// Pieces of output on their way to a caller who reads slowly; each is at most a ring's worth, in practice a few KB.
const AHEAD: usize = 2;

/// Serves the output of a rented Pod.
pub async fn logs(
    State(server): State<Arc<Server>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = match LogQuery::parse(query.as_deref().unwrap_or_default(), server.ctx.clock.now()) {
        Ok(query) => query,
        Err(sentence) => return (StatusCode::BAD_REQUEST, sentence).into_response(),
    };
    let Ok(turn) = Arc::clone(&server.streams).try_acquire_owned() else {
        return sorry("too many logs are being read from this operator at once; try again in a moment");
    };
    let key = Key::namespaced(namespace, name);
    let Begun { text, printer, following } = match begin(&server, &key, &container, &query).await {
        Ok(begun) => begun,
        Err(sentence) => return sorry(&sentence),
    };
    let type_ = [(header::CONTENT_TYPE, "text/plain")];
    match following {
        None => {
            // The turn is over when all is sent: a caller who reads slowly keeps the text in memory.
            let body = stream::unfold((Some(Bytes::from(text)), turn), |(mut text, turn)| async move {
                Some((Ok::<_, std::convert::Infallible>(text.take()?), (None, turn)))
            });
            (type_, Body::from_stream(body)).into_response()
        }
        Some(following) => {
            let (to, from) = mpsc::channel::<Bytes>(AHEAD);
            let first = Bytes::from(text);
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let _turn = turn;
                // Whoever asked has gone: nothing is left to do.
                let _ = following.go_on(&server, first, printer, &to).await;
            });
            let body = stream::unfold(from, |mut from| async move {
                let next = from.recv().await?;
                Some((Ok::<_, std::convert::Infallible>(next), from))
            });
            (type_, Body::from_stream(body)).into_response()
        }
    }
}

/// 500 is the one status whose text kubectl shows.
pub fn sorry(sentence: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, sentence.to_owned()).into_response()
}

/// Output so far, as it is shown.
struct Begun {
    text: Vec<u8>,
    printer: Printer,
    /// How it goes on, if it does.
    following: Option<Following>,
}

/// Reads and prints what there is. Many short lines take up many times their size while that happens, so few do it at once.
async fn begin(server: &Server, key: &Key, container: &str, query: &LogQuery) -> Result<Begun, String> {
    let _few = server.reading.acquire().await;
    let Opened { mut pieces, following } = open(server, key, container, query).await?;
    if let Some(lines) = query.tail {
        pieces.keep_last(lines);
    }
    let mut printer = Printer::new(query);
    let mut text = Vec::new();
    pieces.pieces.iter().for_each(|piece| printer.print(piece, &mut text));
    let goes_on = query.follow && !pieces.ended && !printer.full();
    Ok(Begun { text, printer, following: following.filter(|_| goes_on) })
}

/// Output so far.
struct Opened {
    pieces: Pieces,
    /// How it could go on.
    following: Option<Following>,
}

async fn open(server: &Server, key: &Key, container: &str, query: &LogQuery) -> Result<Opened, String> {
    let ctx = &server.ctx;
    let pod = place::find_pod(ctx, key).await?;
    place::check(&pod, key, container, &ctx.settings.node_name)?;
    let mailbox = ctx.mailbox.clone().ok_or("the operator has no mailbox (--mailbox), so there is no output")?;
    let place = place::place(ctx, &pod);
    let nothing = || place::why_none(&pod, &place);
    let Some(machine) = &place.machine else {
        // Claimed in this moment, if at all.
        return Err(nothing().unwrap_or_else(|| "the Pod has no machine yet; try again in a moment".to_owned()));
    };
    let mut ring = Ring::new(mailbox, machine);
    let segments = ring.load().await.map_err(|e| format!("the output cannot be read: {e}"))?;
    let attempt = if query.previous { before(&segments, &place)? } else { place.attempt };
    let mut pieces = Pieces::default();
    for segment in segments {
        pieces.add(segment, 0, attempt);
    }
    if pieces == Pieces::default()
        && let Some(why) = nothing()
    {
        return Err(why);
    }
    let uid = pod.metadata.uid.clone();
    let following = Following { key: key.clone(), uid, ring, attempt };
    Ok(Opened { pieces, following: (!query.previous).then_some(following) })
}

/// The attempt before the Pod's on the same machine.
fn before(segments: &[LogSegment], place: &Place) -> Result<u32, String> {
    let earlier = segments.iter().filter_map(|s| s.attempt).filter(|attempt| *attempt < place.attempt).max();
    earlier.ok_or_else(|| {
        "there is no earlier run on this machine whose output is still there; runs on other machines have Pods of their own"
            .to_owned()
    })
}

/// Somebody follows the output of a Pod.
struct Following {
    key: Key,
    uid: Option<String>,
    ring: Ring,
    attempt: u32,
}

/// Nobody reads any more.
struct HungUp;

impl Following {
    /// Goes on until the program has ended and everything was shown.
    async fn go_on(
        mut self,
        server: &Server,
        first: Bytes,
        mut printer: Printer,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), HungUp> {
        send(to, first).await?;
        let every = server.ctx.settings.report_poll.min(LOOK_AGAIN);
        let (mut over_since, mut failing_since) = (None, None);
        loop {
            tokio::select! {
                () = sleep(every) => {}
                () = to.closed() => return Err(HungUp),
                () = server.stop.cancelled() => return last(to, &mut printer, "the operator ends; ask again for what follows").await,
            }
            // Looked at before the output: what is over says nothing after it.
            if self.is_over(server) {
                over_since.get_or_insert_with(now);
            }
            let mut news = News::default();
            let looked = self.ring.next(self.attempt, &mut news).await;
            let mut text = Vec::new();
            if news.lost {
                printer.say("the program was faster than this stream: some of its output is not shown", &mut text);
            }
            news.pieces.pieces.iter().for_each(|piece| printer.print(piece, &mut text));
            send(to, Bytes::from(text)).await?;
            match looked {
                Ok(()) => failing_since = None,
                Err(error) if failing_since.get_or_insert_with(now).elapsed() > PATIENCE => {
                    return last(to, &mut printer, &format!("the output cannot be read any more: {error}; ask again"))
                        .await;
                }
                Err(_) => continue,
            }
            if news.pieces.ended || printer.full() || over_since.is_some_and(|since| since.elapsed() > LAST_WORDS) {
                return Ok(());
            }
        }
    }

    fn is_over(&self, server: &Server) -> bool {
        let pod = server.ctx.caches.pods.get(&self.key).filter(|pod| pod.metadata.uid == self.uid);
        pod.is_none_or(|pod| pod::is_over(&pod))
    }
}

/// A caller's patience is real time.
fn now() -> Instant {
    Instant::now()
}

async fn send(to: &mpsc::Sender<Bytes>, text: Bytes) -> Result<(), HungUp> {
    if text.is_empty() { Ok(()) } else { to.send(text).await.map_err(|_| HungUp) }
}

/// A connection that breaks looks to kubectl like the end of the program, so what is wrong is said in the stream itself.
async fn last(to: &mpsc::Sender<Bytes>, printer: &mut Printer, sentence: &str) -> Result<(), HungUp> {
    let mut text = Vec::new();
    printer.say(sentence, &mut text);
    send(to, Bytes::from(text)).await
}
