//! Every byte of both directions in one file.
//!
//! Pieces of concurrent exchanges interleave, so each has a line before it: the exchange's number, `>` (request) or `<`
//! (answer), and the piece's length. [`read_recording`] puts the exchanges together again, so that a search finds what
//! was cut in two on the way.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Seek, Write},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use http::{HeaderMap, StatusCode};

use super::rules::Head;
use crate::{Error, Result};

/// One exchange as it went over the wire.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Its number, as in [`super::Exchange::id`].
    pub id: u64,
    /// Request line, headers, an empty line and the body.
    pub request: Vec<u8>,
    /// Status line, headers, an empty line and the body.
    pub response: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Request,
    Response,
}

#[derive(Debug)]
pub(super) struct Recorder(Mutex<BufWriter<File>>);

impl Recorder {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(format!("creating {}", path.display())))?;
        Ok(Self(Mutex::new(BufWriter::new(file))))
    }

    /// Appends a piece. A recording that cannot be written (disk full) must not hinder the traffic; reading it fails then.
    pub fn piece(&self, id: u64, direction: Direction, bytes: &[u8]) {
        let mark = match direction {
            Direction::Request => '>',
            Direction::Response => '<',
        };
        let mut file = self.lock();
        let _ = writeln!(file, "{id} {mark} {}", bytes.len())
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| file.write_all(b"\n"));
    }

    pub fn request_head(&self, id: u64, head: &Head) {
        let line = format!("{} {} HTTP/1.1\r\n", head.method, head.target);
        self.piece(id, Direction::Request, &head_bytes(line, &head.headers));
    }

    pub fn response_head(&self, id: u64, status: StatusCode, headers: &HeaderMap) {
        self.piece(id, Direction::Response, &head_bytes(format!("HTTP/1.1 {status}\r\n"), headers));
    }

    /// A panic elsewhere leaves at worst half a piece, which [`read_recording`] refuses.
    fn lock(&self) -> MutexGuard<'_, BufWriter<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes out what is recorded until now; returns its length in bytes.
    pub fn flush(&self) -> Result<u64> {
        let mut file = self.lock();
        file.flush().and_then(|()| file.get_mut().stream_position()).map_err(Error::io("writing the recording"))
    }
}

fn head_bytes(line: String, headers: &HeaderMap) -> Vec<u8> {
    let mut bytes = line.into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// Reads a proxy's recording, in the order in which the exchanges began. Fails if it is cut off or is no recording.
pub fn read_recording(path: &Path) -> Result<Vec<Recorded>> {
    read_beginning(path, u64::MAX)
}

/// The first `length` bytes of a recording that may still be written to.
pub(super) fn read_beginning(path: &Path, length: u64) -> Result<Vec<Recorded>> {
    let what = || format!("the recording {}", path.display());
    let file = File::open(path).map_err(Error::io(format!("opening {}", what())))?;
    let mut file = BufReader::new(file.take(length));
    let mut exchanges = BTreeMap::<u64, Recorded>::new();
    let mut line = String::new();
    loop {
        line.clear();
        if file.read_line(&mut line).map_err(Error::io(format!("reading {}", what())))? == 0 {
            return Ok(exchanges.into_values().collect());
        }
        let mut words = line.split_whitespace();
        let (id, mark, length) =
            (words.next().and_then(|w| w.parse().ok()), words.next(), words.next().and_then(|w| w.parse().ok()));
        let (Some(id), Some(mark), Some(length)) = (id, mark, length) else {
            return Err(Error::Unexpected { what: what(), why: format!("{line:?} is not a piece's line") });
        };
        let mut bytes: Vec<u8> = vec![0; length];
        file.read_exact(&mut bytes)
            .and_then(|()| file.read_exact(&mut [0]))
            .map_err(Error::io(format!("reading {}", what())))?;
        let exchange = exchanges.entry(id).or_insert_with(|| Recorded { id, ..Recorded::default() });
        if mark == ">" { exchange.request.append(&mut bytes) } else { exchange.response.append(&mut bytes) }
    }
}
