//! Requirements drawn at random, no two alike.

use tradewind_core::{GpuModel, Money, Offer, Trust};
use tradewind_planner::{CapacityChoice, Knowledge, Requirements, WorkLeft};

/// A sequence of random numbers (SplitMix64), the same for the same seed.
pub struct Draw(u64);

/// One decision to make.
pub struct Ask {
    pub needs: Requirements,
    pub work: WorkLeft,
    /// Only the job's part counts.
    pub job: Knowledge,
}

impl Draw {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub const fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    const fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// What a job may ask for: half name models, the others memory or nothing; each other wish is there now and then.
    pub fn ask(&mut self, offers: &[Offer]) -> Ask {
        let named = if self.one_in(2) { 1 + self.below(3) } else { 0 };
        let model = |draw: &mut Self| offers[draw.below(offers.len())].gpu.clone();
        let models: Vec<GpuModel> = (0..named).filter_map(|_| model(self)).collect();
        let on = model(self);
        let needs = Requirements {
            gpu_count: [1, 1, 1, 1, 1, 2, 4, 8, 0][self.below(9)],
            min_gpu_memory_mib: if self.one_in(2) { 1024 * (8 + self.below(76) as u64) } else { 0 },
            gpu_models: models,
            cpu_millis: self.below(16_000) as u64,
            memory_mib: self.below(64_000) as u64,
            disk_gib: self.below(400) as u64,
            capacity: [CapacityChoice::Any, CapacityChoice::Any, CapacityChoice::Spot, CapacityChoice::OnDemand]
                [self.below(4)],
            min_trust: [Trust::Community, Trust::Community, Trust::Datacenter, Trust::Enterprise][self.below(4)],
            providers: (0..if self.one_in(6) { 2 } else { 0 })
                .map(|_| offers[self.below(offers.len())].provider.clone())
                .collect(),
            regions: (0..if self.one_in(4) { 1 + self.below(6) } else { 0 })
                .map(|_| offers[self.below(offers.len())].region.clone())
                .collect(),
            min_reliability_ppm: if self.one_in(3) { 960_000 + self.below(39_000) as u32 } else { 0 },
            min_download_mbps: if self.one_in(3) { self.below(1_500) as u64 } else { 0 },
            min_upload_mbps: if self.one_in(4) { self.below(600) as u64 } else { 0 },
            min_cuda_milli: if self.one_in(3) { 12_000 + self.below(900) as u32 } else { 0 },
            excluded_hosts: (0..if self.one_in(5) { 2 } else { 0 })
                .map(|_| offers[self.below(offers.len())].host.clone())
                .collect(),
            finish_within_s: self.one_in(4).then(|| 3600 + self.below(400_000) as u64),
            max_price_per_hour: self.one_in(4).then(|| Money::from_micros(200_000 + self.below(8_000_000) as i64)),
            budget_left: self.one_in(4).then(|| Money::from_micros(1_000_000 + self.below(200_000_000) as i64)),
        };
        let saves = !self.one_in(8);
        let job = Knowledge {
            image_mb: Some(500 + self.below(15_000) as u64),
            input_mb: self.below(100_000) as u64,
            restore_mb: if self.one_in(2) { self.below(20_000) as u64 } else { 0 },
            checkpoint_mb: self.below(20_000) as u64,
            checkpoint_interval_s: saves.then(|| 300 + self.below(3_000) as u64),
            ..Knowledge::default()
        };
        Ask { needs, work: WorkLeft { seconds: 600 + self.below(400_000) as u64, on }, job }
    }
}
