//! Which of the safe actions is the cheapest in expectation.

use tradewind_core::{Capacity, Money};

use super::model::{Memory, Solved, Terms, is_spot};
use super::safety::{Ground, earliest_finish, pending_s, refuge, run_s};
use super::table::Held as Holds;
use super::{Action, Decision, Held, Pool, Reason, Sight, Situation};

/// What to do until the next look.
///
/// Total: odd input (no pools, prices of zero, numbers without end) gives a decision too. The same situation, records and memory
/// always give the same decision.
pub fn decide(situation: &Situation<'_>, memory: &mut Memory) -> Decision {
    if situation.work_s == 0 {
        return plain(situation, Action::Wait, Reason::Done);
    }
    let Some(terms) = terms(situation) else {
        return plain(situation, Action::Wait, Reason::NoPool);
    };
    let ground = ground(situation);
    let held = situation.held.and_then(|h| situation.pools.get(h.pool).map(|p| (h, *p)));
    if let Some(ground) = ground
        && ground.spare_s().is_none()
        && !kept_by_holding(situation, ground, held)
    {
        return too_late(situation, ground);
    }
    let solved = memory.solved(situation, terms);
    View { situation, terms, ground, held, solved }.best()
}

/// A decision that rests on no expectation.
fn plain(situation: &Situation<'_>, action: Action, reason: Reason) -> Decision {
    Decision {
        action,
        reason,
        look_again_in_s: situation.next_look_s,
        wait_ends_in_s: None,
        expected_cost: Money::ZERO,
        expected_finish_s: situation.work_s,
    }
}

/// What the deadline is kept from; `None` without one, or without on demand.
fn ground(situation: &Situation<'_>) -> Option<Ground> {
    let refuge = refuge(situation.pools)?;
    Some(Ground {
        time_s: situation.deadline_in_s?.into(),
        work_milli: u128::from(situation.work_s) * 1000,
        speed_milli: situation.pools[refuge].speed_milli,
        max_s: u128::from(situation.changeover.max_s) + u128::from(leave_s(situation)),
    })
}

/// Until what is held has ended, if it is left now.
fn leave_s(situation: &Situation<'_>) -> u64 {
    if situation.held.is_some() { situation.changeover.leave_s } else { 0 }
}

/// On demand in the pool where the rest of the work costs least, or as if dear where there is none.
fn terms(situation: &Situation<'_>) -> Option<Terms> {
    let safe = refuge(situation.pools);
    let pools = situation.pools;
    let (price, speed_milli) = if let Some(safe) = safe {
        (pools[safe].price_per_hour, pools[safe].speed_milli)
    } else {
        let dearest = pools.iter().filter(|p| is_spot(p)).max_by_key(|p| p.price_per_hour)?;
        (dearest.price_per_hour.times(4), dearest.speed_milli)
    };
    let work_s = situation.work_s as f64 * 1000.0 / f64::from(speed_milli);
    let changeover = situation.changeover;
    let kept = changeover.max_s.saturating_sub(changeover.mean_s).saturating_add(changeover.risk_s()) as f64;
    let slack_s = situation.deadline_in_s.map_or(situation.patience_s as f64, |t| t as f64 - work_s - kept);
    Some(Terms { price, speed_milli, slack_s, work_s })
}

/// Whether what is held finishes in time if it is kept.
fn kept_by_holding(situation: &Situation<'_>, ground: Ground, held: Option<(Held, Pool<'_>)>) -> bool {
    let Some((held, pool)) = held else { return false };
    let pending = u128::from(pending_s(&held, situation.changeover.max_s));
    let Some(need) = run_s(ground.work_milli, pool.speed_milli).map(|run| run + pending) else { return false };
    let within =
        pool.capacity == Capacity::OnDemand || (situation.sure_until_look && need <= u128::from(situation.next_look_s));
    within && need <= ground.time_s
}

/// No placement keeps the deadline: the one that finishes first.
fn too_late(situation: &Situation<'_>, ground: Ground) -> Decision {
    let Some(first) = earliest_finish(situation) else {
        return plain(situation, Action::Wait, Reason::NoPool);
    };
    let time = u64::try_from(ground.time_s).unwrap_or(u64::MAX);
    let action = match situation.held {
        Some(held) if held.pool == first.pool => Action::Hold,
        _ => Action::Launch(first.pool),
    };
    Decision {
        action,
        reason: Reason::TooLate { late_by_s: first.finish_s.saturating_sub(time) },
        look_again_in_s: situation.next_look_s,
        wait_ends_in_s: None,
        expected_cost: first.cost,
        expected_finish_s: first.finish_s,
    }
}

/// Steps in which a changeover is looked through at most.
const MOST_STEPS: f64 = 6.0;

/// An action that may be taken, and its expected cost to the end in dollars.
#[derive(Debug, Clone, Copy)]
struct Choice {
    action: Action,
    cost: f64,
}

/// One decision being made.
struct View<'a> {
    situation: &'a Situation<'a>,
    terms: Terms,
    ground: Option<Ground>,
    held: Option<(Held, Pool<'a>)>,
    solved: &'a Solved,
}

impl View<'_> {
    fn best(&self) -> Decision {
        let next = self.situation.next_look_s.max(1);
        let mut choices: Vec<Choice> = self.holding(next).into_iter().chain(self.waiting(next)).collect();
        for index in 0..self.situation.pools.len() {
            if self.held.is_some_and(|(h, _)| h.pool == index) {
                continue;
            }
            choices.extend(self.launching(index, next));
        }
        let known = choices.iter().copied().min_by(|a, b| a.cost.total_cmp(&b.cost));
        let chosen = known.map(|known| self.trying(known, next).unwrap_or(known));
        self.tell(chosen, &choices)
    }

    /// Speed against on demand.
    fn speed(&self, pool: &Pool<'_>) -> f64 {
        f64::from(pool.speed_milli) / f64::from(self.terms.speed_milli)
    }

    fn sure(&self, pool: &Pool<'_>) -> bool {
        self.situation.sure_until_look || pool.capacity == Capacity::OnDemand
    }

    /// Slack in seconds after so much time with so much work left.
    fn slack_s(&self, passed_s: f64, work_s: f64) -> f64 {
        if self.situation.deadline_in_s.is_some() {
            self.terms.slack_s + self.terms.work_s - passed_s - work_s
        } else {
            self.terms.slack_s
        }
    }

    /// Keeping what is held.
    fn holding(&self, next: u64) -> Option<Choice> {
        let (held, pool) = self.held?;
        let pending = pending_s(&held, self.situation.changeover.max_s);
        let on_demand = pool.capacity == Capacity::OnDemand;
        if let Some(ground) = self.ground {
            let time = u128::from(next);
            let useless = u128::from(pending).min(time);
            let stays = on_demand
                && run_s(ground.work_milli, pool.speed_milli).is_some_and(|r| r + u128::from(pending) <= ground.time_s);
            let then = if on_demand { ground } else { self.after_a_loss(ground) };
            if !stays && !then.allows(time, useless, pool.speed_milli, self.sure(&pool)) {
                return None;
            }
        }
        let mean = self.situation.changeover.mean_s.saturating_sub(held.age_s) as f64;
        let debt = if held.ready { 0.0 } else { mean.max(1.0) };
        Some(Choice { action: Action::Hold, cost: self.running(held.pool, &pool, debt, next) })
    }

    /// Holding nothing.
    fn waiting(&self, next: u64) -> Option<Choice> {
        // Prices on demand do not come and go: without spot, and without a price to wait for, waiting only takes time.
        if (!self.hope() && self.anything()) || (self.held.is_some() && !self.situation.lets_go) {
            return None;
        }
        if let Some(ground) = self.ground {
            let time = u128::from(next);
            ground.allows(time, time, 0, false).then_some(())?;
            self.still_of_use(ground, next).then_some(())?;
        } else if self.situation.patience_s < next && self.anything() {
            return None;
        }
        let (slack, work) = (self.slack_s(next as f64, self.terms.work_s), self.terms.work_s);
        let slack = if self.situation.deadline_in_s.is_some() { slack } else { slack - next as f64 };
        Some(Choice { action: Action::Wait, cost: self.future(Holds::Nothing, None, next, slack, work) })
    }

    /// For how long waiting is safe, and what comes could still be taken.
    fn wait_ends_in_s(&self, ground: Ground) -> u64 {
        let spare = if self.situation.max_price_per_hour.is_some() {
            ground.spare_s()
        } else {
            self.after_a_loss(ground).spare_s().map(|spare| spare.saturating_sub(ground.max_s))
        };
        u64::try_from(spare.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Whether what comes within this time could still be taken: else waiting only takes time.
    fn still_of_use(&self, ground: Ground, time_s: u64) -> bool {
        let done_at_once =
            self.situation.sure_until_look && ground.work_milli <= u128::from(self.situation.look_s) * 1000;
        time_s <= self.wait_ends_in_s(ground) || done_at_once
    }

    /// Whether something better may come.
    fn hope(&self) -> bool {
        !self.solved.spot.is_empty() || self.situation.max_price_per_hour.is_some()
    }

    /// Whether anything is held or can be launched now.
    fn anything(&self) -> bool {
        self.held.is_some()
            || refuge(self.situation.pools).is_some()
            || self.situation.pools.iter().any(|p| p.up == Some(true))
    }

    /// Launching in a pool that is up.
    fn launching(&self, index: usize, next: u64) -> Option<Choice> {
        let pool = &self.situation.pools[index];
        let on_demand = pool.capacity == Capacity::OnDemand;
        if pool.speed_milli == 0 || pool.price_per_hour < Money::ZERO || !pool.up.unwrap_or(on_demand) {
            return None;
        }
        if self.too_dear(pool) && self.waiting(next).is_some() {
            return None;
        }
        self.launch_allowed(pool, next, 0).then_some(())?;
        let debt = self.situation.changeover.mean_s as f64;
        Some(Choice { action: Action::Launch(index), cost: self.running(index, pool, debt, next) })
    }

    fn too_dear(&self, pool: &Pool<'_>) -> bool {
        self.situation.max_price_per_hour.is_some_and(|most| pool.price_per_hour > most)
    }

    /// Whether the deadline is kept if this is launched; a try that fails takes `attempt_s`.
    fn launch_allowed(&self, pool: &Pool<'_>, next: u64, attempt_s: u64) -> bool {
        let Some(ground) = self.ground else { return true };
        let max = ground.max_s;
        if pool.capacity == Capacity::OnDemand {
            return run_s(ground.work_milli, pool.speed_milli).is_some_and(|run| run + max <= ground.time_s);
        }
        // The whole launch has to be safe, not only its beginning: else it would be broken off half way.
        let (time, tried) = (u128::from(next), u128::from(attempt_s.min(next)));
        let then = self.after_a_loss(ground);
        then.allows(time, max, pool.speed_milli, self.sure(pool))
            && then.allows(max, max, 0, false)
            && (self.held.is_some() || ground.allows(tried, tried, 0, false))
    }

    /// The ground once a machine is held that may be taken away.
    fn after_a_loss(&self, ground: Ground) -> Ground {
        let changeover = self.situation.changeover;
        Ground { max_s: u128::from(changeover.max_s) + u128::from(changeover.risk_s()), ..ground }
    }

    /// Expected cost with this machine until the next look and the best thereafter; `debt` = seconds of changeover to come.
    fn running(&self, index: usize, pool: &Pool<'_>, debt_s: f64, next: u64) -> f64 {
        let time = next as f64;
        let speed = self.speed(pool);
        let cost = price_per_s(pool) * time;
        let work = self.terms.work_s - speed * (time - debt_s);
        if pool.capacity == Capacity::OnDemand {
            // Dearer or slower than the one that the table knows: so much more for all the rest.
            let known = self.terms.price.micros() as f64 / 1e6 / 3600.0;
            let more = (price_per_s(pool) / speed - known) * work.max(0.0);
            return cost + more.max(0.0) + self.future(Holds::OnDemand, None, next, self.slack_s(time, work), work);
        }
        let Some(k) = self.solved.spot.iter().position(|i| *i == index) else { return f64::INFINITY };
        let age = self.age(k, true);
        let end = self.solved.rates[k].change(true, age, time);
        let kept = if debt_s > time {
            self.beginning(k, pool, debt_s - time, next)
        } else {
            self.solved.table.cost(Holds::Spot, Some(k), age + time, self.slack_s(time, work), work)
        };
        let lost_work = self.terms.work_s - speed * (time - debt_s).max(0.0);
        let lost = self.future(Holds::Nothing, Some(k), next, self.slack_s(time, lost_work), lost_work);
        cost + (1.0 - end) * kept + end * lost
    }

    /// Expected cost from the next look on with a spot machine whose changeover still takes `pending_s` then.
    fn beginning(&self, k: usize, pool: &Pool<'_>, pending_s: f64, next: u64) -> f64 {
        let steps = (pending_s / self.solved.table.model.slot_s).ceil().clamp(1.0, MOST_STEPS);
        let step = pending_s / steps;
        let work = self.terms.work_s;
        let (mut passed, mut alive, mut cost) = (next as f64, 1.0, 0.0);
        for _ in 0..steps as usize {
            let end = self.solved.rates[k].change(true, self.age(k, true) + passed, step);
            passed += step;
            let lost = self.future(Holds::Nothing, Some(k), passed as u64, self.slack_s(passed, work), work);
            cost += alive * (price_per_s(pool) * step + end * lost);
            alive *= 1.0 - end;
        }
        let age = self.age(k, true) + passed;
        cost + alive * self.solved.table.cost(Holds::Spot, Some(k), age, self.slack_s(passed, work), work)
    }

    /// Age of the state that a spot pool is in, as far as is known.
    fn age(&self, k: usize, up: bool) -> f64 {
        let record = self.situation.pools[self.solved.spot[k]].record;
        match record.last_seen(self.situation.now_s) {
            Some((seen, age, _)) if seen == up => age as f64,
            Some((_, _, ago)) => ago as f64 / 2.0,
            None => self.solved.rates[k].mean_life_s(up, 0.0),
        }
    }

    /// Expected cost from the next look on, with nothing or on demand held; `without` = a pool that is lost by then.
    fn future(&self, holds: Holds, without: Option<usize>, next: u64, slack_s: f64, work_s: f64) -> f64 {
        if work_s <= 0.0 {
            return 0.0;
        }
        let table = &self.solved.table;
        let mut known: Vec<(f64, f64)> = Vec::with_capacity(self.solved.spot.len());
        let mut youngest = if without.is_some() { 0.0 } else { f64::INFINITY };
        for k in (0..self.solved.spot.len()).filter(|k| Some(*k) != without) {
            let (chance, age) = self.later(k, next as f64);
            known.push((table.cost(holds, Some(k), age, slack_s, work_s), chance));
            youngest =
                youngest.min(if self.pool(k).up == Some(false) { self.age(k, false) + next as f64 } else { 0.0 });
        }
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut rest, mut sum) = (1.0, 0.0);
        for (value, chance) in known {
            sum += rest * chance * value;
            rest *= 1.0 - chance;
        }
        if rest > 1e-6 { sum + rest * table.cost(holds, None, youngest, slack_s, work_s) } else { sum / (1.0 - rest) }
    }

    fn pool(&self, k: usize) -> &Pool<'_> {
        &self.situation.pools[self.solved.spot[k]]
    }

    /// Probability that a spot pool is up so many seconds from now, and its age if it is.
    fn later(&self, k: usize, seconds: f64) -> (f64, f64) {
        let rates = &self.solved.rates[k];
        let pool = self.pool(k);
        match pool.up {
            Some(true) if !self.too_dear(pool) => {
                let age = self.age(k, true);
                (1.0 - rates.change(true, age, seconds), age + seconds)
            }
            // What is too dear comes down as if it were down.
            Some(_) => (rates.change(false, self.age(k, false), seconds), 0.0),
            None => {
                let seen = pool.record.last_seen(self.situation.now_s);
                let passed = seconds as u64;
                let seen = seen.map(|(up, age, ago)| (up, age.saturating_add(passed), ago.saturating_add(passed)));
                (rates.belief(seen), self.age(k, true))
            }
        }
    }

    /// Where sight is by trying: the pool of unknown state that is best tried before the best known action is taken.
    fn trying(&self, known: Choice, next: u64) -> Option<Choice> {
        let Sight::Try { attempt_s } = self.situation.sight else { return None };
        let mut best: Option<(f64, Choice)> = None;
        for (k, index) in self.solved.spot.iter().enumerate() {
            let pool = &self.situation.pools[*index];
            let held = self.held.is_some_and(|(h, _)| h.pool == *index);
            if held || pool.up.is_some() || !self.launch_allowed(pool, next, attempt_s) {
                continue;
            }
            let cost = self.running(*index, pool, self.situation.changeover.mean_s as f64, next);
            let seen = pool.record.last_seen(self.situation.now_s);
            // What was seen before holds to the end of that look at most.
            let look = self.situation.look_s;
            let seen = seen.map(|(up, age, ago)| (up, age.saturating_add(look.saturating_sub(ago)), ago.max(look)));
            let belief = self.solved.rates[k].belief(seen);
            // A failed try delays what would be done instead, unless that is to wait or to hold.
            let delay = match known.action {
                Action::Launch(_) => attempt_s as f64 * self.price_of_time(),
                Action::Hold | Action::Wait => 0.0,
            };
            let gain = belief * (known.cost - cost) - (1.0 - belief) * delay;
            if gain > 1e-9 && best.is_none_or(|(most, _)| gain > most) {
                best = Some((gain, Choice { action: Action::Launch(*index), cost: known.cost - gain }));
            }
        }
        best.map(|(_, choice)| choice)
    }

    /// What a second of slack is worth, in dollars.
    fn price_of_time(&self) -> f64 {
        let step = self.solved.table.model.slot_s;
        let (slack, work) = (self.terms.slack_s, self.terms.work_s);
        let at = |slack| self.solved.table.cost(Holds::Nothing, None, 0.0, slack, work);
        ((at(slack - step) - at(slack)) / step).max(0.0)
    }

    fn tell(&self, chosen: Option<Choice>, choices: &[Choice]) -> Decision {
        let Some(chosen) = chosen else {
            // Nothing is both possible and safe: only where there is no on demand. Take what is up, else wait.
            let first = earliest_finish(self.situation);
            let action = match (first, self.held) {
                (Some(first), Some((held, _))) if held.pool == first.pool => Action::Hold,
                (Some(first), _) => Action::Launch(first.pool),
                (None, _) => Action::Wait,
            };
            return plain(self.situation, action, Reason::NoPool);
        };
        let others = choices.iter().filter(|c| c.action != chosen.action).map(|c| c.cost);
        let second = others.min_by(f64::total_cmp);
        let saves = second.map(|second| money(second - chosen.cost));
        let as_it_is = if self.held.is_some() { Action::Hold } else { Action::Wait };
        let may_stay = choices.iter().any(|c| c.action == as_it_is) || (self.held.is_none() && !self.hope());
        let forced = self.ground.is_some() && chosen.action != as_it_is && !may_stay;
        Decision {
            action: chosen.action,
            reason: if forced { Reason::LastSafeMoment } else { Reason::Cheapest { saves } },
            look_again_in_s: self.situation.next_look_s,
            wait_ends_in_s: self.ground.map(|ground| self.wait_ends_in_s(ground)),
            expected_cost: money(chosen.cost),
            expected_finish_s: self.finish_s(chosen.action),
        }
    }

    /// Expected time to the end if it goes on like this: work, changeovers, and for spot one more for each expected loss; waiting, the
    /// mean time until a pool comes up before that. With a deadline that is kept, no later than it.
    fn finish_s(&self, action: Action) -> u64 {
        let change = self.situation.changeover.mean_s;
        let (index, pending) = match (action, self.held) {
            (Action::Hold, Some((held, _))) => (Some(held.pool), pending_s(&held, change)),
            (Action::Launch(index), _) => (Some(index), change),
            _ => (None, change),
        };
        let wait = (0..self.solved.spot.len()).map(|k| self.solved.rates[k].mean_life_s(false, self.age(k, false)));
        let wait = if index.is_none() { wait.fold(f64::INFINITY, f64::min) } else { 0.0 };
        let pool = index.and_then(|i| self.situation.pools.get(i));
        let speed = pool.map_or(self.terms.speed_milli, |p| p.speed_milli).max(1);
        let run = self.situation.work_s as f64 * 1000.0 / f64::from(speed);
        let at_risk = pool.is_none_or(|p| p.capacity == Capacity::Spot);
        let lives = self.solved.rates.iter().map(|r| r.mean_life_s(true, 0.0)).fold(0.0, f64::max);
        let losses = if at_risk && lives > 0.0 { run / lives } else { 0.0 };
        let wait = if wait.is_finite() { wait } else { 0.0 };
        let finish = (run + pending as f64 + wait + losses * change as f64).ceil() as u64;
        if self.ground.is_some() { finish.min(self.situation.deadline_in_s.unwrap_or(u64::MAX)) } else { finish }
    }
}

/// Dollars a second.
fn price_per_s(pool: &Pool<'_>) -> f64 {
    pool.price_per_hour.micros() as f64 / 1e6 / 3600.0
}

/// Dollars as money; what is no number is the most.
fn money(dollars: f64) -> Money {
    if dollars.is_nan() { Money::MAX } else { Money::from_micros((dollars * 1e6).round() as i64) }
}
