//! The leader frozen at the worst moments of an order, another replica in its place, and then awake again: nothing is rented twice but
//! what a freeze between the last look at the clock and the first byte lets through, and that is found by its key and ended.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::time::Instant;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::stack::{NAMESPACE, Operator};
use tradewind_harness::{Binaries, Error, Launch, or_skip};

use crate::api::{Hold, Side};
use crate::checks::finished_right_but_for;
use crate::job::Job;
use crate::world::{SOON, World, market, options_of, scenario, scenario_in};

/// The operator as `cargo test` builds it: with fail points.
const OPERATOR: &str = env!("CARGO_BIN_EXE_tradewind-operator");
/// Where a directory with armed points is named.
const VARIABLE: &str = "TRADEWIND_FAIL_POINTS";
/// Longer than the lead lasts (3 s), than a call may begin after its order (5 s), and than it may take (5 s).
const FROZEN: Duration = Duration::from_secs(12);
/// From the rental of a machine that nobody claims until it is gone: the sweeper's patience (5 s) and a few polls.
const SWEPT: Duration = Duration::from_secs(10);
/// For a replica that goes on believing in its lead and in its call when it wakes.
const TRUSTING: &str = "60s";

/// Where the first replica freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The order is decided, and not written.
    OrderDecided,
    /// It is written, the call not begun.
    OrderWritten,
    /// The last look at the clock was in time, the call's bytes have not left.
    CallBegun,
    /// The market has rented the machine and keeps its answer back.
    AnswerDue,
}

impl Moment {
    fn point(self) -> Option<&'static str> {
        match self {
            Self::OrderDecided => Some("order-decided"),
            Self::OrderWritten => Some("order-written"),
            Self::CallBegun => Some("call-begun"),
            Self::AnswerDue => None,
        }
    }
}

/// Whether the kernel holds every thread of the process.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// A second replica that can be frozen, and that leads; the world's own operator stands by.
async fn leader_that_freezes(world: &mut World, moment: Moment, points: &Path) -> Result<Operator> {
    let own = &mut world.stack.operator;
    let change = |launch: Launch| match moment.point() {
        Some(_) => launch.flag("lease-duration", TRUSTING).flag("rent-limit", TRUSTING),
        None => launch,
    };
    let first = own.twin("operator-frozen", Path::new(OPERATOR), |launch| change(launch.env(VARIABLE, points))).await?;
    own.stop().await?;
    let leads = || async {
        let metrics = first.metrics().await.map_err(|e| e.to_string())?;
        if metrics.lines().any(|line| line == "tradewind_leader 1") { Ok(()) } else { Err("stands by".to_owned()) }
    };
    tradewind_harness::eventually("the lead of the replica", SOON, leads).await?;
    own.restart().await?;
    Ok(first)
}

/// Freezes the first replica while it rents a machine for the job.
async fn freeze(world: &World, first: &mut Operator, moment: Moment, points: &Path, job: &Job) -> Result<()> {
    if let Some(point) = moment.point() {
        std::fs::write(points.join(point), "")?;
        job.apply(world).await?;
    } else {
        world.stack.sim.add_fault(&json!({ "op": "rent", "when": "hang", "seconds": 3 })).await?;
        job.apply(world).await?;
        world.rented(1).await?;
        first.process.freeze(true);
    }
    let pid = first.process.pid();
    let look = || std::future::ready(if is_stopped(pid) { Ok(()) } else { Err("it runs".to_owned()) });
    Ok(world.stack.eventually(&format!("the freeze at {moment:?}"), SOON, look).await?)
}

/// Lets the second replica take the lead from a frozen one whose Lease would last, and keeps the first one from hearing of it.
async fn usurped(world: &World) -> Result<Hold> {
    let leases: Api<Lease> = Api::namespaced(world.stack.client(), NAMESPACE);
    let holder = async |lease: &str| -> Result<String> {
        let lease = leases.get(lease).await?;
        lease.spec.and_then(|s| s.holder_identity).context("a holder")
    };
    let lease = leases.list(&ListParams::default()).await?.items.pop().context("a Lease")?;
    let name = lease.metadata.name.context("a name")?;
    let first = holder(&name).await?;
    leases.delete(&name, &DeleteParams::default()).await?;
    let taken = || async {
        match holder(&name).await {
            Ok(now) if now != first => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    world.stack.eventually("the lead of the second replica", SOON, taken).await?;
    Ok(world.api.hold(Side::Before, move |call| {
        call.is("PUT", "/leases/") && call.body["spec"]["holderIdentity"] == first.as_str()
    }))
}

fn frozen_at(moment: Moment) {
    // Where the second replica must have another offer to take, nobody may have brought the others under suspicion a moment ago.
    let test = async |world: &mut World| {
        let namespace = world.namespace("frozen").await?;
        let points = tempfile::tempdir()?;
        let mut first = leader_that_freezes(world, moment, points.path()).await?;
        let job = Job::new(&namespace, "run", 120, 20, "0.1");
        freeze(world, &mut first, moment, points.path(), &job).await?;
        let since = Instant::now();
        let before = world.machines().await?.len();
        ensure!(before == usize::from(moment == Moment::AnswerDue), "{before} machines when it froze");
        let unheard = if moment.point().is_some() { Some(usurped(world).await?) } else { None };
        job.phase(world, JobPhase::Running, SOON).await?;
        tokio::time::sleep_until(since + FROZEN).await;
        let frozen = since.elapsed();
        // By now the second replica has a machine in everything that it writes.
        let late = world.api.hold(Side::Before, |call| {
            call.is("PUT", "/rentedmachines/") && call.body["status"]["machineId"].is_null()
        });
        first.process.freeze(false);
        match moment {
            // What it writes in the belief that it leads reaches the server, and comes too late.
            Moment::OrderDecided | Moment::OrderWritten => drop(late.met(SOON).await?),
            // The call that nothing could hold back any more.
            Moment::CallBegun => drop(world.rented(2).await?),
            Moment::AnswerDue => {}
        }
        late.release();
        drop(unheard);
        let status = first.process.wait(SOON).await.context("the end of a replica that has lost the lead")?;
        ensure!(status.code() == Some(3), "{status}: {}", first.process.tail(3000));

        let done = job.phase(world, JobPhase::Complete, SOON).await?;
        let status = done.status.context("a status")?;
        // A leftover that boots before the sweeper ends it reports under the name of the machine that works, which then is ended too: safe,
        // and it costs an attempt.
        let moved = usize::from(moment == Moment::CallBegun && status.attempt == Some(1));
        ensure!(status.attempt == Some(i64::try_from(moved)?), "{status:?}");
        ensure!(status.preemptions <= i64::try_from(moved)? && status.restarts == 0, "{status:?}");
        ensure!(status.cost.settled_machines.len() <= 1 + moved, "{:?}", status.cost);
        finished_right_but_for(world, &job, frozen + SWEPT).await?;
        let machines = world.machines().await?;
        println!("frozen at {moment:?} for {:.1} s: {} rented", frozen.as_secs_f64(), machines.len());
        if moment == Moment::CallBegun {
            ensure!(machines.len() == 2 + moved, "{machines:#?}");
            let (from, to) = (&machines[1].created_at, machines[1].ended_at.as_ref().context("its end")?);
            let life = to.parse::<Timestamp>()?.duration_since(from.parse()?);
            println!("the leftover was gone after {:.1} s", life.as_secs_f64());
            ensure!(life <= SignedDuration::try_from(SWEPT)?, "the leftover lived for {life}");
        } else {
            ensure!(machines.len() == 1, "{machines:#?}");
        }
        Ok(())
    };
    if moment == Moment::CallBegun { scenario_in(options_of("frozen", market()), test) } else { scenario(test) }
}

#[test]
fn frozen_before_the_order_is_written() {
    frozen_at(Moment::OrderDecided);
}

#[test]
fn frozen_between_order_and_call() {
    frozen_at(Moment::OrderWritten);
}

#[test]
fn frozen_after_the_last_look_at_the_clock() {
    frozen_at(Moment::CallBegun);
}

#[test]
fn frozen_while_the_answer_is_due() {
    frozen_at(Moment::AnswerDue);
}

#[test]
fn a_release_cannot_be_frozen() {
    let Some(built) = or_skip(Binaries::locate()) else { return };
    let release = if built.operator.parent().is_some_and(|directory| directory.ends_with("release")) {
        Ok(built.operator)
    } else {
        Err(Error::Missing("the operator was not built by 'make build'.".to_owned()))
    };
    let Some(release) = or_skip(release) else { return };
    let names = |program: &Path| {
        let bytes = std::fs::read(program).unwrap();
        bytes.windows(VARIABLE.len()).any(|part| part == VARIABLE.as_bytes())
    };
    assert!(names(Path::new(OPERATOR)), "the search sees nothing");
    assert!(!names(&release), "{} has fail points", release.display());
}
