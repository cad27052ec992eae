//! Either source of pods, as the agent asks it.

use super::kubernetes::object::{PodName, Seen};
use super::kubernetes::{Interest, Kubernetes, KubernetesArgs};
use super::{Directory, Found, Missing, Wanted};
use anyhow::Result;
use redirect::pod::{Namespace, Pod};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::snapshot::Source;

/// How long a pod's manifest may be behind its sandbox.
const MANIFEST_WAIT: Duration = Duration::from_secs(1);

/// Kept of a request's time for what comes after the lookup.
const RESERVE: Duration = Duration::from_millis(500);

/// Options that say where pods come from.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SourceArgs {
    /// Take pods from this directory of Pod and Namespace manifests (.yaml, .yml, .json), watched, instead of from Kubernetes.
    #[arg(
        long,
        value_name = "DIR",
        env = "SLUICE_PODS",
        conflicts_with_all = ["kubeconfig", "api_url"]
    )]
    pub(crate) pods: Option<PathBuf>,
    /// The cluster.
    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
}

/// Where pods come from.
#[derive(Debug, Clone)]
pub(crate) enum Pods {
    /// A directory of manifests.
    Directory(Arc<Directory>),
    /// The API server.
    Kubernetes(Arc<Kubernetes>),
}

/// All that a source knows at a moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// This node's pods.
    pub(crate) pods: Vec<Pod>,
    /// Namespaces, where they were asked for.
    pub(crate) namespaces: Vec<Namespace>,
    /// What is not here does not exist, or is in doubt: the first lists are complete.
    pub(crate) complete: bool,
    /// Whose word this is.
    pub(crate) source: Source,
}

impl Pods {
    /// Opens the one that is asked for. Must be called in the runtime.
    ///
    /// # Errors
    /// When it cannot be used. An API server that does not answer is no error.
    pub(crate) async fn open(args: &SourceArgs, interest: Interest) -> Result<Self> {
        Ok(match &args.pods {
            Some(path) => Self::Directory(Directory::open(path)?),
            None => Self::Kubernetes(Kubernetes::open(&args.kubernetes, interest).await?),
        })
    }

    /// The pod, within what a request that must be answered by `deadline` can wait.
    ///
    /// Blocks.
    ///
    /// # Errors
    /// When it is not to be had by then, and why.
    pub(crate) fn wait(&self, wanted: Wanted<'_>, deadline: Instant) -> Result<Found, Missing> {
        let now = Instant::now();
        match self {
            Self::Directory(directory) => directory.wait(wanted, deadline.min(now + MANIFEST_WAIT)),
            Self::Kubernetes(kubernetes) => {
                let left = deadline.saturating_duration_since(now);
                kubernetes.wait(wanted, deadline - RESERVE.min(left / 4))
            }
        }
    }

    /// Whether [`Pods::wait`] has an answer at once, whatever it is.
    pub(crate) fn is_known(&self, wanted: Wanted<'_>) -> bool {
        match self {
            Self::Directory(directory) => directory.wait(wanted, Instant::now()).is_ok(),
            Self::Kubernetes(kubernetes) => {
                let (namespace, name) = (wanted.namespace.to_owned(), wanted.name.to_owned());
                let seen = kubernetes.pod(&PodName { namespace, name });
                seen.is_some_and(|seen| match &*seen {
                    Seen::Usable(pod) => wanted.uid.is_empty() || pod.has_uid(wanted.uid),
                    Seen::Unusable { .. } => true,
                })
            }
        }
    }

    /// Everything that is known now, and the namespaces with it when they count.
    pub(crate) fn view(&self, with_namespaces: bool) -> View {
        match self {
            Self::Directory(directory) => {
                let (pods, namespaces) = directory.all();
                View { pods, namespaces, complete: true, source: Source::Manifests }
            }
            Self::Kubernetes(kubernetes) => View {
                pods: kubernetes.pods().into_iter().map(|pod| pod.facts).collect(),
                namespaces: if with_namespaces { kubernetes.namespaces() } else { Vec::new() },
                complete: kubernetes.synced().borrow().is_complete(),
                source: Source::Kubernetes,
            },
        }
    }

    /// Numbers of pods and namespaces that are known.
    pub(crate) fn count(&self) -> (usize, usize) {
        match self {
            Self::Directory(directory) => directory.count(),
            Self::Kubernetes(kubernetes) => kubernetes.count(),
        }
    }

    /// What to do about a pod that is not known.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::Directory(_) => {
                "the runtime tries again; if it stays, look in the agent's log for a manifest that cannot be used"
            }
            Self::Kubernetes(_) => {
                "the runtime tries again; if it stays, look whether the API server is well and in the agent's log"
            }
        }
    }

    /// What to do about a namespace that is not known.
    pub(crate) fn namespace_advice(&self) -> &'static str {
        match self {
            Self::Directory(_) => {
                "add a manifest of the namespace with its labels to the pods directory"
            }
            Self::Kubernetes(_) => self.advice(),
        }
    }
}
