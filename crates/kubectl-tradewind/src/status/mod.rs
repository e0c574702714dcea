//! `status JOB`: one screen about one job.

mod render;
mod view;

use std::time::Duration;

use futures::future::join3;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use tradewind_api::{RentedMachine, TrainingJob, names};
use tradewind_core::Clock;

pub use self::render::{render, shade};
pub use self::view::{Found, StatusView, main_reason};
use crate::Trouble;
use crate::cli::{Form, StatusArgs};
use crate::connect::Connection;
use crate::screen::{Screen, formed};

/// Between two looks of `--watch`: statuses of running jobs are written every 30 s at most, phases at once.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Events that are asked for; the server keeps them for an hour.
const EVENTS: u32 = 500;

/// Runs the command.
pub async fn run(
    connection: &Connection,
    args: &StatusArgs,
    form: Option<Form>,
    screen: Screen,
    clock: &dyn Clock,
) -> Result<(), Trouble> {
    let mut shown = None;
    loop {
        let view = look(connection, &args.job, clock).await?;
        let text = formed(form, &view, || render(&view, clock.now(), screen.ink))?;
        if !args.watch {
            return screen.print(&text);
        }
        // On a terminal ages go on; elsewhere only news are worth another screen.
        if screen.redraws() || shown.as_ref() != Some(&view) {
            screen.redraw(&text, shown.is_none())?;
        }
        if view.finished_at.is_some() {
            return Ok(());
        }
        shown = Some(view);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What is known of a job now.
pub async fn look(connection: &Connection, name: &str, clock: &dyn Clock) -> Result<StatusView, Trouble> {
    let job = connection.job(name).await?;
    // Without these a screen is still worth a lot: who may not read them sees the rest.
    let (machine, pods, events) =
        join3(machine(connection, &job), pods(connection, &job), events(connection, name)).await;
    let found = Found { job, machine, pods, events };
    Ok(StatusView::of(&found, clock.now()))
}

async fn machine(connection: &Connection, job: &TrainingJob) -> Option<RentedMachine> {
    let name = job.status.as_ref()?.placement.as_ref()?.machine.as_ref()?;
    Api::<RentedMachine>::all(connection.client.clone()).get_opt(name).await.ok().flatten()
}

/// Pods of the present attempt.
async fn pods(connection: &Connection, job: &TrainingJob) -> Vec<Pod> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let Some(attempt) = job.status.as_ref().and_then(|s| s.attempt) else { return Vec::new() };
    let labels = format!("{}={name},{}={attempt}", names::JOB_NAME, names::ATTEMPT);
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    api.list(&ListParams::default().labels(&labels)).await.map(|list| list.items).unwrap_or_default()
}

async fn events(connection: &Connection, name: &str) -> Vec<Event> {
    let about = format!("regarding.kind=TrainingJob,regarding.name={name}");
    let api: Api<Event> = Api::namespaced(connection.client.clone(), &connection.namespace);
    api.list(&ListParams::default().fields(&about).limit(EVENTS)).await.map(|list| list.items).unwrap_or_default()
}
