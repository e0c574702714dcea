//! From the catalogue to offers: one for each GPU type, number of GPUs, cloud and data centre that has stock. Whatever is odd about one
//! row costs that row only.

use serde_json::value::RawValue;
use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};

use super::wire::{Catalogue, CudaRow, GpuRow, PerCloud};
use crate::amounts::{GB_PER_GIB, HOURS_PER_MONTH, money, whole};

/// Where a pod runs, and so how far its host may be believed and whether it may be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    /// RunPod's own data centres.
    Secure,
    /// Other people's machines, which they may take back without notice.
    Community,
}

impl Cloud {
    pub const ALL: [Self; 2] = [Self::Secure, Self::Community];

    /// The word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Secure => "SECURE",
            Self::Community => "COMMUNITY",
        }
    }

    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cloud| cloud.word() == word)
    }

    pub const fn capacity(self) -> Capacity {
        match self {
            Self::Secure => Capacity::OnDemand,
            Self::Community => Capacity::Spot,
        }
    }

    const fn trust(self) -> Trust {
        match self {
            Self::Secure => Trust::Datacenter,
            Self::Community => Trust::Community,
        }
    }

    const fn of(self, figures: &PerCloud) -> Option<f64> {
        match self {
            Self::Secure => figures.secure,
            Self::Community => figures.community,
        }
    }
}

/// What an offer's id says, which is all that renting needs: `SECURE/EU-RO-1/2/NVIDIA GeForce RTX 4090`. Without a data centre its place
/// holds `*`. The GPU's id comes last because nothing is promised about its characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub cloud: Cloud,
    pub data_centre: Option<String>,
    pub count: u32,
    pub gpu: String,
}

impl Terms {
    pub fn id(&self) -> String {
        let place = self.data_centre.as_deref().unwrap_or("*");
        format!("{}/{place}/{}/{}", self.cloud.word(), self.count, self.gpu)
    }

    pub fn of_id(id: &str) -> Option<Self> {
        let mut parts = id.splitn(4, '/');
        let cloud = Cloud::of_word(parts.next()?)?;
        let place = parts.next().filter(|place| !place.is_empty())?;
        let count = parts.next()?.parse().ok().filter(|count| *count > 0)?;
        let gpu = parts.next().filter(|gpu| !gpu.is_empty())?.to_owned();
        Some(Self { cloud, data_centre: (place != "*").then(|| place.to_owned()), count, gpu })
    }
}

/// Dollars for a GB of container disk and month while the pod runs (docs, pricing, 2026-08-20).
const DISK_PER_GB_MONTH: f64 = 0.10;
/// The largest disk that is promised. No document names a limit; a host without that much refuses, and the next offer is tried.
const MAX_DISK_GIB: u64 = 1000;
/// What a slice is asked to have and therefore has: the catalogue tells neither cores nor memory. Slices that were seen (2025-04) have at
/// least five cores a GPU, and more main memory than GPU memory.
pub(super) const CORES_PER_GPU: u64 = 4;
const MIN_RAM_PER_GPU_GB: u64 = 8;
/// MiB in a GB, rounded down.
const MIB_PER_GB: u64 = 953;

/// Main memory to ask for, in GB for each GPU, given the memory of one GPU.
pub(super) fn ram_per_gpu_gb(gpu_memory_mib: u64) -> u64 {
    (gpu_memory_mib / 1024).max(MIN_RAM_PER_GPU_GB)
}

/// The disk to ask for, in GB, rounded up.
pub(super) fn disk_gb(gib: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "a disk's size in GiB is far below 2^52")]
    let gb = (gib as f64 * GB_PER_GIB).ceil();
    whole(gb).unwrap_or(u64::MAX).max(1)
}

/// What a disk of this size costs an hour.
pub(super) fn disk_price(gib: u64) -> Money {
    storage_price_per_gib_hour().times(gib)
}

fn storage_price_per_gib_hour() -> Money {
    money(DISK_PER_GB_MONTH * GB_PER_GIB / HOURS_PER_MONTH).expect("a small positive number is a price")
}

/// Offers of one answer of the catalogue.
#[derive(Default)]
pub(super) struct Look {
    pub offers: Vec<Offer>,
    /// Rows that could not be read or lack something that renting needs.
    pub dropped: usize,
    /// Those of them that could not even be read.
    pub unreadable: usize,
}

/// Reads what the catalogue says about pods of `count` GPUs in `cloud`.
pub(super) fn offers(provider: &str, catalogue: &Catalogue<'_>, cloud: Cloud, count: u32) -> Look {
    let mut look = Look::default();
    for raw in &catalogue.gpus {
        let Some(row) = look.read(raw) else { continue };
        match places(&row, cloud, count) {
            // Not on the market is not odd.
            places if places.is_empty() => {}
            places => {
                let found: Option<Vec<Offer>> =
                    places.into_iter().map(|place| offer(provider, &row, cloud, count, place)).collect();
                look.dropped += usize::from(found.is_none());
                look.offers.extend(found.into_iter().flatten());
            }
        }
    }
    look
}

impl Look {
    fn read(&mut self, raw: &RawValue) -> Option<GpuRow> {
        let row = serde_json::from_str(raw.get()).ok();
        self.unreadable += usize::from(row.is_none());
        self.dropped += usize::from(row.is_none());
        row
    }
}

/// Data centres with stock. `None` among them = somewhere: some Community machines are in none.
fn places(row: &GpuRow, cloud: Cloud, count: u32) -> Vec<Option<&str>> {
    let sold = match cloud {
        Cloud::Secure => row.secure,
        Cloud::Community => row.community,
    };
    let most = row.max_count.as_ref().and_then(|most| cloud.of(most)).unwrap_or(f64::INFINITY);
    // The images that people train with are built for CUDA, and no job says otherwise.
    let amd = row.manufacturer.as_deref() == Some("AMD");
    if sold == Some(false) || amd || f64::from(count) > most {
        return Vec::new();
    }
    let listed = row.data_centers.as_deref().unwrap_or_default();
    let stocked = listed.iter().filter(|place| in_stock(place.availability.as_deref()));
    let mut places: Vec<Option<&str>> = stocked.filter_map(|place| place.id.as_deref()).map(Some).collect();
    if listed.is_empty() && in_stock(row.availability.as_deref()) {
        places.push(None);
    }
    // It goes into an offer's id.
    places.retain(|place| place.is_none_or(|id| !id.is_empty() && id.len() <= 64 && !id.contains(['/', '*'])));
    places.sort_unstable();
    places.dedup();
    places
}

/// A word that is none of these is no promise.
fn in_stock(availability: Option<&str>) -> bool {
    matches!(availability, Some("LOW" | "MEDIUM" | "HIGH"))
}

fn offer(provider: &str, row: &GpuRow, cloud: Cloud, count: u32, place: Option<&str>) -> Option<Offer> {
    let gpus = u64::from(count);
    let price = money(cloud.of(row.price.as_ref()?)?).filter(|price| *price > Money::ZERO)?;
    let memory_mib = whole(row.memory?)?.checked_mul(1024).filter(|mib| *mib > 0)?;
    (!row.id.is_empty() && row.id.len() <= 200).then_some(())?;
    let name = row.name.as_deref().filter(|name| !name.trim().is_empty()).unwrap_or(&row.id);
    let terms = Terms { cloud, data_centre: place.map(str::to_owned), count, gpu: row.id.clone() };
    Some(Offer {
        provider: provider.to_owned(),
        id: terms.id(),
        capacity: cloud.capacity(),
        price_per_hour: price.times(gpus),
        region: place.map(region).unwrap_or_default(),
        host: String::new(),
        gpu: Some(GpuModel::normalise(name, memory_mib)),
        gpu_count: count,
        gpu_memory_mib: memory_mib,
        cpu_millis: CORES_PER_GPU * 1000 * gpus,
        memory_mib: ram_per_gpu_gb(memory_mib) * MIB_PER_GB * gpus,
        disk_gib: MAX_DISK_GIB,
        storage_price_per_gib_hour: storage_price_per_gib_hour(),
        download_price_per_gb: Money::ZERO,
        upload_price_per_gb: Money::ZERO,
        download_mbps: 0,
        upload_mbps: 0,
        reliability_ppm: 0,
        trust: cloud.trust(),
        cuda_milli: row.cuda_versions.as_deref().map_or(0, lowest_cuda),
        max_duration_s: None,
    })
}

/// The lowest version among hosts with stock: any of them may be ours.
fn lowest_cuda(versions: &[CudaRow]) -> u32 {
    let read = |row: &CudaRow| {
        let (major, minor) = row.version.as_deref()?.split_once('.')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        (major < 1000 && minor < 10).then_some(major * 1000 + minor * 100)
    };
    versions.iter().filter(|row| row.available == Some(true)).filter_map(read).min().unwrap_or(0)
}

/// The country of `EU-RO-1`, `EUR-IS-2`, `US-KS-2` or `CA-MTL-1`: the first part where that is a country, else the second; the id itself
/// where neither is.
fn region(data_centre: &str) -> String {
    let parts: Vec<&str> = data_centre.split('-').collect();
    match parts.as_slice() {
        [country @ ("US" | "CA"), ..] => (*country).to_owned(),
        [_, country, ..] if country.len() == 2 && country.bytes().all(|b| b.is_ascii_uppercase()) => {
            (*country).to_owned()
        }
        _ => data_centre.to_owned(),
    }
}
