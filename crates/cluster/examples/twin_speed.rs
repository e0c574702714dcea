//! How fast the twin is: reads and status writes per second on one core. Run with `--release`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec};
use kube::api::ObjectMeta;
use serde_json::json;
use tradewind_api::Provider;
use tradewind_cluster::memory::at_once;
use tradewind_cluster::{Cluster, ClusterError, Key, Memory, Typed};
use tradewind_core::{Clock, SystemClock};

const ROUNDS: u32 = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let clock = Arc::new(SystemClock::default());
    let memory = Memory::new(clock.clone());
    let port: &dyn Cluster = &memory;

    let env =
        (0..8).map(|n| EnvVar { name: format!("NAME_{n}"), value: Some("value".to_owned()), ..EnvVar::default() });
    let container = Container {
        name: "main".to_owned(),
        image: Some("registry.invalid/image:1".to_owned()),
        command: Some(vec!["python".to_owned(), "train.py".to_owned()]),
        env: Some(env.collect()),
        ..Container::default()
    };
    let metadata =
        ObjectMeta { namespace: Some("default".to_owned()), name: Some("p".to_owned()), ..Default::default() };
    let spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
    let pod = at_once(port.add(Pod { metadata, spec, status: None }))?;
    let provider: Provider = serde_json::from_value(json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": {"name": "p"},
        "spec": {"kind": "Vast", "credentialsSecretRef": {"name": "key"}, "limits": {"perHour": "1", "perDay": "10"}},
    }))?;
    let provider = at_once(port.add(provider))?;

    measure(&*clock, "get", || at_once(port.read::<Pod>(&Key::of(&*pod))).map(drop))?;
    measure(&*clock, "get + status write of a Pod", || {
        turn::<Pod>(port, &Key::of(&*pod), |pod| {
            let status = pod.status.get_or_insert_default();
            status.observed_generation = Some(status.observed_generation.unwrap_or(0) + 1);
        })
    })?;
    measure(&*clock, "get + status write of a Provider", || {
        turn::<Provider>(port, &Key::of(&*provider), |provider| provider.status.get_or_insert_default().machines += 1)
    })?;
    Ok(())
}

fn turn<K: Typed>(port: &dyn Cluster, key: &Key, change: impl FnOnce(&mut K)) -> Result<(), ClusterError> {
    let mut object = K::clone(&*at_once(port.read::<K>(key))?);
    change(&mut object);
    at_once(port.write_status(object)).map(drop)
}

fn measure(
    clock: &dyn Clock,
    what: &str,
    mut turn: impl FnMut() -> Result<(), ClusterError>,
) -> Result<(), ClusterError> {
    let start = clock.monotonic();
    for _ in 0..ROUNDS {
        turn()?;
    }
    let rate = f64::from(ROUNDS) / clock.monotonic().saturating_sub(start).as_secs_f64();
    println!("{rate:>12.0}/s  {what}");
    Ok(())
}
