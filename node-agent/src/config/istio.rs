//! Settings of Istio's agent that have no effect here, and those of repair.

use super::policy::ConfigError;
use super::{Integer, Switch, integer, switch};
use crate::repair::{Mode, SelectorError, Selectors, Settings, Signs};
use clap::Args;

/// Of the environment; the flags are listed by themselves.
pub(super) const IGNORED: &str = "\
Also accepted from the environment without effect: AMBIENT_RECONCILE_POD_RULES_ON_STARTUP
(they always are), AMBIENT_DISABLE_SAFE_UPGRADE (nothing is ever uninstalled at exit:
see `sluice cleanup`), AMBIENT_USE_SCOPED_XTABLES_LOCKING, ALLOW_SWITCH_TO_HOST_NS (the
host's namespace is found by itself), REVISION, POD_NAME, CURRENT_AGENT_VERSION,
REPAIR_RUN_AS_DAEMON, CNI_NET_DIR.

A flag wins over its variable. A variable that is there but empty is set. A boolean
that is none is false, with a warning.";

/// The heading of flags without effect.
const UNUSED: &str = "Accepted without effect, so that Istio's manifests fit";

/// Flags that Istio's agent takes and this one has no use for.
#[derive(Debug, Args)]
#[command(next_help_heading = UNUSED)]
pub(super) struct UnusedArgs {
    /// Istio ignores it too.
    #[arg(long, env = "CNI_NETWORK_CONFIG", value_name = "TEXT", hide_env_values = true)]
    cni_network_config: Option<String>,
    /// Istio ignores it too.
    #[arg(long, env = "CNI_NETWORK_CONFIG_FILE", value_name = "FILE")]
    cni_network_config_file: Option<String>,
    /// No kubeconfig is written: the plugin needs none.
    #[arg(long, env = "KUBECONFIG_MODE", value_name = "MODE")]
    kubeconfig_mode: Option<String>,
    /// No kubeconfig is written.
    #[arg(long, env = "KUBE_CA_FILE", value_name = "FILE")]
    kube_ca_file: Option<String>,
    /// No kubeconfig is written.
    #[arg(
        long,
        env = "SKIP_TLS_VERIFY",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    skip_tls_verify: Option<String>,
    /// There is no ControlZ.
    #[arg(long = "ctrlz_port", value_name = "PORT")]
    ctrlz_port: Option<String>,
    /// There is no ControlZ.
    #[arg(long = "ctrlz_address", value_name = "ADDRESS")]
    ctrlz_address: Option<String>,
    /// Lines have no stack traces.
    #[arg(long = "log_stacktrace_level", value_name = "SCOPE:LEVEL,...")]
    log_stacktrace_level: Option<String>,
    /// Of older releases.
    #[arg(long = "log_rotate", value_name = "FILE")]
    log_rotate: Option<String>,
    /// Of older releases.
    #[arg(long = "log_rotate_max_age", value_name = "DAYS")]
    log_rotate_max_age: Option<String>,
    /// Of older releases.
    #[arg(long = "log_rotate_max_size", value_name = "MEGABYTES")]
    log_rotate_max_size: Option<String>,
    /// Of older releases.
    #[arg(long = "log_rotate_max_backups", value_name = "N")]
    log_rotate_max_backups: Option<String>,
    /// Verbosity of Istio's Kubernetes client.
    #[arg(long = "vklog", value_name = "LEVEL")]
    vklog: Option<String>,
}

impl UnusedArgs {
    /// Those that were given.
    pub(super) fn given(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("cni-network-config", &self.cni_network_config),
            ("cni-network-config-file", &self.cni_network_config_file),
            ("kubeconfig-mode", &self.kubeconfig_mode),
            ("kube-ca-file", &self.kube_ca_file),
            ("skip-tls-verify", &self.skip_tls_verify),
            ("ctrlz_port", &self.ctrlz_port),
            ("ctrlz_address", &self.ctrlz_address),
            ("log_stacktrace_level", &self.log_stacktrace_level),
            ("log_rotate", &self.log_rotate),
            ("log_rotate_max_age", &self.log_rotate_max_age),
            ("log_rotate_max_size", &self.log_rotate_max_size),
            ("log_rotate_max_backups", &self.log_rotate_max_backups),
            ("vklog", &self.vklog),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}

/// What to do with pods that started before the plugin was there (reference 7.1).
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Repair of pods that started without rules: the first of repair, delete and label that is on"
)]
pub(super) struct RepairArgs {
    /// Look for such pods.
    #[arg(
        long,
        env = "REPAIR_ENABLED",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "true",
        value_parser = switch
    )]
    pub(super) repair_enabled: Switch,
    /// Program them.
    #[arg(
        long,
        env = "REPAIR_REPAIR_PODS",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    pub(super) repair_repair_pods: Switch,
    /// Delete them.
    #[arg(
        long,
        env = "REPAIR_DELETE_PODS",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    pub(super) repair_delete_pods: Switch,
    /// Label them.
    #[arg(
        long,
        env = "REPAIR_LABEL_PODS",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false",
        value_parser = switch
    )]
    pub(super) repair_label_pods: Switch,
    /// The label's key.
    #[arg(
        long,
        env = "REPAIR_BROKEN_POD_LABEL_KEY",
        value_name = "KEY",
        default_value = "cni.istio.io/uninitialized"
    )]
    pub(super) repair_broken_pod_label_key: String,
    /// The label's value.
    #[arg(
        long,
        env = "REPAIR_BROKEN_POD_LABEL_VALUE",
        value_name = "VALUE",
        default_value = "true"
    )]
    pub(super) repair_broken_pod_label_value: String,
    /// Name of this node; without --node-name that one too.
    #[arg(long, env = "REPAIR_NODE_NAME", value_name = "NAME", default_value = "")]
    pub(super) repair_node_name: String,
    /// Annotation that a mesh pod has.
    #[arg(
        long,
        env = "REPAIR_SIDECAR_ANNOTATION",
        value_name = "KEY",
        default_value = "sidecar.istio.io/status"
    )]
    pub(super) repair_sidecar_annotation: String,
    /// Init container that fails in such a pod.
    #[arg(
        long,
        env = "REPAIR_INIT_CONTAINER_NAME",
        value_name = "NAME",
        default_value = "istio-validation"
    )]
    pub(super) repair_init_container_name: String,
    /// Its last message.
    #[arg(
        long,
        env = "REPAIR_INIT_CONTAINER_TERMINATION_MESSAGE",
        value_name = "TEXT",
        default_value = ""
    )]
    pub(super) repair_init_container_termination_message: String,
    /// Its exit code; 0 is any.
    #[arg(long, env = "REPAIR_INIT_CONTAINER_EXIT_CODE", value_name = "CODE", default_value = "126", value_parser = integer, allow_negative_numbers = true)]
    pub(super) repair_init_container_exit_code: Integer,
    /// Of these pods only.
    #[arg(long, env = "REPAIR_LABEL_SELECTORS", value_name = "SELECTOR", default_value = "")]
    pub(super) repair_label_selectors: String,
    /// Of these pods only.
    #[arg(long, env = "REPAIR_FIELD_SELECTORS", value_name = "SELECTOR", default_value = "")]
    pub(super) repair_field_selectors: String,
}

impl RepairArgs {
    /// What is to be done on a node about which pods; `None` when nothing is.
    ///
    /// # Errors
    ///
    /// When a selector cannot be followed.
    pub(super) fn settings(&self, node: &str) -> Result<Option<Settings>, ConfigError> {
        let mode = Mode::choose(
            self.repair_repair_pods.is_on(),
            self.repair_delete_pods.is_on(),
            self.repair_label_pods.is_on(),
        );
        let Some(mode) = mode.filter(|_| self.repair_enabled.is_on()) else { return Ok(None) };
        let (labels, fields) = (&self.repair_label_selectors, &self.repair_field_selectors);
        let selectors = Selectors::parse(labels, fields, node).map_err(|error| {
            let (option, value) = match error {
                SelectorError::Label(_) => ("--repair-label-selectors", labels),
                SelectorError::Field(_) => ("--repair-field-selectors", fields),
            };
            ConfigError::Value { option, value: value.clone(), problem: error.to_string() }
        })?;
        let signs = Signs {
            annotation: self.repair_sidecar_annotation.clone(),
            container: self.repair_init_container_name.clone(),
            message: self.repair_init_container_termination_message.clone(),
            code: self.repair_init_container_exit_code.0,
            selectors,
        };
        let (key, value) = (&self.repair_broken_pod_label_key, &self.repair_broken_pod_label_value);
        let label = (key.clone(), value.clone());
        Ok(Some(Settings { mode, signs, label, node: node.to_owned() }))
    }

    pub(super) fn switches(&self) -> [(&'static str, &Switch); 4] {
        [
            ("repair-enabled", &self.repair_enabled),
            ("repair-repair-pods", &self.repair_repair_pods),
            ("repair-delete-pods", &self.repair_delete_pods),
            ("repair-label-pods", &self.repair_label_pods),
        ]
    }
}
