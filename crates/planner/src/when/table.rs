//! Expected cost to finish from every state, by dynamic programming backwards over time.
//!
//! Time and work are cut into slots. A state is the time left, the work left, what is held, and which pool is the best that is up
//! (with the age of its life) or for how long all have been down. Each slot one thing is done: hold, launch, let go. Work that a
//! changeover still costs counts as work left (a debt), so a launch takes one slot however long its changeover is.

/// Lanes of age a pool has: the first ages in slots of their own, then doubling.
pub(crate) const LANES: usize = 8;
/// One number for each age.
pub(crate) type Lane = [f32; LANES];

/// How one kind of life goes on over a slot, by age: it stays in its lane, moves on to the next, or ends.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Ageing {
    pub(crate) stay: Lane,
    pub(crate) next: Lane,
    pub(crate) end: Lane,
}

impl Ageing {
    /// From the probability that a life ends within a slot, by lane.
    pub(crate) fn new(end: Lane) -> Self {
        let mut ageing = Self { end, ..Self::default() };
        for (lane, end) in end.into_iter().enumerate() {
            let width = if lane + 1 == LANES { f32::INFINITY } else { lane_slots(lane) };
            ageing.next[lane] = (1.0 - end) / width;
            ageing.stay[lane] = (1.0 - end) - ageing.next[lane];
        }
        ageing
    }

    /// Expected value a slot later, where the end of a life is worth `over`.
    #[inline]
    fn expect(&self, value: &Lane, over: f32) -> Lane {
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            let older = value[(lane + 1).min(LANES - 1)];
            out[lane] = self.stay[lane] * value[lane] + self.next[lane] * older + self.end[lane] * over;
        }
        out
    }
}

/// Width of a lane in slots; the last one has no end.
pub(crate) fn lane_slots(lane: usize) -> f32 {
    (1_u32 << lane.saturating_sub(1).min(16)) as f32
}

/// Slot at which a lane begins.
pub(crate) fn lane_begin(lane: usize) -> f32 {
    if lane == 0 { 0.0 } else { (1_u32 << (lane - 1).min(16)) as f32 }
}

/// The lane of an age in slots.
pub(crate) fn lane_of(age_slots: f64) -> usize {
    (0..LANES).rev().find(|lane| f64::from(lane_begin(*lane)) <= age_slots).unwrap_or(0)
}

/// One spot pool, in slots.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SpotModel {
    /// Dollars a slot.
    pub(crate) price: f32,
    /// Work a slot.
    pub(crate) speed: f32,
    /// Lane of age in which it is likely to be when found up by chance.
    pub(crate) found_lane: usize,
}

/// How lives go on in one span of time from now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Era {
    /// Slots from now at which it ends.
    pub(crate) until: f32,
    /// How each spot pool's time up goes on.
    pub(crate) up: Vec<Ageing>,
    /// How the time goes on in which all are down.
    pub(crate) down: Ageing,
    /// Which pool comes up first, by lane: shares of `down.end`.
    pub(crate) comes: Vec<Lane>,
    /// Where one stands when a pool is lost: `(other, probability)` that this other is up and the best; the rest is that all are down.
    pub(crate) after: Vec<Vec<(usize, f32)>>,
}

/// All that the table is computed from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    /// Seconds a slot.
    pub(crate) slot_s: f64,
    /// Mean changeover in slots.
    pub(crate) changeover: f32,
    /// Dollars a slot on demand.
    pub(crate) on_demand: f32,
    /// The spot pools.
    pub(crate) spot: Vec<SpotModel>,
    /// What to expect, by how far it is from now.
    pub(crate) eras: Vec<Era>,
    /// Time left now, in slots.
    pub(crate) time_left: f32,
    /// Whether time is bounded by a deadline; without one only waiting uses time up.
    pub(crate) deadline: bool,
}

impl Model {
    /// What to expect with this much time left.
    fn era(&self, time_left: f32) -> &Era {
        let from_now = if self.deadline { self.time_left - time_left } else { f32::INFINITY };
        let last = self.eras.len() - 1;
        &self.eras[self.eras.iter().position(|era| from_now < era.until).unwrap_or(last)]
    }
}

/// What is held in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Nothing,
    OnDemand,
    Spot,
}

/// Expected costs by state.
///
/// A cell is (slack, work), each in slots; time left is their sum. A cell holds lanes: nothing held with each pool as the best one
/// up, then with all down; the same on demand; then each spot pool held.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) model: Model,
    slack_cells: usize,
    work_cells: usize,
    lanes: usize,
    values: Vec<Lane>,
}

impl Table {
    /// Computes all states with at most this much slack and work, in slots.
    pub(crate) fn solve(model: Model, slack_slots: usize, work_slots: usize) -> Self {
        let pools = model.spot.len();
        let lanes = 3 * pools + 2;
        let (slack_cells, work_cells) = (slack_slots + 1, work_slots + 1);
        let values = vec![[0.0; LANES]; lanes * slack_cells * work_cells];
        let mut table = Self { model, slack_cells, work_cells, lanes, values };
        let mut cell = vec![[0.0; LANES]; lanes];
        let mut rooms = Rooms::new(lanes);
        let timed = table.model.deadline;
        let mut fill = |slack: usize, work: usize| {
            table.cell(slack, work, &mut rooms, &mut cell);
            let at = table.at(slack, work);
            table.values[at..at + lanes].copy_from_slice(&cell);
        };
        if timed {
            // Whatever is done, a slot of time passes: so by time left.
            for time in 1..slack_cells + work_cells - 1 {
                for slack in time.saturating_sub(work_cells - 1)..slack_cells.min(time) {
                    fill(slack, time - slack);
                }
            }
        } else {
            for slack in 0..slack_cells {
                for work in 1..work_cells {
                    fill(slack, work);
                }
            }
        }
        table
    }

    fn at(&self, slack: usize, work: usize) -> usize {
        (slack * self.work_cells + work) * self.lanes
    }

    /// Lanes of a cell between cells: mixed from the two nearest amounts of work with the same time left. Without a deadline time
    /// does not pass but by waiting, and slack stays.
    fn gather(&self, slack: f32, work: f32, out: &mut [Lane]) {
        let work = work.max(0.0);
        if slack < -1e-3 {
            // Too late whatever is done: on demand to the end.
            out.fill([work * self.model.on_demand; LANES]);
            return;
        }
        let low = work.floor();
        let part = work - low;
        let timed = self.model.deadline;
        let first = self.slot(if timed { slack + part } else { slack }, low);
        let a = &self.values[first..first + self.lanes];
        if part < 1e-3 {
            out.copy_from_slice(a);
            return;
        }
        if timed {
            let second = self.slot(slack + part - 1.0, low + 1.0);
            let b = &self.values[second..second + self.lanes];
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                for lane in 0..LANES {
                    out[lane] = a[lane] * (1.0 - part) + b[lane] * part;
                }
            }
        } else {
            // The cell above may be the one that is being computed: go on as steeply as below.
            let before = self.slot(slack, low - 1.0);
            let b = &self.values[before..before + self.lanes];
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                for lane in 0..LANES {
                    let slope = if low < 1.0 { self.model.on_demand } else { a[lane] - b[lane] };
                    out[lane] = a[lane] + slope * part;
                }
            }
        }
    }

    fn slot(&self, slack: f32, work: f32) -> usize {
        let slack = (slack.round().max(0.0) as usize).min(self.slack_cells - 1);
        let work = (work.max(0.0) as usize).min(self.work_cells - 1);
        self.at(slack, work)
    }

    fn cell(&self, slack: usize, work: usize, rooms: &mut Rooms, out: &mut [Lane]) {
        let model = &self.model;
        let pools = model.spot.len();
        let (slack_f, work_f) = (slack as f32, work as f32);
        let era = model.era(slack_f + work_f);
        let change = model.changeover;
        // The slack that a launch uses up is the part of the slot that does no work.
        let uses = |idle: f32| if model.deadline { slack_f - idle } else { slack_f };
        let wait_ok = slack > 0 && (!model.deadline || slack_f - 1.0 >= change);
        let launch_ok = !model.deadline || slack_f >= 2.0 * change;
        self.gather(uses(0.0), work_f - 1.0, &mut rooms.work);
        self.gather(uses(change), work_f - 1.0 + change, &mut rooms.launch);
        let steps = change.ceil().max(1.0);
        self.gather(uses(change), work_f - steps + change, &mut rooms.begun);
        if wait_ok {
            let at = self.at(slack - 1, work);
            rooms.wait.copy_from_slice(&self.values[at..at + self.lanes]);
        }
        let first_od = pools + 1;
        let first_spot = 2 * pools + 2;
        for (index, spot) in model.spot.iter().enumerate() {
            let after = &era.after[index];
            let own = (spot.speed - 1.0).abs() > 1e-3;
            if own {
                let v = spot.speed;
                self.gather(uses(1.0 - v), work_f - v, &mut rooms.own_work);
                let useful = v * (steps - change);
                self.gather(uses(steps - useful), work_f - useful, &mut rooms.own_begun);
            }
            let (held, begun) = if own { (&rooms.own_work, &rooms.own_begun) } else { (&rooms.work, &rooms.begun) };
            let lost_held = self.lost(after, held, 0);
            let od_lost_work = self.lost(after, &rooms.work, first_od);
            let od_lost_launch = self.lost(after, &rooms.launch, first_od);
            let up = &era.up[index];
            let hold = up.expect(&held[first_spot + index], lost_held);
            // Backwards through the slots of the changeover: lost in one of them, it has cost these slots and no more.
            let mut launch = up.expect(&begun[first_spot + index], self.lost(after, begun, 0));
            for step in (1..steps as usize).rev() {
                let at = self.slot(uses(step as f32), work_f);
                let over = self.lost(after, &self.values[at..at + self.lanes], 0);
                for value in &mut launch {
                    *value += spot.price;
                }
                launch = up.expect(&launch, over);
            }
            let od_hold = up.expect(&rooms.work[first_od + index], od_lost_work);
            let od_launch = up.expect(&rooms.launch[first_od + index], od_lost_launch);
            let wait = up.expect(&rooms.wait[index], self.lost(after, &rooms.wait, 0));
            for lane in 0..LANES {
                let mut idle = od_launch[lane] + model.on_demand;
                let mut od = od_hold[lane] + model.on_demand;
                if launch_ok {
                    idle = idle.min(launch[lane] + spot.price);
                    od = od.min(launch[lane] + spot.price);
                }
                if wait_ok {
                    idle = idle.min(wait[lane]);
                    od = od.min(wait[lane]);
                }
                out[index][lane] = idle;
                out[first_od + index][lane] = od;
                out[first_spot + index][lane] = idle.min(hold[lane] + spot.price);
            }
        }
        self.all_down(era, rooms, wait_ok, out);
    }

    fn all_down(&self, era: &Era, rooms: &Rooms, wait_ok: bool, out: &mut [Lane]) {
        let model = &self.model;
        let pools = model.spot.len();
        let first_od = pools + 1;
        let hold = self.risen(era, &rooms.work[first_od..]);
        let launch = self.risen(era, &rooms.launch[first_od..]);
        let wait = self.risen(era, &rooms.wait);
        for lane in 0..LANES {
            let mut idle = launch[lane] + model.on_demand;
            let mut od = hold[lane] + model.on_demand;
            if wait_ok {
                idle = idle.min(wait[lane]);
                od = od.min(wait[lane]);
            }
            out[pools][lane] = idle;
            out[first_od + pools][lane] = od;
        }
    }

    /// Expected value of where one stands when this pool is lost.
    #[inline]
    fn lost(&self, after: &[(usize, f32)], room: &[Lane], first: usize) -> f32 {
        let pools = self.model.spot.len();
        let mut rest = 1.0;
        let mut sum = 0.0;
        for (other, share) in after {
            sum += share * room[first + other][self.model.spot[*other].found_lane];
            rest -= share;
        }
        sum + rest * room[first + pools][0]
    }

    /// Expected value a slot later where all are down now.
    #[inline]
    fn risen(&self, era: &Era, room: &[Lane]) -> Lane {
        let pools = self.model.spot.len();
        let mut out = era.down.expect(&room[pools], 0.0);
        for (pool, comes) in era.comes.iter().enumerate() {
            for lane in 0..LANES {
                out[lane] += comes[lane] * room[pool][0];
            }
        }
        out
    }

    /// Expected cost in dollars with this slack and work left (seconds), `best` the best pool that is up (`None` = all down) and the
    /// age of that state. Held spot is the best pool.
    pub(crate) fn cost(&self, held: Held, best: Option<usize>, age_s: f64, slack_s: f64, work_s: f64) -> f64 {
        if work_s <= 0.0 {
            return 0.0;
        }
        let pools = self.model.spot.len();
        let group = match (held, best) {
            (Held::Nothing, _) => best.unwrap_or(pools),
            (Held::OnDemand, _) => pools + 1 + best.unwrap_or(pools),
            (Held::Spot, _) => 2 * pools + 2 + best.unwrap_or(0),
        };
        let lane = lane_of(age_s / self.model.slot_s);
        let slack = (slack_s / self.model.slot_s).clamp(0.0, (self.slack_cells - 1) as f64);
        let work = (work_s / self.model.slot_s).clamp(0.0, (self.work_cells - 1) as f64);
        if work >= 1.0 {
            return self.read(slack, work, group, lane);
        }
        // However little is left, what is not held has to be launched for it: no work costs nothing, the least work does not.
        let (one, two) = (self.read(slack, 1.0, group, lane), self.read(slack, 2.0, group, lane));
        (one - (1.0 - work) * (two - one)).max(work * one)
    }

    /// Expected cost of a lane at this slack and work in slots, between the cells around it.
    fn read(&self, slack: f64, work: f64, group: usize, lane: usize) -> f64 {
        let (s, w) = (slack.floor(), work.floor());
        let (sf, wf) = (slack - s, work - w);
        let read = |ds: usize, dw: usize| {
            let s = (s as usize + ds).min(self.slack_cells - 1);
            let w = (w as usize + dw).min(self.work_cells - 1);
            f64::from(self.values[self.at(s, w) + group][lane])
        };
        let mut sum = 0.0;
        for (ds, share_s) in [(0, 1.0 - sf), (1, sf)] {
            for (dw, share_w) in [(0, 1.0 - wf), (1, wf)] {
                if share_s * share_w > 1e-9 {
                    sum += share_s * share_w * read(ds, dw);
                }
            }
        }
        sum
    }

    /// Most work this table reaches, in seconds.
    pub(crate) fn reach_s(&self) -> (f64, f64) {
        ((self.slack_cells - 1) as f64 * self.model.slot_s, (self.work_cells - 1) as f64 * self.model.slot_s)
    }
}

/// Lanes of the cells that one cell is computed from.
/// `own_*`: the same for one pool whose speed is another.
struct Rooms {
    work: Vec<Lane>,
    launch: Vec<Lane>,
    begun: Vec<Lane>,
    wait: Vec<Lane>,
    own_work: Vec<Lane>,
    own_begun: Vec<Lane>,
}

impl Rooms {
    fn new(lanes: usize) -> Self {
        let room = || vec![[0.0; LANES]; lanes];
        Self { work: room(), launch: room(), begun: room(), wait: room(), own_work: room(), own_begun: room() }
    }
}
