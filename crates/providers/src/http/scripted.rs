//! A server that plays a script, byte by byte: for the answers that no decent server gives.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One step: what to do with the next request.
#[derive(Clone)]
pub(crate) enum Act {
    /// Status, extra header lines and body.
    Answer(u16, &'static str, Vec<u8>),
    /// Promises this many bytes more than it sends, then closes.
    Cut(Vec<u8>),
    /// Sends bytes for ever.
    Flood,
    /// Reads the request and closes.
    Close,
    /// Reads the request and says nothing for a minute.
    Hang,
}

/// An answer with status 200.
pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Act {
    Act::Answer(200, "", body.into())
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Serves on loopback until it is dropped. After the script's end its last step repeats.
pub(crate) struct Server {
    pub url: reqwest::Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn new(script: Vec<Act>) -> Self {
        Self::by(move |_, n| script.get(n).or(script.last()).cloned().expect("a script has a step")).await
    }

    /// One that decides by the request and its number.
    pub async fn by(decide: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let decide = Arc::new(decide);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, decide) = (Arc::clone(&log), Arc::clone(&decide));
                connections.spawn(async move { serve(stream, &log, &*decide).await });
            }
        });
        Self { url, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// One request per connection.
async fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, decide: &(dyn Fn(&Seen, usize) -> Act + Send + Sync)) {
    let Some(request) = read(&mut stream).await else { return };
    let act = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        decide(&request, log.len() - 1)
    };
    let head = |status: u16, extra: &str, length: usize| {
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n{extra}\r\n"
        )
    };
    match act {
        Act::Answer(status, extra, body) => {
            stream.write_all(head(status, extra, body.len()).as_bytes()).await.ok();
            stream.write_all(&body).await.ok();
        }
        Act::Cut(body) => {
            stream.write_all(head(200, "", body.len() + 1).as_bytes()).await.ok();
            stream.write_all(&body).await.ok();
        }
        Act::Flood => {
            stream
                .write_all(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
                .await
                .ok();
            while stream.write_all(&[b'['; 8192]).await.is_ok() {}
        }
        Act::Close => {}
        Act::Hang => tokio::time::sleep(Duration::from_mins(1)).await,
    }
    stream.shutdown().await.ok();
}

/// `None` if the head or the body did not arrive whole.
async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Seen { method, target, headers, body })
}
