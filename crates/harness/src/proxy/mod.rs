//! A recording HTTP/1.1 proxy with brakes and faults, put in front of the simulator and of the S3 server.
//!
//! It forwards requests unchanged (the `Host` header too: S3 signatures cover it), can write every byte of both
//! directions to a file ([`record`]), and does to matching requests what rules say ([`rules`]). It runs on a thread of
//! its own, so that one proxy can serve the runtimes of several tests.

mod forward;
pub mod record;
pub mod rules;
pub mod traffic;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::oneshot};

use self::{forward::Forwarder, record::Recorder, rules::Rules, traffic::Traffic};
pub use self::{
    record::{Recorded, read_recording},
    rules::{Action, Match, Rule},
    traffic::{Exchange, InFlight},
};
use crate::{Error, Result, eventually};

/// How a proxy differs from a plain one.
#[derive(Clone, Debug, Default)]
pub struct ProxyOptions {
    /// File that gets every byte of both directions.
    pub record: Option<PathBuf>,
    /// Takes a lock per key for writes and hands them on whole, one after the other: the S3 servers at hand do not make
    /// put-if-absent atomic (concurrent creates were seen to win together, versitygw 1.7.0, 2026-11). Reads of a key wait for
    /// a write under way.
    pub one_write_per_key: bool,
}

/// A running proxy; stops when the value goes.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    record: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the proxy's thread and its owner both hold.
#[derive(Debug)]
struct Shared {
    rules: Arc<Rules>,
    traffic: Arc<Traffic>,
    recorder: Option<Recorder>,
}

impl Proxy {
    /// Listens on a free loopback port in front of `upstream` (`http://127.0.0.1:PORT`).
    pub fn start(upstream: &str, options: ProxyOptions) -> Result<Self> {
        Self::start_on(0, upstream, options)
    }

    /// As [`Proxy::start`], on a port that the caller knows beforehand.
    pub fn start_on(port: u16, upstream: &str, options: ProxyOptions) -> Result<Self> {
        let upstream = upstream.strip_prefix("http://").unwrap_or(upstream).trim_end_matches('/').to_owned();
        let upstream = upstream.parse().map_err(Error::unexpected(format!("the proxy's upstream {upstream}")))?;
        let recorder = options.record.as_deref().map(Recorder::create).transpose()?;
        let shared = Arc::new(Shared { rules: Arc::default(), traffic: Arc::default(), recorder });
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(Error::io("binding the proxy"))?;
        listener.set_nonblocking(true).map_err(Error::io("preparing the proxy's socket"))?;
        let address = listener.local_addr().map_err(Error::io("reading the proxy's port"))?;
        let forwarder = Arc::new(Forwarder::new(upstream, shared.clone(), options.one_write_per_key));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("starting the proxy's runtime"))?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, forwarder) => {}
                    _ = stopped => {}
                }
            });
            // Connections that still hang somewhere are cut.
            runtime.shutdown_timeout(Duration::from_millis(100));
        });
        Ok(Self { address, shared, record: options.record, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does `action` to every request that matches, from now until the rule is removed. Rules apply in the order in which
    /// they were added.
    pub fn rule(&self, matching: Match, action: Action) -> Rule {
        self.shared.rules.add(matching, action, None)
    }

    /// As [`Proxy::rule`], for the next `times` matching requests only.
    pub fn rule_times(&self, matching: Match, action: Action, times: u64) -> Rule {
        self.shared.rules.add(matching, action, Some(times))
    }

    /// The matching requests that are under way now, oldest first: their head was read and their answer is not yet with
    /// the client.
    pub fn in_flight(&self, matching: &Match) -> Vec<InFlight> {
        self.shared.traffic.in_flight(matching)
    }

    /// Waits until at least one matching request is under way.
    pub async fn wait_in_flight(&self, matching: &Match, limit: Duration) -> Result<InFlight> {
        let look = || {
            std::future::ready(self.in_flight(matching).into_iter().next().ok_or_else(|| "none is under way".into()))
        };
        eventually(&format!("a request {matching}"), limit, look).await
    }

    /// All matching requests that are over, in the order in which they ended.
    pub fn exchanges(&self, matching: &Match) -> Vec<Exchange> {
        self.shared.traffic.exchanges(matching)
    }

    /// Waits until at least `count` matching requests are over.
    pub async fn wait_exchanges(&self, matching: &Match, count: usize, limit: Duration) -> Result<Vec<Exchange>> {
        let look = || {
            let seen = self.exchanges(matching);
            std::future::ready(if seen.len() >= count { Ok(seen) } else { Err(format!("{} so far", seen.len())) })
        };
        eventually(&format!("{count} requests {matching}"), limit, look).await
    }

    /// All that was recorded until now; nothing without [`ProxyOptions::record`].
    pub fn recorded(&self) -> Result<Vec<Recorded>> {
        if let (Some(recorder), Some(path)) = (&self.shared.recorder, &self.record) {
            let length = recorder.flush()?;
            return record::read_beginning(path, length);
        }
        Ok(Vec::new())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.rules.clear();
        if let Some(stop) = self.stop.take() {
            // The thread ends by itself if it has gone already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, forwarder: Arc<Forwarder>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        // An accept fails when descriptors run out: let those under way end first.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let forwarder = forwarder.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let forwarder = forwarder.clone();
                async move { forwarder.exchange(request).await }
            });
            // A dropped exchange ends its connection with an error; that is what the rule wants.
            let _ =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[cfg(test)]
mod tests;
