//! `doctor`: looks at everything that Tradewind needs, and names the command that mends what is missing.

mod accounts;
mod installation;
mod jobs;
mod mends;
mod needs;
mod report;
mod rights;

use kube::Api;
use kube::api::ListParams;
use tradewind_api::Provider;
use tradewind_core::Clock;

pub use self::accounts::accounts;
pub use self::installation::{kind, node};
pub use self::jobs::{missing_access, missing_keys, short_quotas, stuck, wanted_secrets};
pub use self::report::{Check, Report, State, render};
pub use self::rights::{Right, operator_rights};
use crate::cli::{DoctorArgs, Form};
use crate::connect::Connection;
use crate::screen::Screen;
use crate::trouble::{BAD, GOOD, is_forbidden};
use crate::{Trouble, cost};

/// Runs the command; the exit code says whether problems were found.
pub async fn run(
    connection: &Connection,
    args: &DoctorArgs,
    form: Option<Form>,
    screen: Screen,
    clock: &dyn Clock,
) -> Result<u8, Trouble> {
    let named = match &args.job {
        Some(name) => Some(connection.job(name).await?),
        None => None,
    };
    let mut report = Report::default();
    report.extend(installation::kinds(connection).await?);
    report.extend(installation::operator(connection, args, clock).await?);
    report.extend(installation::node_of(connection, args).await?);
    let providers = providers(connection).await?;
    match &providers {
        Some(providers) => report.extend(accounts(providers, args, clock.now())),
        None => report.extend([Check::unknown("accounts", "Providers", "you may not list Providers")]),
    }
    // Kinds that are missing are said above; there are no jobs then.
    let jobs = match cost::jobs(connection, args.all_namespaces).await {
        Ok(jobs) => jobs,
        Err(Trouble::NotInstalled(_)) => Vec::new(),
        Err(trouble) => return Err(trouble),
    };
    report.extend(rights::of_operator(connection, args, &jobs).await?);
    report.extend(rights::of_caller(connection, args).await?);
    report.extend(stuck(&jobs, args, clock.now()));
    if let Some(job) = &named {
        report.extend(needs::of_job(connection, args, job, providers.as_deref()).await?);
    }
    report.count();
    let code = if report.problems > 0 { BAD } else { GOOD };
    screen.show(form, &report, |ink| render(&report, ink))?;
    Ok(code)
}

async fn providers(connection: &Connection) -> Result<Option<Vec<Provider>>, Trouble> {
    match Api::<Provider>::all(connection.client.clone()).list(&ListParams::default()).await {
        Ok(list) => Ok(Some(list.items)),
        Err(error) if is_forbidden(&error) => Ok(None),
        Err(error) => match Trouble::of("Providers", &error) {
            Trouble::NotInstalled(_) => Ok(Some(Vec::new())),
            trouble => Err(trouble),
        },
    }
}
