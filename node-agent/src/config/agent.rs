//! Options of the agent.

use super::ambient::AmbientArgs;
use super::install::InstallArgs;
use super::istio::{RepairArgs, UnusedArgs};
use super::log::LogArgs;
use super::policy::ConfigError;
use super::{Bound, Integer, Listen, PolicyArgs, Switch, bound, integer, switch};
use crate::backend::Choice;
use crate::install::{PluginEntry, Settings};
use crate::log::Setup;
use crate::source::SourceArgs;
use clap::Args;
use std::path::PathBuf;
use sys::iptables::{Search, Variant};

/// Under which name the agent was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// `sluice agent`.
    Agent,
    /// `install-cni`, Istio's: it logs to standard output and installs the plugin.
    InstallCni,
}

/// Port of the health endpoints. Istio's, and fixed there.
const HEALTH_PORT: u16 = 8000;

/// Port of the metrics. Istio's.
const METRICS_PORT: i64 = 15014;

/// Options of `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// What programs the pods' namespaces.
    #[arg(long, value_enum, env = "SLUICE_BACKEND", default_value = "auto")]
    backend: Choice,
    /// Istio's setting: true means nftables; anything else is up to --backend.
    #[arg(
        long,
        env = "NATIVE_NFTABLES",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = switch,
        default_value = "false",
        hide = true
    )]
    pub(super) native_nftables: Switch,
    /// With iptables: the kind of tool to use, legacy or nft, whatever else is installed.
    #[arg(long, value_name = "KIND", env = "FORCE_IPTABLES_BINARY", value_parser = variant)]
    force_iptables_binary: Option<ForcedVariant>,
    /// Serve /healthz and /readyz here; empty for nowhere [default: :8000, nowhere with --pods].
    #[arg(long, value_name = "ADDRESS:PORT", env = "SLUICE_HEALTH_ADDRESS", value_parser = bound)]
    health_address: Option<Bound>,
    /// Serve /metrics here on all addresses; 0 for nowhere [default: 15014, nowhere with --pods].
    #[arg(
        long,
        value_name = "PORT",
        env = "MONITORING_PORT",
        value_parser = integer,
        allow_negative_numbers = true
    )]
    monitoring_port: Option<Integer>,
    /// The agent's own pod is in the host's network: known by itself where the host's
    /// processes can be seen, and by whoever deployed it elsewhere.
    #[arg(
        long,
        env = "SLUICE_AGENT_HOST_NETWORK",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = switch,
        default_value = "false",
        hide = true
    )]
    agent_host_network: Switch,
    /// Print the settings that are in force, as JSON, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
    #[command(flatten)]
    pub(super) policy: PolicyArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    pub(super) ambient: AmbientArgs,
    #[command(flatten)]
    pub(super) install: InstallArgs,
    /// Install the plugin and keep it installed [default: true as install-cni, else false].
    #[arg(
        long = "install",
        value_name = "BOOL",
        env = "SLUICE_INSTALL",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = switch
    )]
    installs: Option<Switch>,
    #[command(flatten)]
    pub(super) repair: RepairArgs,
    #[command(flatten)]
    pub(super) unused: UnusedArgs,
}

impl AgentArgs {
    /// Which iptables tools to look for.
    pub(crate) fn search(&self) -> Search {
        Search { force: self.force_iptables_binary.and_then(|kind| kind.0), ..Search::default() }
    }

    /// The backend that is asked for.
    pub(crate) fn choice(&self) -> Choice {
        match self.backend {
            Choice::Auto if self.native_nftables.is_on() => Choice::Nftables,
            other => other,
        }
    }

    /// What decides about pods.
    pub(crate) fn policy(&self) -> &PolicyArgs {
        &self.policy
    }

    /// How often every captured pod is looked at.
    pub(crate) fn audit(&self) -> std::time::Duration {
        self.ambient.audit()
    }

    /// Whether changes are listened for, too.
    pub(crate) fn audits_on_change(&self) -> bool {
        self.ambient.audit_on_change.is_on()
    }

    /// Settings of ambient mode; `None` when it is off.
    ///
    /// # Errors
    ///
    /// When one of them cannot be followed.
    pub(crate) fn ambient(&self) -> Result<Option<crate::ambient::Options>, ConfigError> {
        if !self.policy.ambient_enabled.is_on() {
            return Ok(None);
        }
        self.ambient.options().map(Some)
    }

    /// Settings of ambient mode, on or off.
    ///
    /// # Errors
    ///
    /// When one of them cannot be followed.
    pub(crate) fn ambient_options(&self) -> Result<crate::ambient::Options, ConfigError> {
        self.ambient.options()
    }

    /// Directory of the sockets and of the records of sandboxes.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.install.run_dir()
    }

    /// Where pods come from, with the node's name from wherever it was given.
    pub(crate) fn source(&self) -> SourceArgs {
        let mut source = self.source.clone();
        if source.kubernetes.node_name.is_empty() {
            source.kubernetes.node_name.clone_from(&self.repair.repair_node_name);
        }
        source
    }

    fn in_cluster(&self) -> bool {
        self.source.pods.is_none()
    }

    /// Where `/healthz` and `/readyz` are served.
    pub(crate) fn health(&self) -> Option<Listen> {
        let default = || self.in_cluster().then_some(Listen { address: None, port: HEALTH_PORT });
        self.health_address.map_or_else(default, |bound| bound.0)
    }

    /// Where `/metrics` is served.
    ///
    /// # Errors
    ///
    /// When no port has the number.
    pub(crate) fn monitoring(&self) -> Result<Option<Listen>, ConfigError> {
        let default = if self.in_cluster() { METRICS_PORT } else { 0 };
        let port = self.monitoring_port.map_or(default, |port| port.0);
        if port <= 0 {
            return Ok(None);
        }
        match u16::try_from(port) {
            Ok(port) => Ok(Some(Listen { address: None, port })),
            Err(_) => Err(ConfigError::Value {
                option: "--monitoring-port (MONITORING_PORT)",
                value: port.to_string(),
                problem: "want 1 to 65535, or 0 for none".to_owned(),
            }),
        }
    }

    /// Logs, as the program of this name writes them.
    ///
    /// # Errors
    ///
    /// When a level is none.
    pub(crate) fn log(&self, entry: Entry) -> Result<Setup, ConfigError> {
        self.log.setup(entry)
    }

    /// What to install and where; `None` when nothing is.
    ///
    /// # Errors
    ///
    /// When a setting cannot work, or the directories are not found.
    pub(crate) fn installation(
        &self,
        entry: Entry,
    ) -> anyhow::Result<Option<(Settings, PluginEntry)>> {
        let default = entry == Entry::InstallCni;
        if !self.installs.as_ref().map_or(default, Switch::is_on) {
            return Ok(None);
        }
        let settings = self.install.settings(self.in_cluster())?;
        let policy = self.policy.entry()?;
        let plugin = PluginEntry {
            agent_goes_by_annotations: self.in_cluster() && !policy.ambient_enabled,
            log_level: self.log.plugin_level()?.to_owned(),
            run_dir: self.run_dir().display().to_string(),
            native_nftables: self.native_nftables.is_on(),
            agent_host_network: self.agent_host_network.is_on(),
            enable_ambient_detection_retry: self.install.detection_retry(),
            ..policy
        };
        Ok(Some((settings, plugin)))
    }

    /// What to do about pods that started without rules; `None` for nothing.
    ///
    /// # Errors
    ///
    /// When a setting cannot be followed.
    pub(crate) fn repair(&self) -> Result<Option<crate::repair::Settings>, ConfigError> {
        if !self.in_cluster() {
            return Ok(None);
        }
        self.repair.settings(&self.source().kubernetes.node_name)
    }

    /// What was given and is not followed, a line each.
    pub(crate) fn warnings(&self, entry: Entry) -> Vec<String> {
        let mut switches = vec![
            ("native-nftables", &self.native_nftables),
            ("agent-host-network", &self.agent_host_network),
            ("ambient-enabled", &self.policy.ambient_enabled),
        ];
        switches.extend(self.installs.as_ref().map(|switch| ("install", switch)));
        switches.extend(self.install.switches());
        switches.extend(self.log.switches());
        switches.extend(self.ambient.switches());
        switches.extend(self.repair.switches());
        let odd = switches.into_iter().filter_map(|(name, switch)| {
            let text = switch.odd()?;
            Some(format!("--{name} ({}): {text:?} is no boolean, taken for false", variable(name)))
        });
        odd.chain(self.log.warnings(entry)).collect()
    }

    /// What was given and has no effect by design, a line each.
    pub(crate) fn ignored(&self) -> Vec<String> {
        self.unused.given().into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
    }
}

/// The variable of a flag (reference 6.1).
fn variable(flag: &str) -> String {
    flag.to_ascii_uppercase().replace('-', "_")
}

/// A kind of iptables; none when the setting is empty, as a chart writes "not set".
#[derive(Debug, Clone, Copy)]
struct ForcedVariant(Option<Variant>);

fn variant(text: &str) -> Result<ForcedVariant, String> {
    if text.is_empty() {
        return Ok(ForcedVariant(None));
    }
    text.parse().map(|kind| ForcedVariant(Some(kind))).map_err(|error| format!("{error}"))
}
