//! Pods as they come, change and go, from either source, for ambient capture.

use super::kubernetes::Kubernetes;
use super::kubernetes::object::{NodePod, PodName, Seen};
use super::workload::Workload;
use super::{Directory, Pods, manifest};
use crate::notice::Captured;
use redirect::pod::{Namespace, Pod};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a directory is looked at when nothing is heard of it: a label of a
/// namespace in a file system that sends no messages.
const LOOK: Duration = Duration::from_secs(1);

/// How long the first look waits for files that are being written.
const FRESH: Duration = Duration::from_secs(2);

/// A pod at a moment. Shares what the source holds.
#[derive(Debug, Clone)]
pub(crate) struct Told(Kept);

#[derive(Debug, Clone)]
enum Kept {
    /// Of the API; always usable.
    Node(Arc<Seen>),
    /// Of a manifest.
    Manifest(Arc<Listed>),
}

/// A pod of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(super) pod: Pod,
    pub(super) workload: Workload,
}

/// What is known of a pod's life, which manifests do not tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status<'a> {
    /// `metadata.resourceVersion`.
    pub(crate) version: &'a str,
    /// `status.podIPs`.
    pub(crate) addresses: &'a [IpAddr],
    /// No container of it runs, or will.
    pub(crate) over: bool,
    /// It is being deleted.
    pub(crate) deleting: bool,
    /// What our condition on it says.
    pub(crate) captured: Option<Captured>,
}

impl Told {
    pub(super) fn listed(pod: Pod, workload: Workload) -> Self {
        Self(Kept::Manifest(Arc::new(Listed { pod, workload })))
    }

    /// `None` for a pod that cannot be decided about.
    pub(super) fn seen(seen: Arc<Seen>) -> Option<Self> {
        matches!(&*seen, Seen::Usable(_)).then_some(Self(Kept::Node(seen)))
    }

    fn node(&self) -> Option<&NodePod> {
        match &self.0 {
            Kept::Node(seen) => match &**seen {
                Seen::Usable(pod) => Some(pod),
                Seen::Unusable { .. } => None,
            },
            Kept::Manifest(_) => None,
        }
    }

    /// What the mesh decides by.
    pub(crate) fn facts(&self) -> &Pod {
        static NONE: std::sync::LazyLock<Pod> = std::sync::LazyLock::new(Pod::default);
        match &self.0 {
            Kept::Node(_) => self.node().map_or(&NONE, |pod| &pod.facts),
            Kept::Manifest(listed) => &listed.pod,
        }
    }

    /// Who it is to ztunnel, and its probes.
    pub(crate) fn workload(&self) -> &Workload {
        static NONE: std::sync::LazyLock<Workload> = std::sync::LazyLock::new(Workload::default);
        match &self.0 {
            Kept::Node(_) => self.node().map_or(&NONE, |pod| &pod.workload),
            Kept::Manifest(listed) => &listed.workload,
        }
    }

    /// How it fares; `None` where nobody says.
    pub(crate) fn status(&self) -> Option<Status<'_>> {
        self.node().map(|pod| Status {
            version: &pod.version,
            addresses: &pod.addresses,
            over: pod.is_over(),
            deleting: pod.deleting,
            captured: pod.captured,
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> PodName {
        let Pod { namespace, name, .. } = self.facts();
        PodName { namespace: namespace.clone(), name: name.clone() }
    }

    /// What it is known by: its uid, or its name where a manifest has none.
    pub(crate) fn uid(&self) -> String {
        match &self.facts().uid {
            Some(uid) => uid.clone(),
            None => self.name().to_string(),
        }
    }

    /// Uids that its processes may have in their cgroup's name: its own, and that of
    /// the static pod that it mirrors.
    pub(crate) fn uids(&self) -> Vec<String> {
        let facts = self.facts();
        let all = [facts.uid.as_deref(), manifest::static_uid(facts)];
        all.into_iter().flatten().map(ToOwned::to_owned).collect()
    }
}

/// Something that happened to the node's pods.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is there, or is another than before, or its namespace is.
    Pod(Told),
    /// There is none of this name any more.
    Gone(PodName),
    /// All that there are have been told once.
    Complete,
}

impl Pods {
    /// The pod of this name, if it can be decided about now.
    pub(crate) fn told(&self, name: &PodName) -> Option<Told> {
        match self {
            Self::Kubernetes(kubernetes) => Told::seen(kubernetes.pod(name)?),
            Self::Directory(directory) => directory.told(name),
        }
    }

    /// There is a pod of this name, whatever is wrong with it.
    pub(crate) fn has(&self, name: &PodName) -> bool {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.pod(name).is_some(),
            Self::Directory(directory) => directory.told(name).is_some(),
        }
    }

    /// There is a pod of this name, or may be: a manifest that cannot be read says
    /// nothing of whose it is.
    pub(crate) fn may_have(&self, name: &PodName) -> bool {
        self.has(name) || matches!(self, Self::Directory(directory) if directory.is_in_doubt())
    }

    /// A namespace as it is known now.
    pub(crate) fn namespace(&self, name: &str) -> Option<Namespace> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.namespace(name),
            Self::Directory(directory) => {
                directory.all().1.into_iter().find(|namespace| namespace.name == name)
            }
        }
    }

    /// Tells all pods, that this is done, and from then on each change, until `tell`
    /// says that nobody listens. Must be called in the runtime.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn follow(
        &self,
        tell: impl Fn(Change) -> bool + Send + 'static,
    ) -> std::io::Result<()> {
        match self {
            Self::Kubernetes(kubernetes) => {
                tokio::spawn(follow_kubernetes(Arc::clone(kubernetes), tell));
            }
            Self::Directory(directory) => {
                let directory = Arc::clone(directory);
                std::thread::Builder::new()
                    .name("pods".to_owned())
                    .spawn(move || follow_directory(&directory, tell))?;
            }
        }
        Ok(())
    }
}

async fn follow_kubernetes(kubernetes: Arc<Kubernetes>, tell: impl Fn(Change) -> bool) {
    let mut synced = kubernetes.synced();
    // Ends with the source, which lives as long as this.
    if synced.wait_for(super::kubernetes::Synced::is_complete).await.is_err() {
        return;
    }
    let mut changes = kubernetes.events_with_namespaces();
    let change = |name: PodName| match kubernetes.pod(&name) {
        None => Some(Change::Gone(name)),
        // What cannot be read says nothing new of it.
        Some(seen) => Told::seen(seen).map(Change::Pod),
    };
    while let Some(name) = changes.try_next() {
        if let Some(change) = change(name)
            && !tell(change)
        {
            return;
        }
    }
    if !tell(Change::Complete) {
        return;
    }
    loop {
        let name = changes.next().await;
        if let Some(change) = change(name)
            && !tell(change)
        {
            return;
        }
    }
}

fn follow_directory(directory: &Directory, tell: impl Fn(Change) -> bool) {
    let mut known: HashMap<PodName, (Arc<Listed>, Option<Namespace>)> = HashMap::new();
    let (mut complete, begun) = (false, Instant::now());
    loop {
        let before = directory.generation();
        // Before the look, which then has what was read by now.
        let unread = directory.is_unread();
        let (here, namespaces) = directory.everything();
        let in_doubt =
            here.values().any(Option::is_none) || namespaces.values().any(Option::is_none);
        let mut changes = Vec::new();
        known.retain(|name, _| {
            let stays = here.contains_key(name);
            if !stays {
                changes.push(Change::Gone(name.clone()));
            }
            stays
        });
        for (name, pod) in here {
            // In doubt: it is what it was.
            let Some(pod) = pod else { continue };
            let namespace = namespaces.get(&name.namespace);
            // So is its namespace.
            if matches!(namespace, Some(None)) {
                continue;
            }
            let namespace = namespace.cloned().flatten();
            let now = (Arc::new(pod), namespace);
            if known.get(&name) != Some(&now) {
                changes.push(Change::Pod(Told(Kept::Manifest(Arc::clone(&now.0)))));
                known.insert(name, now);
            }
        }
        // A pod whose manifest is too fresh to be read yet would be taken for gone, and
        // what captures it for what is left of it.
        if !complete && (begun.elapsed() > FRESH || !(unread || in_doubt)) {
            complete = true;
            changes.push(Change::Complete);
        }
        for change in changes {
            if !tell(change) {
                return;
            }
        }
        directory.await_change(before, LOOK);
    }
}

#[cfg(test)]
mod tests;
