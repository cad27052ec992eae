//! Pods that run already, without a request of the plugin: found, looked at, and
//! captured exactly as by an ADD.

use super::Agent;
use crate::failure::{Failure, causes};
use crate::place::{self, Place, PlaceError};
use crate::record::{Record, SandboxId};
use crate::source::kubernetes::object::NodePod;
use redirect::enroll::{self, decide};
use redirect::pod::{Namespace, Pod};
use std::time::{Duration, Instant};
use sys::netns::{NetnsId, within_pod};
use wire::code;
use wire::request::{Extension, PodRequest};

/// Time for a capture.
const LIMIT: Duration = Duration::from_secs(4);

/// The interface that the kubelet has sandboxes added with.
const INTERFACE: &str = "eth0";

/// What is written down of a pod that runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Before<'a> {
    /// Nothing.
    Nothing,
    /// Another sandbox of it, which is gone: of the new one only the interface's name is
    /// the same. The number of its namespace may be.
    Former(&'a Record),
    /// The one that runs.
    Same(&'a Record),
}

/// Why a pod that runs could not be captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunningError {
    /// It has no namespace of its own.
    #[error("the pod is in the host's network, which is never programmed")]
    HostNetwork,
    /// Its namespace is not to be had.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Its namespace cannot be looked at.
    #[error("look at the pod's network namespace: {0}")]
    Look(String),
    /// It could not be captured.
    #[error("{0}")]
    Capture(Failure),
}

impl Agent {
    /// Captures a pod that runs, whatever rules it has. Says what was proved.
    ///
    /// # Errors
    /// When its namespace is not found, or the capture fails.
    pub(crate) fn capture_running(&self, pod: &NodePod) -> Result<String, RunningError> {
        let records = self.records_of(pod);
        let place = self.place(pod, &records)?;
        let id = place.netns.id();
        let record = records.iter().find(|record| programmed(record) == id);
        let before = record.map_or(Before::Nothing, Before::Same);
        self.capture_in(&pod.facts, &place, before).map(|(_, proof)| proof)
    }

    /// Captures a pod of the mesh that runs and has no rules and no record: nobody
    /// asked about it. `None` when it is well, or not of the mesh.
    ///
    /// # Errors
    /// When that cannot be found out, or the capture fails.
    pub(crate) fn capture_early(
        &self,
        pod: &NodePod,
        namespace: Option<&Namespace>,
    ) -> Result<Option<String>, RunningError> {
        match decide(&pod.facts, namespace, &self.config) {
            Ok(enroll::Decision::Sidecar) => {}
            Ok(_) => return Ok(None),
            Err(error) => return Err(RunningError::Look(error.to_string())),
        }
        // Before the search, which looks at all processes: after a restart of the agent
        // all pods have one. That of a sandbox which is gone says nothing of the one
        // that took its place, maybe when the plugin was not in the chain.
        let records = self.records_of(pod);
        if records.iter().any(is_there) {
            return Ok(None);
        }
        let place = match self.place(pod, &records) {
            // What was captured is gone, and nothing runs: its next ADD is to come.
            Err(RunningError::Place(PlaceError::Nowhere { .. })) if !records.is_empty() => {
                return Ok(None);
            }
            found => found?,
        };
        let look = |error: &dyn std::error::Error| RunningError::Look(causes(error));
        let bare = within_pod(&place.netns, self.hosts.own(), || self.backend.is_bare());
        let bare = bare.map_err(|error| look(&error))?.map_err(RunningError::Look)?;
        if !bare {
            return Ok(None);
        }
        self.capture_in(&pod.facts, &place, Before::Nothing).map(|(_, proof)| Some(proof))
    }

    /// What was written down about the pod; of one sandbox after the other there may be
    /// several.
    fn records_of(&self, pod: &NodePod) -> Vec<Record> {
        // One that cannot be read is told of by CHECK.
        let records =
            self.records.ids().into_iter().filter_map(|id| self.records.read(&id).ok()?);
        let is_own =
            |record: &Record| record.pod.uid.as_deref().is_some_and(|uid| pod.has_uid(uid));
        records.filter(is_own).collect()
    }

    fn place(&self, pod: &NodePod, records: &[Record]) -> Result<Place, RunningError> {
        if pod.facts.host_network {
            return Err(RunningError::HostNetwork);
        }
        let uids = [pod.facts.uid.as_deref(), pod.static_uid()];
        let uids: Vec<String> = uids.into_iter().flatten().map(ToOwned::to_owned).collect();
        let recorded: Vec<NetnsId> = records.iter().map(programmed).collect();
        let wanted = place::Wanted {
            uids: &uids,
            addresses: &pod.addresses,
            recorded: &recorded,
            hosts: self.hosts.all(),
        };
        Ok(place::find(&place::root(), &wanted)?)
    }

    /// Captures it where it runs. Says the sandbox's name, and what was proved.
    ///
    /// # Errors
    /// When the capture fails.
    pub(super) fn capture_in(
        &self,
        pod: &Pod,
        place: &Place,
        before: Before<'_>,
    ) -> Result<(SandboxId, String), RunningError> {
        let (record, same) = match before {
            Before::Nothing => (None, None),
            Before::Former(record) => (Some(record), None),
            Before::Same(record) => (Some(record), Some(record)),
        };
        // A record and a process of the pod's own say that it is not the host's either.
        if same.is_none() && place.sandbox.is_none() {
            self.host_is_known(&place.netns).map_err(RunningError::Capture)?;
        }
        // Found a moment ago, and looked at once more: never the host's.
        if self.hosts.contains(place.netns.id()) {
            return Err(RunningError::Capture(Failure::new(
                code::INVALID_NETNS,
                "the pod's network namespace is the host's",
                "nothing was done",
            )));
        }
        let known = same.map(|record| &record.sandbox).or(place.sandbox.as_ref());
        // By a name of ours where its own is not to be seen: without a record nobody
        // would look after it.
        let uid = pod.uid.clone().or_else(|| record?.pod.uid.clone());
        let sandbox = match (known, &uid) {
            (Some(id), _) => SandboxId::new(id),
            (None, Some(uid)) => SandboxId::of_found(uid),
            (None, None) => SandboxId::of_found(&format!("{}.{}", pod.namespace, pod.name)),
        };
        let sandbox = sandbox.map_err(|error| RunningError::Look(error.to_string()))?;
        let request = PodRequest {
            netns: same.map(|record| record.path.clone()).unwrap_or_default(),
            pod_name: pod.name.clone(),
            pod_namespace: pod.namespace.clone(),
            sluice: Some(Extension {
                container_id: sandbox.as_str().to_owned(),
                if_name: record.map_or(INTERFACE, |record| &record.interface).to_owned(),
                pod_uid: uid.unwrap_or_default(),
                ..Extension::default()
            }),
            ..PodRequest::default()
        };
        let deadline = Instant::now() + LIMIT;
        let answer = self.capture(&request, Some(&sandbox), &place.netns, pod, deadline);
        Ok((sandbox, answer.map_err(RunningError::Capture)?.reason))
    }
}

/// The namespace that was programmed is there: at its path, or around a process.
fn is_there(record: &Record) -> bool {
    let id = programmed(record);
    place::by_path(&record.path, id, &record.addresses).is_some()
        || place::occupied(&place::root()).is_ok_and(|all| all.contains(&id))
}

fn programmed(record: &Record) -> NetnsId {
    NetnsId { dev: record.netns.dev, ino: record.netns.ino }
}
