//! Offers of real clouds, and the same many times over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::{Knowledge, RefusedNote, gpus};

use super::draw::Draw;

/// The price list of real clouds, or `None` after the reason is printed. With `CI=true` its absence is a failure.
pub fn real() -> Option<Vec<Offer>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared =
        std::env::var_os("TRADEWIND_SHARED").map_or_else(|| root.join("..").join("shared"), |dir| root.join(dir));
    let path = shared.join("providers/data/gpu_offers.csv.gz");
    if !path.exists() {
        eprintln!("Skipped: no price list; set TRADEWIND_SHARED");
        return None;
    }
    match Command::new("gzip").arg("-dc").arg(&path).output() {
        Ok(done) if done.status.success() => Some(read(&String::from_utf8_lossy(&done.stdout))),
        _ => {
            eprintln!("Skipped: gzip could not read {}", path.display());
            None
        }
    }
}

/// A row is an offer on demand and, where it has a spot price, one more. Rows without a shape are left out.
fn read(text: &str) -> Vec<Offer> {
    let mut draw = Draw::new(11);
    let mut offers = Vec::new();
    for (n, line) in text.lines().skip(1).enumerate() {
        let cell: Vec<&str> = line.split(',').collect();
        let [cloud, kind, gpu, count, cpus, memory, price, spot, region, ..] = cell.as_slice() else { continue };
        let (Ok(count), false) = (count.parse::<u32>(), gpu.is_empty()) else { continue };
        for (capacity, price) in [(Capacity::OnDemand, price), (Capacity::Spot, spot)] {
            let Ok(price_per_hour) = whole_micros(price).parse::<Money>() else { continue };
            let model = GpuModel::normalise(gpu, 0);
            let table = gpus::find(&model);
            let offer = Offer {
                provider: (*cloud).to_owned(),
                id: format!("{kind}/{region}/{n}"),
                capacity,
                price_per_hour,
                region: (*region).to_owned(),
                host: format!("{kind}-{n}"),
                gpu: Some(model),
                gpu_count: count,
                gpu_memory_mib: table.map_or(16 << 10, |gpu| gpu.memory_mib),
                cpu_millis: thousandths(cpus).unwrap_or(8_000 * u64::from(count)),
                memory_mib: thousandths(memory).map_or(32 << 10, |milli| milli * 1024 / 1000),
                disk_gib: 100 + 100 * draw.below(20) as u64,
                storage_price_per_gib_hour: Money::from_micros(100 + draw.below(100) as i64),
                download_price_per_gb: Money::from_micros(if draw.below(3) == 0 { 5_000 } else { 0 }),
                upload_price_per_gb: Money::from_micros(if draw.below(3) == 0 { 20_000 } else { 0 }),
                download_mbps: [100, 300, 500, 1_000, 2_500, 10_000][draw.below(6)],
                upload_mbps: [50, 300, 500, 1_000, 2_500][draw.below(5)],
                reliability_ppm: [970_000, 985_000, 995_000, 999_000][draw.below(4)],
                trust: [Trust::Community, Trust::Datacenter, Trust::Enterprise][draw.below(3)],
                cuda_milli: [12_200, 12_400, 12_800, 13_000][draw.below(4)],
                max_duration_s: (draw.below(4) == 0).then(|| 3600 * (4 + draw.below(500) as u64)),
            };
            offers.push(offer);
        }
    }
    offers
}

/// At most six decimals.
fn whole_micros(price: &str) -> String {
    match price.split_once('.') {
        Some((whole, decimals)) => format!("{whole}.{}", &decimals[..decimals.len().min(6)]),
        None => price.to_owned(),
    }
}

fn thousandths(text: &str) -> Option<u64> {
    let value: f64 = text.parse().ok()?;
    let milli = (value * 1000.0) as u64;
    (milli > 0).then_some(milli)
}

/// `len` offers: the given ones again and again, with prices up to a fifth off, and hosts of their own.
pub fn replicated(offers: &[Offer], len: usize, draw: &mut Draw) -> Vec<Offer> {
    let one = |n: usize| {
        let offer = offers[n % offers.len()].clone();
        let price_per_hour =
            Money::from_micros(offer.price_per_hour.micros() * (80_000 + draw.below(40_001) as i64) / 100_000);
        Offer { id: format!("{}#{n}", offer.id), host: format!("{}#{n}", offer.host), price_per_hour, ..offer }
    };
    (0..len).map(one).collect()
}

/// Some lives, refusals and bans.
pub fn knowledge(offers: &[Offer]) -> Knowledge {
    let mut draw = Draw::new(9);
    let mut known = Knowledge::default();
    for offer in offers.iter().step_by(97) {
        let note = RefusedNote { reason: "no capacity".to_owned(), for_s: 300 };
        known.refused.insert((offer.provider.clone(), offer.id.clone()), note);
    }
    for offer in offers.iter().step_by(211) {
        known.banned_hosts.insert((offer.provider.clone(), offer.host.clone()), "did not start".to_owned());
    }
    let mut lives = BTreeMap::new();
    for offer in offers.iter().step_by(13) {
        lives.insert((offer.provider.clone(), offer.gpu.clone()), 1800 + draw.below(100_000) as u64);
    }
    known.mean_life_s = lives;
    known
}
