//! The rendezvous of a job's workers: who is waited for, and what each is told about the others. Pure.
//!
//! No program starts before every worker's agent has said where it is, so nobody needs a Service or a name. The variables are those that
//! torchrun (`PET_*`), `torch.distributed` (`MASTER_*`, `RANK`, `WORLD_SIZE`), JAX and scripts written for other launchers read.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

/// Where rank 0 is reached, unless the template says otherwise: the default of `torchrun`.
const MASTER_PORT: u16 = 29500;

/// One worker as its agent and its Pod show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rank {
    /// Its Pod is there and is to stay.
    pub there: bool,
    /// It has its start document already.
    pub started: bool,
    /// Its agent waits for one.
    pub booted: bool,
    /// Where the others reach it.
    pub address: Option<IpAddr>,
}

/// What the workers of an attempt do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meeting {
    /// These ranks are waited for.
    Wait(Vec<usize>),
    /// Each has, or gets now, its start document; these are the addresses by rank, empty for a single worker.
    Go(Vec<IpAddr>),
}

/// Whether all have met. A single worker meets nobody and needs no address.
pub fn meet(ranks: &[Rank]) -> Meeting {
    let alone = ranks.len() == 1;
    let here = |rank: &Rank| rank.there && (rank.started || rank.booted) && (alone || rank.address.is_some());
    let missing: Vec<usize> = ranks.iter().enumerate().filter(|(_, rank)| !here(rank)).map(|(n, _)| n).collect();
    if missing.is_empty() {
        Meeting::Go(if alone { Vec::new() } else { ranks.iter().filter_map(|rank| rank.address).collect() })
    } else {
        Meeting::Wait(missing)
    }
}

/// What the programs are told of the gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Addresses by rank.
    pub addresses: Vec<IpAddr>,
    /// Port of rank 0.
    pub port: u16,
    /// GPUs of each worker.
    pub gpus: u32,
}

impl Gang {
    /// The port that a template names literally, or the usual one.
    pub fn port(template: &Value) -> u16 {
        let entries = template.pointer("/spec/containers/0/env").and_then(Value::as_array);
        let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("MASTER_PORT");
        let told = entries.and_then(|entries| entries.iter().rfind(named));
        told.and_then(|entry| entry.get("value")?.as_str()?.parse().ok()).unwrap_or(MASTER_PORT)
    }

    /// The variables of one rank. One process for each worker, as torchrun counts nodes: a launcher that starts one for each GPU sets `RANK`
    /// and `WORLD_SIZE` anew for them. A single worker is told nothing: it may be any program.
    pub fn environment(&self, rank: usize) -> BTreeMap<String, String> {
        let Some(master) = self.addresses.first() else { return BTreeMap::new() };
        let (count, rank) = (self.addresses.len().to_string(), rank.to_string());
        let (master_ip, port) = (master.to_string(), self.port.to_string());
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        [
            ("MASTER_ADDR", master_ip.clone()),
            ("MASTER_PORT", port.clone()),
            ("RANK", rank.clone()),
            ("WORLD_SIZE", count.clone()),
            ("NODE_RANK", rank.clone()),
            ("NODE_IPS", addresses.join("\n")),
            ("NUM_NODES", count.clone()),
            ("NUM_GPUS_PER_NODE", self.gpus.to_string()),
            ("PET_NNODES", count.clone()),
            ("PET_NODE_RANK", rank.clone()),
            ("PET_NPROC_PER_NODE", self.gpus.max(1).to_string()),
            ("PET_MASTER_ADDR", master_ip),
            ("PET_MASTER_PORT", port),
            // With brackets around an IPv6 address.
            ("JAX_COORDINATOR_ADDRESS", SocketAddr::new(*master, self.port).to_string()),
            ("JAX_NUM_PROCESSES", count),
            ("JAX_PROCESS_ID", rank),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn booted(last: u8) -> Rank {
        Rank { there: true, booted: true, address: Some(ip(last)), started: false }
    }

    fn started(last: u8) -> Rank {
        Rank { there: true, booted: false, address: Some(ip(last)), started: true }
    }

    #[test]
    fn nobody_begins_before_everybody_is_there() {
        let gone = |rank: Rank| Rank { there: false, ..rank };
        let mute = |rank: Rank| Rank { address: None, ..rank };
        for (what, ranks, expected) in [
            ("nobody is there", vec![Rank::default(); 2], Meeting::Wait(vec![0, 1])),
            ("one is missing", vec![booted(1), Rank::default(), booted(3)], Meeting::Wait(vec![1])),
            ("one tells no address", vec![booted(1), mute(booted(2))], Meeting::Wait(vec![1])),
            ("all are there", vec![booted(1), booted(2)], Meeting::Go(vec![ip(1), ip(2)])),
            ("the operator died between two", vec![started(1), booted(2)], Meeting::Go(vec![ip(1), ip(2)])),
            (
                "one rebooted before that",
                vec![started(1), Rank { there: true, ..Rank::default() }],
                Meeting::Wait(vec![1]),
            ),
            ("one is going", vec![booted(1), gone(booted(2))], Meeting::Wait(vec![1])),
            ("a single worker", vec![mute(booted(1))], Meeting::Go(vec![])),
            ("a single worker that boots", vec![Rank { there: true, ..Rank::default() }], Meeting::Wait(vec![0])),
        ] {
            assert_eq!(meet(&ranks), expected, "{what}");
        }
    }

    #[test]
    fn each_is_told_where_the_others_are() {
        let gang = Gang { addresses: vec![ip(7), ip(3), ip(5)], port: 29500, gpus: 8 };
        let env = gang.environment(1);
        for (name, value) in [
            ("MASTER_ADDR", "10.0.0.7"),
            ("MASTER_PORT", "29500"),
            ("RANK", "1"),
            ("WORLD_SIZE", "3"),
            ("NODE_RANK", "1"),
            ("NODE_IPS", "10.0.0.7\n10.0.0.3\n10.0.0.5"),
            ("NUM_NODES", "3"),
            ("NUM_GPUS_PER_NODE", "8"),
            ("PET_NNODES", "3"),
            ("PET_NODE_RANK", "1"),
            ("PET_NPROC_PER_NODE", "8"),
            ("PET_MASTER_ADDR", "10.0.0.7"),
            ("PET_MASTER_PORT", "29500"),
            ("JAX_COORDINATOR_ADDRESS", "10.0.0.7:29500"),
            ("JAX_NUM_PROCESSES", "3"),
            ("JAX_PROCESS_ID", "1"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(env.len(), 16);
        let cpu = Gang { gpus: 0, addresses: vec!["fd00::1".parse().unwrap(), ip(1)], port: 1 };
        assert_eq!(cpu.environment(0)["PET_NPROC_PER_NODE"], "1");
        assert_eq!(cpu.environment(0)["JAX_COORDINATOR_ADDRESS"], "[fd00::1]:1");
        assert_eq!(Gang { addresses: vec![], ..cpu }.environment(0), BTreeMap::new(), "a single worker");
    }

    #[test]
    fn a_port_in_the_template_holds() {
        let port = |env: Value| Gang::port(&serde_json::json!({"spec": {"containers": [{"env": env}]}}));
        assert_eq!(port(serde_json::json!([{"name": "MASTER_PORT", "value": "4711"}])), 4711);
        assert_eq!(port(serde_json::json!([{"name": "MASTER_PORT", "value": "$(PORT)"}])), 29500);
        assert_eq!(port(serde_json::json!([{"name": "PORT", "value": "1"}])), 29500);
        assert_eq!(Gang::port(&Value::Null), 29500);
    }
}
