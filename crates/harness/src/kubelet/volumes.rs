//! Volumes, as directories.

use std::{collections::BTreeMap, fs, io, path::Path};

use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};

use super::{environment, node::Node};

/// Makes every volume of a Pod below `directory`. The error is what a kubelet says in its Event `FailedMount`.
pub(super) async fn make(node: &Node, pod: &Pod, directory: &Path) -> Result<(), String> {
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let target = directory.join(&volume.name);
        let files = content(node, pod, volume)
            .await
            .map_err(|why| format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name))?;
        write(&target, files).map_err(|e| format!("writing {}: {e}", target.display()))?;
    }
    Ok(())
}

type Files = BTreeMap<String, Vec<u8>>;

async fn content(node: &Node, pod: &Pod, volume: &Volume) -> Result<Files, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if volume.empty_dir.is_some() {
        return Ok(Files::new());
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let found = environment::secret(node, namespace, name).await?;
        let data = found.map(|s| s.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect());
        return picked(data, source.items.as_deref(), source.optional, &format!("secret \"{name}\" not found"));
    }
    if let Some(source) = &volume.config_map {
        let found = environment::config_map(node, namespace, &source.name).await?;
        let data = found.map(|map| {
            let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
            text.chain(map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0))).collect()
        });
        let missing = format!("configmap \"{}\" not found", source.name);
        return picked(data, source.items.as_deref(), source.optional, &missing);
    }
    let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref()).unwrap_or_default();
    if sources.iter().any(|source| source.service_account_token.is_some()) {
        // Nothing that runs here speaks to the API server as its ServiceAccount.
        return Ok(Files::new());
    }
    Err("this node knows emptyDir, configMap and secret only".into())
}

fn picked(
    data: Option<Files>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    missing: &str,
) -> Result<Files, String> {
    let Some(mut data) = data else {
        return if optional == Some(true) { Ok(Files::new()) } else { Err(missing.into()) };
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else { return Ok(data) };
    let mut picked = Files::new();
    for item in items {
        match data.remove(&item.key) {
            Some(content) => drop(picked.insert(item.path.clone(), content)),
            None if optional == Some(true) => {}
            None => return Err(format!("references non-existent secret key: {}", item.key)),
        }
    }
    Ok(picked)
}

fn write(target: &Path, files: Files) -> io::Result<()> {
    fs::create_dir_all(target)?;
    for (name, content) in files {
        let path = target.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    Ok(())
}
