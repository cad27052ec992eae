//! Which pods are in the mesh, how, and why not (reference 2.4 and 2.5).

use crate::annotation;
use crate::net::Cidr;
use crate::plan::{Groups, Plan};
use crate::pod::{INIT_CONTAINER, Namespace, Pod, parse_bool};
use crate::selector::{EnablementSelector, default_enablement};
use std::fmt;

/// What the agent is told once, not by a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Ambient mode is on (`AMBIENT_ENABLED`).
    pub ambient_enabled: bool,
    /// Which pods are ambient (`AMBIENT_ENABLEMENT_SELECTOR`); empty means none.
    pub enablement_selectors: Vec<EnablementSelector>,
    /// Namespaces that are left alone (`EXCLUDE_NAMESPACES`).
    pub exclude_namespaces: Vec<String>,
    /// Namespace of the agent's own pods, which never wait for the agent.
    pub agent_namespace: String,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS` and `..._EXCLUDE` (reference 2.7).
    pub owner_groups: Groups,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR` (reference 2.7).
    pub loopback_v4: Cidr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ambient_enabled: false,
            enablement_selectors: default_enablement(),
            exclude_namespaces: Vec::new(),
            agent_namespace: String::new(),
            owner_groups: Groups::AllExcept(Vec::new()),
            loopback_v4: Plan::default_loopback_v4(),
        }
    }
}

/// What happens to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Its traffic goes to its own Envoy.
    Sidecar,
    /// Its traffic goes to the node's ztunnel.
    Ambient,
    /// It is left alone.
    Skip(SkipReason),
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// It uses the host's network, which is never programmed.
    HostNetwork,
    /// It is the agent itself.
    OwnAgent,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// Its `istio-init` container programs the rules.
    InitContainer,
    /// `DISABLE_ENVOY` is true on its proxy.
    EnvoyDisabled,
    /// It has no `istio-proxy` container.
    NoProxy,
    /// Its proxy is a gateway or waypoint, which takes traffic by itself.
    NotASidecar,
    /// `sidecar.istio.io/inject` is false.
    InjectionDisabled,
    /// It was not injected: `sidecar.istio.io/status` is absent.
    NotInjected,
    /// `sidecar.istio.io/interceptionMode` is `NONE`.
    InterceptionNone,
}

impl SkipReason {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::HostNetwork,
        Self::OwnAgent,
        Self::ExcludedNamespace,
        Self::InitContainer,
        Self::EnvoyDisabled,
        Self::NoProxy,
        Self::NotASidecar,
        Self::InjectionDisabled,
        Self::NotInjected,
        Self::InterceptionNone,
    ];

    /// A stable word for programs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::HostNetwork => "host-network",
            Self::OwnAgent => "own-agent",
            Self::ExcludedNamespace => "excluded-namespace",
            Self::InitContainer => "istio-init",
            Self::EnvoyDisabled => "envoy-disabled",
            Self::NoProxy => "no-proxy",
            Self::NotASidecar => "not-a-sidecar",
            Self::InjectionDisabled => "injection-disabled",
            Self::NotInjected => "not-injected",
            Self::InterceptionNone => "interception-none",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "the pod uses the host's network",
            Self::OwnAgent => "the pod is the node agent itself",
            Self::ExcludedNamespace => "the pod's namespace is excluded",
            Self::InitContainer => "the pod's istio-init container programs its own rules",
            Self::EnvoyDisabled => "DISABLE_ENVOY is true on the istio-proxy container",
            Self::NoProxy => "the pod has no istio-proxy container",
            Self::NotASidecar => "the pod's istio-proxy is no sidecar but a gateway or waypoint",
            Self::InjectionDisabled => "sidecar.istio.io/inject is false",
            Self::NotInjected => "the pod was not injected: no sidecar.istio.io/status annotation",
            Self::InterceptionNone => "sidecar.istio.io/interceptionMode is NONE",
        })
    }
}

/// Why nothing can be decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// A selector asks for the labels of a namespace that is not known (yet).
    #[error("namespace {0} is not known, and its labels decide whether the pod is ambient")]
    NamespaceUnknown(String),
}

/// Names of the agent's pods begin so (reference 2.4).
pub const AGENT_POD_PREFIX: &str = "istio-cni-node-";

/// Decides what happens to a pod; the first reason that applies wins, in the order
/// of reference 2.4.
///
/// # Errors
///
/// [`DecideError::NamespaceUnknown`] when the namespace's labels would decide and
/// `namespace` is `None`: never "not meshed" because something could not be read.
pub fn decide(
    pod: &Pod,
    namespace: Option<&Namespace>,
    config: &Config,
) -> Result<Decision, DecideError> {
    let skip = |reason| Ok(Decision::Skip(reason));
    if pod.host_network {
        return skip(SkipReason::HostNetwork);
    }
    if !config.agent_namespace.is_empty()
        && pod.namespace == config.agent_namespace
        && pod.name.starts_with(AGENT_POD_PREFIX)
    {
        return skip(SkipReason::OwnAgent);
    }
    if config.exclude_namespaces.contains(&pod.namespace) {
        return skip(SkipReason::ExcludedNamespace);
    }
    if config.ambient_enabled && is_ambient(pod, namespace, &config.enablement_selectors)? {
        return Ok(Decision::Ambient);
    }
    Ok(sidecar(pod))
}

/// A sidecar always wins over ambient (reference 2.5).
fn is_ambient(
    pod: &Pod,
    namespace: Option<&Namespace>,
    selectors: &[EnablementSelector],
) -> Result<bool, DecideError> {
    if pod.annotation(annotation::STATUS).is_some() {
        return Ok(false);
    }
    let mut unknown = false;
    for selector in selectors.iter().filter(|s| s.pod_selector.matches(&pod.labels)) {
        if selector.namespace_selector.is_empty() {
            return Ok(true);
        }
        match namespace {
            Some(ns) if selector.namespace_selector.matches(&ns.labels) => return Ok(true),
            Some(_) => {}
            None => unknown = true,
        }
    }
    if unknown {
        return Err(DecideError::NamespaceUnknown(pod.namespace.clone()));
    }
    Ok(false)
}

fn sidecar(pod: &Pod) -> Decision {
    let skip = Decision::Skip;
    if pod.containers.iter().any(|c| c.name == INIT_CONTAINER) {
        return skip(SkipReason::InitContainer);
    }
    let Some(proxy) = pod.proxy() else {
        return skip(SkipReason::NoProxy);
    };
    if proxy.var("DISABLE_ENVOY").and_then(parse_bool) == Some(true) {
        return skip(SkipReason::EnvoyDisabled);
    }
    if !matches!(proxy.kind, "" | "sidecar") {
        return skip(SkipReason::NotASidecar);
    }
    // The label decides where it exists, even if it is empty.
    let inject = pod.labels.get(annotation::INJECT).map(String::as_str);
    let inject = inject.or_else(|| pod.annotation(annotation::INJECT));
    if inject.and_then(parse_bool) == Some(false) {
        return skip(SkipReason::InjectionDisabled);
    }
    if pod.annotation(annotation::STATUS).is_none() {
        return skip(SkipReason::NotInjected);
    }
    // Upstream lets this pass and then fails the ADD for an unknown mode (10.1 #8).
    if pod.annotation(annotation::INTERCEPTION_MODE) == Some("NONE") {
        return skip(SkipReason::InterceptionNone);
    }
    Decision::Sidecar
}

#[cfg(test)]
mod tests;
