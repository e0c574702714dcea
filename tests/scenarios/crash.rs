//! The operator killed (SIGKILL) before and after each call that matters: nothing rented twice, nothing lost, nothing left.
//!
//! The call is held before it has its effect, or its answer is held after, and then the operator is killed: so the place of the crash is
//! certain. One job goes through all ten places, from the claim to the end of its machine's object.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use tokio::time::Instant;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::proxy::{Action, Match, Rule};
use tradewind_harness::stack::NAMESPACE;

use crate::api::{Call, Hold, Side};
use crate::checks::finished_right_but_for;
use crate::job::Job;
use crate::placement::has_open_order;
use crate::world::{VAST, World, scenario};

/// Longer than anything between two places.
const LIMIT: Duration = Duration::from_mins(1);

/// The ten places, in the order in which a job comes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    ClaimWrite,
    Bind,
    OrderWrite,
    RentCall,
    IdWrite,
    FirstReport,
    ManifestPut,
    TerminateCall,
    SettleWrite,
    FinalizerRemoval,
}

const PLACES: [Place; 10] = [
    Place::ClaimWrite,
    Place::Bind,
    Place::OrderWrite,
    Place::RentCall,
    Place::IdWrite,
    Place::FirstReport,
    Place::ManifestPut,
    Place::TerminateCall,
    Place::SettleWrite,
    Place::FinalizerRemoval,
];

enum Trap {
    Api(Hold),
    /// At the market or the store, and whether the effect is there.
    Proxy(Rule, Box<dyn Fn(&World) -> bool>),
}

impl Place {
    /// The call at the API server, if it is one.
    fn picks(self) -> Option<fn(&Call) -> bool> {
        Some(match self {
            Self::ClaimWrite => |call| call.method == "POST" && call.path.ends_with("/rentedmachines"),
            Self::Bind => |call| call.is("POST", "/binding"),
            Self::OrderWrite => |call| call.is("PUT", "/rentedmachines/") && has_open_order(&call.body),
            Self::IdWrite => |call| call.is("PUT", "/rentedmachines/") && call.body["status"]["machineId"].is_string(),
            Self::FirstReport => |call| call.is("PUT", "/rentedmachines/") && call.body["status"]["boot"].is_string(),
            Self::SettleWrite => |call| {
                let settled = &call.body["status"]["cost"]["settledMachines"];
                call.is("PUT", "/trainingjobs/") && settled.as_array().is_some_and(|all| !all.is_empty())
            },
            Self::FinalizerRemoval => |call| {
                let left = &call.body["metadata"]["finalizers"];
                call.is("PATCH", "/rentedmachines/") && left.as_array().is_some_and(Vec::is_empty)
            },
            Self::RentCall | Self::ManifestPut | Self::TerminateCall => return None,
        })
    }

    fn set(self, world: &World, job: &Job, side: Side) -> Result<Trap> {
        if let Some(picks) = self.picks() {
            return Ok(Trap::Api(world.api.hold(side, picks)));
        }
        let action = if side == Side::Before { Action::Hold } else { Action::HoldAnswer };
        let market = world.stack.provider_proxy(VAST)?;
        let log = format!("{}/{}/log/", job.namespace, job.name);
        Ok(match self {
            Self::RentCall => {
                let calls = Match::method("PUT").target("/asks/");
                Trap::Proxy(market.rule(calls, action), Box::new(|world| has_paid(world.stack.sim.state())))
            }
            Self::TerminateCall => {
                let calls = Match::method("DELETE").target("/instances/");
                Trap::Proxy(market.rule(calls, action), Box::new(|world| !has_paid(world.stack.sim.state())))
            }
            _ => {
                // Entry 0 is the fence.
                let calls = Match::method("PUT").target(&format!("{log}0*[1-9][0-9]*\\.json"));
                let there = move |world: &World| world.stack.s3.keys("ckpt", &log).is_ok_and(|keys| keys.len() >= 2);
                Trap::Proxy(world.stack.s3.proxy.rule(calls, action), Box::new(there))
            }
        })
    }
}

/// Whether the market has a machine: its directory goes with it.
fn has_paid(state: &Path) -> bool {
    let machines = std::fs::read_dir(state.join("machines"));
    machines.is_ok_and(|mut all| all.next().is_some())
}

impl Trap {
    /// Waits until the call hangs in it.
    async fn met(&self, world: &World, side: Side) -> Result<()> {
        match self {
            Self::Api(hold) => hold.met(LIMIT).await.map(drop),
            Self::Proxy(rule, effect) => {
                let look = || {
                    let done = rule.hits() > 0 && (side == Side::Before || effect(world));
                    std::future::ready(if done { Ok(()) } else { Err(format!("{} calls", rule.hits())) })
                };
                Ok(world.stack.eventually("the call in the trap", LIMIT, look).await?)
            }
        }
    }

    fn open(self) {
        match self {
            Self::Api(hold) => hold.release(),
            Self::Proxy(rule, _) => rule.remove(),
        }
    }
}

/// Kills the operator while a call hangs, and starts it again.
async fn crash(world: &mut World, trap: Trap) -> Result<Duration> {
    let began = Instant::now();
    world.stack.operator.kill()?;
    trap.open();
    // The dead leader's Lease would only make the successor wait.
    let leases: Api<Lease> = Api::namespaced(world.stack.client(), NAMESPACE);
    for lease in leases.list(&ListParams::default()).await? {
        leases.delete(&lease.metadata.name.context("a name")?, &DeleteParams::default()).await?;
    }
    world.stack.operator.restart().await?;
    Ok(began.elapsed())
}

fn killed_at_every_place(side: Side) {
    scenario(async |world| {
        let namespace = world.namespace("crash").await?;
        let job = Job::new(&namespace, "run", 60, 10, "0.1");
        let mut trap = PLACES[0].set(world, &job, side)?;
        let mut outages = Duration::ZERO;
        job.apply(world).await?;
        let mut places = PLACES.iter().peekable();
        while let Some(place) = places.next() {
            trap.met(world, side).await.with_context(|| format!("{side:?} {place:?}"))?;
            println!("killed {side:?} {place:?}");
            // The next trap is set before the operator lives again, so that it cannot slip through.
            let next = places.peek().map(|next| next.set(world, &job, side)).transpose()?;
            let Some(next) = next else {
                outages += crash(world, trap).await?;
                break;
            };
            outages += crash(world, std::mem::replace(&mut trap, next)).await?;
        }
        job.phase(world, JobPhase::Complete, LIMIT).await?;
        let machines = world.machines().await?;
        ensure!(machines.len() == 1, "rented more than once: {machines:#?}");
        finished_right_but_for(world, &job, outages).await?;
        Ok(())
    });
}

#[test]
fn killed_before_each_call() {
    killed_at_every_place(Side::Before);
}

#[test]
fn killed_after_each_call() {
    killed_at_every_place(Side::After);
}
