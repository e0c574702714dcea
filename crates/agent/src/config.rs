//! What the agent is given: the only place that reads the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tradewind_core::{ExposeSecret, SecretString};
use tradewind_protocol::{HostFacts, Ticket};

use crate::logic::{InCluster, Settings};

const CONTROL_URL: &str = "TRADEWIND_CONTROL_URL";
const POLL_MS: &str = "TRADEWIND_POLL_MS";
const REPORT_MS: &str = "TRADEWIND_REPORT_MS";
const GPU_MS: &str = "TRADEWIND_GPU_MS";
const LEAVE_MS: &str = "TRADEWIND_LEAVE_MS";
const POD_IP: &str = "TRADEWIND_POD_IP";
const TERMINATION_LOG: &str = "TRADEWIND_TERMINATION_LOG";
const CGROUP_DIR: &str = "TRADEWIND_CGROUP_DIR";
const HOST_FACTS: &str = "TRADEWIND_HOST_FACTS";
/// Which GPUs the container was promised; images for CUDA say it, and so do some markets.
const VISIBLE_GPUS: &str = "NVIDIA_VISIBLE_DEVICES";
/// Variables that are the agent's own begin like this.
const OWN_PREFIX: &[u8] = b"TRADEWIND_";

/// Where the kubelet looks for a container's last words, unless its Pod says otherwise.
#[expect(clippy::disallowed_methods, reason = "this module is the one that reads the environment")]
pub fn termination_log() -> PathBuf {
    std::env::var_os(TERMINATION_LOG).unwrap_or_else(|| "/dev/termination-log".into()).into()
}

/// The environment cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// There is nothing to talk to.
    #[error("{CONTROL_URL} is not set: it holds the signed URL of this machine's control document")]
    NoControl,
    /// Not a number of milliseconds.
    #[error("{0} must be a number of milliseconds from 10 to 3600000")]
    NotMilliseconds(&'static str),
}

/// The agent's configuration.
#[derive(Debug)]
pub struct Config {
    control_url: SecretString,
    /// Intervals and limits.
    pub settings: Settings,
    /// The machine's environment.
    pub environment: Environment,
    /// Where the counters of the container's cgroup are.
    pub cgroup: PathBuf,
    /// Between two looks at the GPUs.
    pub gpu_every: Duration,
    /// What the machine has, where somebody else says so: a simulated machine is a process on a host that nobody has rented.
    pub host: Option<HostFacts>,
    /// Which GPUs the container was promised.
    pub visible_gpus: Option<String>,
    /// The program and what else is different in a Pod of the cluster; see [`Config::with_program`].
    pub in_cluster: Option<InCluster>,
    /// Where small files of the agent's own go; `None` = the working directory.
    pub scratch: Option<PathBuf>,
}

/// The environment of this process. Values do not print: the provider puts a key among them.
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// What a program inherits: everything but the agent's own variables and the one that is withheld.
    pub fn without(&self, withheld: Option<&str>) -> BTreeMap<OsString, OsString> {
        let inherited = |name: &OsString| {
            !name.as_encoded_bytes().starts_with(OWN_PREFIX) && withheld.is_none_or(|withheld| name != withheld)
        };
        self.0.iter().filter(|(name, _)| inherited(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The value of a variable that is a secret; `None` if it is not set or no text.
    pub fn secret(&self, name: &str) -> Option<SecretString> {
        self.text(name).map(SecretString::from)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(&OsString::from(name))?.to_str().filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(std::env::vars_os())
    }

    /// Reads an environment.
    pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        let environment = Environment(variables.into_iter().collect());
        let control_url = environment.secret(CONTROL_URL).ok_or(ConfigError::NoControl)?;
        let mut settings = Settings::default();
        let milliseconds = |name: &'static str, default: Duration| match environment.text(name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(number @ 10..=3_600_000) => Ok(Duration::from_millis(number)),
                _ => Err(ConfigError::NotMilliseconds(name)),
            },
        };
        settings.poll = milliseconds(POLL_MS, settings.poll)?;
        settings.report = milliseconds(REPORT_MS, settings.report)?;
        settings.leave_limit = milliseconds(LEAVE_MS, settings.leave_limit)?;
        settings.log = settings.log.min(settings.report);
        let gpu_every = milliseconds(GPU_MS, Duration::from_mins(1))?;
        let cgroup = environment.text(CGROUP_DIR).unwrap_or("/sys/fs/cgroup").into();
        let host = environment.text(HOST_FACTS).and_then(|facts| serde_json::from_str(facts).ok());
        let visible_gpus = environment.text(VISIBLE_GPUS).map(str::to_owned);
        let (in_cluster, scratch) = (None, None);
        Ok(Self { control_url, settings, environment, cgroup, gpu_every, host, visible_gpus, in_cluster, scratch })
    }

    /// The same for a Pod of the cluster, whose container runs this program. Without any it stays the configuration of a rented machine.
    #[must_use]
    pub fn with_program(mut self, program: Vec<String>) -> Self {
        let (address, warnings) = match self.environment.text(POD_IP).map(str::parse::<IpAddr>) {
            None => (None, Vec::new()),
            Some(Ok(address)) => (Some(address), Vec::new()),
            // The text is not repeated: whatever it is, it was not meant for people.
            Some(Err(_)) => {
                (None, vec![format!("{POD_IP} is no IP address: other workers cannot be told where this one is")])
            }
        };
        self.in_cluster = (!program.is_empty()).then_some(InCluster { program, address, warnings });
        self
    }

    /// The ticket for the control document. When it expires is not known.
    pub fn control(&self) -> Ticket {
        Ticket { url: self.control_url.expose_secret().to_owned(), expires: Timestamp::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
    }

    #[test]
    fn own_variables_are_read_and_not_inherited() {
        let config = read(&[
            (CONTROL_URL, "http://x/?sig=secret"),
            (POLL_MS, "200"),
            ("TRADEWIND_AGENT_URL", "y"),
            ("PATH", "/bin"),
            ("CONTAINER_API_KEY", "secret key"),
        ])
        .unwrap();
        assert_eq!(config.settings.poll, Duration::from_millis(200));
        assert_eq!(config.settings.report, Duration::from_secs(10));
        let names = |withheld| config.environment.without(withheld).into_keys().collect::<Vec<_>>();
        assert_eq!(names(Some("CONTAINER_API_KEY")), ["PATH"]);
        assert_eq!(names(Some("PATH")), ["CONTAINER_API_KEY"], "whatever it is called");
        assert_eq!(names(None), ["CONTAINER_API_KEY", "PATH"]);
        let key = config.environment.secret("CONTAINER_API_KEY").unwrap();
        assert_eq!(key.expose_secret(), "secret key");
        assert!(config.environment.secret("OTHER").is_none());
        assert_eq!((config.cgroup.to_str(), config.gpu_every), (Some("/sys/fs/cgroup"), Duration::from_mins(1)));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn a_program_makes_it_a_pod_and_a_bad_address_is_told() {
        let program = || vec!["train".to_owned()];
        let with = |ip: &str| read(&[(CONTROL_URL, "http://x"), (POD_IP, ip)]).unwrap().with_program(program());
        for ip in ["10.1.2.3", "fd00::7"] {
            let pod = with(ip).in_cluster.unwrap();
            assert_eq!((pod.address, pod.warnings.len()), (Some(ip.parse().unwrap()), 0));
        }
        let pod = with("10.1.2.3.4").in_cluster.unwrap();
        assert_eq!(pod.address, None);
        assert!(pod.warnings[0].starts_with("TRADEWIND_POD_IP is no IP address"), "{:?}", pod.warnings);
        let pod = with("").in_cluster.unwrap();
        assert_eq!((pod.address, pod.warnings.len()), (None, 0), "nobody has said where");
        assert_eq!(read(&[(CONTROL_URL, "http://x")]).unwrap().with_program(vec![]).in_cluster, None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(read(&[]).unwrap_err(), ConfigError::NoControl);
        for bad in ["0", "-1", "5 s", "99999999999"] {
            assert_eq!(
                read(&[(CONTROL_URL, "http://x"), (REPORT_MS, bad)]).unwrap_err(),
                ConfigError::NotMilliseconds(REPORT_MS)
            );
        }
    }
}
