//! What controllers share, over the ports in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tradewind_checkpoints::{Mailbox, MemoryStore};
use tradewind_cluster::Cluster;
use tradewind_core::{Clock, InstallId};

use crate::context::{Caches, Context};
use crate::runtime::adapters::Markets;
use crate::settings::Settings;

/// The installation of [`context`].
pub fn install() -> InstallId {
    InstallId::derive("uid", "release")
}

/// An operator that knows nothing yet. Its mailbox is at `s3://mailbox/tw/`.
pub fn context(clock: Arc<dyn Clock>, store: &MemoryStore, cluster: Arc<dyn Cluster>) -> Context {
    // An error says that a provider is installed already, which is as good.
    rustls::crypto::ring::default_provider().install_default().ok();
    Context {
        cluster,
        caches: Caches::default(),
        accounts: crate::accounts::Accounts::default(),
        open_account: Arc::new(Markets::new(Arc::clone(&clock), BTreeMap::new(), true)),
        clock,
        market: crate::market::Market::default(),
        images: crate::images::Images::default(),
        namespaces: crate::accounts::access::Namespaces::default(),
        mailbox: Some(Mailbox::new(Arc::new(store.at(&"s3://mailbox/tw/".parse().expect("a location"))))),
        stores: Arc::new(store.clone()),
        catalogues: crate::storage::OpenCatalogues::default(),
        agent: None,
        settings: Settings { agent_image: Some("agent:1".to_owned()), ..Settings::new(install(), "tradewind-system") },
        told: Mutex::default(),
        machines: crate::controllers::rented_machine::Memory::default(),
        workers: crate::controllers::worker::Workers::default(),
        turns: crate::controllers::training_job::turns::Turns::default(),
        admitted: crate::controllers::training_job::admitted::Admitted::default(),
        asked: Mutex::default(),
    }
}
