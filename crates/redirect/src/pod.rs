//! Facts of a pod and of its namespace, as far as the mesh cares. The agent makes
//! them from Kubernetes' objects.

use std::collections::BTreeMap;

/// Labels or annotations.
pub type Map = BTreeMap<String, String>;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`, where known.
    pub uid: Option<String>,
    /// `metadata.labels`.
    pub labels: Map,
    /// `metadata.annotations`.
    pub annotations: Map,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.initContainers`, then `spec.containers`, each in order.
    pub containers: Vec<Container>,
}

/// A container, or an init container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// `name`.
    pub name: String,
    /// True for one of `spec.initContainers` (a native sidecar is one).
    pub init: bool,
    /// `args`.
    pub args: Vec<String>,
    /// `env` in order; the value is empty where it comes from elsewhere
    /// (`valueFrom`), as upstream reads it.
    pub env: Vec<(String, String)>,
    /// `securityContext.runAsUser`.
    pub run_as_user: Option<i64>,
    /// `securityContext.runAsGroup`.
    pub run_as_group: Option<i64>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Map,
}

/// Name of the sidecar's container (reference 2.4).
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Name of the init container that programs rules itself (reference 2.4).
pub const INIT_CONTAINER: &str = "istio-init";

/// The sidecar's container, merged as upstream does: where the name occurs twice,
/// the later one decides user, group and type, and the environments add up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyContainer<'a> {
    /// The second argument after `proxy`; empty when there is none.
    pub kind: &'a str,
    /// Environment, later entries last.
    pub env: Vec<(&'a str, &'a str)>,
    /// `securityContext.runAsUser`.
    pub run_as_user: Option<i64>,
    /// `securityContext.runAsGroup`.
    pub run_as_group: Option<i64>,
}

impl ProxyContainer<'_> {
    /// A variable's value; the last entry of a name holds.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

impl Pod {
    /// The sidecar's container, if the pod has one.
    #[must_use]
    pub fn proxy(&self) -> Option<ProxyContainer<'_>> {
        let mut found: Option<ProxyContainer<'_>> = None;
        for c in self.containers.iter().filter(|c| c.name == PROXY_CONTAINER) {
            let proxy = found.get_or_insert_default();
            proxy.kind = match c.args.as_slice() {
                [first, kind, ..] if first == "proxy" => kind,
                _ => "",
            };
            proxy.env.extend(c.env.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            proxy.run_as_user = c.run_as_user;
            proxy.run_as_group = c.run_as_group;
        }
        found
    }

    /// An annotation's value.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

/// What Go's `strconv.ParseBool` takes for a boolean (reference 2.6).
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
