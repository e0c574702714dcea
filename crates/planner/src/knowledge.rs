//! What is known about pools, offers and hosts, and what is assumed where nothing is known.

use std::collections::BTreeMap;

use tradewind_core::{GpuModel, Offer};

/// Mean life of a spot machine assumed until a pool has been measured, in seconds: our own careful guess, not a provider's figure.
pub const DEFAULT_MEAN_LIFE_S: u64 = 7200;
/// From the rent call to a started container, without the image pull, in seconds.
pub const DEFAULT_SETUP_S: u64 = 60;
/// Size assumed for an image whose size is not known, in MB: a CUDA and PyTorch runtime image, compressed.
pub const DEFAULT_IMAGE_MB: u64 = 6000;
/// Bandwidth assumed for an offer that does not tell it, in Mbit/s.
pub const DEFAULT_DOWNLOAD_MBPS: u64 = 200;
/// Time to upload a checkpoint assumed until one has been uploaded, in seconds.
pub const DEFAULT_CHECKPOINT_UPLOAD_S: u64 = 30;

/// That an offer was refused lately, and for how much longer it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedNote {
    /// The provider's reason, in words that may be shown.
    pub reason: String,
    /// Seconds from now for which the offer is still left out; with 0 the note no longer counts.
    pub for_s: u64,
}

/// Everything that was learned and matters to the choice. The owner keeps it and counts the times down; the planner only reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knowledge {
    /// Refusals by provider and offer id. A note counts for the spot and the on-demand terms of that id alike.
    pub refused: BTreeMap<(String, String), RefusedNote>,
    /// Banned hosts by provider and host, with the reason.
    pub banned_hosts: BTreeMap<(String, String), String>,
    /// Measured mean life of spot machines in seconds, by provider and GPU model (`None` = machines without GPUs).
    pub mean_life_s: BTreeMap<(String, Option<GpuModel>), u64>,
    /// Mean life of spot machines in all other pools, in seconds.
    pub default_mean_life_s: u64,
    /// Measured time from the rent call to a started container without the image pull, in seconds, by provider.
    pub setup_s: BTreeMap<String, u64>,
    /// The same for all other providers.
    pub default_setup_s: u64,
    /// Compressed size of the image in MB (10^6 bytes); `None` = [`DEFAULT_IMAGE_MB`].
    pub image_mb: Option<u64>,
    /// What is restored before the work goes on, in MB; 0 = it starts from zero.
    pub restore_mb: u64,
    /// Size of a checkpoint that is yet to be written, in MB; 0 = as `restore_mb`.
    pub checkpoint_mb: u64,
    /// Seconds between two saves; `None` = the job saves nothing, and a lost machine loses all its work.
    pub checkpoint_interval_s: Option<u64>,
    /// Seconds from the start of a save until it is fully uploaded.
    pub checkpoint_upload_s: u64,
}

impl Default for Knowledge {
    /// Nothing learned yet, and no checkpoints.
    fn default() -> Self {
        Self {
            refused: BTreeMap::new(),
            banned_hosts: BTreeMap::new(),
            mean_life_s: BTreeMap::new(),
            default_mean_life_s: DEFAULT_MEAN_LIFE_S,
            setup_s: BTreeMap::new(),
            default_setup_s: DEFAULT_SETUP_S,
            image_mb: None,
            restore_mb: 0,
            checkpoint_mb: 0,
            checkpoint_interval_s: None,
            checkpoint_upload_s: DEFAULT_CHECKPOINT_UPLOAD_S,
        }
    }
}

/// The same knowledge with borrowed keys, made once per plan, so that a look-up copies no text.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    pub(crate) known: &'a Knowledge,
    refused: BTreeMap<(&'a str, &'a str), &'a RefusedNote>,
    banned: BTreeMap<(&'a str, &'a str), &'a str>,
    lives: BTreeMap<(&'a str, Option<&'a GpuModel>), u64>,
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(known: &'a Knowledge) -> Self {
        Self {
            known,
            refused: known
                .refused
                .iter()
                .filter(|(_, note)| note.for_s > 0)
                .map(|((provider, id), note)| ((provider.as_str(), id.as_str()), note))
                .collect(),
            banned: known
                .banned_hosts
                .iter()
                .map(|((provider, host), reason)| ((provider.as_str(), host.as_str()), reason.as_str()))
                .collect(),
            lives: known
                .mean_life_s
                .iter()
                .map(|((provider, gpu), life)| ((provider.as_str(), gpu.as_ref()), *life))
                .collect(),
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

    /// Mean life of a spot machine in this offer's pool, at least one second.
    pub(crate) fn mean_life_s(&self, offer: &Offer) -> u64 {
        let pool = (offer.provider.as_str(), offer.gpu.as_ref());
        self.lives.get(&pool).copied().unwrap_or(self.known.default_mean_life_s).max(1)
    }

    pub(crate) fn setup_s(&self, offer: &Offer) -> u64 {
        self.known.setup_s.get(&offer.provider).copied().unwrap_or(self.known.default_setup_s)
    }

    pub(crate) fn image_mb(&self) -> u64 {
        self.known.image_mb.unwrap_or(DEFAULT_IMAGE_MB)
    }

    /// Size of a checkpoint that is yet to be written; nothing where the job saves nothing.
    pub(crate) fn checkpoint_mb(&self) -> u64 {
        match (self.known.checkpoint_interval_s, self.known.checkpoint_mb) {
            (None, _) => 0,
            (Some(_), 0) => self.known.restore_mb,
            (Some(_), mb) => mb,
        }
    }
}
