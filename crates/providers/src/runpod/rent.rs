//! Renting: one request, never repeated. RunPod has no idempotency key, and names are not unique, so a request whose answer is lost is
//! looked up by the order's key, which stands in the pod's name and in its environment.

use std::time::Duration;

use reqwest::Method;

use super::RunPod;
use super::config::operation;
use super::convert::{self, Terms};
use super::error;
use super::wire::{CreateGpu, CreatePod};
use crate::{Refusal, RentOutcome, RentRequest};

/// The variable that holds the order's key, beside the pod's name: people rename pods.
pub(super) const MARKER: &str = "TRADEWIND_ORDER";
/// Larger requests are answered with 413.
const MAX_BODY_BYTES: usize = 102_400;
/// Docs, environment variables.
const MAX_VARIABLES: usize = 50;
/// Well inside a request's size, with room for the environment.
pub(super) const MAX_COMMAND_CHARS: usize = 16_384;
const SHELL: &str = "/bin/sh";
const SHELL_FLAG: &str = "-c";

impl RunPod {
    pub(super) async fn create_pod(&self, request: &RentRequest, not_after: Duration) -> RentOutcome {
        let refused = |why, message: String| RentOutcome::Refused { why, message, leftover: None };
        if request.offer.price_per_hour > request.price_cap {
            return refused(
                Refusal::PriceRose,
                format!("{} an hour is above the cap {}", request.offer.price_per_hour, request.price_cap),
            );
        }
        let body = match body(request) {
            Ok(body) => body,
            Err(message) => return refused(Refusal::Invalid, message.to_owned()),
        };
        let mut call = self.call(operation::RENT, Method::POST, "/v2/pods".to_owned());
        call.body = Some(body);
        call.timeout = self.times.rent;
        let mut redactor = self.redactor.clone().with(&request.bootstrap);
        for value in request.env.0.values() {
            redactor = redactor.with(value);
        }
        match self.http.send_once(&call, not_after).await {
            Ok(answer) => error::rent_outcome(&answer, error::dearest(request), &redactor),
            Err(failure) => failure.as_rent_outcome(),
        }
    }
}

/// The request's body, or why RunPod would refuse it.
fn body(request: &RentRequest) -> Result<Vec<u8>, &'static str> {
    let offer = &request.offer;
    let terms = Terms::of_id(&offer.id)
        .filter(|terms| terms.count == offer.gpu_count && terms.cloud.capacity() == offer.capacity)
        .ok_or("the offer's id is not one of this market")?;
    if request.image.is_empty() {
        return Err("the image's name is empty");
    }
    if request.bootstrap.chars().count() > MAX_COMMAND_CHARS {
        return Err("the command is longer than 16384 characters");
    }
    let name = request.key.to_string();
    let mut env = request.env.0.clone();
    if env.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err("a variable's name is empty or has a character that no name may have");
    }
    env.insert(MARKER.to_owned(), name.clone());
    if env.len() > MAX_VARIABLES {
        return Err("the environment has more than 50 variables");
    }
    let create = CreatePod {
        name: &name,
        image: &request.image,
        cloud: terms.cloud.word(),
        gpu: CreateGpu {
            id: &terms.gpu,
            count: terms.count,
            min_ram_per_gpu: convert::ram_per_gpu_gb(offer.gpu_memory_mib),
            min_vcpu_count_per_gpu: convert::CORES_PER_GPU,
        },
        data_center_ids: terms.data_centre.as_deref().map(|id| [id]),
        disk: convert::disk_gb(request.disk_gib),
        env: &env,
        entrypoint: [SHELL],
        cmd: [SHELL_FLAG, &request.bootstrap],
    };
    let body = json(&create);
    if body.len() > MAX_BODY_BYTES {
        return Err("command and environment together are longer than 102400 bytes");
    }
    Ok(body)
}

fn json(create: &CreatePod<'_>) -> Vec<u8> {
    serde_json::to_vec(create).expect("a plain struct with text keys")
}
