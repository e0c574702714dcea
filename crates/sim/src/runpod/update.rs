//! `PATCH /v2/pods/{id}`: what the body names is changed, the rest stays. A change of the container makes it anew.

use serde_json::{Value, json};

use super::answer::Answer;
use super::create::{self, CONTAINER, MOUNTS};
use super::schema::{Shape, may, read};
use crate::market::{Machine, Revision};

/// `UpdatePodRequest` of the document.
const UPDATE: Shape = Shape::Object(&[
    CONTAINER[0],
    CONTAINER[1],
    CONTAINER[2],
    CONTAINER[3],
    CONTAINER[4],
    CONTAINER[5],
    CONTAINER[6],
    CONTAINER[7],
    may("globalNetworking", Shape::Flag),
    may("locked", Shape::Flag),
    may("mounts", MOUNTS),
    may("name", Shape::Text(1)),
    may("templateId", Shape::Text(0)),
]);

/// Reads an update of a pod.
pub fn parse(pod: &Machine, body: &[u8]) -> Result<Revision, Answer> {
    let mut fields = read(UPDATE, body)?;
    if fields.contains_key("templateId") {
        return Err(Answer::not_found("template"));
    }
    if let Some(mounts) = fields.remove("mounts") {
        check_mounts(pod, &mounts)?;
        if mounts.get("persistent").is_some() {
            fields.insert("mounts".to_owned(), mounts);
        }
    }
    let name = match fields.remove("name") {
        Some(Value::String(name)) => Some(name),
        _ => pod.label.clone(),
    };
    let again = CONTAINER
        .iter()
        .any(|field| fields.get(field.name).is_some_and(|new| pod.workload.wire.get(field.name) != Some(new)));
    let mut wire = pod.workload.wire.clone();
    wire.extend(fields);
    let workload = create::workload(&wire)?;
    let mounts = wire.get("mounts").cloned().unwrap_or_else(|| json!({}));
    Ok(Revision {
        label: name,
        disk_milli_gb: create::disk_milli_gb(&wire),
        volume_milli_gb: create::volume_milli_gb(&mounts),
        workload,
        again,
    })
}

fn check_mounts(pod: &Machine, mounts: &Value) -> Result<(), Answer> {
    let has = pod.workload.wire.get("mounts").is_some_and(|mounts| mounts.get("persistent").is_some());
    if mounts.get("persistent").is_some() && !has {
        return Err(Answer::problem(400, "the kind of a mount is fixed when the pod is created"));
    }
    create::check_mounts(mounts)
}
