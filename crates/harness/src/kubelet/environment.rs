//! A container's variables, as the kubelet makes them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret};

use super::node::Node;

/// Variables by name. The kubelet hands them to the runtime as a map too.
pub(super) type Variables = BTreeMap<String, String>;

/// Replaces `$(NAME)`. `$$` becomes `$`; what names no variable stays as it is.
pub(super) fn expand(text: &str, variables: &Variables) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

/// The variables of `envFrom`, then those of `env` in their order, each with those before it expanded. The error is the message of a
/// `CreateContainerConfigError`.
pub(super) async fn variables(node: &Node, pod: &Pod, container: &Container) -> Result<Variables, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = Variables::new();
    for source in container.env_from.iter().flatten() {
        let (values, optional) = if let Some(of) = &source.config_map_ref {
            (config_map(node, namespace, &of.name).await?.map(values_of_config_map), of.optional)
        } else if let Some(of) = &source.secret_ref {
            (secret(node, namespace, &of.name).await?.map(values_of_secret), of.optional)
        } else {
            continue;
        };
        match values {
            Some(values) => {
                let prefix = source.prefix.as_deref().unwrap_or_default();
                found.extend(values.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
            }
            None if optional == Some(true) => {}
            None => {
                return Err(missing(source.config_map_ref.as_ref().map_or("secret", |_| "configmap"), &{
                    let name = source.config_map_ref.as_ref().map(|of| &of.name);
                    name.or(source.secret_ref.as_ref().map(|of| &of.name)).cloned().unwrap_or_default()
                }));
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let EnvVar { name, value, value_from } = variable;
        let value = match (value, value_from) {
            (_, Some(source)) => from_source(node, pod, namespace, source).await?,
            (value, None) => Some(expand(value.as_deref().unwrap_or_default(), &found)),
        };
        if let Some(value) = value {
            found.insert(name.clone(), value);
        }
    }
    Ok(found)
}

async fn from_source(node: &Node, pod: &Pod, namespace: &str, source: &EnvVarSource) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        let unknown = || format!("fieldRef {} is not known to this node", field.field_path);
        return self::field(node, pod, &field.field_path).map(Some).ok_or_else(unknown);
    }
    let (kind, name, key, optional, values) = if let Some(of) = &source.secret_key_ref {
        let values = secret(node, namespace, &of.name).await?.map(values_of_secret);
        ("secret", &of.name, &of.key, of.optional, values)
    } else if let Some(of) = &source.config_map_key_ref {
        let values = config_map(node, namespace, &of.name).await?.map(values_of_config_map);
        ("configmap", &of.name, &of.key, of.optional, values)
    } else {
        return Err("a source of a variable is not known to this node".into());
    };
    let is_optional = optional == Some(true);
    match values {
        None if is_optional => Ok(None),
        None => Err(missing(kind, name)),
        Some(mut values) => match values.remove(key) {
            None if !is_optional => {
                let what = if kind == "secret" { "Secret" } else { "ConfigMap" };
                Err(format!("couldn't find key {key} in {what} {namespace}/{name}"))
            }
            value => Ok(value),
        },
    }
}

fn missing(kind: &str, name: &str) -> String {
    format!("{kind} \"{name}\" not found")
}

/// A field of the Pod that a variable may show. The address is there before the containers are.
fn field(node: &Node, pod: &Pod, path: &str) -> Option<String> {
    let metadata = &pod.metadata;
    let entry = |all: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(all.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "spec.nodeName" => Some(node.options.name.clone()),
        "spec.serviceAccountName" => pod.spec.as_ref()?.service_account_name.clone(),
        "status.podIP" | "status.podIPs" => node.address(metadata.uid.as_deref()?).map(|ip| ip.to_string()),
        "status.hostIP" | "status.hostIPs" => Some(super::node::HOST.to_string()),
        _ => entry(&metadata.labels, "metadata.labels['")
            .or_else(|| entry(&metadata.annotations, "metadata.annotations['")),
    }
}

/// A Secret, or `None` if there is none of that name.
pub(super) async fn secret(node: &Node, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
    let api: kube::Api<Secret> = kube::Api::namespaced(node.client.clone(), namespace);
    node.link.call(async || api.get_opt(name).await).await.map_err(|e| e.to_string())
}

/// A ConfigMap, or `None` if there is none of that name.
pub(super) async fn config_map(node: &Node, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
    let api: kube::Api<ConfigMap> = kube::Api::namespaced(node.client.clone(), namespace);
    node.link.call(async || api.get_opt(name).await).await.map_err(|e| e.to_string())
}

fn values_of_secret(secret: Secret) -> Variables {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
}

fn values_of_config_map(map: ConfigMap) -> Variables {
    map.data.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_is_that_of_the_kubelet() {
        let variables = Variables::from([("A".to_owned(), "x".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        let cases = [
            ("$(A)-$(A)", "x-x"),
            ("$(B)", "$(A)"),
            ("$$(A) $$$(A) $$", "$(A) $x $"),
            ("$(NONE) $A ${A} $(", "$(NONE) $A ${A} $("),
            ("cost: 5$", "cost: 5$"),
        ];
        for (text, wanted) in cases {
            assert_eq!(expand(text, &variables), wanted, "{text}");
        }
    }
}
