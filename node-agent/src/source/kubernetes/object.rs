//! What is kept of the API's pods. Kubernetes' shapes stop here.
//!
//! A pod's manifest is 5 to 20 KB of JSON, most of it managed fields, environment
//! and volumes. What is read is facts of the pod for `redirect`, and what tells
//! whether it runs and how its init containers ended. An object that lacks what no
//! real one lacks is kept as unusable: read leniently, a pod without its last
//! containers would look as if it were outside the mesh.

use super::raw::{
    Map, RawContainer, RawContainerStatus, RawPod, RawSpec, RawStatus, Text, filled, values,
};
use crate::notice::{CONDITION, Captured};
use crate::source::workload::{Checks, Workload};
use redirect::host::Declared;
use redirect::pod::{Container, PROXY_CONTAINER, Pod};
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

/// Environment of the proxy that decisions and plans are made of (reference 2.4 and
/// 2.6). The rest holds secrets, which have no business in the agent's memory.
const SWITCHES: [&str; 4] =
    ["DISABLE_ENVOY", "ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP"];

/// Arguments of the proxy that say what kind it is: `proxy sidecar`.
const ARGUMENTS: usize = 2;

/// Annotations with this in their key are kept.
const MESH: &str = "istio.io/";

/// What the mirror of a static pod is marked with: the uid that its sandbox has.
const STATIC_POD_UID: &str = "kubernetes.io/config.hash";

/// A namespaced name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodName {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name there.
    pub(crate) name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePod {
    /// What the mesh decides by.
    pub(crate) facts: Pod,
    /// `metadata.resourceVersion`, for preconditions.
    pub(crate) version: String,
    /// Its phase.
    pub(crate) phase: Phase,
    /// It is being deleted.
    pub(crate) deleting: bool,
    /// `status.podIPs`; empty until its sandbox is there.
    pub(crate) addresses: Vec<IpAddr>,
    /// What our condition on it says.
    pub(crate) captured: Option<Captured>,
    /// How its init containers fare, native sidecars among them.
    pub(crate) init: Vec<InitStatus>,
    /// What ambient capture asks besides.
    pub(crate) workload: Workload,
}

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not all of its init containers are done.
    Pending,
    /// Its containers run.
    Running,
    /// All ended well.
    Succeeded,
    /// All ended, one badly.
    Failed,
    /// The kubelet did not say.
    Unknown,
}

/// An init container's state, as far as repair asks (reference 7.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InitStatus {
    /// Its name.
    pub(crate) name: String,
    /// It ended well.
    pub(crate) completed: bool,
    /// How it ended the time before.
    pub(crate) last: Option<Ended>,
}

/// An end of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its exit code.
    pub(crate) code: i32,
    /// Its termination message, trimmed. Somebody else's text: it is not logged.
    pub(crate) message: String,
}

impl NodePod {
    /// No container of it runs, or will.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// The pod that a runtime knows by `uid`: its own, or that of the static pod it
    /// mirrors.
    pub(crate) fn has_uid(&self, uid: &str) -> bool {
        self.facts.uid.as_deref() == Some(uid) || self.static_uid() == Some(uid)
    }

    /// The uid of the static pod that it mirrors.
    pub(crate) fn static_uid(&self) -> Option<&str> {
        self.facts.annotation(STATIC_POD_UID)
    }
}

/// A pod as the API gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// One that can be decided about.
    Usable(Box<NodePod>),
    /// One that cannot, and why.
    Unusable {
        /// Its uid, as far as it is known.
        uid: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Seen {
    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<&str> {
        match self {
            Self::Usable(_) => None,
            Self::Unusable { problem, .. } => Some(problem),
        }
    }
}

/// What a pod object said.
#[derive(Debug)]
pub(super) enum Decoded<T> {
    /// An object of ours.
    Object(T),
    /// One that does not concern this node.
    Foreign,
    /// No name is to be had from it.
    Broken(String),
}

/// What the decoder has to know.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// `spec.nodeName` of pods that are kept.
    pub(crate) node: String,
    /// Keys of annotations that are kept besides the mesh's own.
    pub(crate) annotations: Vec<String>,
}

/// Reads a pod.
pub(super) fn pod(json: &str, scope: &Scope) -> Decoded<(PodName, Seen)> {
    let raw: RawPod<'_> = match serde_json::from_str(json) {
        Ok(raw) => raw,
        Err(error) => return broken_pod(json, &error),
    };
    let meta = raw.metadata.unwrap_or_default();
    let spec = raw.spec.unwrap_or_default();
    if spec.node_name.as_deref().is_some_and(|node| node != scope.node) {
        return Decoded::Foreign;
    }
    let (Some(name), Some(namespace)) = (filled(&meta.name), filled(&meta.namespace)) else {
        return Decoded::Broken("a pod without a name or a namespace".to_owned());
    };
    let name = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
    let uid = filled(&meta.uid).unwrap_or_default().to_owned();
    let lacks = if uid.is_empty() {
        Some("metadata.uid")
    } else if spec.node_name.is_none() {
        Some("spec.nodeName")
    } else if spec.containers.as_ref().is_none_or(Vec::is_empty) {
        Some("spec.containers")
    } else {
        None
    };
    if let Some(field) = lacks {
        let problem = format!("{field} is missing or empty, which no running pod's is");
        return Decoded::Object((name, Seen::Unusable { uid, problem }));
    }
    let mut spec = spec;
    let workload = workload(&mut spec);
    let facts = facts(&name, uid, meta.labels, meta.annotations, spec, scope);
    let status = raw.status.unwrap_or_default();
    let pod = NodePod {
        facts,
        version: meta.resource_version.unwrap_or_default().into_owned(),
        phase: phase(status.phase.as_deref()),
        deleting: meta.deletion_timestamp.is_some(),
        addresses: addresses(&status),
        captured: captured(&status),
        init: status.init_container_statuses.unwrap_or_default().iter().map(init).collect(),
        workload,
    };
    Decoded::Object((name, Seen::Usable(Box::new(pod))))
}

/// A pod whose shape is wrong is still known by name, if it says its name.
fn broken_pod(json: &str, error: &serde_json::Error) -> Decoded<(PodName, Seen)> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        metadata: Name<'a>,
    }
    #[derive(Deserialize)]
    struct Name<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        namespace: Cow<'a, str>,
        #[serde(borrow, default)]
        uid: Option<Cow<'a, str>>,
    }
    let problem = super::error::quote(&error.to_string());
    match serde_json::from_str::<Named<'_>>(json) {
        Ok(Named { metadata: Name { name, namespace, uid } }) => {
            let name = PodName { namespace: namespace.into_owned(), name: name.into_owned() };
            let uid = uid.unwrap_or_default().into_owned();
            Decoded::Object((name, Seen::Unusable { uid, problem }))
        }
        Err(_) => Decoded::Broken(problem),
    }
}

fn facts(
    name: &PodName,
    uid: String,
    labels: Option<Map>,
    annotations: Option<Map>,
    spec: RawSpec<'_>,
    scope: &Scope,
) -> Pod {
    let kept = |key: &str| {
        key.contains(MESH) || key == STATIC_POD_UID || scope.annotations.iter().any(|k| k == key)
    };
    let mut containers: Vec<Container> = Vec::new();
    let init = spec.init_containers.unwrap_or_default();
    containers.extend(init.into_iter().map(|raw| container(raw, true)));
    let regular = spec.containers.unwrap_or_default();
    containers.extend(regular.into_iter().map(|raw| container(raw, false)));
    containers.shrink_to_fit();
    Pod {
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        uid: Some(uid),
        labels: values(labels).collect(),
        annotations: values(annotations).filter(|(key, _)| kept(key)).collect(),
        host_network: spec.host_network.unwrap_or_default(),
        containers,
    }
}

/// Takes the probes out of the spec: nobody else asks for them.
fn workload(spec: &mut RawSpec<'_>) -> Workload {
    let containers = spec.init_containers.iter_mut().chain(&mut spec.containers).flatten();
    let declared: Vec<Declared> = containers
        .filter_map(|raw| {
            let checks = Checks {
                ports: raw.ports.take().unwrap_or_default(),
                probes: [
                    raw.liveness_probe.take(),
                    raw.readiness_probe.take(),
                    raw.startup_probe.take(),
                ],
                lifecycle: raw.lifecycle.take(),
            };
            checks.declared(raw.name.as_deref().unwrap_or_default())
        })
        .collect();
    Workload::new(spec.service_account_name.as_deref(), &declared)
}

fn container(raw: RawContainer<'_>, init: bool) -> Container {
    let name = raw.name.unwrap_or_default().into_owned();
    if name != PROXY_CONTAINER {
        return Container { name, init, ..Container::default() };
    }
    let security = raw.security_context.unwrap_or_default();
    let args = raw.args.unwrap_or_default();
    let env = raw.env.unwrap_or_default();
    Container {
        name,
        init,
        args: args.into_iter().take(ARGUMENTS).map(|Text(text)| text.into_owned()).collect(),
        env: env
            .into_iter()
            .filter_map(|var| {
                let name = var.name?;
                let value = var.value.unwrap_or_default().into_owned();
                SWITCHES.contains(&&*name).then(|| (name.into_owned(), value))
            })
            .collect(),
        run_as_user: security.run_as_user,
        run_as_group: security.run_as_group,
    }
}

fn phase(text: Option<&str>) -> Phase {
    match text {
        Some("Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ => Phase::Unknown,
    }
}

fn addresses(status: &RawStatus<'_>) -> Vec<IpAddr> {
    let many = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
    let mut all: Vec<IpAddr> = many.filter_map(|ip| ip.parse().ok()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    all
}

fn captured(status: &RawStatus<'_>) -> Option<Captured> {
    let mut all = status.conditions.iter().flatten();
    let own = all.find(|condition| condition.kind.as_deref() == Some(CONDITION))?;
    Some(if own.status.as_deref() == Some("True") { Captured::Yes } else { Captured::No })
}

fn init(raw: &RawContainerStatus<'_>) -> InitStatus {
    let now = raw.state.as_ref().and_then(|state| state.terminated.as_ref());
    let last = raw.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    InitStatus {
        name: raw.name.as_deref().unwrap_or_default().to_owned(),
        completed: now
            .is_some_and(|t| t.reason.as_deref() == Some("Completed") || t.exit_code == Some(0)),
        last: last.map(|t| Ended {
            code: t.exit_code.unwrap_or_default(),
            message: t.message.as_deref().unwrap_or_default().trim().to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
