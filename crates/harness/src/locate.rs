//! Where the programs are that a world consists of. The only place of this crate that reads the environment.
#![expect(clippy::disallowed_methods, reason = "this module is where the harness reads the environment")]

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{Error, Result};

/// The directory that holds the workspace's `Cargo.toml`.
pub fn project_root() -> &'static Path {
    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    static CANONICAL: OnceLock<PathBuf> = OnceLock::new();
    CANONICAL.get_or_init(|| Path::new(ROOT).canonicalize().unwrap_or_else(|_| PathBuf::from(ROOT)))
}

/// Material that tests read but that is not part of the project (`TRADEWIND_SHARED`, by default beside the project),
/// or the sentence why it is not there.
pub fn shared_material(name: &str) -> Result<PathBuf> {
    let base = env::var_os("TRADEWIND_SHARED").map_or_else(|| project_root().join("../shared"), PathBuf::from);
    let path = base.join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::Missing(format!("{name} is not in the directory that TRADEWIND_SHARED names.")))
    }
}

/// What a test needs, or `None` after printing why the test is skipped.
///
/// With `CI=true` nothing may be skipped: then it panics instead.
#[expect(clippy::panic, reason = "it fails the test that asked")]
pub fn or_skip<T>(needed: Result<T>) -> Option<T> {
    match needed {
        Ok(value) => Some(value),
        Err(error) if env::var("CI").is_ok_and(|v| v == "true") => panic!("nothing may be skipped in CI: {error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// What our processes see of the environment of whoever started us: enough to find programs and to format output.
/// `KUBECONFIG`, cloud credentials and proxies stay outside.
pub(crate) fn passed_environment() -> impl Iterator<Item = (OsString, OsString)> {
    ["PATH", "LANG", "LC_ALL", "TMPDIR", "RUST_BACKTRACE", "RUST_LOG", "LLVM_PROFILE_FILE"]
        .into_iter()
        .filter_map(|name| Some((name.into(), env::var_os(name)?)))
}

/// The programs of others: control plane, S3 server, Python environments.
#[derive(Clone, Debug)]
pub struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// The directory that `TRADEWIND_TOOLS` names, or the one that `deploy/dev/build-tools.sh` builds (minutes at the
    /// first time; it reports its progress on stderr).
    pub fn locate() -> Result<Self> {
        static FOUND: OnceLock<std::result::Result<Tools, String>> = OnceLock::new();
        FOUND
            .get_or_init(|| match env::var_os("TRADEWIND_TOOLS") {
                Some(directory) => Ok(Self { directory: directory.into() }),
                None => Self::build().map_err(|e| e.to_string()),
            })
            .clone()
            .map_err(Error::Missing)
    }

    fn build() -> Result<Self> {
        let script = project_root().join("deploy/dev/build-tools.sh");
        let output = Command::new(&script)
            .arg("--test")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(Error::io(format!("running {}", script.display())))?;
        if !output.status.success() {
            return Err(Error::Missing("The tools could not be built; deploy/dev/build-tools.sh says why.".into()));
        }
        Ok(Self { directory: String::from_utf8_lossy(&output.stdout).trim().into() })
    }

    /// The program of that name: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, kwok, versitygw, s3s-fs.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        self.existing(Path::new(name))
    }

    /// The interpreter of the Python environment of that name: `demo` (numpy) or `test` (the provider's own client).
    pub fn python(&self, environment: &str) -> Result<PathBuf> {
        self.existing(&Path::new(&format!("python-{environment}")).join("bin/python"))
    }

    /// The directory with the environment of that name, for a `root` of a simulated image.
    pub fn python_environment(&self, environment: &str) -> Result<PathBuf> {
        self.existing(Path::new(&format!("python-{environment}")))
    }

    fn existing(&self, name: &Path) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if path.exists() {
            Ok(path)
        } else {
            Err(Error::Missing(format!(
                "{} is not among the tools in {}: run 'make tools' and unset TRADEWIND_TOOLS.",
                name.display(),
                self.directory.display()
            )))
        }
    }
}

/// The programs of this project.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `tradewind-operator`.
    pub operator: PathBuf,
    /// `tradewind-sim`.
    pub sim: PathBuf,
    /// `tradewind-agent`, the static build that travels to machines.
    pub agent: PathBuf,
}

impl Binaries {
    /// `TRADEWIND_BIN` names the directory of operator and simulator, `TRADEWIND_AGENT_BIN` the agent, as `make` sets them;
    /// without them they are taken from the target directory that the running program lies in, first of the same build.
    pub fn locate() -> Result<Self> {
        let target = target_directory();
        let operator = Self::find("tradewind-operator", env::var_os("TRADEWIND_BIN").map(PathBuf::from), &target)?;
        let sim = Self::find("tradewind-sim", env::var_os("TRADEWIND_BIN").map(PathBuf::from), &target)?;
        let static_build = target.join(format!("{}-unknown-linux-musl/agent/tradewind-agent", env::consts::ARCH));
        let agent = env::var_os("TRADEWIND_AGENT_BIN").map_or(static_build, PathBuf::from);
        if !agent.exists() {
            return Err(not_built("tradewind-agent", "make agent"));
        }
        Ok(Self { operator, sim, agent })
    }

    /// The simulator alone, for tests that need nothing else.
    pub fn locate_sim() -> Result<PathBuf> {
        Self::find("tradewind-sim", env::var_os("TRADEWIND_BIN").map(PathBuf::from), &target_directory())
    }

    /// `kubectl-tradewind`, for tests of the plug-in.
    pub fn locate_plugin() -> Result<PathBuf> {
        Self::find("kubectl-tradewind", env::var_os("TRADEWIND_BIN").map(PathBuf::from), &target_directory())
    }

    fn find(name: &str, directory: Option<PathBuf>, target: &Path) -> Result<PathBuf> {
        // A build of the other kind may be older than the sources.
        let is_debug = env::current_exe().is_ok_and(|running| running.starts_with(target.join("debug")));
        let builds = if is_debug { ["debug", "release"] } else { ["release", "debug"] };
        let candidates = directory.map_or_else(|| builds.map(|build| target.join(build)).to_vec(), |one| vec![one]);
        candidates
            .into_iter()
            .map(|directory| directory.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| not_built(name, "make build"))
    }
}

fn not_built(name: &str, command: &str) -> Error {
    Error::Missing(format!("{name} is not built: run '{command}'."))
}

/// Cargo keeps what it knows of the compiler in its target directory, and marks one that it made itself with a `CACHEDIR.TAG`; the running
/// test or demo lies somewhere below it.
fn target_directory() -> PathBuf {
    let running = env::current_exe().unwrap_or_default();
    let marks = [".rustc_info.json", "CACHEDIR.TAG"];
    running
        .ancestors()
        .find(|directory| marks.iter().any(|mark| directory.join(mark).exists()))
        .map_or_else(|| project_root().join("target"), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_project_and_target_directory() {
        assert!(project_root().join("rust-toolchain.toml").exists());
        assert!(env::current_exe().unwrap().starts_with(target_directory()));
    }

    #[test]
    fn a_missing_tool_is_one_sentence() {
        let tools = Tools { directory: "/nonexistent".into() };
        let message = tools.program("etcd").unwrap_err().to_string();
        assert_eq!(message, "etcd is not among the tools in /nonexistent: run 'make tools' and unset TRADEWIND_TOOLS.");
        let message =
            Binaries::find("tradewind-sim", Some("/nonexistent".into()), Path::new("/")).unwrap_err().to_string();
        assert_eq!(message, "tradewind-sim is not built: run 'make build'.");
    }

    #[test]
    fn only_harmless_variables_are_passed_on() {
        assert!(passed_environment().all(|(name, _)| name != "KUBECONFIG" && name != "HOME" && name != "HTTP_PROXY"));
    }
}
