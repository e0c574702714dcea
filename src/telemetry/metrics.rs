//! Every metric, once. `docs/metrics.md` explains them; a test compares.
//!
//! No label ever holds a name of a job, an id of a machine or an error text: what can take many values costs memory in every collector.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_providers::http::{CallObserver, CallOutcome, ObservedCall};

use super::spend::Spend;
use crate::context::Context;

/// Seconds: from a cached read to a provider's slow answer.
const SECONDS: &[f64] = &[0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The metrics of this process.
pub struct Metrics {
    registry: Registry,
    reconcile_duration: HistogramVec,
    reconcile_errors: IntCounterVec,
    api_duration: HistogramVec,
    provider_duration: HistogramVec,
    provider_errors: IntCounterVec,
    machines: IntGaugeVec,
    orders_unknown: IntGaugeVec,
    orphans: IntCounterVec,
    left_folders: IntCounter,
    spend: CounterVec,
    offers_age: GaugeVec,
    audit_difference: GaugeVec,
    commit_duration: HistogramVec,
    leader: IntGauge,
    seen: Spend,
}

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            reconcile_duration: put(
                &registry,
                histogram("reconcile_duration_seconds", "Time of one reconcile", &["controller", "outcome"]),
            ),
            reconcile_errors: put(
                &registry,
                counter("reconcile_errors_total", "Reconciles that will be tried again", &["controller", "reason"]),
            ),
            api_duration: put(
                &registry,
                histogram(
                    "api_request_duration_seconds",
                    "Time of one request to the API server, watches aside",
                    &["verb", "resource", "outcome"],
                ),
            ),
            provider_duration: put(
                &registry,
                histogram(
                    "provider_call_duration_seconds",
                    "Time of one try of a call to a provider",
                    &["provider", "operation", "outcome"],
                ),
            ),
            provider_errors: put(
                &registry,
                counter(
                    "provider_errors_total",
                    "Calls to a provider without a usable answer",
                    &["provider", "operation", "kind"],
                ),
            ),
            machines: put(&registry, gauge("machines", "RentedMachines", &["provider", "phase"])),
            orders_unknown: put(
                &registry,
                gauge("orders_unknown", "RentedMachines with an order of unknown outcome", &["provider"]),
            ),
            orphans: put(
                &registry,
                counter(
                    "orphans_total",
                    "Machines of this install that no RentedMachine claims",
                    &["provider", "action"],
                ),
            ),
            left_folders: put(
                &registry,
                known(IntCounter::with_opts(opts(
                    "mailbox_folders_removed_total",
                    "Folders of workers of deleted jobs that the sweep has removed",
                ))),
            ),
            spend: put(
                &registry,
                known(CounterVec::new(
                    opts("estimated_spend_usd_total", "Dollars spent on rented machines, by our own reckoning"),
                    &["provider"],
                )),
            ),
            offers_age: put(
                &registry,
                known(GaugeVec::new(opts("offers_age_seconds", "Age of the newest offers"), &["provider"])),
            ),
            audit_difference: put(
                &registry,
                known(GaugeVec::new(
                    opts(
                        "audit_difference_usd",
                        "Dollars that the provider billed for machines that are gone, less our own reckoning",
                    ),
                    &["provider"],
                )),
            ),
            commit_duration: put(
                &registry,
                histogram(
                    "checkpoint_commit_duration_seconds",
                    "Time to verify and commit one offered checkpoint",
                    &["outcome"],
                ),
            ),
            leader: put(&registry, known(IntGauge::with_opts(opts("leader", "1 while this replica leads")))),
            seen: Spend::default(),
            registry,
        };
        let build = put(&metrics.registry, gauge("build_info", "Always 1", &["version"]));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics
    }

    /// One reconcile has ended; `outcome` is `ok`, `retry` (benign) or `error`.
    pub fn reconciled(&self, controller: &str, outcome: &str, elapsed: Duration) {
        self.reconcile_duration.with_label_values(&[controller, outcome]).observe(elapsed.as_secs_f64());
    }

    /// One reconcile will be tried again, for a reason from a closed list.
    pub fn reconcile_failed(&self, controller: &str, reason: &str) {
        self.reconcile_errors.with_label_values(&[controller, reason]).inc();
    }

    /// The sweep has removed so many folders of workers.
    pub fn folders_removed(&self, count: usize) {
        self.left_folders.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// One request to the API server has ended.
    pub fn api_called(&self, call: tradewind_cluster::kube_client::Called) {
        self.api_duration
            .with_label_values(&[call.verb, call.resource, call.outcome])
            .observe(call.elapsed.as_secs_f64());
    }

    /// A machine that nobody claims was found; `action` is what was done: `terminated` or `reported`.
    pub fn orphan(&self, provider: &str, action: &str) {
        self.orphans.with_label_values(&[provider, action]).inc();
    }

    /// An offered checkpoint was looked at; `outcome` is `committed` or the refusal's word.
    pub fn checkpoint_commit(&self, outcome: &str, elapsed: Duration) {
        self.commit_duration.with_label_values(&[outcome]).observe(elapsed.as_secs_f64());
    }

    /// Whether this replica leads now.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// A RentedMachine in the state in which a watch has told it. `history` = told by a list: this process has not seen it grow.
    pub fn machine_seen(&self, machine: &tradewind_api::RentedMachine, history: bool) {
        // What is spent while another replica leads is counted there.
        if let Some(dollars) = self.seen.more(machine, history || self.leader.get() == 0) {
            self.spend.with_label_values(&[machine.spec.provider.as_str()]).inc_by(dollars);
        }
    }

    /// A RentedMachine is gone.
    pub fn machine_gone(&self, machine: &tradewind_api::RentedMachine) {
        self.machine_seen(machine, false);
        self.seen.forget(machine);
    }

    /// Everything in the text format of Prometheus. What follows from objects is told by the leader only, lest sums count it twice.
    pub fn render(&self, ctx: Option<&Context>) -> String {
        self.machines.reset();
        self.orders_unknown.reset();
        self.offers_age.reset();
        self.audit_difference.reset();
        if let Some(ctx) = ctx.filter(|_| self.leader.get() == 1) {
            self.look(ctx);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| format!("# {error}\n"))
    }

    fn look(&self, ctx: &Context) {
        for machine in ctx.caches.rented.all() {
            let provider = machine.spec.provider.as_str();
            let phase = machine.status.as_ref().map_or(MachinePhase::Claimed, |s| s.phase);
            self.machines.with_label_values(&[provider, &format!("{phase:?}")]).inc();
            self.orders_unknown.with_label_values(&[provider]).add((phase == MachinePhase::Unknown).into());
        }
        for provider in ctx.caches.providers.all() {
            let (Some(name), Some(status)) = (&provider.metadata.name, &provider.status) else { continue };
            if status.audit.machines > 0 {
                #[expect(clippy::cast_precision_loss, reason = "dollars for a graph")]
                let dollars = status.audit.difference.micros() as f64 / 1e6;
                self.audit_difference.with_label_values(&[name]).set(dollars);
            }
        }
        let now = ctx.clock.monotonic();
        for account in ctx.accounts.all() {
            if let Some(snapshot) = ctx.market.snapshot(&account.name) {
                let age = now.saturating_sub(snapshot.at).as_secs_f64();
                self.offers_age.with_label_values(&[account.name.as_str()]).set(age);
            }
        }
    }

    #[cfg(test)]
    fn described(&self) -> Vec<(String, Vec<String>)> {
        let collectors: [&dyn Collector; 14] = [
            &self.reconcile_duration,
            &self.reconcile_errors,
            &self.api_duration,
            &self.provider_duration,
            &self.provider_errors,
            &self.machines,
            &self.orders_unknown,
            &self.orphans,
            &self.left_folders,
            &self.spend,
            &self.offers_age,
            &self.audit_difference,
            &self.commit_duration,
            &self.leader,
        ];
        let of = |c: &&dyn Collector| (c.desc()[0].fq_name.clone(), c.desc()[0].variable_labels.clone());
        let mut all: Vec<_> = collectors.iter().map(of).collect();
        all.push(("tradewind_build_info".to_owned(), vec!["version".to_owned()]));
        all
    }
}

impl CallObserver for Metrics {
    fn call_ended(&self, call: &ObservedCall) {
        let outcome = call.outcome.as_str();
        self.provider_duration
            .with_label_values(&[call.provider, call.operation, outcome])
            .observe(call.elapsed.as_secs_f64());
        if call.outcome != CallOutcome::Ok {
            self.provider_errors.with_label_values(&[call.provider, call.operation, outcome]).inc();
        }
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("tradewind")
}

fn histogram(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts { common_opts: opts(name, help), buckets: SECONDS.to_vec() };
    known(HistogramVec::new(options, labels))
}

fn counter(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    known(IntCounterVec::new(opts(name, help), labels))
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    known(IntGaugeVec::new(opts(name, help), labels))
}

fn known<T>(made: prometheus::Result<T>) -> T {
    made.expect("names and labels of metrics are constants in the right form")
}

fn put<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_documentation_names_every_metric_and_its_labels() {
        let documented: BTreeMap<String, Vec<String>> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `tradewind_"))
            .map(|row| {
                let mut cells = row.split('|');
                let name = cells.next().unwrap().trim().trim_end_matches('`');
                let words = cells.next().unwrap().split(',').map(|w| w.trim().trim_matches('`').to_owned());
                (format!("tradewind_{name}"), words.filter(|w| !w.is_empty()).collect())
            })
            .collect();
        let real: BTreeMap<String, Vec<String>> = Metrics::new().described().into_iter().collect();
        assert_eq!(documented, real);
    }

    #[test]
    fn all_of_it_is_rendered() {
        let metrics = Metrics::new();
        metrics.reconciled("training_job", "ok", Duration::from_millis(3));
        metrics.reconcile_failed("training_job", "ApiUnknown");
        metrics.orphan("vast", "terminated");
        metrics.checkpoint_commit("committed", Duration::from_millis(70));
        metrics.call_ended(&ObservedCall {
            provider: "vast",
            operation: "rent",
            outcome: CallOutcome::NoAnswer,
            elapsed: Duration::ZERO,
        });
        let text = metrics.render(None);
        for line in [
            r#"tradewind_reconcile_duration_seconds_count{controller="training_job",outcome="ok"} 1"#,
            r#"tradewind_reconcile_errors_total{controller="training_job",reason="ApiUnknown"} 1"#,
            r#"tradewind_orphans_total{action="terminated",provider="vast"} 1"#,
            r#"tradewind_checkpoint_commit_duration_seconds_bucket{outcome="committed",le="0.1"} 1"#,
            r#"tradewind_provider_errors_total{kind="no_answer",operation="rent",provider="vast"} 1"#,
            "tradewind_leader 0",
            "tradewind_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
