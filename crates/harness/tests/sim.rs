//! The simulator as a process, and its control API through our client.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tradewind_harness::{Binaries, Proxy, ProxyOptions, RunDir, Sim, SimOptions, or_skip, proxy::Match};

#[tokio::test]
async fn the_simulator_is_driven_and_watched() -> Result<()> {
    let Some(binary) = or_skip(Binaries::locate_sim()) else { return Ok(()) };
    let run = RunDir::new("sim")?;
    let market = json!({ "providers": { "vast": { "kind": "vast", "apiKey": "vast-key-of-the-test", "credit": 50, "offers": [
        { "id": 1001, "gpu_name": "RTX 4090", "num_gpus": 1, "dph_base": 0.40, "min_bid": 0.20, "sim": { "boot": 0 } } ] } } });
    let mut sim = Sim::start(&binary, run.path(), &market, SimOptions { seed: 7, faults: None }).await?;
    let account = sim.provider("vast")?;
    ensure!(account.kind == "vast" && account.api_key == "vast-key-of-the-test");
    ensure!(sim.provider("other").is_err() && sim.state().exists());
    let proxy =
        Proxy::start(&account.url, ProxyOptions { record: Some(run.path().join("vast")), ..ProxyOptions::default() })?;

    let books = sim.machines().await?;
    ensure!(books.total_micros == 0 && books.machines.is_empty());
    sim.patch_offer("vast", "1001", &json!({ "bid": 0.3 })).await?;
    sim.add_fault(&json!({ "provider": "vast", "op": "rent" })).await?;
    ensure!(sim.faults().await?.to_string().contains("rent"));
    sim.clear_faults().await?;
    ensure!(!sim.faults().await?.to_string().contains("rent"));
    ensure!(sim.act("vast", "1", "outbid", &json!({ "price": 1.0 })).await.is_err(), "there is no such machine");

    let first = sim.events(0).await?;
    let stream = tokio::net::TcpStream::connect(proxy.url().replace("http://", "")).await?;
    let (mut read, mut write) = stream.into_split();
    let request = "GET /api/v0/users/current/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer vast-key-of-the-test\r\nconnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut write, request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut read, &mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    proxy.wait_exchanges(&Match::any().target("users/current"), 1, Duration::from_secs(5)).await?;
    let next = sim.events(first.next).await?;
    ensure!(next.events.iter().any(|e| e["kind"] == "request"), "{next:?}");
    ensure!(proxy.recorded()?[0].request.starts_with(b"GET /api/v0/users/current/"));
    ensure!(sim.process.stop(Duration::from_secs(10)).await?.success(), "SIGTERM ends it cleanly");
    Ok(())
}
