//! Options that say what is installed and where; `cleanup` takes the same.

use super::{Switch, switch};
use crate::install::{Mode, Settings, locate};
use clap::Args;
use std::path::{Path, PathBuf};

/// Where the image has the plugin (reference 1.1).
const BINARIES: &str = "/opt/cni/bin";

/// Options of installation and removal.
#[derive(Debug, Args)]
#[command(next_help_heading = "Installation")]
pub(crate) struct InstallArgs {
    /// Directory of the sockets and of the records of sandboxes, the same on the host [default: /var/run/istio-cni].
    #[arg(
        long,
        visible_alias = "cni-agent-run-dir",
        value_name = "DIR",
        env = "CNI_AGENT_RUN_DIR"
    )]
    run_dir: Option<PathBuf>,
    /// The same, by our own variable.
    #[arg(long = "sluice-run-dir", value_name = "DIR", env = "SLUICE_RUN_DIR", hide = true)]
    own_run_dir: Option<PathBuf>,
    /// The runtime's CNI configuration directory, as the agent sees it [default: /host/etc/cni/net.d].
    #[arg(long, value_name = "DIR", env = "MOUNTED_CNI_NET_DIR")]
    mounted_cni_net_dir: Option<PathBuf>,
    /// The runtime's directory of CNI plugins, as the agent sees it [default: /host/opt/cni/bin].
    #[arg(long, value_name = "DIR", env = "MOUNTED_CNI_BIN_DIR")]
    mounted_cni_bin_dir: Option<PathBuf>,
    /// Find both below here from the container runtime's own configuration [default with --pods: /].
    #[arg(long, value_name = "DIR", env = "SLUICE_HOST_ROOT")]
    host_root: Option<PathBuf>,
    /// Every file in here is installed.
    #[arg(long, value_name = "DIR", env = "SLUICE_PLUGIN_DIR", default_value = BINARIES)]
    plugin_dir: PathBuf,
    /// File of the network's configuration; the first one when empty.
    #[arg(long, value_name = "FILE", env = "CNI_CONF_NAME", default_value = "")]
    pub(super) cni_conf_name: String,
    /// False: a file of its own for multus, no chain [default: true].
    #[arg(
        long,
        value_name = "BOOL",
        env = "CHAINED_CNI_PLUGIN",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = switch
    )]
    pub(super) chained_cni_plugin: Option<Switch>,
    /// True: a list of our own that comes first; false: into the network's own file [default: true].
    #[arg(
        long,
        value_name = "BOOL",
        env = "ISTIO_OWNED_CNI_CONFIG",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = switch
    )]
    pub(super) istio_owned_cni_config: Option<Switch>,
    /// Name of that list.
    #[arg(long, value_name = "FILE", env = "ISTIO_OWNED_CNI_CONFIG_FILENAME")]
    pub(super) istio_owned_cni_config_filename: Option<String>,
    /// The same, as Istio's chart writes it.
    #[arg(long, value_name = "FILE", env = "ISTIO_OWNED_CNI_CONF_FILENAME", hide = true)]
    pub(super) istio_owned_cni_conf_filename: Option<String>,
    /// Files that are made are 0640, not 0600.
    #[arg(
        long,
        value_name = "BOOL",
        env = "CNI_CONF_GROUP_READ",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    pub(super) cni_conf_group_read: Switch,
    /// For a stock plugin during a take-over: it asks again about ambient pods.
    #[arg(
        long,
        value_name = "BOOL",
        env = "ENABLE_AMBIENT_DETECTION_RETRY",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    pub(super) enable_ambient_detection_retry: Switch,
    /// Which installation this is: after `cleanup` with the same text, an agent leaves the node alone.
    #[arg(long, value_name = "TEXT", env = "SLUICE_INSTALLATION", default_value = "")]
    installation: String,
}

impl InstallArgs {
    /// See the option.
    pub(super) fn run_dir(&self) -> PathBuf {
        let given = self.run_dir.as_ref().or(self.own_run_dir.as_ref());
        given.cloned().unwrap_or_else(|| PathBuf::from(wire::request::DEFAULT_RUN_DIR))
    }

    pub(super) fn detection_retry(&self) -> bool {
        self.enable_ambient_detection_retry.is_on()
    }

    /// What the installer is to do.
    ///
    /// # Errors
    ///
    /// When the directories are to be found and are not.
    pub(super) fn settings(&self, in_cluster: bool) -> anyhow::Result<Settings> {
        let default = Settings::new();
        let (net, bin) = (self.mounted_cni_net_dir.clone(), self.mounted_cni_bin_dir.clone());
        let root = match &self.host_root {
            Some(root) => Some(root.as_path()),
            None if in_cluster => None,
            None => Some(Path::new("/")),
        };
        let (net_dir, bin_dir) = match (net, bin, root) {
            (Some(net), Some(bin), _) => (net, bin),
            (net, bin, None) => (net.unwrap_or(default.net_dir), bin.unwrap_or(default.bin_dir)),
            (net, bin, Some(root)) => {
                let found = locate::locate(root, &locate::Given::default())?;
                tracing::info!(
                    net_dir = %found.net.display(),
                    bin_dir = %found.bin.display(),
                    reason = found.source,
                    "found the container runtime's CNI directories"
                );
                (net.unwrap_or_else(|| found.net_dir()), bin.unwrap_or_else(|| found.bin_dir()))
            }
        };
        let on = |switch: &Option<Switch>| switch.as_ref().map(Switch::is_on);
        let settings = Settings {
            net_dir,
            bin_dir,
            binaries: self.plugin_dir.clone(),
            run_dir: self.run_dir(),
            mode: Mode::of(
                on(&self.chained_cni_plugin),
                on(&self.istio_owned_cni_config),
                self.istio_owned_cni_config_filename.as_deref(),
                self.istio_owned_cni_conf_filename.as_deref(),
            ),
            conf_name: Some(self.cni_conf_name.clone()).filter(|name| !name.is_empty()),
            group_read: self.cni_conf_group_read.is_on(),
            installation: self.installation.clone(),
        };
        settings.check()?;
        Ok(settings)
    }

    pub(super) fn switches(&self) -> impl Iterator<Item = (&'static str, &Switch)> {
        let given = [
            ("chained-cni-plugin", self.chained_cni_plugin.as_ref()),
            ("istio-owned-cni-config", self.istio_owned_cni_config.as_ref()),
            ("cni-conf-group-read", Some(&self.cni_conf_group_read)),
            ("enable-ambient-detection-retry", Some(&self.enable_ambient_detection_retry)),
        ];
        given.into_iter().filter_map(|(name, switch)| Some((name, switch?)))
    }
}
