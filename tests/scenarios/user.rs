//! What a user types and sees.

use anyhow::{Result, ensure};
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::golden::golden;
use crate::job::Job;
use crate::world::{SOON, World, scenario};

async fn seen(world: &World, arguments: &str) -> Result<String> {
    let text = world.stack.kubectl().run(arguments.split_whitespace()).await?;
    println!("$ kubectl {arguments}\n{text}");
    Ok(text)
}

fn shows(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part} is missing in:\n{text}");
    }
    Ok(())
}

#[test]
fn kubectl_shows_what_a_user_wants_to_know() {
    scenario(async |world| {
        let ns = world.namespace("user").await?;
        let job = Job::new(&ns, "my-run", 60, 5, "0.1");
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        job.saved(world, 5, SOON).await?;
        golden(world, "running", &job).await?;
        let get = seen(world, &format!("get tj -n {ns}")).await?;
        shows(&get, &["NAME", "PHASE", "WORKERS", "WHERE", "GPU", "STEP", "CKPT", "COST", "AGE"])?;
        shows(&get, &["my-run", "Running", "1/1", "vast (spot, NO)", "1xRTX4090", "/60", "$0."])?;
        let wide = seen(world, &format!("get tj -n {ns} -o wide")).await?;
        shows(&wide, &["PREEMPTED", "RESTARTS", "MACHINE", "MESSAGE", "runs on vast"])?;
        shows(&seen(world, "get twm").await?, &["Ready", "vast", "1xRTX4090", "my-run"])?;
        shows(&seen(world, "get twp").await?, &["vast", "Vast", "True", "AccountReady"])?;
        shows(&seen(world, &format!("get pods -n {ns}")).await?, &["my-run-0", "1/1", "Running"])?;
        shows(&seen(world, &format!("describe pod my-run-0 -n {ns}")).await?, &["tradewind-", "Running"])?;
        let wait = format!("wait --for=condition=Ready tj/my-run -n {ns} --timeout=30s");
        shows(&seen(world, &wait).await?, &["condition met"])?;
        let wait = format!("wait --for=condition=Complete tj/my-run -n {ns} --timeout=60s");
        shows(&seen(world, &wait).await?, &["condition met"])?;
        finished_right(world, &job).await?;
        golden(world, "complete", &job).await?;
        let described = seen(world, &format!("describe tj my-run -n {ns}")).await?;
        shows(&described, &["Why:", "Rejected:", "Settled:", "Complete", "exit code 0", "Renting", "Rented"])?;
        shows(&seen(world, &format!("get events -n {ns}")).await?, &["Renting", "Rented", "trainingjob/my-run"])?;
        let pod = seen(world, &format!("get pods -n {ns}")).await?;
        shows(&pod, &["my-run-0", "Completed"])?;
        shows(&seen(world, &format!("delete tj my-run -n {ns} --timeout=30s")).await?, &["deleted"])?;
        ensure!(seen(world, &format!("get tj -n {ns} -o name")).await?.trim().is_empty());
        Ok(())
    });
}

#[test]
fn a_program_that_fails_is_said_in_its_own_words() {
    scenario(async |world| {
        let ns = world.namespace("user").await?;
        // It has saved before it fails, so that no host is to blame.
        let fails = "train 5 5 0.05; sleep 2; echo loss is NaN; exit 3";
        let job = Job::new(&ns, "fails", 5, 5, "0.05")
            .with(serde_json::json!({ "failurePolicy": { "maxRestarts": 1 } }))
            .container(serde_json::json!({ "command": ["sh", "-c", fails], "args": null }));
        job.apply(world).await?;
        job.phase(world, JobPhase::Failed, SOON).await?;
        let message = job.condition(world, "Failed", "True", "TooManyRestarts", SOON).await?;
        shows(&message, &["exit code 3", "loss is NaN"])?;
        let status = job.now(world).await?.status.unwrap_or_default();
        ensure!(status.restarts == 1 && status.preemptions == 0, "{status:?}");
        world.all_gone().await?;
        golden(world, "failed", &job).await
    });
}
