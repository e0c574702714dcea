//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;

const EXIT_CODES: &str = "\
Exit codes:
  0  the answer is good
  1  there is an answer, and it is bad: doctor found a problem, or the job or its Pods are not there
  2  there is no answer: wrong usage, the API server cannot be reached or refuses, or Tradewind is not installed

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
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// One screen about a job: what it does, where and why there, progress, checkpoints, money, history, what to do next.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
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
    }
}
