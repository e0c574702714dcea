//! Bare.
use std::time::Duration;
use tradewind_harness::{Stack, StackOptions, project_root, Tools};
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    let mut market: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(project_root().join("deploy/demo/market.json"))?)?;
    let root = std::path::PathBuf::from("/tmp/tw-image"); let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(root.join("bin"))?;
    for f in ["train.py", "text.txt"] { std::fs::copy(project_root().join("deploy/demo/program/image").join(f), root.join(f))?; }
    let python = Tools::locate()?.python("demo")?;
    std::fs::write(root.join("bin/python3"), format!("#!/bin/sh\nexec {} \"$@\"\n", python.display()))?;
    std::os::unix::fs::PermissionsExt::set_mode(&mut std::fs::metadata(root.join("bin/python3"))?.permissions(), 0o755);
    std::process::Command::new("chmod").args(["+x", "/tmp/tw-image/bin/python3"]).status()?;
    market["providers"]["vast"]["images"]["demo/charlm:1"]["root"] = root.display().to_string().into();
    let mut options = StackOptions::new("demo", market);
    options.progress = tradewind_harness::stack::Progress::to(move |l| println!("{:.1} {l}", began.elapsed().as_secs_f64()));
    let mut stack = Stack::start(options).await?;
    stack.keep_directory();
    println!("{:.1} ready {}", began.elapsed().as_secs_f64(), stack.directory().display());
    stack.grant("default").await?;
    println!("{}", stack.kubectl().run(["apply", "-f", project_root().join("deploy/demo/training-job.yaml").to_str().unwrap()]).await?);
    let mut last = String::new();
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let job = stack.job("default", "charlm").await?;
        let s = job.status.clone().unwrap_or_default();
        let line = format!("{} ckpt {:?} step {:?} cost {} placement {:?}", tradewind_harness::stack::summary(&job), s.checkpoint.map(|c| c.step), s.progress.map(|p| p.summary), s.cost.summary, s.placement);
        if line != last { println!("{:.1} {line}", began.elapsed().as_secs_f64()); last = line; }
        if s.phase.is_terminal() { break }
    }
    println!("{}", stack.kubectl().run(["get", "tj,twm,twp,pods,events", "-o", "wide"]).await?);
    println!("{:#?}", stack.sim.machines().await?);
    Ok(())
}
