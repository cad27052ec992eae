//! CHECK, DEL, GC and STATUS.

use super::{Agent, answer, sandbox};
use crate::failure::{Failure, causes};
use crate::place;
use crate::record::{Detached, SandboxId};
use crate::server::Along;
use redirect::enroll::{self, decide};
use redirect::plan::Plan;
use redirect::pod::Pod;
use redirect::sidecar::plan;
use std::net::IpAddr;
use std::time::Instant;
use sys::backend::Diff;
use sys::netns::{NetnsId, within_pod};
use wire::code;
use wire::request::{Answer, Attachment, Decision, GcRequest, PodRequest};

/// Lines of a difference that fit an error message.
const DIFF_LINES: usize = 3;

impl Agent {
    /// Compares a pod's namespace with what its plan wants.
    pub(super) fn check(
        &self,
        request: &PodRequest,
        along: Along,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let sandbox = sandbox(request)?;
        let netns = self.netns(request, along)?;
        let record = match &sandbox {
            Some(id) => self.records.read(id).map_err(|error| {
                Failure::new(
                    code::IO_FAILURE,
                    causes(&error),
                    "remove the file; the next ADD writes it anew",
                )
            })?,
            None => None,
        };
        if let Some(record) = record.as_ref().filter(|record| record.ambient.is_some()) {
            let _turns = self.turns(sandbox.as_ref(), Some(netns.id()), deadline)?;
            let diff = self.observe_ambient(record, &netns)?;
            return verdict(&record.pod(), &diff, Decision::Ambient);
        }
        // What was planned at ADD holds, whatever the manifest says by now.
        let (pod, addresses): (Pod, Option<Vec<IpAddr>>) = match record {
            Some(record) => (record.pod(), Some(record.addresses)),
            None => {
                let found = self.find(request, deadline)?;
                let decision = decide(&found.pod, found.namespace.as_ref(), &self.config);
                match decision {
                    Ok(enroll::Decision::Skip(reason)) => {
                        return Ok(answer(Decision::Skip, reason.to_string()));
                    }
                    Ok(enroll::Decision::Sidecar) => (found.pod, None),
                    Ok(enroll::Decision::Ambient) => {
                        let what = "the pod is to be captured for ztunnel, and was not";
                        return Err(Failure::new(code::RULES_MISSING, what, NEXT));
                    }
                    Err(error) => {
                        return Err(Failure::new(code::UNKNOWN_POD, error.to_string(), NEXT));
                    }
                }
            }
        };
        let _turns = self.turns(sandbox.as_ref(), Some(netns.id()), deadline)?;
        let diff = within_pod(&netns, self.hosts.own(), || {
            let missing = |what: String| Failure::new(code::RULES_MISSING, what, NEXT);
            let addresses = match addresses {
                Some(addresses) => addresses,
                None => super::addresses().map_err(|error| missing(causes(&error)))?,
            };
            let plan: Plan =
                plan(&pod, &self.config, &addresses).map_err(|error| missing(error.to_string()))?;
            self.backend.observe(&plan).map_err(missing)
        })
        .map_err(|error| Failure::new(code::INVALID_NETNS, causes(&error), NEXT))??;
        verdict(&pod, &diff, Decision::Sidecar)
    }

    /// Forgets an interface, and its sandbox with the last one. The rules go with the
    /// namespace.
    pub(super) fn del(&self, request: &PodRequest, deadline: Instant) -> Result<Answer, Failure> {
        let Some(id) = sandbox(request)? else {
            return Ok(answer(Decision::Done, "nothing is recorded without a container id"));
        };
        let _turns = self.turns(Some(&id), None, deadline)?;
        let interface = request.sluice.as_ref().map_or("", |sluice| &sluice.if_name);
        self.audit.detach(&id, interface);
        let detached = self.records.detach(&id, interface).map_err(|error| {
            Failure::new(code::IO_FAILURE, causes(&error), "the record stays; GC removes it later")
        })?;
        if detached != Detached::Stays {
            self.tell_gone(&id);
        }
        if detached == Detached::Removed {
            tracing::info!(
                ns = request.pod_namespace,
                pod = request.pod_name,
                uid = request.sluice.as_ref().map(|s| s.pod_uid.as_str()),
                sandbox = id.as_str(),
                "forgotten"
            );
        }
        let reason = match detached {
            Detached::Unknown => "not known",
            Detached::Stays => "the sandbox has other interfaces",
            Detached::Removed => "removed",
        };
        Ok(answer(Decision::Done, reason))
    }

    /// Ambient capture is told of a sandbox that is gone, whether it has it or not.
    fn tell_gone(&self, id: &SandboxId) {
        if let Some(ambient) = self.ambient.get() {
            ambient.sandbox_gone(id.as_str());
        }
    }

    /// Forgets what the runtime does not list and nobody is in. A runtime that lists
    /// nothing at all did not say anything.
    pub(super) fn gc(&self, request: &GcRequest) -> Result<Answer, Failure> {
        let Some(live) = &request.attachments else {
            return Ok(answer(Decision::Done, "the runtime did not say what lives"));
        };
        let (removed, errors) = self.records.retain(&[live, &*self.occupied()].concat());
        for id in &removed {
            self.tell_gone(id);
            tracing::info!(
                sandbox = id.as_str(),
                reason = "not listed by the runtime",
                "forgotten"
            );
        }
        if let Some(error) = errors.first() {
            let more = if errors.len() > 1 {
                format!(" (and {} more)", errors.len() - 1)
            } else {
                String::new()
            };
            return Err(Failure::new(
                code::IO_FAILURE,
                format!("{}{more}", causes(error)),
                "the next GC tries again",
            ));
        }
        Ok(answer(Decision::Done, format!("removed {}", removed.len())))
    }

    /// Interfaces of recorded sandboxes that processes are in. A runtime lists those of
    /// one network: a pod may run on from before that had another name, or its sandbox
    /// be known by no name of the runtime's. To be forgotten would cost it the audit,
    /// and an ambient pod its proxy.
    fn occupied(&self) -> Vec<Attachment> {
        // Where processes cannot be seen the runtime's word is all there is.
        let occupied = place::occupied(&place::root()).unwrap_or_default();
        let mut found = Vec::new();
        for id in self.records.ids() {
            // One that cannot be read is of no use to anybody.
            let Ok(Some(record)) = self.records.read(&id) else { continue };
            if occupied.contains(&NetnsId { dev: record.netns.dev, ino: record.netns.ino }) {
                let container_id = || id.as_str().to_owned();
                found.extend(
                    record
                        .attached()
                        .into_iter()
                        .map(|if_name| Attachment { container_id: container_id(), if_name }),
                );
            }
        }
        found
    }

    /// Whether an ADD would be served now: tried, not remembered.
    pub(super) fn status(&self) -> Result<Answer, Failure> {
        self.backend.prove().map_err(|why| {
            Failure::new(
                code::NOT_AVAILABLE,
                format!("backend {} does not work on this node now: {why}", self.backend.kind()),
                "look in the agent's log, and whether the node's kernel has nf_tables or ip_tables",
            )
            .with_status(503)
        })?;
        Ok(answer(Decision::Done, format!("backend {} works", self.backend.kind())))
    }
}

fn verdict(pod: &Pod, diff: &Diff, decision: Decision) -> Result<Answer, Failure> {
    if diff.is_empty() {
        return Ok(answer(decision, "the rules hold"));
    }
    let text = diff.to_string();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[..lines.len().min(DIFF_LINES)].join("; ");
    let more = lines.len().saturating_sub(DIFF_LINES);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Failure::new(
        code::RULES_MISSING,
        format!(
            "rules of pod {}/{} are not what they must be: {shown}{more}",
            pod.namespace, pod.name
        ),
        NEXT,
    ))
}

pub(super) const NEXT: &str =
    "delete the pod so that its sandbox is made anew; until then its traffic may pass by the proxy";
