//! The tables of `cost`. Pure.

use tradewind_core::Money;

use super::view::{Account, CostView};
use crate::screen::{Ink, Shade};
use crate::status::shade;
use crate::table::{Cell, Table};
use crate::text::{NONE, dollars};

/// Jobs, sums, accounts.
pub fn render(view: &CostView, namespaces: bool, ink: Ink) -> String {
    let mut text =
        if view.jobs.is_empty() { "No TrainingJobs found.\n".to_owned() } else { jobs(view, namespaces, ink) };
    match view.providers.as_deref() {
        Some([]) => text.push_str("\nNo Providers: nothing is rented.\n"),
        Some(accounts) => {
            text.push('\n');
            text.push_str(&providers(accounts, ink));
            text.push_str("Spent by machines that are gone, by UTC time; what running ones cost is with the jobs.\n");
        }
        None => text.push_str("\nYou may not read Providers (kubectl auth can-i list providers.tradewind.dev).\n"),
    }
    text
}

fn optional(money: Option<Money>) -> Cell {
    money.map_or_else(|| NONE.to_owned(), dollars).into()
}

fn jobs(view: &CostView, namespaces: bool, ink: Ink) -> String {
    let mut heads = vec!["JOB", "PHASE", "PROVIDER", "SETTLED", "RUNNING", "$/H", "TOTAL", "BUDGET", "LEFT"];
    if namespaces {
        heads.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&heads);
    for job in &view.jobs {
        let namespace = namespaces.then(|| Cell::from(job.namespace.as_str()));
        table.row(namespace.into_iter().chain([
            job.name.as_str().into(),
            Cell::shaded(format!("{:?}", job.phase), shade(job.phase)),
            job.provider.as_deref().or(job.place.as_deref()).unwrap_or(NONE).into(),
            dollars(job.settled).into(),
            dollars(job.running).into(),
            dollars(job.per_hour).into(),
            dollars(job.total).into(),
            optional(job.budget),
            optional(job.left),
        ]));
    }
    let sum = &view.sum;
    let first = Cell::shaded("sum", Shade::Strong);
    let empty = if namespaces { 3 } else { 2 };
    let amounts = [sum.settled, sum.running, sum.per_hour, sum.total].map(|m| Cell::shaded(dollars(m), Shade::Strong));
    table.row(std::iter::once(first).chain((0..empty).map(|_| Cell::from(""))).chain(amounts));
    table.text(ink)
}

fn providers(accounts: &[Account], ink: Ink) -> String {
    let mut table =
        Table::new(&["PROVIDER", "MACHINES", "$/H", "LIMIT/H", "TODAY", "24H", "LIMIT/DAY", "MONTH", "CREDIT"]);
    for account in accounts {
        let near = |spent: Money, limit: Money| {
            // From nine tenths on a limit is about to be felt.
            let shade = if spent.times(10) >= limit.times(9) { Shade::Waiting } else { Shade::Plain };
            Cell::shaded(dollars(spent), shade)
        };
        table.row([
            account.name.as_str().into(),
            account.machines.to_string().into(),
            near(account.committed_per_hour, account.limit_per_hour),
            dollars(account.limit_per_hour).into(),
            dollars(account.today).into(),
            near(account.last_day, account.limit_per_day),
            dollars(account.limit_per_day).into(),
            dollars(account.month).into(),
            optional(account.credit),
        ]);
    }
    table.text(ink)
}
