//! `cost`: what jobs have cost and what accounts have spent.

mod render;
mod view;

use kube::Api;
use kube::api::ListParams;
use tradewind_api::{Provider, TrainingJob};
use tradewind_core::Clock;

pub use self::render::render;
pub use self::view::{CostView, last_day};
use crate::Trouble;
use crate::cli::{CostArgs, Form};
use crate::connect::Connection;
use crate::screen::Screen;
use crate::trouble::is_forbidden;

/// Runs the command.
pub async fn run(
    connection: &Connection,
    args: &CostArgs,
    form: Option<Form>,
    screen: Screen,
    clock: &dyn Clock,
) -> Result<(), Trouble> {
    let jobs = match &args.job {
        Some(name) => vec![connection.job(name).await?],
        None => jobs(connection, args.all_namespaces).await?,
    };
    let accounts: Api<Provider> = Api::all(connection.client.clone());
    // Users of a namespace may not be allowed to see accounts.
    let providers = match accounts.list(&ListParams::default()).await {
        Ok(list) => Some(list.items),
        Err(error) if is_forbidden(&error) => None,
        Err(error) => return Err(Trouble::of("Providers", &error)),
    };
    let view = CostView::of(&jobs, providers.as_deref(), clock.now());
    screen.show(form, &view, |ink| render(&view, args.all_namespaces, ink))
}

/// Jobs of one or all namespaces.
pub async fn jobs(connection: &Connection, all: bool) -> Result<Vec<TrainingJob>, Trouble> {
    let client = connection.client.clone();
    let api: Api<TrainingJob> = if all { Api::all(client) } else { Api::namespaced(client, &connection.namespace) };
    let list = api.list(&ListParams::default()).await.map_err(|error| Trouble::of("TrainingJobs", &error))?;
    Ok(list.items)
}
