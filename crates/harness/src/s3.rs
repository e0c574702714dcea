//! An S3 server on a directory behind a recording proxy: versitygw, or s3s-fs as a second opinion on what S3 is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Method;
use rand::RngExt;

use crate::{
    Error, Launch, Process, Proxy, ProxyOptions, Result, Tools, http_json, ports::free_port,
    process::despite_taken_ports,
};

/// A running S3 server; ends when the value goes. Clients use [`S3::url`], the proxy's, with path-style addresses.
#[derive(Debug)]
pub struct S3 {
    /// What everybody talks to; here go brakes and faults.
    pub proxy: Proxy,
    /// The server behind, to be killed or frozen.
    pub server: Process,
    /// The account's access key, made at start.
    pub access_key: String,
    /// The account's secret key, made at start.
    pub secret_key: String,
    buckets: PathBuf,
}

/// Who plays S3. Neither makes put-if-absent atomic by itself; the proxy in front does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3Server {
    /// Used everywhere: the closest to AWS.
    Versitygw,
    /// Others' reading of the same documents. Ignores `If-None-Match` on GET, and a PUT makes a bucket that is missing.
    S3sFs,
}

impl S3Server {
    /// The program's name among the tools.
    pub fn program(self) -> &'static str {
        match self {
            Self::Versitygw => "versitygw",
            Self::S3sFs => "s3s-fs",
        }
    }
}

impl S3 {
    /// The region that signatures are made for.
    pub const REGION: &'static str = "us-east-1";

    /// Starts versitygw with its files in `directory`; every byte between it and its clients goes to `s3.recording` there.
    pub async fn start(tools: &Tools, directory: &Path) -> Result<Self> {
        Self::start_with(tools, directory, S3Server::Versitygw, true).await
    }

    /// As [`S3::start`], by the server of one's choice, with or without the recording.
    pub async fn start_with(tools: &Tools, directory: &Path, kind: S3Server, record: bool) -> Result<Self> {
        let (buckets, meta) = (directory.join("buckets"), directory.join("metadata-of-s3"));
        for path in [&buckets, &meta] {
            fs::create_dir_all(path).map_err(Error::io(format!("making {}", path.display())))?;
        }
        let access_key = format!("TW{:016X}", rand::rng().random::<u64>());
        let secret_key = format!("{:032x}{:08x}", rand::rng().random::<u128>(), rand::rng().random::<u32>());
        let program = tools.program(kind.program())?;
        let (server, upstream) = despite_taken_ports(async || {
            let port = free_port()?;
            let launch = Launch::new(kind.program(), &program, directory);
            let launch = match kind {
                // The sidecar keeps metadata in files: extended attributes are not to be had on every tmpfs.
                S3Server::Versitygw => launch
                    .env("ROOT_ACCESS_KEY", &access_key)
                    .env("ROOT_SECRET_KEY", &secret_key)
                    .args(["--port", &format!("127.0.0.1:{port}"), "--region", Self::REGION, "--keep-alive", "--quiet"])
                    .args(["posix", "--sidecar"])
                    .args([&meta, &buckets]),
                S3Server::S3sFs => launch
                    .args(["--host", "127.0.0.1", "--port", &port.to_string()])
                    .args(["--access-key", &access_key, "--secret-key", &secret_key])
                    .args([&buckets]),
            };
            let mut server = Process::start(launch)?;
            let url = format!("http://127.0.0.1:{port}");
            // Without credentials it refuses; that it answers is enough.
            let probe =
                || async { http_json::call(Method::GET, &url, None).await.map(drop).map_err(|e| e.to_string()) };
            server.ready(Duration::from_secs(30), probe).await?;
            Ok((server, url))
        })
        .await?;
        let options = ProxyOptions { record: record.then(|| directory.join("s3.recording")), one_write_per_key: true };
        Ok(Self { proxy: Proxy::start(&upstream, options)?, server, access_key, secret_key, buckets })
    }

    /// The endpoint for clients.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Makes a bucket, if it is not there.
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        let path = self.buckets.join(name);
        fs::create_dir_all(&path).map_err(Error::io(format!("making the bucket {}", path.display())))
    }

    /// The file that holds an object, to be looked at or damaged.
    pub fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.buckets.join(bucket).join(key)
    }

    /// The directory with all buckets, for a search through every object.
    pub fn buckets(&self) -> &Path {
        &self.buckets
    }

    /// The keys in a bucket that begin with `prefix`, sorted.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>> {
        let root = self.buckets.join(bucket);
        let mut keys = Vec::new();
        let mut open = vec![root.clone()];
        while let Some(directory) = open.pop() {
            for entry in
                fs::read_dir(&directory).map_err(Error::io(format!("listing {}", directory.display())))?.flatten()
            {
                let path = entry.path();
                let Ok(key) = path.strip_prefix(&root).map(|k| k.to_string_lossy().into_owned()) else { continue };
                // The server's own work room, not an object.
                if key == ".sgwtmp" {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    open.push(path);
                } else if key.starts_with(prefix) {
                    keys.push(key);
                }
            }
        }
        keys.sort();
        Ok(keys)
    }
}
