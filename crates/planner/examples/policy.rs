//! Speaks the policy protocol around the planner's decision over time: reads what a simulated world tells on stdin, asks
//! [`tradewind_planner::when::decide`], answers on stdout. It decides nothing by itself.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::Deserialize;
use serde_json::json;
use tradewind_core::{Capacity, Money};
use tradewind_planner::when::{Action, Changeover, Held, Memory, Pool, Record, Sight, Situation, decide};

/// A line of the protocol. What is not known is passed over.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Message {
    Hello,
    Start(Start),
    Decide {
        runs: Vec<State>,
    },
    End {
        run: u64,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    run: u64,
    sight: String,
    tick_s: u64,
    work_s: u64,
    deadline_s: u64,
    changeover_s: Seconds,
    pools: Vec<StartPool>,
}

#[derive(Deserialize)]
struct Seconds {
    mean: u64,
    max: u64,
}

#[derive(Deserialize)]
struct StartPool {
    capacity: String,
    #[serde(default)]
    history: Vec<(u8, u64)>,
}

#[derive(Deserialize)]
struct State {
    run: u64,
    now_s: u64,
    done_s: u64,
    at: Option<At>,
    lost: Option<usize>,
    pools: Vec<StatePool>,
}

#[derive(Deserialize)]
struct At {
    pool: usize,
    age_s: u64,
    ready: bool,
}

#[derive(Deserialize)]
struct StatePool {
    up: Option<bool>,
    price: f64,
}

/// What is kept of a run.
struct Run {
    start: Start,
    records: Vec<Record>,
    memory: Memory,
}

/// Dollars as they come in JSON, to the next micro-dollar; what is too large is the largest amount.
#[allow(clippy::cast_possible_truncation)]
fn money(dollars: f64) -> Money {
    Money::from_micros((dollars * 1e6).round() as i64)
}

fn capacity(name: &str) -> Capacity {
    if name == "spot" { Capacity::Spot } else { Capacity::OnDemand }
}

impl Run {
    fn new(start: Start) -> Self {
        let record = |pool: &StartPool| {
            let history: Vec<(bool, u64)> = pool.history.iter().map(|(up, seconds)| (*up != 0, *seconds)).collect();
            Record::from_history(&history, 0)
        };
        let records = start.pools.iter().map(record).collect();
        Self { start, records, memory: Memory::new() }
    }

    fn sees(&mut self, state: &State) {
        let tick = self.start.tick_s.max(1);
        // A pool is up or down for a whole tick: what shows within it was so from its start.
        let begin = |at: u64| i64::try_from(at - at % tick).unwrap_or(i64::MAX);
        let now = begin(state.now_s);
        if let Some(at) = &state.at
            && let Some(record) = self.records.get_mut(at.pool)
        {
            // Where sight is by trying, a launch that succeeded shows only now: the pool was up then.
            record.see(true, begin(state.now_s.saturating_sub(at.age_s)), tick);
        }
        for (index, (record, pool)) in self.records.iter_mut().zip(&state.pools).enumerate() {
            let up = if state.lost == Some(index) { Some(false) } else { pool.up };
            if let Some(up) = up {
                record.see(up, now, tick);
            }
            record.price_seen(money(pool.price), now);
        }
    }

    fn answer(&mut self, state: &State) -> serde_json::Value {
        self.sees(state);
        let start = &self.start;
        let tick = start.tick_s.max(1);
        let pools: Vec<Pool<'_>> = self
            .records
            .iter()
            .zip(&state.pools)
            .zip(&start.pools)
            .enumerate()
            .map(|(index, ((record, pool), known))| Pool {
                capacity: capacity(&known.capacity),
                price_per_hour: money(pool.price),
                speed_milli: 1000,
                up: if state.lost == Some(index) { Some(false) } else { pool.up },
                record,
            })
            .collect();
        let situation = Situation {
            now_s: i64::try_from(state.now_s).unwrap_or(i64::MAX),
            work_s: start.work_s.saturating_sub(state.done_s),
            deadline_in_s: Some(start.deadline_s.saturating_sub(state.now_s)),
            patience_s: 0,
            // Losses are seen at once, and cost no work beyond the changeover.
            changeover: Changeover {
                mean_s: start.changeover_s.mean,
                max_s: start.changeover_s.max,
                ..Changeover::default()
            },
            look_s: tick,
            next_look_s: tick - state.now_s % tick,
            sure_until_look: true,
            sight: if start.sight == "try" { Sight::Try { attempt_s: 60 } } else { Sight::Free },
            max_price_per_hour: None,
            pools: &pools,
            lets_go: true,
            held: state.at.as_ref().map(|at| Held { pool: at.pool, age_s: at.age_s, ready: at.ready }),
        };
        let pool = match decide(&situation, &mut self.memory).action {
            Action::Hold => state.at.as_ref().map(|at| at.pool),
            Action::Launch(pool) => Some(pool),
            Action::Wait => None,
        };
        json!({"run": state.run, "pool": pool})
    }
}

/// All runs that are going on.
#[derive(Default)]
struct World {
    runs: BTreeMap<u64, Run>,
}

impl World {
    /// Takes a line in; what is to be answered, if anything.
    fn line(&mut self, line: &str) -> Result<Option<serde_json::Value>, serde_json::Error> {
        Ok(match serde_json::from_str(line)? {
            Message::Hello => Some(json!({"type": "hello", "protocol": 1, "name": "tradewind"})),
            Message::Start(start) => {
                self.runs.insert(start.run, Run::new(start));
                None
            }
            Message::Decide { runs } => {
                let answers: Vec<_> =
                    runs.iter().filter_map(|s| self.runs.get_mut(&s.run).map(|run| run.answer(s))).collect();
                Some(json!({"type": "decisions", "runs": answers}))
            }
            Message::End { run } => {
                self.runs.remove(&run);
                None
            }
            Message::Other => None,
        })
    }
}

fn main() -> io::Result<()> {
    let mut world = World::default();
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        if let Some(answer) = world.line(&line?)? {
            writeln!(out, "{answer}")?;
            out.flush()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(lines: &[&str]) -> Vec<String> {
        let mut world = World::default();
        let said = lines.iter().filter_map(|line| world.line(line).expect("the line is of the protocol"));
        said.map(|answer| answer.to_string()).collect()
    }

    #[test]
    fn a_dialogue_from_hello_to_end() {
        let said = answers(&[
            r#"{"type":"hello","protocol":1}"#,
            r#"{"type":"start","run":7,"sight":"free","tick_s":600,"work_s":7200,"deadline_s":7920,"changeover_s":{"mean":720,"max":720},"pools":[{"zone":"z0","capacity":"spot","price":0.9731,"history":[[1,5400],[0,1200]]},{"zone":"z0","capacity":"on_demand","price":3.06,"history":[]}]}"#,
            r#"{"type":"weather","sun":true}"#,
            r#"{"type":"decide","runs":[{"run":7,"now_s":0,"done_s":0,"at":null,"lost":null,"pools":[{"up":false,"price":0.9731,"age_s":1200},{"up":true,"price":3.06,"age_s":null}]}]}"#,
            r#"{"type":"decide","runs":[{"run":7,"now_s":600,"done_s":0,"at":{"pool":1,"age_s":600,"ready":false},"lost":null,"pools":[{"up":true,"price":0.9731,"age_s":0},{"up":true,"price":3.06,"age_s":null}]}]}"#,
            r#"{"type":"end","run":7,"finish_s":7920,"late":false,"cost":6.73}"#,
            r#"{"type":"decide","runs":[]}"#,
        ]);
        // One changeover beside the work: on demand at once, and to the end.
        let hold = r#"{"runs":[{"pool":1,"run":7}],"type":"decisions"}"#;
        assert_eq!(said[1..], [hold, hold, r#"{"runs":[],"type":"decisions"}"#]);
        assert_eq!(said[0], r#"{"name":"tradewind","protocol":1,"type":"hello"}"#);
    }

    #[test]
    fn a_launch_that_succeeded_tells_when_the_pool_came_up() {
        let mut world = World::default();
        let state = |now: u64, at: &str, up: &str| {
            format!(
                r#"{{"type":"decide","runs":[{{"run":1,"now_s":{now},"done_s":0,"at":{at},"lost":null,"pools":[{{"up":{up},"price":1.0,"age_s":null}},{{"up":true,"price":3.0,"age_s":null}}]}}]}}"#
            )
        };
        let lines = [
            r#"{"type":"start","run":1,"sight":"try","tick_s":600,"work_s":36000,"deadline_s":72000,"changeover_s":{"mean":600,"max":600},"pools":[{"zone":"z0","capacity":"spot","price":1.0,"history":[[1,6000],[0,1200]]},{"zone":"z0","capacity":"on_demand","price":3.0,"history":[]}]}"#.to_owned(),
            state(60, "null", "false"),
            // Tried again at 600 s, with success: seen at the next tick.
            state(1200, r#"{"pool":0,"age_s":600,"ready":true}"#, "true"),
        ];
        for line in &lines {
            world.line(line).expect("the line is of the protocol");
        }
        let mut expected = Record::from_history(&[(true, 6000), (false, 1200)], 0);
        expected.see(false, 0, 600);
        expected.price_seen(money(1.0), 0);
        expected.see(true, 600, 600);
        expected.see(true, 1200, 600);
        expected.price_seen(money(1.0), 1200);
        assert_eq!(format!("{:?}", world.runs[&1].records[0]), format!("{expected:?}"));
    }
}
