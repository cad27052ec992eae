//! What steps need of the node: they run side by side and share nothing else.

use super::jobs::Held;
use super::options::Options;
use crate::backend::NodeBackend;
use crate::hosts::Hosts;
use crate::notice::Notices;
use crate::record::{Record, Records, SandboxId};
use crate::source::Pods;
use ambient::id::NetnsId;
use redirect::enroll;
use std::path::PathBuf;
use std::sync::Arc;
use sys::watch::Watch;

/// The node, as the rest of the agent has it too.
#[derive(Debug)]
pub(crate) struct Node {
    /// Pods and namespaces.
    pub(crate) source: Pods,
    /// What decides which pods are ambient.
    pub(crate) policy: enroll::Config,
    /// Settings of ambient mode.
    pub(crate) options: Options,
    /// Programs namespaces.
    pub(crate) backend: Arc<NodeBackend>,
    /// What was programmed.
    pub(crate) records: Arc<Records>,
    /// Namespaces that are never programmed.
    pub(crate) hosts: Arc<Hosts>,
    /// What is said of pods in the cluster.
    pub(crate) notices: Arc<Notices>,
    /// Directory of the host's processes.
    pub(crate) proc: PathBuf,
    /// Hears of changes in namespaces, where that can be had.
    pub(crate) watch: Option<Arc<Watch>>,
}

impl Node {
    /// What is written down of ambient pods, with the names of the records.
    pub(super) fn recorded(&self) -> Vec<(SandboxId, Record)> {
        let mut found = Vec::new();
        for id in self.records.ids() {
            match self.records.read(&id) {
                Ok(Some(record)) if record.ambient.is_some() => found.push((id, record)),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(reason = %crate::failure::causes(&error), "cannot read a record");
                }
            }
        }
        found
    }
}

/// The machine's name of a namespace.
pub(super) fn id(netns: sys::netns::NetnsId) -> NetnsId {
    NetnsId { dev: netns.dev, ino: netns.ino }
}

/// Name of the record of a pod in a namespace.
pub(super) fn record_name(held: &Held, uid: &str) -> Option<SandboxId> {
    let own = held.sandbox.as_deref().and_then(|id| SandboxId::new(id).ok());
    own.or_else(|| SandboxId::of_found(uid).ok())
}
