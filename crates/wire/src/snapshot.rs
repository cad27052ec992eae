//! What the agent leaves in its run directory for the time when it cannot be
//! asked: enough for the plugin to let a pod pass that is certain to be outside
//! the mesh, and nothing by which a pod of the mesh could pass.
//!
//! A sidecar is known by the pod's annotations, which the runtime passes; they
//! are those that the pod was made with, so this does not age. Ambient mode goes
//! by labels, which no runtime passes: a pod can be certain to be outside only
//! where no selector goes by the pod's own labels alone and its namespace's
//! labels fit none. Those may have changed since, just as they may change under
//! a pod that runs: the agent looks at both when it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// The file's name below the run directory.
pub const FILE_NAME: &str = "snapshot.json";
/// Name of the file below the run directory that says that the mesh is being taken
/// off the node: a runtime may hold a chain with us in it for longer than us.
pub const REMOVED_MARKER: &str = "removed";
/// Bytes that the file may have; a larger one counts as absent.
pub const MAX_BYTES: usize = 1 << 20;
/// Value of [`Snapshot::version`] in this version of the format.
pub const VERSION: u32 = 1;
/// Annotation of a pod that the injector gave a sidecar; Istio's.
pub const INJECTED: &str = "sidecar.istio.io/status";
/// The agent's own pods are named so; Istio's.
pub const AGENT_POD_PREFIX: &str = "istio-cni-node-";

/// The file's content. Nothing in it says when it was written: age is no reason to
/// trust it more or less, and a clock may jump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// Tells one policy of an agent from another's.
    pub policy: String,
    /// Whose word counts. An older agent does not say, and knew Kubernetes alone.
    #[serde(default)]
    pub source: Source,
    /// Namespace of the agent's own pods; empty when it has none.
    pub agent_namespace: String,
    /// Namespaces that are left alone.
    pub excluded: BTreeSet<String>,
    /// Who can be ambient.
    pub ambient: Ambient,
    /// Pods of this node by uid, as the agent decided on them. One of a manifest
    /// without a uid is under its [`full_name`].
    pub pods: BTreeMap<String, KnownPod>,
}

/// Whose word counts for what a pod is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", from = "String")]
pub enum Source {
    /// Kubernetes', of which the runtime passes on a part.
    #[default]
    Kubernetes,
    /// That of manifests on the node, of which the runtime knows nothing; whatever a
    /// newer agent may name as well.
    Manifests,
}

impl From<String> for Source {
    fn from(name: String) -> Self {
        if name == "kubernetes" { Self::Kubernetes } else { Self::Manifests }
    }
}

/// Key of a pod whose uid is not known: no uid has a slash.
#[must_use]
pub fn full_name(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Who can be captured for ztunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ambient {
    /// Ambient mode is on.
    pub enabled: bool,
    /// A pod's own labels alone can make it ambient, whatever its namespace.
    pub by_pod_label: bool,
    /// Namespaces whose labels fit no selector: no pod in them is ambient.
    pub outside: BTreeSet<String>,
}

/// A pod that the agent saw and decided on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It is to be captured.
    pub mesh: bool,
}

/// Why a file is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Too large to be one.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not the JSON of one.
    #[error("it cannot be decoded: {0}")]
    Content(#[from] serde_json::Error),
    /// Of another release.
    #[error("it has format {0}, this plugin knows {VERSION}")]
    Version(u32),
}

/// What is known of the pod at hand.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid; empty when the runtime did not say.
    pub uid: &'a str,
    /// [`crate::cni::Hints::annotations`].
    pub annotations: Option<&'a BTreeMap<String, String>>,
}

impl Subject<'_> {
    /// The runtime's annotations say that the pod has a sidecar; `None` when the
    /// runtime said none.
    #[must_use]
    pub fn is_injected(&self) -> Option<bool> {
        self.annotations.map(|all| all.contains_key(INJECTED))
    }
}

/// What follows for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is certain to be outside the mesh.
    Outside(Certainty),
    /// It is not certain, or certain to be of the mesh.
    Wait(Doubt),
}

/// Why a pod is certain to be outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// The agent's own.
    OwnAgent,
    /// Its namespace is left alone.
    Excluded,
    /// The agent saw this very pod.
    Known,
    /// It has no sidecar, and cannot be ambient.
    NotInjected,
}

impl fmt::Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnAgent => "it is the agent's own pod",
            Self::Excluded => "its namespace is excluded",
            Self::Known => "the agent had found this very pod outside of the mesh",
            Self::NotInjected => {
                "the runtime passed its annotations and sidecar.istio.io/status is not among them, and it cannot be ambient"
            }
        })
    }
}

/// Why a pod has to wait for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// There is no snapshot to be used.
    NoSnapshot,
    /// It has a sidecar.
    Injected,
    /// The agent saw this very pod, and it is of the mesh.
    Known,
    /// The runtime passed no annotations, and the agent had not seen the pod.
    NoAnnotations,
    /// A label of the pod itself could make it ambient.
    PodLabel,
    /// Labels of its namespace could, or are not known.
    NamespaceLabel,
    /// Manifests count, and the agent had seen none of this pod.
    NoManifest,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSnapshot => {
                "it has to wait, since there is no snapshot of the agent's to tell who is outside of the mesh"
            }
            Self::Injected => {
                "it is a pod of the mesh (annotation sidecar.istio.io/status), which only the agent can capture"
            }
            Self::Known => "it is a pod of the mesh, which only the agent can capture",
            Self::NoAnnotations => {
                "it has to wait, since the runtime passed no annotations and the agent had not seen it"
            }
            Self::PodLabel => {
                "it has to wait, since its own labels, which the runtime does not pass, could make it ambient"
            }
            Self::NamespaceLabel => {
                "it has to wait, since its namespace's labels could make it ambient"
            }
            Self::NoManifest => {
                "it has to wait, since the agent had not seen its manifest, which counts here"
            }
        })
    }
}

impl Snapshot {
    /// What holds where there is none, as after a reboot, and annotations alone tell
    /// ([`crate::cni::Config::agent_goes_by_annotations`]).
    #[must_use]
    pub fn of_annotations() -> Self {
        Self {
            version: VERSION,
            policy: String::new(),
            source: Source::Kubernetes,
            agent_namespace: String::new(),
            excluded: BTreeSet::new(),
            ambient: Ambient::default(),
            pods: BTreeMap::new(),
        }
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// [`SnapshotError`]; then there is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, SnapshotError> {
        /// Looked at alone first: other formats may have anything else in them.
        #[derive(Deserialize)]
        struct Format {
            version: u32,
        }
        if bytes.len() > MAX_BYTES {
            return Err(SnapshotError::TooLarge);
        }
        match crate::json::decode::<Self>(bytes) {
            Ok(snapshot) if snapshot.version == VERSION => Ok(snapshot),
            Ok(snapshot) => Err(SnapshotError::Version(snapshot.version)),
            Err(error) => match crate::json::decode::<Format>(bytes) {
                Ok(Format { version }) if version != VERSION => {
                    Err(SnapshotError::Version(version))
                }
                _ => Err(SnapshotError::Content(error)),
            },
        }
    }

    /// Whether the pod may pass without the agent.
    #[must_use]
    pub fn judge(&self, pod: Subject<'_>) -> Verdict {
        if !self.agent_namespace.is_empty()
            && pod.namespace == self.agent_namespace
            && pod.name.starts_with(AGENT_POD_PREFIX)
        {
            return Verdict::Outside(Certainty::OwnAgent);
        }
        if self.excluded.contains(pod.namespace) {
            return Verdict::Outside(Certainty::Excluded);
        }
        let by_manifest = self.source == Source::Manifests;
        match self.known(pod) {
            // It may be another pod of that name by now, or its manifest another one.
            Some(KnownPod { mesh: false, .. })
                if by_manifest && pod.is_injected() == Some(true) =>
            {
                return Verdict::Wait(Doubt::Injected);
            }
            // The agent saw more than annotations: an injected gateway is outside.
            Some(KnownPod { mesh: false, .. }) => return Verdict::Outside(Certainty::Known),
            Some(KnownPod { mesh: true, .. }) => return Verdict::Wait(Doubt::Known),
            None if by_manifest => return Verdict::Wait(Doubt::NoManifest),
            None => {}
        }
        match pod.is_injected() {
            None => Verdict::Wait(Doubt::NoAnnotations),
            Some(true) => Verdict::Wait(Doubt::Injected),
            Some(false) if !self.ambient.enabled => Verdict::Outside(Certainty::NotInjected),
            Some(false) if self.ambient.by_pod_label => Verdict::Wait(Doubt::PodLabel),
            Some(false) if self.ambient.outside.contains(pod.namespace) => {
                Verdict::Outside(Certainty::NotInjected)
            }
            Some(false) => Verdict::Wait(Doubt::NamespaceLabel),
        }
    }

    /// This very pod. Names are used again in a cluster, so the uid tells there;
    /// manifests go by name, and by uid where both sides have one.
    fn known(&self, pod: Subject<'_>) -> Option<&KnownPod> {
        self.pods
            .iter()
            .find(|(key, known)| {
                known.namespace == pod.namespace
                    && known.name == pod.name
                    && match self.source {
                        Source::Kubernetes => *key == pod.uid && !pod.uid.is_empty(),
                        Source::Manifests => {
                            *key == pod.uid || pod.uid.is_empty() || key.contains('/')
                        }
                    }
            })
            .map(|(_, known)| known)
    }
}

#[cfg(test)]
mod tests;
