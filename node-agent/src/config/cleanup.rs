//! Options of `cleanup`.

use super::install::InstallArgs;
use crate::install::Settings;
use crate::source::kubernetes::KubernetesArgs;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `cleanup`.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Then stay, and take out what an agent installs again, until told to stop.
    #[arg(long, conflicts_with = "wait_for_daemonset")]
    pub(crate) hold: bool,
    /// Remove the plugin's binary too, if no sandbox in libcni's cache, as seen here, was made with it (the runtime's is /var/lib/cni).
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_cache_dir: Option<PathBuf>,
    /// Touch nothing: wait until every pod of this DaemonSet, in the namespace of POD_NAMESPACE, is ready.
    #[arg(long, value_name = "NAME")]
    pub(crate) wait_for_daemonset: Option<String>,
    /// How long to wait for that.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Namespace of that DaemonSet.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
    #[command(flatten)]
    install: InstallArgs,
}

impl CleanupArgs {
    /// What was installed and where. The mode does not matter.
    ///
    /// # Errors
    ///
    /// When the directories are to be found and are not.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        self.install.settings(true)
    }
}

/// Seconds, with or without their `s`, or minutes with an `m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u32 = digits.parse().map_err(|_| "want a number of seconds, such as 120s")?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("180s"), Ok(Duration::from_secs(180)));
        assert_eq!(duration("180"), Ok(Duration::from_secs(180)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("").is_err() && duration("-1s").is_err() && duration("1h").is_err());
    }
}
