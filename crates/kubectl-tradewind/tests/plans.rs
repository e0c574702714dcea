//! What `plan` and `offers` show of a small market, compared with `goldens/<name>`. `TRADEWIND_BLESS=1` writes the files anew; then read them
//! as the user would who has nothing else.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what cannot be had fails the test")]

mod golden;

use std::path::{Path, PathBuf};

use clap::Parser as _;
use golden::same;
use jiff::Timestamp;
use kubectl_tradewind::cli::{Cli, Command, Form, OffersArgs};
use kubectl_tradewind::market::Market;
use kubectl_tradewind::offers::{self, OffersView};
use kubectl_tradewind::plan::{self, Decision, Manifest, PlanView, Plans};
use kubectl_tradewind::screen::{Ink, formed};
use tradewind_core::Money;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn market(name: &str) -> Market {
    Market::of_text(name, &std::fs::read(here().join("tests/offers").join(name)).unwrap()).unwrap()
}

const JOB: &str = "
apiVersion: tradewind.dev/v1alpha1
kind: TrainingJob
metadata: {name: my-run, namespace: team-a}
spec:
  gpu: {count: 1, models: [RTX4090, RTX3090], minMemory: 20Gi}
  template:
    spec:
      containers:
      - name: train
        image: train:1
        command: [train]
        resources: {requests: {cpu: 2, memory: 8Gi, ephemeral-storage: 30Gi}}
  checkpoint: {path: out, pattern: 'step-{step}', to: 's3://ckpt/p/', secretRef: {name: s3}, interval: 5m}
  placement: {inCluster: Never, minTrust: Datacenter}
  work: {hours: '4', gpu: RTX4090}
";

/// The plan of the job with one text in the place of another.
fn planned(from: &str, to: &str) -> PlanView {
    let text = JOB.replacen(from, to, 1);
    assert!(from == to || text != JOB, "{from}");
    let manifest = Manifest::read("job.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
    PlanView::of(&manifest.jobs[0], &market("market.json"), now(), 3)
}

fn shown(view: &PlanView) -> String {
    plan::render(view, now(), Ink::none())
}

#[test]
fn a_job_that_would_be_rented_for() {
    let view = planned("", "");
    assert_eq!(view.decision, Decision::Rent);
    same("plan-rent.txt", &shown(&view));
    let plans = Plans { plans: vec![view] };
    assert_eq!(plans.exit_code(), 0);
    same("plan-rent.json", &formed(Some(Form::Json), &plans, String::new).unwrap());
}

#[test]
fn a_job_that_waits_for_a_price() {
    let view = planned("inCluster: Never", "inCluster: Prefer, patience: 6h, maxPricePerHour: '0.10'");
    assert_eq!(view.decision, Decision::Wait, "{}", view.message);
    assert_eq!(view.patience_until, Some("2026-11-22T18:00:00Z".parse().unwrap()));
    same("plan-wait.txt", &shown(&view));
    assert_eq!(Plans { plans: vec![view] }.exit_code(), 0);
    let comes = planned("inCluster: Never", "inCluster: Never, patience: 6h, maxPricePerHour: '0.18'");
    let price = comes.offer.as_ref().map(|offer| offer.price_per_hour.to_string());
    assert_eq!((comes.decision, price.as_deref()), (Decision::Rent, Some("0.154")), "{}", comes.message);
}

#[test]
fn a_deadline_takes_what_is_sure_to_keep_it() {
    let view = planned("  work:", "  completeWithin: 4h10m\n  work:");
    assert_eq!(view.decision, Decision::Rent);
    let capacity = view.offer.as_ref().map(|offer| offer.capacity.to_string());
    assert_eq!(capacity.as_deref(), Some("OnDemand"), "{}", view.message);
    assert!(view.alternatives[0].extra_cost < Money::ZERO, "spot costs less, and is not sure to be in time");
    same("plan-deadline.txt", &shown(&view));
    let late = planned("  work:", "  completeWithin: 2h\n  work:");
    assert!(late.message.contains("nothing can keep the deadline"), "{}", late.message);
    let told = late.late.as_deref().unwrap_or_default();
    assert!(told.contains("the earliest finish is about 2026-11-22 16:"), "{told}");
    same("plan-late.txt", &shown(&late));
}

#[test]
fn a_deadline_that_hangs_on_one_spot_machine_is_told_to_be_at_risk() {
    let spot = JOB.replace("inCluster: Never", "inCluster: Never, capacity: Spot");
    let text = spot.replace("  work:", "  completeWithin: 8h\n  work:");
    let view = PlanView::of(&Manifest::read("job.yaml", &text).unwrap().jobs[0], &market("market.json"), now(), 3);
    assert_eq!(view.decision, Decision::Rent, "{}", view.message);
    let told = view.at_risk.as_deref().unwrap_or_default();
    assert!(told.contains("unless its machine is lost"), "{told}");
    same("plan-at-risk.txt", &shown(&view));
    let sure = planned("  work:", "  completeWithin: 8h\n  work:");
    assert_eq!((sure.at_risk, sure.late), (None, None), "on demand there is nothing to fear");
}

#[test]
fn a_job_that_nothing_fits() {
    let view = planned("RTX4090, RTX3090]", "RTX4909]");
    assert_eq!(view.decision, Decision::Nowhere);
    same("plan-nowhere.txt", &shown(&view));
    assert_eq!(Plans { plans: vec![view] }.exit_code(), 1);
    let empty = PlanView::of(&Manifest::read("x", JOB).unwrap().jobs[0], &Market::default(), now(), 3);
    assert_eq!(empty.message, "no offer fits: the market shows none");
}

#[test]
fn jobs_that_are_not_rented_for() {
    let only = planned("inCluster: Never", "inCluster: Only");
    assert_eq!(only.decision, Decision::InCluster);
    let refused = planned("command: [train]", "command: []");
    assert_eq!(refused.decision, Decision::Refused);
    assert!(refused.message.contains("containers[0].command is empty"), "{}", refused.message);
    let volume = planned(
        "      containers:",
        "      volumes: [{name: d, persistentVolumeClaim: {claimName: x}}]\n      containers:",
    );
    assert_eq!(volume.decision, Decision::Refused, "it may not run in the cluster");
    let gang = planned("  placement: {inCluster: Never, minTrust: Datacenter}", "  workers: 2");
    assert_eq!(gang.decision, Decision::InCluster);
    assert!(gang.message.contains("private network"), "{}", gang.message);
    same("plan-in-cluster.txt", &[only, refused, gang].map(|view| shown(&view)).join("\n"));
}

#[test]
fn every_sample_has_a_plan() {
    let samples = here().join("../../deploy/samples");
    let mut planned = 0;
    let mut files: Vec<PathBuf> = std::fs::read_dir(samples).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|end| end == "yaml")) {
        let text = std::fs::read_to_string(path).unwrap();
        if !text.contains("kind: TrainingJob") {
            continue;
        }
        let manifest = Manifest::read(&path.display().to_string(), &text).unwrap_or_else(|error| panic!("{error}"));
        for job in &manifest.jobs {
            let view = PlanView::of(job, &market("market.json"), now(), 3);
            assert!(
                matches!(view.decision, Decision::Rent | Decision::InCluster),
                "{}: {}",
                path.display(),
                view.message
            );
            planned += 1;
        }
    }
    assert!(planned >= 5, "{planned}");
}

fn asked(flags: &str) -> OffersArgs {
    let words = format!("kubectl-tradewind offers {flags}");
    match Cli::try_parse_from(words.split_whitespace()).unwrap().command {
        Command::Offers(args) => args,
        other => panic!("{other:?}"),
    }
}

fn listed(flags: &str, market: &Market) -> OffersView {
    let args = asked(flags);
    OffersView::of(&offers::wanted(&args).unwrap(), market, args.limit).unwrap()
}

#[test]
fn the_market_cheapest_first() {
    let market = market("market.json");
    let view = listed("--gpu RTX4090 --min-memory 24Gi", &market);
    same("offers.txt", &offers::render(&view, false, Ink::none()));
    same("offers-wide.txt", &offers::render(&view, true, Ink::none()));
    let ids = |flags: &str| listed(flags, &market).offers.iter().map(|offer| offer.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids("--gpu rtx_4090 --capacity spot"), ["1007", "1001"]);
    assert_eq!(ids("--gpu H100 --count 2"), ["1010"]);
    assert_eq!(ids("--max-price 0.10"), ["1008"]);
    assert_eq!(ids("--region no,fr --capacity on-demand --limit 2"), ["1001", "1009"]);
    let none = listed("--gpu H100 --max-price 1.00", &market);
    same("offers-none.txt", &offers::render(&none, false, Ink::none()));
}

#[test]
fn what_is_listed_can_be_planned_with() {
    let view = listed("--count 1 --limit 100", &market("market.json"));
    let json = formed(Some(Form::Json), &view, String::new).unwrap();
    let again = Market::of_text("x", json.as_bytes()).unwrap();
    assert_eq!((again.offers, again.left_out.len()), (view.offers, 0));
}

#[test]
fn an_unknown_model_is_answered_with_its_neighbours() {
    let problem = |flags: &str| {
        let needs = offers::wanted(&asked(flags)).unwrap();
        OffersView::of(&needs, &market("market.json"), 20).unwrap_err().to_string()
    };
    assert!(problem("--gpu RTX4909").starts_with("nobody knows a GPU model RTX4909: did you mean RTX4090"));
    assert!(problem("--gpu H100,quantum-computer").contains("names are as RTX4090"));
}

#[test]
fn a_price_list_of_clouds() {
    let market = market("prices.csv");
    let view = listed("", &market);
    same("offers-prices.txt", &offers::render(&view, true, Ink::none()));
}

/// Changes a few bytes of a text, each time others.
struct Mangler(u64);

impl Mangler {
    fn below(&mut self, bound: usize) -> usize {
        // Knuth's MMIX generator; its high bits are good enough for this.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound.max(1)
    }

    fn mangled(&mut self, text: &[u8]) -> Vec<u8> {
        const PARTS: [&[u8]; 12] =
            [b"NaN", b"-", b"9999999999999999999999", b"\"", b",", b"{", b"]", b"\n", b"1e308", b"null", b"\xff", b"0"];
        let mut mangled = text.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(mangled.len());
            let end = (at + self.below(6)).min(mangled.len());
            let part = PARTS[self.below(PARTS.len())];
            mangled.splice(at..end, part.iter().copied());
        }
        mangled
    }
}

#[test]
fn mangled_files_are_refused_or_planned_with_and_never_a_panic() {
    let mut mangler = Mangler(7);
    let job = Manifest::read("job.yaml", JOB).unwrap().jobs.remove(0);
    let (mut read, mut refused, mut left_out) = (0, 0, 0);
    for name in ["market.json", "prices.csv"] {
        let whole = std::fs::read(here().join("tests/offers").join(name)).unwrap();
        for _ in 0..400 {
            match Market::of_text(name, &mangler.mangled(&whole)) {
                Ok(market) => {
                    read += 1;
                    left_out += market.unread();
                    let view = PlanView::of(&job, &market, now(), 3);
                    assert!(!shown(&view).is_empty() && view.rejected.len() <= 10);
                    assert!(!offers::render(&listed("", &market), true, Ink::none()).is_empty());
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().starts_with(name), "{error}");
                }
            }
        }
    }
    assert!(read > 100 && refused > 100 && left_out > 100, "{read} {refused} {left_out}");
    for _ in 0..300 {
        let text = String::from_utf8_lossy(&mangler.mangled(JOB.as_bytes())).into_owned();
        for job in Manifest::read("job.yaml", &text).map(|found| found.jobs).unwrap_or_default() {
            assert!(!shown(&PlanView::of(&job, &market("market.json"), now(), 3)).is_empty());
        }
    }
}
