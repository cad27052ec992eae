//! ADD: decide, program, prove, record, answer.

use super::hints::Known;
use super::target::holds;
use super::{Agent, answer, in_time, misplaced, named, sandbox};
use crate::backend::{Programmed, rules_hash};
use crate::failure::{Failure, causes};
use crate::record::{self, Facts, PodKey, Record, SandboxId};
use crate::server::Along;
use redirect::enroll::{self, decide};
use redirect::plan::Plan;
use redirect::pod::Pod;
use redirect::sidecar::{self, PlanError, plan};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use sys::backend::BackendKind;
use sys::netns::{Netns, within_pod};
use sys::probe::{self, Inside, ProbeError, Report};
use wire::code;
use wire::request::{Answer, Decision, PodRequest};

/// How long a runtime that runs the `loopback` plugin beside our chain is waited for.
/// Both begin together; one that brings `lo` up later, or not at all, costs this once.
const LOOPBACK_WAIT: Duration = Duration::from_millis(500);

/// What was done inside the pod's namespace.
struct Done {
    addresses: Vec<IpAddr>,
    plan: Plan,
    programmed: Programmed,
}

impl Agent {
    /// Captures a pod, or says why not. Rules that are in stay in when a later step
    /// fails: a sandbox that is captured for nothing is deleted by the runtime, one
    /// that is not captured could be started.
    pub(super) fn add(
        &self,
        request: &PodRequest,
        along: Along,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let sandbox = sandbox(request)?;
        if request.pod_name.is_empty() || request.pod_namespace.is_empty() {
            return Err(Failure::bad_request(
                "request names no pod: PodName or PodNamespace is empty",
            ));
        }
        let netns = self.netns(request, along)?;
        let found = match self.look_up(request, sandbox.as_ref(), &netns, deadline)? {
            Known::Pod(found) => found,
            Known::Outside(reason) => {
                if let Some(sluice) = &request.sluice {
                    self.note_place(request, &netns, &sluice.pod_uid);
                }
                return Ok(answer(Decision::Skip, reason));
            }
        };
        let pod = &found.pod;
        let decision = decide(pod, found.namespace.as_ref(), &self.config).map_err(|error| {
            Failure::new(code::UNKNOWN_POD, error.to_string(), self.source.namespace_advice())
        })?;
        match decision {
            enroll::Decision::Skip(reason) => {
                if let Some(doubt) = &found.doubt {
                    return Err(doubted(pod, doubt));
                }
                tracing::info!(
                    ns = pod.namespace,
                    pod = pod.name,
                    uid = pod.uid,
                    netns = %netns.id(),
                    reason = reason.code(),
                    "left alone"
                );
                let name = || format!("{}/{}", pod.namespace, pod.name);
                self.note_place(request, &netns, &pod.uid.clone().unwrap_or_else(name));
                Ok(answer(Decision::Skip, reason.to_string()))
            }
            enroll::Decision::Ambient => {
                self.host_is_known(&netns)?;
                self.capture_ambient(request, netns, pod, deadline)
            }
            enroll::Decision::Sidecar => {
                self.host_is_known(&netns)?;
                let answer = self.capture(request, sandbox.as_ref(), &netns, pod, deadline)?;
                if let Some(id) = &sandbox {
                    // Captured before it starts. What runs already is the audit's to tell.
                    self.audit.forget(id);
                }
                Ok(answer)
            }
        }
    }

    pub(super) fn capture(
        &self,
        request: &PodRequest,
        sandbox: Option<&SandboxId>,
        netns: &Netns,
        pod: &Pod,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let _turns = self.turns(sandbox, Some(netns.id()), deadline)?;
        in_time(deadline, "the rules were programmed")?;
        for warning in sidecar::warnings(pod) {
            tracing::warn!(ns = pod.namespace, pod = pod.name, reason = warning, "setting ignored");
        }
        let host = self.hosts.own();
        let (done, inside) = within_pod(netns, host, || self.program(request, pod, deadline))
            .map_err(|error| {
                Failure::new(code::INVALID_NETNS, causes(&error), "the runtime makes a new sandbox")
            })??;
        // Half of what is left is for a node that has to look for the pod; the rest for
        // the record and another family.
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / 2;
        let report = inside.finish(netns, until).map_err(|error| not_proved(&error))?;
        in_time(deadline, "the record was written")?;
        let mut record = self.record(request, netns, pod, &done);
        if let Some(id) = sandbox {
            // One that cannot be read is replaced.
            if let Ok(Some(before)) = self.records.read(id) {
                record.join(&before);
            }
            self.records.write(id, &record).map_err(|error| {
                Failure::new(
                    code::RECORD_NOT_WRITTEN,
                    causes(&error),
                    "make room on the file system of the agent's run directory; the sandbox is captured but not started",
                )
            })?;
        }
        if let Some(id) = sandbox {
            self.was_captured(id);
        }
        log(pod, netns, &done.programmed, &report, sandbox.is_none());
        Ok(answer(Decision::Sidecar, report.to_string()))
    }

    /// In the pod's namespace: plan, rules, and the proof of what leaves it.
    fn program(
        &self,
        request: &PodRequest,
        pod: &Pod,
        deadline: Instant,
    ) -> Result<(Done, Inside), Failure> {
        let rules = |what: String| {
            let next = "nothing was started; look in the agent's log, and whether the node's kernel has nf_tables or ip_tables";
            Failure::new(code::RULES_NOT_PROGRAMMED, what, next)
        };
        // The runtime may bring lo up only after this chain, and the proof goes by it.
        let addresses =
            sys::routing::prepare(LOOPBACK_WAIT).map_err(|error| rules(causes(&error)))?;
        holds(&named(request), &addresses).map_err(|why| misplaced(&request.netns, &why))?;
        let addresses = super::without_validation(addresses);
        let plan = plan(pod, &self.config, &addresses).map_err(|error| refused(pod, &error))?;
        let place = match self.backend.kind() {
            BackendKind::Nftables => None,
            BackendKind::Iptables => self.restores.enter(deadline),
        };
        in_time(deadline, "it was the turn of its rules")?;
        let programmed = self.backend.program(&plan).map_err(rules)?;
        drop(place);
        let inside = probe::inside(&plan, &addresses).map_err(|error| not_proved(&error))?;
        Ok((Done { addresses, plan, programmed }, inside))
    }

    fn record(&self, request: &PodRequest, netns: &Netns, pod: &Pod, done: &Done) -> Record {
        let sluice = request.sluice.clone().unwrap_or_default();
        let id = netns.id();
        Record {
            version: Record::VERSION,
            sandbox: sluice.container_id,
            interfaces: [sluice.if_name.clone()].into(),
            interface: sluice.if_name,
            pod: PodKey {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone().or_else(|| Some(sluice.pod_uid).filter(|uid| !uid.is_empty())),
            },
            netns: record::Namespace { dev: id.dev, ino: id.ino },
            backend: done.programmed.kind.to_string(),
            rules: rules_hash(&done.plan),
            addresses: done.addresses.clone(),
            facts: Facts::of(pod),
            path: request.netns.clone(),
            ambient: None,
            leaving: false,
        }
    }
}

/// What was outside the mesh as far as its manifest could be read may be in it by now.
fn doubted(pod: &Pod, doubt: &str) -> Failure {
    Failure::new(
        code::UNKNOWN_POD,
        format!(
            "pod {}/{} was outside the mesh when its manifest could be read last: {doubt}",
            pod.namespace, pod.name
        ),
        "mend the manifest; the runtime tries again",
    )
}

fn refused(pod: &Pod, error: &PlanError) -> Failure {
    let what = format!("pod {}/{}: {error}", pod.namespace, pod.name);
    match error {
        PlanError::NoAddress => Failure::new(
            code::INVALID_NETWORK_CONFIG,
            what,
            "put istio-cni behind the plugin that gives the pod its address, and look whether that plugin worked",
        ),
        _ => Failure::new(code::INVALID_ANNOTATION, what, "correct the pod's manifest"),
    }
}

fn not_proved(error: &ProbeError) -> Failure {
    Failure::new(
        code::CAPTURE_NOT_PROVED,
        format!("capture is not proved: {}", causes(error)),
        "the rules stay in the sandbox, which was not started; look for rules of others in the pod's namespace (raw and filter tables), and whether lo is up",
    )
}

fn log(pod: &Pod, netns: &Netns, programmed: &Programmed, report: &Report, unrecorded: bool) {
    tracing::info!(
        ns = pod.namespace,
        pod = pod.name,
        uid = pod.uid,
        netns = %netns.id(),
        backend = %programmed.kind,
        applied = %programmed.applied,
        reason = programmed.note,
        proved = report.is_complete(),
        proof = %report,
        unrecorded,
        "captured"
    );
}
