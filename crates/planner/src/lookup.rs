//! The knowledge with borrowed keys, made once per plan, so that a look-up copies no text.

use std::collections::BTreeMap;

use tradewind_core::{Capacity, GpuModel, Offer};

use crate::cost::Terms;
use crate::gpus::Known;
use crate::knowledge::{HostRecord, JobFacts, Knowledge, Pool, RefusedNote, failures_milli, life_by_reliability_s};
use crate::needs::{Requirements, WorkLeft};
use crate::speed::{Pace, Pacer};

type PoolKey<'a> = (&'a str, Option<&'a GpuModel>);

/// What is known of a pool, with the assumptions where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolFacts {
    /// Mean life of a spot machine, at least one second.
    pub(crate) life_s: u64,
    pub(crate) setup_s: u64,
    /// Expected refusals before a rent call succeeds, in thousandths.
    pub(crate) refused_milli: u64,
}

/// Market knowledge and the job's, ready to be asked about offers.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    pub(crate) market: &'a Knowledge,
    pub(crate) job: JobFacts<'a>,
    refused: BTreeMap<(&'a str, &'a str), &'a RefusedNote>,
    banned: BTreeMap<(&'a str, &'a str), &'a str>,
    lives: BTreeMap<PoolKey<'a>, u64>,
    setups: BTreeMap<PoolKey<'a>, u64>,
    refusals: BTreeMap<PoolKey<'a>, u32>,
    hosts: BTreeMap<(&'a str, &'a str), &'a HostRecord>,
}

fn by_two<V>(map: &BTreeMap<(String, String), V>) -> BTreeMap<(&str, &str), &V> {
    map.iter().map(|((a, b), value)| ((a.as_str(), b.as_str()), value)).collect()
}

fn by_pool<V: Copy>(map: &BTreeMap<Pool, V>) -> BTreeMap<PoolKey<'_>, V> {
    map.iter().map(|((provider, gpu), value)| ((provider.as_str(), gpu.as_ref()), *value)).collect()
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(known: &'a Knowledge) -> Self {
        Self::with_job(known, known.job())
    }

    /// The market's part of `market` with the facts of another job.
    pub(crate) fn with_job(market: &'a Knowledge, job: JobFacts<'a>) -> Self {
        let mut refused = by_two(&market.refused);
        refused.retain(|_, note| note.for_s > 0);
        Self {
            market,
            job,
            refused,
            banned: market
                .banned_hosts
                .iter()
                .map(|((provider, host), reason)| ((provider.as_str(), host.as_str()), reason.as_str()))
                .collect(),
            lives: by_pool(&market.mean_life_s),
            setups: by_pool(&market.pool_setup_s),
            refusals: by_pool(&market.refusals_ppm),
            hosts: by_two(&market.hosts),
        }
    }

    /// The refusal that keeps this offer out, if any.
    pub(crate) fn refusal(&self, offer: &Offer) -> Option<&'a RefusedNote> {
        self.refused.get(&(offer.provider.as_str(), offer.id.as_str())).copied()
    }

    /// Whether the offer's host is banned. A host that is not told (`""`) cannot be.
    pub(crate) fn banned(&self, offer: &Offer) -> bool {
        !offer.host.is_empty() && self.banned.contains_key(&(offer.provider.as_str(), offer.host.as_str()))
    }

    pub(crate) fn pool(&self, provider: &str, gpu: Option<&GpuModel>) -> PoolFacts {
        let key = (provider, gpu);
        let by_provider = || self.market.setup_s.get(provider).copied();
        PoolFacts {
            life_s: self.lives.get(&key).copied().unwrap_or(self.market.default_mean_life_s).max(1),
            setup_s: self.setups.get(&key).copied().or_else(by_provider).unwrap_or(self.market.default_setup_s),
            refused_milli: failures_milli(self.refusals.get(&key).copied().unwrap_or_default()),
        }
    }

    /// The record of the offer's host. One that is not told has none.
    pub(crate) fn host(&self, offer: &Offer) -> HostRecord {
        let key = (offer.provider.as_str(), offer.host.as_str());
        let told = (!offer.host.is_empty()).then(|| self.hosts.get(&key)).flatten();
        told.copied().copied().unwrap_or_default()
    }

    /// Everything about this offer that its cost depends on.
    pub(crate) fn terms(&self, offer: &Offer) -> Terms {
        let pool = self.pool(&offer.provider, offer.gpu.as_ref());
        let host = self.host(offer);
        Terms {
            price: offer.price_per_hour,
            storage_price: offer.storage_price_per_gib_hour,
            download_price: offer.download_price_per_gb,
            upload_price: offer.upload_price_per_gb,
            download_mbps: offer.download_mbps,
            setup_s: host.setup_s.unwrap_or(pool.setup_s),
            pool_life_s: match offer.capacity {
                Capacity::Spot => pool.life_s,
                Capacity::OnDemand => u64::MAX,
            },
            host_life_s: host_life_s(host, offer.reliability_ppm, self.market.repair_s),
            failed_starts_milli: failures_milli(host.failed_starts_ppm),
            refused_milli: pool.refused_milli,
            max_duration_s: offer.max_duration_s.unwrap_or(u64::MAX),
            running: false,
        }
    }
}

/// Mean time between failures of a host, at least one second: measured, or by the share of time for which it is there.
pub(crate) fn host_life_s(host: HostRecord, reliability_ppm: u32, repair_s: u64) -> u64 {
    host.mean_life_s.map_or_else(|| life_by_reliability_s(reliability_ppm, repair_s), |life| life.max(1))
}

/// The paces of one job on all models of a market, each worked out once.
#[derive(Debug)]
pub(crate) struct Paces<'a> {
    cpu: bool,
    pacer: Pacer<'a>,
    by_model: BTreeMap<&'a GpuModel, Pace>,
}

impl<'a> Paces<'a> {
    pub(crate) fn new(
        needs: &Requirements,
        work: &'a WorkLeft,
        job: &JobFacts<'a>,
        offers: impl Iterator<Item = &'a Offer>,
    ) -> Self {
        let pacer = Pacer::new(work, job);
        let mut by_model = BTreeMap::new();
        for model in offers.filter_map(|offer| offer.gpu.as_ref()) {
            by_model.entry(model).or_insert_with(|| pacer.pace(Some(Known::new(model))));
        }
        Self { cpu: needs.gpu_count == 0, pacer, by_model }
    }

    /// The pace on this offer's machine. A CPU job runs on the CPU wherever it is.
    pub(crate) fn of(&self, offer: &Offer) -> Pace {
        let gpu = offer.gpu.as_ref().filter(|_| !self.cpu);
        let learned = gpu.and_then(|model| self.by_model.get(model)).copied();
        learned.unwrap_or_else(|| self.pacer.pace(gpu.map(Known::new)))
    }
}
