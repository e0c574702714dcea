//! What a watch of the Pods of a namespace shows: the same eyes on both contenders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tradewind_harness::eventually;

/// What was seen of one Pod, and when the watch showed it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The Pod's name.
    pub name: String,
    /// The name of the job that it works for.
    pub job: String,
    /// Where its agent finds its orders.
    pub control: Option<String>,
    /// It was made.
    pub made: Instant,
    /// It ran.
    pub ran: Option<Instant>,
    /// Its phase was Failed.
    pub failed: Option<Instant>,
    /// It was deleted.
    pub gone: Option<Instant>,
}

impl Seen {
    /// It runs now.
    pub fn is_running(&self) -> bool {
        self.ran.is_some() && self.failed.is_none() && self.gone.is_none()
    }
}

/// News of one Pod.
#[derive(Debug)]
pub enum News {
    /// It runs for the first time: its uid, and what is known of it.
    Runs(String, Seen),
    /// Its program and agent have ended without a word.
    Cut(String),
    /// It was deleted: the agent was told to stop.
    Deleted(String),
}

/// All Pods of a namespace that there were since the watch began.
pub struct Pods {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    watch: JoinHandle<()>,
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Pods {
    /// Begins to watch. `label` holds the name of a Pod's job.
    pub fn watch(
        client: kube::Client,
        namespace: &str,
        label: &'static str,
        news: mpsc::UnboundedSender<News>,
    ) -> Self {
        let seen = Arc::<Mutex<BTreeMap<String, Seen>>>::default();
        let api = kube::Api::<Pod>::namespaced(client, namespace);
        let into = seen.clone();
        let watch = tokio::spawn(async move {
            let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
            while let Some(event) = events.next().await {
                let (pod, gone) = match event {
                    Ok(Event::Apply(pod) | Event::InitApply(pod)) => (pod, false),
                    Ok(Event::Delete(pod)) => (pod, true),
                    Ok(Event::Init | Event::InitDone) => continue,
                    Err(error) => {
                        eprintln!("gangs: the watch of Pods was cut: {error}");
                        // The watcher begins anew by itself; it does not wait by itself.
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                };
                for told in note(&into, label, &pod, gone) {
                    // Nobody listens where no agents are played.
                    let _ = news.send(told);
                }
            }
        });
        Self { seen, watch }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Waits until so many Pods have been made.
    pub async fn made(&self, count: usize, limit: Duration) -> Result<()> {
        self.until(&format!("{count} Pods"), count, limit, |_| true).await
    }

    /// Waits until so many Pods run.
    pub async fn running(&self, count: usize, limit: Duration) -> Result<()> {
        self.until(&format!("{count} running Pods"), count, limit, Seen::is_running).await
    }

    async fn until(&self, what: &str, count: usize, limit: Duration, which: impl Fn(&Seen) -> bool) -> Result<()> {
        let look = || {
            let now =
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|seen| which(seen)).count();
            std::future::ready(if now >= count { Ok(()) } else { Err(format!("{now} so far")) })
        };
        Ok(eventually(what, limit, look).await?)
    }
}

fn note(seen: &Mutex<BTreeMap<String, Seen>>, label: &str, pod: &Pod, gone: bool) -> Vec<News> {
    let (Some(uid), now) = (pod.uid(), Instant::now()) else { return Vec::new() };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let one = seen.entry(uid.clone()).or_insert_with(|| Seen {
        name: pod.name_any(),
        job: pod.labels().get(label).cloned().unwrap_or_default(),
        control: None,
        made: now,
        ran: None,
        failed: None,
        gone: None,
    });
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let mut news = Vec::new();
    if phase == "Running" && one.ran.is_none() {
        one.ran = Some(now);
        one.control = pod.annotations().get(tradewind_api::names::CONTROL).cloned();
        news.push(News::Runs(uid.clone(), one.clone()));
    }
    if phase == "Failed" && one.failed.is_none() {
        one.failed = Some(now);
        news.push(News::Cut(uid.clone()));
    }
    if gone && one.gone.is_none() {
        one.gone = Some(now);
        news.push(News::Deleted(uid));
    }
    news
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "a-1-0", "uid": "u", "labels": { "job": "a" },
                "annotations": { "tradewind.dev/control": "http://store/control.json" } },
            "status": { "phase": phase },
        }))
        .unwrap()
    }

    #[test]
    fn each_thing_is_news_once() {
        let seen = Mutex::default();
        assert!(note(&seen, "job", &pod("Pending"), false).is_empty());
        let news = note(&seen, "job", &pod("Running"), false);
        assert!(
            matches!(&news[..], [News::Runs(_, one)] if one.job == "a" && one.control.is_some() && one.is_running()),
            "{news:?}"
        );
        assert!(note(&seen, "job", &pod("Running"), false).is_empty());
        assert!(matches!(&note(&seen, "job", &pod("Failed"), false)[..], [News::Cut(_)]));
        assert!(matches!(&note(&seen, "job", &pod("Failed"), true)[..], [News::Deleted(_)]));
        assert!(!seen.lock().unwrap()["u"].is_running());
    }
}
