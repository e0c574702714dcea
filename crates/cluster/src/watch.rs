//! Feeds a [`Cache`] from the API server's watch. The only place that watches.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, pin_mut};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, watcher};

use crate::cache::{Cache, Event};
use crate::object::{Key, Typed};
use crate::port::Selector;

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Only objects with these labels.
    pub labels: Selector,
    /// Only objects that have this label, whatever its value.
    pub label_present: Option<&'static str>,
    /// Only objects with these fields, such as `spec.nodeName=tradewind`.
    pub fields: Option<String>,
}

/// Watches one kind over all namespaces and hands every event to `deliver`, after clearing managedFields (half of an object's
/// memory) and whatever else `slim` takes off. Errors are logged and tried again with backoff. Never returns; dropping the future ends the watch.
///
/// The client must have no read timeout: a quiet watch is a healthy one.
pub async fn events<K>(
    client: kube::Client,
    what: Watch,
    mut slim: impl FnMut(&mut K),
    mut deliver: impl FnMut(Event<K>),
) where
    K: Typed + kube::Resource<DynamicType = ()> + Debug,
{
    let labels: Vec<String> = what.labels.query().into_iter().chain(what.label_present.map(str::to_owned)).collect();
    let label_selector = (!labels.is_empty()).then(|| labels.join(","));
    let config = Config { label_selector, field_selector: what.fields, ..Config::default() };
    let stream = watcher(kube::Api::<K>::all(client), config.streaming_lists()).default_backoff().modify(|object| {
        kube::Resource::meta_mut(object).managed_fields = None;
        slim(object);
    });
    pin_mut!(stream);
    let mut listed = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push(Arc::new(object)),
            Ok(watcher::Event::InitDone) => deliver(Event::Relist(std::mem::take(&mut listed))),
            Ok(watcher::Event::Apply(object)) => deliver(Event::Set(Arc::new(object))),
            Ok(watcher::Event::Delete(object)) => deliver(Event::Gone(Arc::new(object))),
            Err(error) => tracing::warn!(object.kind = K::KIND.kind, %error, "Watch broke, trying again"),
        }
    }
}

/// Watches one kind into a cache and tells `changed` which keys look different. Never returns.
pub async fn feed<K>(client: kube::Client, what: Watch, cache: Arc<Mutex<Cache<K>>>, mut changed: impl FnMut(Vec<Key>))
where
    K: Typed + kube::Resource<DynamicType = ()> + Debug,
{
    events(
        client,
        what,
        |_| {},
        |event| {
            let keys = cache.lock().unwrap_or_else(PoisonError::into_inner).apply(event);
            if !keys.is_empty() {
                changed(keys);
            }
        },
    )
    .await;
}
