//! Arguments and environment of `tradewind-sim`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tradewind_core::SecretString;

use crate::market::Kind;
use crate::probe::Step;

/// A market of rented machines on one computer.
#[derive(Debug, Parser)]
#[command(name = "tradewind-sim", version, about, long_about = LONG, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const LONG: &str = "A market of rented machines on one computer: it speaks the providers' own wire formats over HTTP on loopback and runs what is rented as local processes.";

const EXAMPLES: &str = r#"Examples:
  tradewind-sim serve --market market.json
  tradewind-sim serve --market market.json --seed 7 --time-scale 0 --listen 127.0.0.1:9000
  TRADEWIND_API_KEY=vast-key tradewind-sim probe --kind vast --url http://127.0.0.1:9002 --spot
  TRADEWIND_API_KEY=runpod-key tradewind-sim probe --kind runpod --url http://127.0.0.1:9001

A small market file:
  {"providers": {"vast": {"kind": "vast", "apiKey": "vast-key", "offers": [
    {"id": 1001, "gpu_name": "RTX 4090", "dph_base": 0.40, "min_bid": 0.20, "sim": {"boot": 1}}]},
   "runpod": {"kind": "runpod", "apiKey": "runpod-key", "offers": [
    {"id": "NVIDIA GeForce RTX 4090", "price": {"secure": 0.69, "community": 0.44}, "sim": {"stock": 2}}]}}}"#;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a market until SIGTERM or Ctrl-C.
    #[command(after_help = EXAMPLES)]
    Serve(Serve),
    /// Drive our own adapter against a simulator, a recording proxy or the real account (which spends money). The key comes from
    /// the environment variable TRADEWIND_API_KEY.
    #[command(after_help = EXAMPLES)]
    Probe(Probe),
}

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Market file (JSON).
    #[arg(long, value_name = "FILE")]
    pub market: PathBuf,
    /// Seed of everything that chance decides.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Address of the control API. With a fixed port P the providers get P+1, P+2, … in the order of their names.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Where machines live [default: a temporary directory, removed at the end].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How many times as fast as real time the clock runs; 0 stands still and moves only by the control API.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = scale)]
    pub time_scale: f64,
    /// Faults to start with (a JSON list).
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
}

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
pub struct Probe {
    /// The provider's kind.
    #[arg(long, value_parser = kind)]
    pub kind: Kind,
    /// Base URL. The key is sent there.
    #[arg(long)]
    pub url: reqwest::Url,
    /// Steps, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Step::Offers, Step::Rent, Step::Describe, Step::List, Step::Terminate])]
    pub steps: Vec<Step>,
    /// Rent what may be taken away (by a winning bid, where there are bids) instead of on demand.
    #[arg(long)]
    pub spot: bool,
    /// Most dollars an hour.
    #[arg(long, value_name = "DOLLARS", default_value = "1.00")]
    pub max_price: tradewind_core::Money,
}

/// The provider key for `probe`.
#[expect(clippy::disallowed_methods, reason = "the one place of this binary that reads the environment")]
pub fn api_key() -> Option<SecretString> {
    std::env::var("TRADEWIND_API_KEY").ok().filter(|key| !key.is_empty()).map(SecretString::from)
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text).ok_or_else(|| format!("must be one of {}", Kind::ALL.map(Kind::as_str).join(", ")))
}

fn scale(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1e6).contains(&number) { Ok(number) } else { Err("must be from 0 to 1000000".to_owned()) }
}

/// `PATH` of the simulator, which machines get too.
#[expect(clippy::disallowed_methods, reason = "the one place of this binary that reads the environment")]
pub fn path() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())
}
