//! Pods and namespaces from Kubernetes.
//!
//! Two reflectors keep a [`store`] equal to what the API server has: this node's
//! pods, slim, and all namespaces' labels. A lookup answers from the store. Only when
//! an ADD beats the watch is the pod asked for directly, once for everybody who
//! waits for it, and never for longer than the request has time ([`lookup`]). What
//! cannot be known is refused with the reason; what is known is answered whatever
//! the API server does.
//!
//! A pod's facts never change in what the mesh decides by: injection happens before
//! the pod is stored. So a pod that is known by its uid may be as old as it likes.

mod args;
mod backoff;
pub(crate) mod changes;
pub(crate) mod client;
pub(crate) mod error;
mod flight;
mod lookup;
mod namespace;
pub(crate) mod object;
mod raw;
mod reflector;
mod sink;
mod store;
mod token;

pub(crate) use args::KubernetesArgs;
use args::KubernetesError;
use changes::Changes;
use client::Api;
use object::{NodePod, PodName, Scope, Seen};

use redirect::pod::Namespace;
use reflector::{Reflector, Shared};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;
use tokio::sync::watch;

/// `Accept` of whole objects.
const PLAIN: &str = "application/json";

/// `Accept` of an object's metadata, and of a watch of them.
const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// What the source has to know besides the server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interest {
    /// Keys of annotations that are kept besides Istio's own.
    pub(crate) annotations: Vec<String>,
    /// Decisions ask for the labels of namespaces: ambient mode is on. Without it a
    /// namespace is never asked for directly.
    pub(crate) namespace_labels: bool,
}

/// How long each first list took, from the start of the agent; `None` until it is
/// complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Synced {
    /// This node's pods.
    pub(crate) pods: Option<Duration>,
    /// The cluster's namespaces.
    pub(crate) namespaces: Option<Duration>,
}

impl Synced {
    /// Both have been listed once.
    pub(crate) fn is_complete(&self) -> bool {
        self.pods.is_some() && self.namespaces.is_some()
    }
}

/// The cluster as this node sees it.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    store: Arc<Store>,
    api: Arc<Api>,
    scope: Scope,
    namespace_labels: bool,
    shared: Arc<Shared>,
    synced: watch::Receiver<Synced>,
    runtime: tokio::runtime::Handle,
}

/// The API server, for requests of other kinds, with nothing followed.
///
/// # Errors
/// When it is not known whom to ask.
pub(crate) async fn connect(args: &KubernetesArgs) -> Result<Api, KubernetesError> {
    args.api().await
}

impl Kubernetes {
    /// Starts to follow the API server. Must be called in the runtime, whose tasks do
    /// it until it ends.
    ///
    /// # Errors
    /// When it is not known whom to ask, or for which node. A server that does not
    /// answer is no error.
    pub(crate) async fn open(
        args: &KubernetesArgs,
        interest: Interest,
    ) -> Result<Arc<Self>, KubernetesError> {
        let scope =
            Scope { node: args.node()?.to_owned(), annotations: interest.annotations.clone() };
        let api = Arc::new(args.api().await?);
        let (store, shared) = (Arc::new(Store::default()), Arc::new(Shared::default()));
        let (sender, synced) = watch::channel(Synced::default());
        let progress = sink::Progress { since: Instant::now(), synced: Arc::new(sender) };
        store.lock().behind = Some("the first list is not complete yet".to_owned());
        let pods = sink::Pods {
            store: Arc::clone(&store),
            scope: scope.clone(),
            progress: progress.clone(),
        };
        let namespaces = sink::Namespaces { store: Arc::clone(&store), progress };
        let runtime = tokio::runtime::Handle::current();
        let follow = |api: &Arc<Api>| (Arc::clone(api), Arc::clone(&shared));
        let (for_pods, with) = follow(&api);
        runtime.spawn(Reflector::new(for_pods, pods, with).run());
        let (for_namespaces, with) = follow(&api);
        runtime.spawn(Reflector::new(for_namespaces, namespaces, with).run());
        let namespace_labels = interest.namespace_labels;
        Ok(Arc::new(Self { store, api, scope, namespace_labels, shared, synced, runtime }))
    }

    /// How far the first lists have come.
    pub(crate) fn synced(&self) -> watch::Receiver<Synced> {
        self.synced.clone()
    }

    /// Names of pods that are added, changed or deleted from now on, those that are
    /// known already first.
    pub(crate) fn events(&self) -> Changes {
        self.store.changes(false)
    }

    /// The same, and names of pods whose namespace's labels change.
    pub(crate) fn events_with_namespaces(&self) -> Changes {
        self.store.changes(true)
    }

    /// A pod of this node, as last seen; `None` when it is gone.
    pub(crate) fn pod(&self, name: &PodName) -> Option<Arc<Seen>> {
        self.store.pod(name)
    }

    /// All pods of this node that can be decided about, as last seen.
    pub(crate) fn pods(&self) -> Vec<NodePod> {
        self.store.usable()
    }

    /// All namespaces, as last seen.
    pub(crate) fn namespaces(&self) -> Vec<Namespace> {
        self.store.namespaces()
    }

    /// A namespace, as last seen.
    pub(crate) fn namespace(&self, name: &str) -> Option<Namespace> {
        self.store.lock().namespace(name).map(|labels| labels.unpack(name))
    }

    /// Why the pods, or labels of namespaces that decide about them, may not be up to
    /// date; `None` while they are.
    pub(crate) fn behind(&self) -> Option<String> {
        let inner = self.store.lock();
        let namespaces = inner.namespaces_behind.as_ref().filter(|_| self.namespace_labels);
        inner.behind.as_ref().or(namespaces).cloned()
    }

    /// Numbers of pods and of namespaces.
    pub(crate) fn count(&self) -> (usize, usize) {
        self.store.count()
    }

    /// For requests of other kinds, and for the counters of all.
    pub(crate) fn api(&self) -> &Arc<Api> {
        &self.api
    }
}
