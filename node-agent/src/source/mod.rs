//! Where pods and namespaces come from: a directory of manifests ([`directory`]), or
//! Kubernetes ([`kubernetes`]). [`Pods`] is either, and [`follow`] tells of their changes;
//! [`manifest`] and [`workload`] turn Kubernetes' shapes into plain facts.

mod directory;
pub(crate) mod follow;
pub(crate) mod kubernetes;
pub(crate) mod manifest;
mod pods;
pub(crate) mod workload;

pub(crate) use directory::Directory;
pub(crate) use pods::{Pods, SourceArgs, View};

use redirect::pod::{Namespace, Pod};

/// Which pod is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Its namespace.
    pub(crate) namespace: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
    /// Its uid, empty when the caller does not know it.
    pub(crate) uid: &'a str,
}

/// A pod with its namespace, if that is known.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The pod.
    pub(crate) pod: Pod,
    /// Its namespace; `None` when no manifest describes it.
    pub(crate) namespace: Option<Namespace>,
    /// Why this may be what the pod was before: its manifest cannot be used by now.
    /// Enough to capture it, not to let it pass.
    pub(crate) doubt: Option<String>,
}

/// Why a pod is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There is no pod of that name.
    Unknown,
    /// The pod of that name is another one, for example the one before.
    OtherUid(String),
    /// It could not be found out whether there is one, and why.
    Unreachable(String),
    /// There is one that nothing can be decided about, and why.
    Unusable(String),
}
