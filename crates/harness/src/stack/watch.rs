//! Looking at what the API server and the buckets hold, and waiting for it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::events::v1::Event;
use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;
use tradewind_api::{RentedMachine, TrainingJob, names, training_job::JobPhase};
use tradewind_checkpoints::{Catalogue, Location, Mailbox, S3Store, StoreCredentials};
use tradewind_core::SystemClock;

use super::{MAILBOX, Stack};
use crate::{Error, Result, S3, eventually, sim::SimMachine};

impl Stack {
    /// A client of the administrator.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The job as it is now.
    pub async fn job(&self, namespace: &str, name: &str) -> Result<TrainingJob> {
        let api: Api<TrainingJob> = Api::namespaced(self.client(), namespace);
        api.get(name).await.map_err(|e| refused(&format!("get tj {namespace}/{name}"), &e))
    }

    /// All RentedMachines.
    pub async fn rented_machines(&self) -> Result<Vec<RentedMachine>> {
        self.list(Api::all(self.client()), "").await
    }

    /// The RentedMachines of one job, in the order in which they were made.
    pub async fn machines_of(&self, job: &str) -> Result<Vec<RentedMachine>> {
        let mut machines =
            self.list::<RentedMachine>(Api::all(self.client()), &format!("{}={job}", names::JOB_NAME)).await?;
        machines.sort_by_key(|m| (m.spec.attempt, m.metadata.name.clone()));
        Ok(machines)
    }

    /// The Events of a namespace, oldest first.
    pub async fn events(&self, namespace: &str) -> Result<Vec<Event>> {
        let mut events: Vec<Event> = self.list(Api::namespaced(self.client(), namespace), "").await?;
        events.sort_by_key(|e| e.event_time.as_ref().map(|t| t.0));
        Ok(events)
    }

    /// The reasons and notes of all Events about one object, oldest first.
    pub async fn events_about(&self, namespace: &str, name: &str) -> Result<Vec<(String, String)>> {
        let about = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name);
        let told = self.events(namespace).await?.into_iter().filter(about);
        Ok(told.map(|e| (e.reason.unwrap_or_default(), e.note.unwrap_or_default())).collect())
    }

    async fn list<K>(&self, api: Api<K>, labels: &str) -> Result<Vec<K>>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let what = format!("list {}", K::plural(&K::DynamicType::default()));
        api.list(&ListParams::default().labels(labels)).await.map(|list| list.items).map_err(|e| refused(&what, &e))
    }

    /// Waits until `look` is content with the job. Its `Err` says what is missing; the job's own sentence and the end of the
    /// operator's log are added to it.
    pub async fn wait_job<T>(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        limit: Duration,
        look: impl Fn(&TrainingJob) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let what = format!("{what} of job {namespace}/{name}");
        let looked = eventually(&what, limit, || {
            let job = self.job(namespace, name);
            let look = &look;
            async move {
                let job = job.await.map_err(|e| e.to_string())?;
                look(&job).map_err(|missing| format!("{missing} ({})", summary(&job)))
            }
        });
        looked.await.map_err(|e| self.with_operator_log(e))
    }

    /// Waits until the job is in this phase. A job that has failed instead is said at once.
    pub async fn wait_phase(
        &self,
        namespace: &str,
        name: &str,
        phase: JobPhase,
        limit: Duration,
    ) -> Result<TrainingJob> {
        let what = format!("phase {phase:?}");
        let ended = self
            .wait_job(namespace, name, &what, limit, |job| match job.status.as_ref().map(|s| s.phase) {
                Some(now) if now == phase || now.is_terminal() => Ok(job.clone()),
                _ => Err("not there yet".into()),
            })
            .await?;
        if ended.status.as_ref().is_some_and(|s| s.phase == phase) {
            return Ok(ended);
        }
        Err(Error::Unexpected { what: format!("job {namespace}/{name}"), why: summary(&ended) })
    }

    /// Waits until no machine of the market costs money any more and every RentedMachine is gone.
    pub async fn wait_all_gone(&self, limit: Duration) -> Result<()> {
        let looked = eventually("the end of all machines", limit, || async {
            let paid = self.paid_machines().await.map_err(|e| e.to_string())?;
            let objects = self.rented_machines().await.map_err(|e| e.to_string())?;
            if paid.is_empty() && objects.is_empty() {
                return Ok(());
            }
            let paid: Vec<&str> = paid.iter().map(|m| m.id.as_str()).collect();
            let objects: Vec<String> = objects.iter().map(summary_of_machine).collect();
            Err(format!("paid at the market: {paid:?}; RentedMachines: {objects:?}"))
        });
        looked.await.map_err(|e| self.with_operator_log(e))
    }

    /// The machines of the market that cost money now.
    pub async fn paid_machines(&self) -> Result<Vec<SimMachine>> {
        let mut machines = self.sim.machines().await?.machines;
        machines.retain(|m| m.paid);
        Ok(machines)
    }

    fn with_operator_log(&self, error: Error) -> Error {
        match error {
            Error::TimedOut { what, limit, missing } => {
                let tail = self.operator.process.tail(3000);
                Error::TimedOut { what, limit, missing: format!("{missing}; the end of the operator's log:\n{tail}") }
            }
            other => other,
        }
    }

    /// The operator's mailbox, as the operator sees it.
    pub fn mailbox(&self) -> Result<Mailbox> {
        Ok(Mailbox::new(Arc::new(self.store(MAILBOX)?)))
    }

    /// The catalogue of checkpoints at a location (`s3://ckpt/some/prefix/`).
    pub fn catalogue(&self, location: &str) -> Result<Catalogue> {
        Ok(Catalogue::open(Arc::new(self.store(location)?), Arc::new(SystemClock::default())))
    }

    /// The object store at a location, with the account's own keys.
    pub fn store(&self, location: &str) -> Result<S3Store> {
        let place: Location = location.parse().map_err(Error::unexpected(format!("the location {location}")))?;
        let keys = StoreCredentials::new(&self.s3.access_key, &self.s3.secret_key)
            .with_region(Some(S3::REGION.into()))
            .with_endpoint(&self.s3.url())
            .map_err(Error::unexpected("the store's endpoint"))?;
        S3Store::open(&place, &keys, Arc::new(SystemClock::default()))
            .map_err(Error::unexpected(format!("the store at {location}")))
    }
}

fn refused(call: &str, why: &kube::Error) -> Error {
    Error::Call { call: call.into(), why: why.to_string() }
}

/// A job's state in a line.
pub fn summary(job: &TrainingJob) -> String {
    job.status.as_ref().map_or_else(|| "no status yet".into(), |s| format!("{:?}: {}", s.phase, s.message))
}

/// A machine's state in a line.
pub fn summary_of_machine(machine: &RentedMachine) -> String {
    let name = machine.metadata.name.as_deref().unwrap_or_default();
    machine.status.as_ref().map_or_else(|| name.into(), |s| format!("{name} {:?}: {}", s.phase, s.message))
}
