//! Scenarios on a real API server: operator, simulated market, object store and agents as separate processes.
//!
//! Two run at a time, each in a world that it hands on to the next (see [`world`]), in a namespace of its own. What a scenario
//! leaves behind is checked after it: no machine that costs money, no RentedMachine, nothing in the mailbox.

mod api;
mod checks;
mod golden;
mod identity;
mod job;
mod nodes;
mod world;

mod access;
mod cluster;
mod commands;
mod crash;
mod crowd;
mod deadline;
mod deletion;
mod failures;
mod frozen;
mod gangs;
mod home;
mod hostile;
mod hosts;
mod limits;
mod logs;
mod lost;
mod many;
mod neighbours;
mod placement;
mod plugin;
mod preemption;
mod providers;
mod refusals;
mod restarts;
mod restore;
mod samples;
mod secrets;
mod stopping;
mod user;
mod weather;
mod worst_case;
mod zombie;
