//! Promise 1: no machine is rented twice for one need, and none is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use tradewind_api::rented_machine::OrderOutcome;
use tradewind_api::{RentedMachine, TrainingJob, names};
use tradewind_core::OrderKey;
use tradewind_sim::market::Machine;

use super::super::cluster::job_name;
use super::super::table::At;
use super::super::wire::Common;
use super::{Checker, Rental};

/// From an order's write to the rent call at most.
const CALL_WITHIN: Duration = Duration::from_secs(5);

impl Checker {
    /// A version of a RentedMachine.
    pub(super) fn rental_changed(&mut self, common: &Common, machine: &RentedMachine, gone: bool) {
        let now = common.now();
        let uid = machine.metadata.uid.clone().unwrap_or_default();
        let name = machine.metadata.name.clone().unwrap_or_default();
        let job = (0..self.jobs.len()).find(|n| job_name(*n) == machine.spec.job.name).unwrap_or(0);
        let old = self.rentals.get(&uid).cloned();
        let mut rental = old.clone().unwrap_or_else(|| Rental {
            uid: uid.clone(),
            job,
            attempt: machine.spec.attempt,
            object: machine.clone(),
            orders: BTreeMap::new(),
            ended_at: None,
            gone: false,
            forgotten: None,
        });
        let status = machine.status.clone().unwrap_or_default();
        let before = old.as_ref().and_then(|o| o.object.status.as_ref()).map(|s| s.orders.clone()).unwrap_or_default();
        let kept = before.iter().zip(&status.orders).all(|(a, b)| a.key == b.key && a.at == b.at && a.offer == b.offer);
        self.ensure(kept && before.len() <= status.orders.len(), || {
            format!("{name}: an order was forgotten or rewritten")
        });
        let opened = status.orders.iter().skip(before.len()).collect::<Vec<_>>();
        self.ensure(opened.len() <= 1, || format!("{name}: two orders in one write"));
        if let Some(order) = opened.first() {
            let finaliser = machine.metadata.finalizers.iter().flatten().any(|f| f == names::MACHINE_FINALIZER);
            self.ensure(finaliser, || format!("{name}: an order without a finaliser"));
            self.account_is_held(common, &name);
            let earlier_open =
                status.orders.iter().take(before.len()).any(|o| o.outcome != OrderOutcome::Refused || o.leftover);
            self.ensure(!earlier_open, || format!("{name}: an order while an earlier one may have bought something"));
            let known = self.rentals.values().any(|r| r.orders.contains_key(&order.key));
            self.ensure(!known, || format!("{name}: order key {} is used twice", order.key));
            self.ensure(status.ended.is_none(), || format!("{name}: an order although it is to end"));
            rental.orders.insert(order.key.clone(), now);
        }
        let told = [&status.exit_log, &status.ended_message, &Some(status.message.clone())];
        let leaks = told.into_iter().flatten().any(|text| text.contains("signature="));
        self.ensure(!leaks, || format!("{name}: its status shows a signed URL"));
        if status.ended.is_some() {
            rental.ended_at.get_or_insert(now);
        }
        // After a failure the next attempt may take the machine over.
        self.ensure(machine.spec.attempt >= rental.attempt, || {
            format!("{name}: attempt {} became {}", rental.attempt, machine.spec.attempt)
        });
        rental.attempt = machine.spec.attempt;
        rental.object = machine.clone();
        self.sees(At::Machine(status.phase));
        if gone {
            rental.gone = true;
            let part = OrderKey::machine_part(&uid);
            let left: Vec<u64> = common.with_market(|market, _| {
                market
                    .machines()
                    .iter()
                    .filter(|m| !m.has_ended() && owner(m).as_ref() == Some(&part))
                    // What an older state of it does not know is the sweeper's.
                    .filter(|m| rental.knows_label(m.label.as_deref()) && !self.is_late(m.label.as_deref()))
                    .map(|m| m.id)
                    .collect()
            });
            self.ensure(left.is_empty(), || format!("{name} is gone, but {left:?} live on at the market"));
            common.note(|| format!("{name} is gone; cost {:?}", status.cost));
        } else if old.as_ref().and_then(|o| o.object.status.as_ref()).map(|s| (s.phase, s.message.clone()))
            != Some((status.phase, status.message.clone()))
        {
            common.note(|| format!("{name}: {:?}: {}", status.phase, status.message));
        } else {
            common.detail(|| format!("{name}: {:?}, cost {:?}", status.phase, status.cost));
        }
        self.rentals.insert(uid, rental);
    }

    /// A rent call reached the market.
    pub fn rent_called(&mut self, common: &Common, key: &str) {
        self.look(common);
        let now = common.now();
        let written = self.rentals.values().find_map(|r| r.orders.get(key).map(|at| (r, *at)));
        match written {
            None => self.fail(format!("rent call under {key}, but no such order is written")),
            Some((_, at)) if now.saturating_sub(at) > CALL_WITHIN && !self.late.contains(key) => {
                self.fail(format!("rent call under {key} {:?} after the order's write", now.saturating_sub(at)));
            }
            Some(_) => {}
        }
    }

    /// What the market has sold and what lives there.
    pub(super) fn look_at_market(&mut self, common: &Common) {
        let machines = common.with_market(|market, _| {
            let new = market.machines().iter().skip(self.bought);
            let new: Vec<_> = new.cloned().collect();
            let live: Vec<_> = market
                .machines()
                .iter()
                .filter(|m| !m.has_ended() && m.is_paid())
                .map(|m| (m.id, m.label.clone(), m.compute_micros_per_hour(), m.disk_micros_per_hour()))
                .collect();
            (new, live)
        });
        let (new, live) = machines;
        self.bought += new.len();
        for machine in new {
            self.machine_bought(&machine);
        }
        let mut per_attempt: BTreeMap<(usize, i64), Vec<u64>> = BTreeMap::new();
        let mut wanted: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for (id, label, _, _) in &live {
            let Some(key) = label.as_deref().and_then(|label| label.parse::<OrderKey>().ok()) else { continue };
            let Some(rental) = self.rental_of(&key).filter(|rental| rental.knows(&key)) else { continue };
            if self.is_leftover(*id, label.as_deref()) {
                continue;
            }
            per_attempt.entry((rental.job, rental.attempt)).or_default().push(*id);
            if rental.ended_at.is_none() {
                wanted.entry(rental.job).or_default().push(*id);
            }
        }
        for ((job, attempt), ids) in per_attempt {
            self.ensure(ids.len() <= 1, || format!("{}: attempt {attempt} pays for {ids:?} at once", job_name(job)));
        }
        for (job, ids) in wanted {
            self.ensure(ids.len() <= 1, || {
                format!("{}: {ids:?} live at once and none of them is being ended", job_name(job))
            });
        }
        if let Some((id, ..)) = live.first() {
            self.account_is_there(common, *id);
        }
        // A machine that turned out dearer than its cap is ended; until then it is not the ledger's fault.
        let capped = |id, price: u64| self.too_dear.get(id).map_or(price, |cap| price.min(*cap));
        let wanted = live.iter().filter(|(id, label, ..)| !self.is_leftover(*id, label.as_deref()));
        let spent = wanted.map(|(id, _, compute, disk)| capped(id, *compute) + disk).sum();
        self.spending(spent);
    }

    /// Its request left long after its last check, out of a frozen process.
    fn is_late(&self, label: Option<&str>) -> bool {
        label.is_some_and(|label| self.late.contains(label))
    }

    /// Such a machine that nobody has adopted: it is found by its key and ended.
    fn is_leftover(&self, id: u64, label: Option<&str>) -> bool {
        let adopted = |r: &Rental| r.object.status.as_ref().and_then(|s| s.machine_id.clone()) == Some(id.to_string());
        self.is_late(label) && !self.rentals.values().any(adopted)
    }

    fn machine_bought(&mut self, machine: &Machine) {
        let (id, created) = (machine.id, machine.created_at.as_duration());
        let (label, price) = (machine.label.as_deref().unwrap_or(""), machine.compute_micros_per_hour());
        let Ok(key) = label.parse::<OrderKey>() else {
            self.fail(format!("machine {id} was rented under the label {label:?}"));
            return;
        };
        let Some(rental) = self.rental_of(&key).cloned() else {
            self.fail(format!("machine {id} was rented under {label}, of no RentedMachine"));
            return;
        };
        let Some(written) = rental.orders.get(label).copied() else {
            self.fail(format!("machine {id} was rented under {label}, but no such order is written"));
            return;
        };
        let late = self.late.contains(label);
        self.ensure(late || created.saturating_sub(written) <= CALL_WITHIN, || {
            format!("machine {id} was rented {:?} after its order {label} was written", created.saturating_sub(written))
        });
        let orders = rental.object.status.as_ref().map(|s| s.orders.clone()).unwrap_or_default();
        let offer = orders.iter().find(|o| o.key == label).and_then(|o| usize::try_from(o.offer).ok());
        if offer.is_none() && self.went_back.is_some() {
            return;
        }
        let cap = offer.and_then(|i| rental.object.spec.offers.get(i)).map(|o| o.price_cap.micros());
        let cap = cap.and_then(|cap| u64::try_from(cap).ok()).unwrap_or(0);
        // The price of an offer may rise between list and call; a bid cannot.
        self.ensure(price <= cap || !machine.is_spot(), || {
            format!("machine {id} costs {price} micro-dollars an hour, its cap is {cap}")
        });
        if price > cap {
            self.too_dear.insert(id, cap);
        }
    }

    /// Nothing of ours is left: no machine, no object, no finaliser.
    pub(super) fn nothing_is_left(&mut self, common: &Common) {
        let live: Vec<u64> =
            common.with_market(|market, _| market.machines().iter().filter(|m| !m.has_ended()).map(|m| m.id).collect());
        self.ensure(live.is_empty(), || format!("at the end {live:?} live on at the market"));
        let left: Vec<String> =
            common.memory.peek_all::<RentedMachine>().iter().filter_map(|m| m.metadata.name.clone()).collect();
        self.ensure(left.is_empty(), || format!("at the end RentedMachines {left:?} are left"));
        for pod in common.memory.peek_all::<Pod>() {
            let name = pod.metadata.name.clone().unwrap_or_default();
            self.ensure(pod.metadata.deletion_timestamp.is_none(), || {
                format!("at the end Pod {name} hangs in its deletion")
            });
            let held = pod.metadata.finalizers.iter().flatten().any(|f| f == names::POD_FINALIZER);
            self.ensure(!held, || format!("at the end Pod {name} still has our finaliser"));
        }
        let jobs = common.memory.peek_all::<TrainingJob>();
        let hanging = jobs.iter().filter(|j| j.metadata.deletion_timestamp.is_some()).count();
        self.ensure(hanging == 0, || "at the end a TrainingJob hangs in its deletion".to_owned());
        let namespaces = common.memory.peek_all::<Namespace>();
        let hanging = namespaces.iter().filter(|n| n.metadata.deletion_timestamp.is_some()).count();
        self.ensure(hanging == 0, || "at the end a namespace hangs in its deletion".to_owned());
    }
}

fn owner(machine: &Machine) -> Option<String> {
    machine.label.as_deref()?.parse::<OrderKey>().ok().map(|key| key.machine)
}
