//! Requests about ambient pods: given to [`crate::ambient`], which does the work.

use super::target::holds;
use super::{Agent, answer, misplaced, named};
use crate::ambient::{AddError, NOT_PROVED, Named, Sandbox};
use crate::failure::{Failure, causes};
use crate::record::{Record, SandboxId};
use ::ambient::action::{Refusal, Stage};
use redirect::pod::Pod;
use std::time::Instant;
use sys::backend::Diff;
use sys::netns::{Netns, within_pod};
use wire::code;
use wire::request::{Answer, Decision, PodRequest};

impl Agent {
    /// Has a pod captured for ztunnel, and waits until it is.
    pub(super) fn capture_ambient(
        &self,
        request: &PodRequest,
        netns: Netns,
        pod: &Pod,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let Some(ambient) = self.ambient.get() else {
            return Err(failure(pod, &AddError::Silent));
        };
        let addresses = named(request);
        let held = within_pod(&netns, self.hosts.own(), sys::routing::addresses);
        // A namespace that cannot be asked cannot be programmed either, which says why.
        if let Ok(Ok(held)) = held {
            holds(&addresses, &held).map_err(|why| misplaced(&request.netns, &why))?;
        }
        let sluice = request.sluice.clone().unwrap_or_default();
        // A stock plugin names no sandbox: one a namespace.
        let id = if sluice.container_id.is_empty() {
            format!("netns-{}", netns.id().ino)
        } else {
            sluice.container_id
        };
        let sandbox = Sandbox {
            id: id.clone(),
            interface: sluice.if_name,
            path: request.netns.clone(),
            netns,
            addresses,
        };
        match ambient.add(pod, sandbox, deadline) {
            Ok(()) => {
                if let Ok(id) = SandboxId::new(&id) {
                    self.audit.forget(&id);
                }
                Ok(answer(Decision::Ambient, "rules are proved and ztunnel has the pod"))
            }
            Err(AddError::Ztunnel) => Ok(answer(Decision::Skip, "the pod is a ztunnel")),
            Err(error) => Err(failure(pod, &error)),
        }
    }

    /// The last that it does where the mesh was removed from the node: nothing would take
    /// the host's rules out later. Pods that were not un-enrolled stay captured. Blocks.
    pub(super) fn leave_host(&self) {
        let Some(ambient) = self.ambient.get() else { return };
        match ambient.leave_host() {
            Ok(()) => tracing::info!(
                "the mesh was removed from this node: removed the host's rules for kubelet's probes"
            ),
            Err(reason) => tracing::error!(
                reason,
                "the mesh was removed from this node, but the host's rules for kubelet's probes are not wholly removed"
            ),
        }
    }

    /// Notes where a pod is that is left alone: should it be labelled while it runs, it
    /// need not be looked for.
    pub(super) fn note_place(&self, request: &PodRequest, netns: &Netns, uid: &str) {
        let Some(ambient) = self.ambient.get() else { return };
        let Some(sluice) = &request.sluice else { return };
        let sandbox = Named {
            id: sluice.container_id.clone(),
            interface: sluice.if_name.clone(),
            path: request.netns.clone(),
            netns: netns.id(),
            addresses: request.ips.iter().flatten().filter_map(|ip| ip.address.addr()).collect(),
        };
        ambient.passed(uid, sandbox);
    }

    /// How an ambient pod's namespace differs from what it was programmed with.
    pub(super) fn observe_ambient(&self, record: &Record, netns: &Netns) -> Result<Diff, Failure> {
        let Some(ambient) = self.ambient.get() else {
            return Err(Failure::new(
                code::CAPTURE_UNSUPPORTED,
                "the pod was captured for ztunnel, and ambient mode is off now",
                "turn ambient mode on, or delete the pod",
            ));
        };
        let missing = |what: String| Failure::new(code::RULES_MISSING, what, super::check::NEXT);
        within_pod(netns, self.hosts.own(), || ambient.observe(record))
            .map_err(|error| Failure::new(code::INVALID_NETNS, causes(&error), super::check::NEXT))?
            .map_err(missing)
    }
}

/// Which code, and what to do next.
fn failure(pod: &Pod, error: &AddError) -> Failure {
    let what = format!("pod {}/{}: {error}", pod.namespace, pod.name);
    let again = "the runtime tries again; if it stays, look in the agent's log of this pod";
    let (code, next) = match error {
        AddError::Annotation(_) => (code::INVALID_ANNOTATION, "correct the pod's manifest"),
        AddError::Unknown | AddError::Refused(Refusal::Unknown | Refusal::Unwanted) => {
            (code::UNKNOWN_POD, "the runtime tries again, and the pod is decided about anew")
        }
        AddError::Silent | AddError::Ztunnel => (code::INTERNAL, "report it with the agent's log"),
        AddError::Refused(Refusal::Late { stage, .. } | Refusal::Failed { stage, .. }) => {
            match stage {
                Stage::Connection => (
                    code::ZTUNNEL_NOT_CONNECTED,
                    "the runtime tries again; look whether ztunnel runs on this node and connects to the agent's socket (--ztunnel-uds-address)",
                ),
                Stage::Ztunnel => (
                    code::ZTUNNEL_NOT_ACCEPTED,
                    "the runtime tries again; look in the log of this node's ztunnel",
                ),
                Stage::Rules if what.contains(NOT_PROVED) => (code::CAPTURE_NOT_PROVED, again),
                Stage::Rules => (code::RULES_NOT_PROGRAMMED, again),
                Stage::Listing => (
                    code::AGENT_TIMED_OUT,
                    "the runtime tries again; look whether the API server is well",
                ),
                Stage::Namespace | Stage::Probes | Stage::Annotation => {
                    (code::AGENT_TIMED_OUT, again)
                }
            }
        }
        AddError::Refused(Refusal::Draining) => (
            code::TRY_AGAIN_LATER,
            "the node was drained (sluice drain); restart its agent to end that",
        ),
        AddError::Refused(Refusal::Ended | Refusal::Superseded(_) | Refusal::SandboxGone) => {
            (code::INVALID_NETNS, "nothing is to be done: the runtime has given this sandbox up")
        }
    };
    Failure::new(code, what, next)
}
