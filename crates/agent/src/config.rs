//! What the agent is given: the only place that reads the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use jiff::Timestamp;
use tradewind_core::{ExposeSecret, SecretString};
use tradewind_protocol::Ticket;

use crate::logic::Settings;

const CONTROL_URL: &str = "TRADEWIND_CONTROL_URL";
const POLL_MS: &str = "TRADEWIND_POLL_MS";
const REPORT_MS: &str = "TRADEWIND_REPORT_MS";

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
    /// What the program inherits: everything but the agent's own variables.
    pub inherited: BTreeMap<OsString, OsString>,
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(std::env::vars_os())
    }

    /// Reads an environment.
    pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        let (own, inherited): (BTreeMap<_, _>, BTreeMap<_, _>) = variables
            .into_iter()
            .partition(|(name, _): &(OsString, OsString)| name.as_encoded_bytes().starts_with(b"TRADEWIND_"));
        let own = |name: &str| own.get(&OsString::from(name)).and_then(|value| value.to_str());
        let control_url = own(CONTROL_URL).filter(|url| !url.is_empty()).ok_or(ConfigError::NoControl)?;
        let mut settings = Settings::default();
        let milliseconds = |name: &'static str, default: Duration| match own(name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(number @ 10..=3_600_000) => Ok(Duration::from_millis(number)),
                _ => Err(ConfigError::NotMilliseconds(name)),
            },
        };
        settings.poll = milliseconds(POLL_MS, settings.poll)?;
        settings.report = milliseconds(REPORT_MS, settings.report)?;
        settings.log = settings.log.min(settings.report);
        Ok(Self { control_url: SecretString::from(control_url), settings, inherited })
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
        ])
        .unwrap();
        assert_eq!(config.settings.poll, Duration::from_millis(200));
        assert_eq!(config.settings.report, Duration::from_secs(10));
        assert_eq!(config.inherited.keys().collect::<Vec<_>>(), [&OsString::from("PATH")]);
        assert!(!format!("{config:?}").contains("secret"));
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
