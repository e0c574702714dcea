//! The kubelet's endpoint for logs, so that `kubectl logs` works: `GET /containerLogs/<namespace>/<pod>/<container>` with `follow`,
//! `tailLines`, `limitBytes` and `previous`. Lines carry no times here, so `sinceSeconds`, `sinceTime` and `timestamps` change nothing.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::node::{HOST, Node};
use crate::{Error, Result};

/// How often a followed log is looked at: only while somebody follows it.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

type Body = BoxBody<Bytes, std::io::Error>;

/// The listening endpoint.
pub(super) struct Server {
    node: Arc<Node>,
    listener: TcpListener,
    tls: TlsAcceptor,
    /// Where it listens.
    pub port: u16,
}

impl Server {
    /// Begins to listen, with a certificate that nobody has signed: the API server does not check it unless told to.
    pub(super) async fn start(node: Arc<Node>) -> Result<Self> {
        let bad =
            |e: &dyn std::fmt::Display| Error::Unexpected { what: "a node's certificate".into(), why: e.to_string() };
        let names = vec![HOST.to_string(), node.options.name.clone()];
        let made = rcgen::generate_simple_self_signed(names).map_err(|e| bad(&e))?;
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|e| bad(&e))?;
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .map_err(|e| bad(&e))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::io("listening for logs"))?;
        let port = listener.local_addr().map_err(Error::io("listening for logs"))?.port();
        Ok(Self { node, listener, tls: TlsAcceptor::from(Arc::new(config)), port })
    }

    /// Answers until it is dropped; connections end with it.
    pub(super) async fn serve(self) {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = self.listener.accept().await {
            while connections.try_join_next().is_some() {}
            let (tls, node) = (self.tls.clone(), self.node.clone());
            connections.spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request| answer(node.clone(), request));
                // A client that goes away is no failure.
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
}

async fn answer(node: Arc<Node>, request: Request<Incoming>) -> std::result::Result<Response<Body>, Infallible> {
    let said = |status: StatusCode, text: String| {
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        Ok(response)
    };
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let ["containerLogs", namespace, pod, container] = path[..] else {
        return said(StatusCode::NOT_FOUND, "This node of a test has logs only.".into());
    };
    let Some(log) = node.newest_log(namespace, pod, container) else {
        let text = format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating");
        return said(StatusCode::BAD_REQUEST, text);
    };
    let query: BTreeMap<&str, &str> =
        request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    if query.get("previous") == Some(&"true") {
        let text = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
        return said(StatusCode::BAD_REQUEST, text);
    }
    let text = tokio::fs::read(&log).await.unwrap_or_default();
    let number = |name: &str| query.get(name).and_then(|value| value.parse::<usize>().ok());
    let mut shown = number("tailLines").map_or(&text[..], |lines| last_lines(&text, lines));
    if let Some(limit) = number("limitBytes") {
        shown = &shown[..limit.min(shown.len())];
    }
    if query.get("follow") != Some(&"true") {
        return said(StatusCode::OK, String::from_utf8_lossy(shown).into_owned());
    }
    let first = Bytes::copy_from_slice(shown);
    let ends = {
        let (namespace, pod, container) = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        move |node: &Node| {
            let uid = node.uid(&namespace, &pod);
            uid.is_none_or(|uid| !node.containers.runs(&uid, &container))
        }
    };
    let follow = Follow { node, log, at: text.len() as u64, first: Some(first), ends: Box::new(ends) };
    let frames = stream::try_unfold(follow, |mut follow| async move {
        Ok(follow.next().await?.map(|bytes| (Frame::data(bytes), follow)))
    });
    Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))))
}

struct Follow {
    node: Arc<Node>,
    log: PathBuf,
    at: u64,
    first: Option<Bytes>,
    ends: Box<dyn Fn(&Node) -> bool + Send + Sync>,
}

impl Follow {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Ok(Some(first));
        }
        loop {
            // Asked before the look: what was written until the end is still read.
            let is_over = (self.ends)(&self.node);
            let mut file = tokio::fs::File::open(&self.log).await?;
            file.seek(std::io::SeekFrom::Start(self.at)).await?;
            let mut more = Vec::new();
            file.read_to_end(&mut more).await?;
            if !more.is_empty() {
                self.at += more.len() as u64;
                return Ok(Some(more.into()));
            }
            if is_over {
                return Ok(None);
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = memchr::memrchr_iter(b'\n', body);
    match lines {
        0 => &[],
        _ => ends.nth(lines - 1).map_or(text, |at| &text[at + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_counted_from_the_end() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\n", 5), b"a\n");
        assert_eq!(last_lines(b"a\n", 0), b"");
    }
}
