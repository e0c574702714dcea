//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;
use tradewind_api::Size;
use tradewind_core::Money;

use crate::market::Sources;

const EXIT_CODES: &str = "\
Exit codes:
  0  the answer is good
  1  there is an answer, and it is bad: doctor found a problem, the job or its Pods are not there, or no offer fits
  2  there is no answer: wrong usage, a manifest that would be refused, the API server or the market cannot be reached or refuses, or
     Tradewind is not installed

Colours are used on terminals only, and never if NO_COLOR is set.";

/// What TrainingJobs do, why, and what they cost.
#[derive(Parser, Debug)]
#[command(name = "kubectl-tradewind", bin_name = "kubectl tradewind", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Which cluster, which namespace, which form.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Debug, Clone, Default)]
pub struct Common {
    /// Namespace [default: the context's own].
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig [default: the current one].
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Kubeconfig [default: as kubectl: $KUBECONFIG, ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Form of the output [default: text for people].
    #[arg(short, long, global = true, value_name = "FORM")]
    pub output: Option<Form>,
}

/// Form of the output.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON document (with `logs`: one object a line).
    Json,
    /// One YAML document.
    Yaml,
    /// Text with more in it (`why`, `plan`, `offers`); the others print what they always do.
    Wide,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// One screen about a job: what it does, where and why there, progress, checkpoints, money, history, what to do next.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Why a job runs where it runs: expected cost taken apart, what the next best would cost, and why the rest does not fit.
    #[command(after_help = WHY_EXAMPLES)]
    Why(WhyArgs),
    /// A dry run without a cluster and without an account: where and when a job would be placed, what that would cost, and what it waits for.
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(PlanArgs),
    /// What the market has, cheapest first.
    #[command(after_help = OFFERS_EXAMPLES)]
    Offers(OffersArgs),
    /// Prints what the job's program prints, of the newest attempt or of an earlier one whose Pod is still there.
    #[command(after_help = LOGS_EXAMPLES)]
    Logs(LogsArgs),
    /// What jobs have cost, what they cost now, and what the rental accounts have spent.
    #[command(after_help = COST_EXAMPLES)]
    Cost(CostArgs),
    /// Looks at everything that Tradewind needs, and names the command that mends what is missing.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
}

const STATUS_EXAMPLES: &str = "\
Examples:
  kubectl tradewind status my-run
  kubectl tradewind status my-run -n team-a --watch       until the job is over
  kubectl tradewind status my-run -o json | jq .progress.secondsLeft

Exit codes: 0 the job is there; 1 it is not; 2 no answer.";

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Name of the TrainingJob.
    pub job: String,
    /// Shows it again whenever something changes, until the job is over.
    #[arg(short, long)]
    pub watch: bool,
}

const WHY_EXAMPLES: &str = "\
Examples:
  kubectl tradewind why my-run
  kubectl tradewind why my-run -o wide        every part of the cost, also those of nothing
  kubectl tradewind why my-run -n team-a -o json | jq .alternatives

Exit codes: 0 the job is there; 1 it is not; 2 no answer.";

/// Arguments of `why`.
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// Name of the TrainingJob.
    pub job: String,
}

const PLAN_EXAMPLES: &str = "\
Examples:
  kubectl tradewind plan -f job.yaml --offers offers.json
  kubectl tradewind plan -f job.yaml --provider vast --provider runpod     the real markets, with VAST_API_KEY and RUNPOD_API_KEY
  kubectl tradewind plan -f job.yaml --provider vast=http://127.0.0.1:9001    a simulator (tradewind-sim serve)
  cat job.yaml | kubectl tradewind plan -f - --offers prices.csv -o json | jq '.plans[0].cost.total'

The operator's own code decides; what only a running operator knows is told as assumed.
Exit codes: 0 every job could run or would wait for a price; 1 for some job no offer fits, or the operator would refuse it; 2 no answer, such
as a manifest that the API server would refuse.";

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// A manifest with TrainingJobs; - is standard input.
    #[arg(short, long, value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
    /// Where offers come from.
    #[command(flatten)]
    pub sources: Sources,
}

const OFFERS_EXAMPLES: &str = "\
Examples:
  kubectl tradewind offers --gpu RTX4090 --min-memory 24Gi --provider vast     (with VAST_API_KEY)
  kubectl tradewind offers --gpu H100,A100-80GB --count 8 --capacity on-demand --offers prices.csv
  kubectl tradewind offers --max-price 0.50 --region NO,SE --offers offers.json -o wide
  kubectl tradewind offers --provider vast --limit 5000 -o json > offers.json    for `plan --offers`

Prices are of the whole machine without disk and traffic.
Exit codes: 0 printed; 1 no offer fits; 2 no answer.";

/// Arguments of `offers`.
#[derive(Args, Debug)]
pub struct OffersArgs {
    /// Models that will do, such as RTX4090 or A100-80GB [default: any].
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    pub gpu: Vec<String>,
    /// Memory that each GPU must have at least, such as 24Gi; two per cent less will do, as in a job.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub min_memory: Option<String>,
    /// GPUs in the machine, exactly.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=64))]
    pub count: i32,
    /// Regions or country codes that will do [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub region: Vec<String>,
    /// What may be taken away (spot), or what may not (on-demand) [default: both].
    #[arg(long, value_name = "TERMS")]
    pub capacity: Option<CapacityFlag>,
    /// Most dollars an hour, without disk.
    #[arg(long, value_name = "DOLLARS", value_parser = price, allow_negative_numbers = true)]
    pub max_price: Option<Money>,
    /// How many are shown.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = most)]
    pub limit: usize,
    /// Where offers come from.
    #[command(flatten)]
    pub sources: Sources,
}

/// Terms of an offer.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapacityFlag {
    /// May be taken away at any time.
    Spot,
    /// Stays until it is given back.
    OnDemand,
}

const LOGS_EXAMPLES: &str = "\
Examples:
  kubectl tradewind logs my-run                      the newest attempt
  kubectl tradewind logs my-run -f --tail 20         follows it
  kubectl tradewind logs my-run --attempt 0          an earlier one
  kubectl tradewind logs my-gang --all-ranks -f      every worker, each line with its rank before it

Exit codes: 0 printed; 1 there is no such job, attempt or rank; 2 no answer.";

/// Arguments of `logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Name of the TrainingJob.
    pub job: String,
    /// Number of the attempt [default: the newest that has a Pod].
    #[arg(long, value_name = "N")]
    pub attempt: Option<i64>,
    /// Goes on printing until the program ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many of the last lines.
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(i64).range(0..))]
    pub tail: Option<i64>,
    /// Only what is younger, such as 30s, 10m or 2h.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub since: Option<Duration>,
    /// With the time before each line.
    #[arg(long)]
    pub timestamps: bool,
    /// Of this worker, for jobs with several [default: 0].
    #[arg(long, value_name = "R", conflicts_with = "all_ranks", value_parser = clap::value_parser!(i64).range(0..))]
    pub rank: Option<i64>,
    /// Of all workers.
    #[arg(long)]
    pub all_ranks: bool,
}

const COST_EXAMPLES: &str = "\
Examples:
  kubectl tradewind cost                  jobs of the namespace, and the accounts
  kubectl tradewind cost -A               jobs of all namespaces
  kubectl tradewind cost my-run -o json

Exit codes: 0 printed; 1 there is no such job; 2 no answer.";

/// Arguments of `cost`.
#[derive(Args, Debug)]
pub struct CostArgs {
    /// Only this TrainingJob.
    pub job: Option<String>,
    /// Jobs of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "job")]
    pub all_namespaces: bool,
}

const DOCTOR_EXAMPLES: &str = "\
Examples:
  kubectl tradewind doctor                     the installation, and jobs of the namespace
  kubectl tradewind doctor -A                  jobs of all namespaces
  kubectl tradewind doctor --for my-run        also what this job needs: Secrets, access, quota

It only reads (and asks the API server what the operator may do); values of Secrets are never shown.
Exit codes: 0 no problem (warnings are none); 1 problems were found; 2 no answer.";

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Looks also at what this TrainingJob needs.
    #[arg(long = "for", value_name = "JOB", conflicts_with = "all_namespaces")]
    pub job: Option<String>,
    /// Jobs of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Namespace of the operator.
    #[arg(long, value_name = "NAME", default_value = "tradewind-system")]
    pub operator_namespace: String,
    /// The operator's `--release`.
    #[arg(long, value_name = "NAME", default_value = "tradewind")]
    pub release: String,
    /// ServiceAccount of the operator.
    #[arg(long, value_name = "NAME", default_value = "tradewind-operator")]
    pub service_account: String,
}

fn size(text: &str) -> Result<String, String> {
    let bytes = Size(text.to_owned()).bytes();
    bytes.map(|_| text.to_owned()).ok_or_else(|| "write a size such as 24Gi".to_owned())
}

fn price(text: &str) -> Result<Money, String> {
    let price: Money = text.trim_start_matches('$').parse().map_err(|_| "write dollars such as 0.50".to_owned())?;
    if price > Money::ZERO { Ok(price) } else { Err("must be more than nothing".to_owned()) }
}

fn most(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "write a number above zero".to_owned())
}

fn span(text: &str) -> Result<Duration, String> {
    let span: SignedDuration = text.parse().map_err(|_| "write a time such as 30s, 10m or 2h".to_owned())?;
    Duration::try_from(span).ok().filter(|d| !d.is_zero()).ok_or_else(|| "must be longer than zero".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_examples_and_says_its_exit_codes() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("kubectl tradewind {}", command.get_name());
            assert!(help.contains(&example) && help.contains("Exit codes:"), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} of {} has no help", arg.get_id(), command.get_name());
            }
        }
    }

    #[test]
    fn flags_stand_where_users_of_kubectl_put_them() {
        let parse = |words: &str| Cli::try_parse_from(words.split_whitespace());
        let cli = parse("kubectl-tradewind -n a status x -o yaml --context c").unwrap();
        assert_eq!(cli.common.namespace.as_deref(), Some("a"));
        assert_eq!((cli.common.output, cli.common.context.as_deref()), (Some(Form::Yaml), Some("c")));
        assert!(parse("kubectl-tradewind status x -n a -w").is_ok());
        assert!(parse("kubectl-tradewind logs x --rank 1 --all-ranks").is_err());
        assert!(parse("kubectl-tradewind logs x --since soon").is_err());
        assert!(parse("kubectl-tradewind cost x -A").is_err());
        assert!(parse("kubectl-tradewind").is_err());
        assert!(parse("kubectl-tradewind plan -f a -f b --offers x --provider vast -o wide").is_ok());
        assert!(parse("kubectl-tradewind plan --offers x").is_err());
        for (wrong, why) in [
            ("--min-memory 24GB", "24Gi"),
            ("--max-price -1", "more than nothing"),
            ("--max-price 0", "more than nothing"),
            ("--max-price NaN", "0.50"),
            ("--count 0", "1..=64"),
            ("--limit 0", "above zero"),
            ("--capacity Spott", "spot"),
            ("--provider lambda", "vast and runpod"),
        ] {
            let error = parse(&format!("kubectl-tradewind offers {wrong}")).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
