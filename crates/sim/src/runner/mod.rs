//! Runs machines' commands as local processes, one task per machine.
//!
//! Each start is a tree: the simulator, an [`init`] process that belongs to one machine and reaps and ends all its
//! descendants, and the command in a process group of its own. If the simulator dies, the kernel tells every init, and each ends its
//! machine.

mod directory;
pub mod init;
mod machine;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokio::sync::{mpsc, oneshot};

use crate::market::{Effect, Market, PortWish};
use crate::wire::injected_env;

/// Seconds between SIGTERM and SIGKILL at a stop: Docker's default, which Vast.ai uses.
pub const STOP_GRACE_SECONDS: u64 = 10;

/// A machine's command ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The machine.
    pub machine: u64,
    /// Which start of its command it was.
    pub boot: u32,
    /// Exit code; 128 and the signal's number where a signal ended it.
    pub code: i32,
}

/// What to start. It holds the environment, so it does not print.
struct Plan {
    boot: u32,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    image_root: Option<PathBuf>,
}

enum Order {
    Start(Box<Plan>),
    Stop,
    Kill(oneshot::Sender<()>),
    Wipe(oneshot::Sender<()>),
    Remove(oneshot::Sender<()>),
}

struct Known {
    orders: mpsc::UnboundedSender<Order>,
    pid: std::sync::Arc<Mutex<Option<u32>>>,
}

/// The runner. Must live in a tokio runtime whose spawning thread lives as long as the simulator (parent-death signals follow threads).
pub struct Runner {
    state: PathBuf,
    shim: PathBuf,
    path: OsString,
    exits: mpsc::UnboundedSender<Exit>,
    machines: Mutex<BTreeMap<u64, Known>>,
}

impl Runner {
    /// A runner whose machines live in `state/machines/`. `shim` is the `tradewind-sim` binary, `path` the `PATH` of machines. What it
    /// has to tell comes out of the receiver.
    pub fn new(state: &Path, shim: PathBuf, path: OsString) -> (Self, mpsc::UnboundedReceiver<Exit>) {
        let (exits, receiver) = mpsc::unbounded_channel();
        (Self { state: state.join("machines"), shim, path, exits, machines: Mutex::default() }, receiver)
    }

    /// Starts a machine's command as the market has it now.
    pub fn start(&self, market: &mut Market, machine: u64, boot: u32) {
        let Some(m) = market.machine(machine) else { return };
        let directory = self.directory(&m.account, &m.wire_id());
        let ports: Vec<(PortWish, u16)> = m.workload.ports.iter().map(|wish| (wish.clone(), free_port(wish))).collect();
        let image_root = market
            .account(&m.account)
            .and_then(|a| a.images.get(&m.workload.image))
            .and_then(|image| image.root.clone());
        let mut env = self.environment(m, &ports, &directory, image_root.is_some());
        let offer = market.account(&m.account).and_then(|a| a.offers.iter().find(|offer| offer.id == m.offer));
        env.extend(offer.map(|offer| ("TRADEWIND_HOST_FACTS".to_owned(), offer.terms.host.clone())));
        let plan = Plan { boot, argv: m.workload.argv.clone(), env, image_root };
        self.known(machine, &directory, |known| {
            let _ = known.orders.send(Order::Start(Box::new(plan)));
        });
        market.set_host_ports(machine, boot, ports);
    }

    fn environment(
        &self,
        m: &crate::market::Machine,
        ports: &[(PortWish, u16)],
        directory: &Path,
        image: bool,
    ) -> Vec<(String, String)> {
        let mut path = self.path.to_string_lossy().into_owned();
        if image {
            path = format!("{}:{path}", directory.join("bin").display());
        }
        let mut env: BTreeMap<String, String> = BTreeMap::from([("PATH".to_owned(), path)]);
        env.extend(m.workload.env.iter().cloned());
        env.extend(injected_env(m, ports));
        env.insert("HOME".to_owned(), directory.display().to_string());
        env.into_iter().collect()
    }

    /// Performs any effect but a start. What it gives is to be awaited before the effect is told to anybody.
    pub fn perform(&self, effect: &Effect) -> Option<oneshot::Receiver<()>> {
        let mut machines = self.machines.lock().expect("no holder of the runner's table panics");
        let known = machines.get(&effect.machine())?;
        let (done, wait) = oneshot::channel();
        let order = match effect {
            Effect::Start { .. } => return None,
            Effect::Stop { .. } => Order::Stop,
            Effect::Kill { .. } => Order::Kill(done),
            Effect::Wipe { .. } => Order::Wipe(done),
            Effect::Remove { .. } => Order::Remove(done),
        };
        let waits = !matches!(order, Order::Stop);
        let _ = known.orders.send(order);
        if matches!(effect, Effect::Remove { .. }) {
            machines.remove(&effect.machine());
        }
        waits.then_some(wait)
    }

    /// Ends every process of every machine.
    pub async fn end_all(&self) {
        let waits: Vec<oneshot::Receiver<()>> = {
            let machines = self.machines.lock().expect("no holder of the runner's table panics");
            let kill = |known: &Known| {
                let (done, wait) = oneshot::channel();
                let _ = known.orders.send(Order::Kill(done));
                wait
            };
            machines.values().map(kill).collect()
        };
        for wait in waits {
            let _ = wait.await;
        }
    }

    /// The process of a machine's command, if it runs.
    pub fn pid(&self, machine: u64) -> Option<u32> {
        let machines = self.machines.lock().expect("no holder of the runner's table panics");
        *machines.get(&machine)?.pid.lock().expect("no holder of a pid panics")
    }

    /// Where a machine's directory is while the machine is there. `id` is the machine's on the wire.
    pub fn directory(&self, account: &str, id: &str) -> PathBuf {
        self.state.join(format!("{account}-{id}"))
    }

    fn known(&self, machine: u64, directory: &Path, then: impl FnOnce(&Known)) {
        let mut machines = self.machines.lock().expect("no holder of the runner's table panics");
        let known = machines.entry(machine).or_insert_with(|| {
            let (orders, receiver) = mpsc::unbounded_channel();
            let pid = std::sync::Arc::new(Mutex::new(None));
            let task =
                machine::Task::new(machine, directory.to_owned(), self.shim.clone(), pid.clone(), self.exits.clone());
            tokio::spawn(task.run(receiver));
            Known { orders, pid }
        });
        then(known);
    }
}

/// A loopback port that is free now. A container port above 70000 asks for the same number outside (Vast.ai), which no real port has:
/// it gets a free one too.
fn free_port(wish: &PortWish) -> u16 {
    let address = (Ipv4Addr::LOCALHOST, 0);
    let port = if wish.protocol == "udp" {
        UdpSocket::bind(address).and_then(|socket| socket.local_addr())
    } else {
        TcpListener::bind(address).and_then(|socket| socket.local_addr())
    };
    port.map_or(0, |address| address.port())
}
