//! What the runtime said about a pod, used before anybody is asked. Hints: a pod
//! that is known decides by itself, and what passed by a hint is audited.

use super::Agent;
use crate::failure::Failure;
use crate::record::SandboxId;
use crate::source::{Found, Pods, Wanted};
use redirect::pod::Pod;
use std::time::Instant;
use sys::netns::Netns;
use wire::code;
use wire::passed::{self, Passed};
use wire::request::PodRequest;
use wire::snapshot::{Certainty, INJECTED, Subject, Verdict};

/// What an ADD goes by.
pub(super) enum Known {
    /// The pod itself.
    Pod(Box<Found>),
    /// It is certain to be outside the mesh, for this reason, before it is known.
    Outside(String),
}

/// A request's pod as the runtime described it.
fn subject(request: &PodRequest) -> Subject<'_> {
    let sluice = request.sluice.as_ref();
    Subject {
        namespace: &request.pod_namespace,
        name: &request.pod_name,
        uid: sluice.map_or("", |s| &s.pod_uid),
        annotations: sluice.and_then(|s| s.pod_annotations.as_ref()),
    }
}

impl Agent {
    /// The pod, or that it need not be waited for.
    pub(super) fn look_up(
        &self,
        request: &PodRequest,
        sandbox: Option<&SandboxId>,
        netns: &Netns,
        deadline: Instant,
    ) -> Result<Known, Failure> {
        let subject = subject(request);
        let injected = subject.is_injected();
        let wanted = Wanted { namespace: subject.namespace, name: subject.name, uid: subject.uid };
        // A manifest comes by itself, a question to the API server may take long.
        let asks = matches!(self.source, Pods::Kubernetes(_));
        if asks
            && injected == Some(false)
            && !self.source.is_known(wanted)
            && let Some(reason) = self.pass(request, sandbox, netns, "it is not known yet")
        {
            return Ok(Known::Outside(reason));
        }
        let failure = match self.find(request, deadline) {
            Ok(found) => {
                compare(&found.pod, injected);
                if injected == Some(true) && found.pod.annotation(INJECTED).is_none() {
                    return Err(contradicted(&found.pod));
                }
                return Ok(Known::Pod(Box::new(found)));
            }
            Err(failure) => failure,
        };
        // With the API server away the agent knows no less than the plugin would alone.
        match self.pass(request, sandbox, netns, &failure.error.msg) {
            Some(reason) => Ok(Known::Outside(reason)),
            None if injected == Some(true) => Err(known_as_meshed(failure)),
            None => Err(failure),
        }
    }

    /// Lets a pod pass that is certain to be outside the mesh, for an audit later;
    /// `None` when it is not, or when that cannot be written down.
    fn pass(
        &self,
        request: &PodRequest,
        sandbox: Option<&SandboxId>,
        netns: &Netns,
        unknown: &str,
    ) -> Option<String> {
        let Verdict::Outside(certainty) = self.keeper.current()?.judge(subject(request)) else {
            return None;
        };
        // What it was by its manifest does not count while that can be looked at.
        if certainty == Certainty::Known && matches!(self.source, Pods::Directory(_)) {
            return None;
        }
        let reason = format!("{certainty}; {unknown}");
        let (sluice, id) = (request.sluice.as_ref()?, netns.id());
        let written = self.audit.write_down(&Passed {
            version: passed::VERSION,
            container: sandbox?.as_str().to_owned(),
            interface: sluice.if_name.clone(),
            namespace: request.pod_namespace.clone(),
            name: request.pod_name.clone(),
            uid: sluice.pod_uid.clone(),
            netns: request.netns.clone(),
            dev: id.dev,
            ino: id.ino,
            annotations: sluice.pod_annotations.clone(),
            reason: reason.clone(),
        });
        let (ns, pod, uid) = (&request.pod_namespace, &request.pod_name, &sluice.pod_uid);
        match written {
            Ok(()) => {
                tracing::info!(ns, pod, uid, netns = %id, reason, "left alone, to be audited");
                Some(reason)
            }
            Err(error) => {
                tracing::error!(ns, pod, uid, netns = %id, reason = %error, "cannot write down that a pod passes");
                None
            }
        }
    }
}

/// Only a stale or half-read pod can lack what the runtime was given with it; it must
/// not pass for that.
fn contradicted(pod: &Pod) -> Failure {
    Failure::new(
        code::UNKNOWN_POD,
        format!(
            "pod {}/{} has a sidecar by its annotations ({INJECTED}), which the runtime passed, and none as the agent knows it",
            pod.namespace, pod.name
        ),
        "the runtime tries again; if it stays, look whether the pod's manifest is up to date where the agent reads it",
    )
}

/// The plan needs what annotations do not tell: the proxy's user and switches.
fn known_as_meshed(mut failure: Failure) -> Failure {
    failure.error.msg = format!(
        "{}; by its annotations ({INJECTED}), which the runtime passed, it is a pod of the mesh, and how its proxy runs is in its manifest only",
        failure.error.msg
    );
    failure
}

/// Says so when the runtime and the source of pods are of different opinions.
/// A hint never makes a pod pass; it may keep one from passing.
pub(super) fn compare(pod: &Pod, injected: Option<bool>) {
    let has = pod.annotation(INJECTED).is_some();
    if let Some(said) = injected
        && said != has
    {
        tracing::warn!(
            ns = pod.namespace,
            pod = pod.name,
            uid = pod.uid,
            runtime = said,
            manifest = has,
            reason = "the runtime's annotations and the pod's disagree about the sidecar",
            "hint contradicted"
        );
    }
}
