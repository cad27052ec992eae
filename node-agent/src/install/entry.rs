//! Our plugin's entry in a chain.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The plugin's `type`, and the name of its binary. Istio's.
pub(crate) const TYPE: &str = "istio-cni";
/// Protocol version of a configuration that stands alone. Istio's.
const STANDALONE_VERSION: &str = "0.3.1";

/// What the agent tells its plugin. Keys and their meaning are Istio's (reference
/// 2.2) but for those that begin with `agent_`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginEntry {
    /// What is worth a log line.
    pub(crate) log_level: String,
    /// Where the agent's sockets are, on the host.
    pub(crate) run_dir: String,
    /// Ambient mode is on.
    pub(crate) ambient_enabled: bool,
    /// A list of `{podSelector, namespaceSelector}` as Kubernetes writes them.
    pub(crate) enablement_selectors: Value,
    /// Namespaces that are left alone.
    pub(crate) exclude_namespaces: Vec<String>,
    /// The agent's own namespace.
    pub(crate) pod_namespace: String,
    /// For a stock plugin during a take-over.
    pub(crate) native_nftables: bool,
    /// For a stock plugin during a take-over.
    pub(crate) enable_ambient_detection_retry: bool,
    /// Milliseconds that an invocation may take, where it is not the default.
    pub(crate) agent_timeout_ms: Option<u64>,
    /// The agent is in the host's network, and starts whatever STATUS says.
    pub(crate) agent_host_network: bool,
    /// Pods come from Kubernetes and none can be ambient: annotations alone tell who
    /// is outside the mesh, also when a reboot took the snapshot.
    pub(crate) agent_goes_by_annotations: bool,
}

impl Default for PluginEntry {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            run_dir: wire::request::DEFAULT_RUN_DIR.to_owned(),
            ambient_enabled: false,
            enablement_selectors: Value::Array(Vec::new()),
            exclude_namespaces: Vec::new(),
            pod_namespace: String::new(),
            native_nftables: false,
            enable_ambient_detection_retry: false,
            agent_timeout_ms: None,
            agent_host_network: false,
            agent_goes_by_annotations: false,
        }
    }
}

/// What we note in our own entry about what we did to the file, so that it can be
/// taken back after a reboot too, when the run directory is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Marker {
    /// The file is ours as a whole, made from the primary of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) primary: Option<String>,
    /// The list was made of the single configuration in the file of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) converted: Option<String>,
    /// The list's `cniVersion` as it stood in the text before; empty when it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version_was: Option<String>,
}

impl Marker {
    /// Its key in our entry.
    pub(crate) const KEY: &'static str = "sluice";
}

#[derive(Serialize)]
struct Empty {}

/// The capabilities that we ask the runtime for.
#[derive(Serialize)]
struct Capabilities {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: bool,
    #[serde(rename = "cgroupPath")]
    cgroup_path: bool,
}

#[derive(Serialize)]
struct Rendered<'a> {
    #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
    cni_version: Option<&'static str>,
    name: &'static str,
    r#type: &'static str,
    ipam: Empty,
    dns: Empty,
    capabilities: Capabilities,
    plugin_log_level: &'a str,
    cni_agent_run_dir: &'a str,
    ambient_enabled: bool,
    enablement_selectors: &'a Value,
    exclude_namespaces: Option<&'a [String]>,
    pod_namespace: &'a str,
    native_nftables: bool,
    enable_ambient_detection_retry: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    agent_host_network: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    agent_goes_by_annotations: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sluice: Option<&'a Marker>,
}

impl PluginEntry {
    fn rendered<'a>(&'a self, marker: Option<&'a Marker>) -> Rendered<'a> {
        let excluded = &self.exclude_namespaces;
        Rendered {
            cni_version: marker.is_none().then_some(STANDALONE_VERSION),
            name: TYPE,
            r#type: TYPE,
            ipam: Empty {},
            dns: Empty {},
            capabilities: Capabilities { annotations: true, cgroup_path: true },
            plugin_log_level: &self.log_level,
            cni_agent_run_dir: &self.run_dir,
            ambient_enabled: self.ambient_enabled,
            enablement_selectors: &self.enablement_selectors,
            exclude_namespaces: (!excluded.is_empty()).then_some(excluded),
            pod_namespace: &self.pod_namespace,
            native_nftables: self.native_nftables,
            enable_ambient_detection_retry: self.enable_ambient_detection_retry,
            agent_timeout_ms: self.agent_timeout_ms,
            agent_host_network: self.agent_host_network,
            agent_goes_by_annotations: self.agent_goes_by_annotations,
            sluice: marker,
        }
    }

    /// As an entry of a chain, on one line.
    pub(super) fn compact(&self, marker: &Marker) -> String {
        // Cannot fail: strings, numbers and values that are JSON already.
        serde_json::to_string(&self.rendered(Some(marker))).unwrap_or_default()
    }

    /// As an entry of a chain, two spaces a level.
    pub(super) fn pretty(&self, marker: &Marker) -> String {
        serde_json::to_string_pretty(&self.rendered(Some(marker))).unwrap_or_default()
    }

    /// As a file of its own, for multus.
    pub(super) fn standalone(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.rendered(None)).unwrap_or_default();
        text.push('\n');
        text
    }
}
