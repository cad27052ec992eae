//! The installer: our plugin's binary and our entry in the node's CNI chain, kept
//! there whatever others do to the files.
//!
//! [`plan`] and what it uses decide, from a snapshot of the directory, without
//! touching anything; [`directory`], [`mod@file`], [`binary`] and [`watch`] touch;
//! [`Installer`] brings them together on a thread of its own.
//!
//! # What must hold
//!
//! Once we are in the chain, the chain that a runtime loads has us
//! at every moment; nothing of another product's is lost or changed; nothing is
//! written when nothing is wrong; and only [`remove`] takes us out.
//!
//! # What is decided
//!
//! * The primary is the first valid file, as for a runtime, or the configured one.
//!   A valid one that comes earlier is followed at once. One that is broken is
//!   waited for without limit, one that is gone for 30 s ([`select::GONE`]); then
//!   another network is taken, if there is one. In [`Mode::Owned`] the last good
//!   copy serves meanwhile, also over a restart of the agent or the node: pods
//!   start, and the reason is in [`Readiness`]. A primary's product that takes its
//!   file away to keep its node from being used does not achieve that.
//! * Our own file comes before every other, broken ones too: containerd fails on
//!   the first broken file. It keeps the primary's network name, by which
//!   addresses are kept and CRI-O chooses.
//! * `cniVersion` is the primary's; one that chains do not have becomes 0.3.1, one
//!   that our plugin does not speak is an error. It is not raised to 1.1.0, which
//!   the runtime and every plugin of the chain would have to speak.
//! * What we need to take ourselves out again is in our own entry ([`entry::Marker`]),
//!   so it outlives the run directory.
//! * `.json` files count, since runtimes load them; Istio's installer overlooks them.
//! * Others' writes meanwhile are never lost: files of others are swapped, looked
//!   at and swapped back ([`mod@file`]).
//! * Not kept in place: an SELinux label that differs from what the directory gives
//!   new files; and, without CAP_CHOWN, a file's owner other than the agent.

mod action;
mod attachment;
mod binary;
mod candidate;
mod conflist;
mod contest;
mod directory;
mod entry;
mod file;
mod json;
pub(crate) mod locate;
mod name;
mod outcome;
mod plan;
mod removal;
mod run;
mod select;
mod watch;

pub(crate) use attachment::{BinaryFate, remove_binary};
pub(crate) use entry::PluginEntry;
pub(crate) use removal::{Hold, REMOVED, remove};
pub(crate) use run::Installer;

use std::path::PathBuf;

/// Where our entry goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Into a list of our own that comes before the primary, made from it.
    Owned {
        /// Its name; chosen so that it comes first when absent.
        file_name: Option<String>,
    },
    /// Into the primary itself, as Istio does it without `ISTIO_OWNED_CNI_CONFIG`.
    InPlace,
    /// Into a file of its own that no runtime loads by itself (multus does).
    Standalone,
}

impl Mode {
    /// Of Istio's settings, `None` where they are not set: `CHAINED_CNI_PLUGIN`,
    /// `ISTIO_OWNED_CNI_CONFIG`, and `ISTIO_OWNED_CNI_CONFIG_FILENAME` with the
    /// name that Istio's chart gives it, `ISTIO_OWNED_CNI_CONF_FILENAME`.
    pub(crate) fn of(
        chained: Option<bool>,
        owned: Option<bool>,
        file_name: Option<&str>,
        chart_file_name: Option<&str>,
    ) -> Self {
        let set = |name: Option<&str>| name.filter(|name| !name.is_empty()).map(str::to_owned);
        match (chained, owned) {
            (Some(false), _) => Self::Standalone,
            (_, Some(false)) => Self::InPlace,
            _ => Self::Owned { file_name: set(file_name).or_else(|| set(chart_file_name)) },
        }
    }
}

/// What the installer is to do. Paths are the agent's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The runtime's configuration directory.
    pub(crate) net_dir: PathBuf,
    /// The runtime's directory of plugins.
    pub(crate) bin_dir: PathBuf,
    /// Every regular file in here is installed into the former.
    pub(crate) binaries: PathBuf,
    /// The agent's run directory.
    pub(crate) run_dir: PathBuf,
    /// Where our entry goes.
    pub(crate) mode: Mode,
    /// `CNI_CONF_NAME`: the primary's file, or the one of our own in
    /// [`Mode::Standalone`]; empty is absent.
    pub(crate) conf_name: Option<String>,
    /// `CNI_CONF_GROUP_READ`: files that are made are 0640, not 0600.
    pub(crate) group_read: bool,
    /// Which installation this is, for example the DaemonSet's uid; may be empty.
    /// An agent that starts on a node from which its own installation was removed
    /// leaves it so; any other takes the removal back.
    pub(crate) installation: String,
}

impl Settings {
    /// Istio's defaults.
    pub(crate) fn new() -> Self {
        Self {
            net_dir: PathBuf::from("/host/etc/cni/net.d"),
            bin_dir: PathBuf::from("/host/opt/cni/bin"),
            binaries: PathBuf::from("/opt/cni/bin"),
            run_dir: PathBuf::from(wire::request::DEFAULT_RUN_DIR),
            mode: Mode::of(None, None, None, None),
            conf_name: None,
            group_read: false,
            installation: String::new(),
        }
    }

    /// Checks what the file system would not.
    ///
    /// # Errors
    ///
    /// Names the setting, the value and what would be right.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        let is_name = |name: &str| !name.contains('/') && name != "." && name != "..";
        let conf = self.conf_name.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = conf.filter(|name| !is_name(name)) {
            return Err(SettingsError::Primary(name.to_owned()));
        }
        let Mode::Owned { file_name: Some(name) } = &self.mode else { return Ok(()) };
        if !is_name(name) || !name.ends_with(".conflist") {
            return Err(SettingsError::Owned(name.clone()));
        }
        if conf.is_some_and(|conf| plan::stem(conf) == plan::stem(name)) {
            return Err(SettingsError::Same(name.clone()));
        }
        Ok(())
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    /// Not a file of the directory.
    #[error("CNI_CONF_NAME: {0:?} is not the name of a file in the CNI configuration directory")]
    Primary(String),
    /// Not one either, or a runtime would not read a list in it.
    #[error("ISTIO_OWNED_CNI_CONFIG_FILENAME: {0:?}: want a file name that ends in .conflist")]
    Owned(String),
    /// Ours would take the primary's place.
    #[error(
        "ISTIO_OWNED_CNI_CONFIG_FILENAME: {0:?} is the file of CNI_CONF_NAME: want another one"
    )]
    Same(String),
}

/// Whether pods that start on the node meet us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// Binary and entry are in place.
    pub(crate) ready: bool,
    /// Why not, or what is odd all the same; else empty.
    pub(crate) reason: String,
}

impl Readiness {
    /// Before the first look.
    pub(crate) fn starting() -> Self {
        Self { ready: false, reason: "the plugin is not installed yet".to_owned() }
    }
}

/// What happened, for metrics and events; the installer itself logs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InstallEvent {
    /// A look begins, which happens twice a minute at least: a sign of life.
    Looks,
    /// Everything is in place, and was not before or was changed.
    Succeeded,
    /// The binary could not be installed.
    CopyFailed(String),
    /// The configuration could not be written or followed.
    ConfigFailed(String),
    /// A file that we had made right was wrong again: another product writes it.
    Repaired {
        /// The file.
        file: String,
    },
    /// That happens again and again.
    Contested {
        /// The file.
        file: String,
        /// How many times since the installer started.
        times: u64,
    },
}

impl InstallEvent {
    /// The value of `result` of Istio's counter `istio_cni_installs_total`, for
    /// those events that it counts.
    pub(crate) fn result(&self) -> Option<&'static str> {
        match self {
            Self::Succeeded => Some("SUCCESS"),
            Self::CopyFailed(_) => Some("COPY_BINARIES_FAILURE"),
            Self::ConfigFailed(_) => Some("CREATE_CNI_CONFIG_FAILURE"),
            Self::Looks | Self::Repaired { .. } | Self::Contested { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
