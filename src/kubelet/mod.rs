//! The virtual Node answers as a kubelet would: `kubectl logs` of rented Pods.
//!
//! The API server connects to the Node's address, shows its client certificate and asks `GET /containerLogs/…`. What comes back is read from
//! the ring of output that the machine's agent keeps in the mailbox, so it is there as long as the Pod is, whatever became of the machine.
//! Every replica serves; the Node names the leader's address. Nothing is written, and nothing waits for it.

mod caller;
mod certificate;
mod keeper;
mod lines;
mod logs;
mod place;
mod query;
mod ring;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use keeper::LogKeeper;

use self::caller::{Caller, Rights};
use self::logs::sorry;
use self::tls::Tls;
use crate::context::Context;

/// Logs that are shown at once. A ring is a megabyte in practice, so that callers who read slowly hold 32 MB.
const STREAMS: usize = 32;
/// Rings that are read at once, each with up to eight times its size while its lines are taken apart.
const READING: usize = 4;
/// Connections at once: those streams, and others that are being refused.
const CONNECTIONS: usize = 128;
/// How long a caller may take for the handshake, and for the head of a request.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// What `kubectl exec` and its like print.
const NO_WAY_IN: &str = "exec, attach and port-forward do not work on rented machines: nothing connects to them from outside. \
                         Read the output with kubectl logs or kubectl tradewind logs";

/// A listening socket, and where the API server finds it.
pub struct Listening {
    listener: TcpListener,
    /// Address and port for the Node.
    pub at: SocketAddr,
}

/// Opens the endpoint's port. Whoever connects waits until it is served.
///
/// # Errors
/// If nothing can listen there.
pub async fn listen(listen: SocketAddr, address: IpAddr) -> std::io::Result<Listening> {
    let listener = TcpListener::bind(listen).await?;
    let at = SocketAddr::new(address, listener.local_addr()?.port());
    Ok(Listening { listener, at })
}

/// What requests are served with.
pub(crate) struct Server {
    ctx: Arc<Context>,
    rights: Rights,
    anonymous: bool,
    streams: Arc<Semaphore>,
    reading: Semaphore,
    stop: CancellationToken,
}

/// Serves until the process ends. Streams are told when `stop` is asked for.
pub fn serve(listening: Listening, ctx: Arc<Context>, client: kube::Client, anonymous: bool, stop: CancellationToken) {
    let address = listening.at.ip();
    let shown = certificate::self_signed(&ctx.settings.node_name, address);
    let tls = match shown.and_then(Tls::new) {
        Ok(tls) => Arc::new(tls),
        Err(error) => {
            tracing::error!(error, "Logs cannot be served, so kubectl logs does not work for rented Pods");
            return;
        }
    };
    if anonymous {
        tracing::warn!("--kubelet-anonymous: whoever can connect may read the output of every rented Pod");
    } else {
        tokio::spawn(tls::keep_authority(Arc::clone(&ctx), Arc::clone(&tls)));
    }
    tokio::spawn(tls::keep_certificate(Arc::clone(&ctx), client, address, Arc::clone(&tls)));
    tracing::info!(at = %listening.at, "Serving logs of rented Pods");
    let streams = Arc::new(Semaphore::new(STREAMS));
    let reading = Semaphore::new(READING);
    let server = Server { ctx, rights: Rights::default(), anonymous, streams, reading, stop };
    tokio::spawn(accept(listening.listener, tls, router(Arc::new(server))));
}

async fn accept(listener: TcpListener, tls: Arc<Tls>, router: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(turn) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No file handles, say: they come back when others end.
                tracing::warn!(%error, reason = "NotAccepted", "A connection for logs was not accepted");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let (acceptor, router) = (TlsAcceptor::from(tls.config()), router.clone());
        tokio::spawn(async move {
            let _turn = turn;
            if let Err(error) = connection(stream, acceptor, router).await {
                tracing::debug!(error, "A connection for logs ended");
            }
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) -> Result<(), String> {
    let hello = tokio::time::timeout(HELLO_WITHIN, acceptor.accept(stream)).await;
    let stream = hello.map_err(|_| "no handshake in time".to_owned())?.map_err(|e| e.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let caller = shown.and_then(|certificate| Caller::of_certificate(certificate));
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HELLO_WITHIN)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|e| e.to_string())
}

fn router(server: Arc<Server>) -> Router {
    let refuse = || any(|| async { (StatusCode::NOT_IMPLEMENTED, NO_WAY_IN) });
    let empty = || get(|| async { "" });
    Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::logs))
        .route("/exec/{*rest}", refuse())
        .route("/attach/{*rest}", refuse())
        .route("/portForward/{*rest}", refuse())
        .route("/run/{*rest}", refuse())
        // metrics-server asks every Node; there is nothing to tell, and no reason to complain about.
        .route("/metrics/resource", empty())
        .route("/metrics", empty())
        .route("/healthz", get(|| async { "ok" }))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), admit))
        .with_state(server)
}

/// Lets in who may use the Node's kubelet.
async fn admit(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Option<Caller>>,
    request: Request,
    next: Next,
) -> Response {
    if server.anonymous {
        return next.run(request).await;
    }
    let Some(caller) = caller else {
        let sentence =
            "show a client certificate of the cluster's authority (the API server: --kubelet-client-certificate)";
        return (StatusCode::UNAUTHORIZED, sentence).into_response();
    };
    match server.rights.allow(&server.ctx, &caller).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let sentence = format!("{} may not get nodes/proxy of {}", caller.user, server.ctx.settings.node_name);
            (StatusCode::FORBIDDEN, sentence).into_response()
        }
        Err(sentence) => sorry(&sentence),
    }
}
