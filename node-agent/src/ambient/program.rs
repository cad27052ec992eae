//! In a pod's namespace: rules and routes, their proof, their record; and out again.

use super::jobs::{Abandoned, Held};
use super::node::{Node, record_name};
use super::subject::Subject;
use crate::backend::{Programmed, rules_hash};
use crate::failure::causes;
use crate::record::{self, PodKey, Record, SandboxId};
use ambient::event::Failure;
use ambient::id::OptionsHash;
use redirect::ambient::AmbientPlan;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use sys::backend::Applied;
use sys::conntrack::{Queries, flush_dns};
use sys::netns::{NetnsError, within_pod};
use sys::probe::{AmbientInside, Ports, ProbeError, ambient_inside};
use sys::routing;

/// How long a node that has to look for the pod is waited for.
const ARRIVAL: Duration = Duration::from_secs(1);

/// How a failure begins that is one of the proof.
pub(crate) const NOT_PROVED: &str = "capture is not proved";

/// What was done inside.
struct Done {
    plan: AmbientPlan,
    programmed: Programmed,
    proof: AmbientInside,
    /// The record had said that these very rules were in.
    recorded: bool,
}

/// Rules that are in, and proved.
#[derive(Debug)]
pub(super) struct Captured {
    /// With which options.
    pub(super) options: OptionsHash,
    /// The record had said that they were in, and they were not.
    pub(super) drifted: bool,
}

/// Makes the namespace capture the pod, and sees that it does.
///
/// # Errors
/// When a step fails. Rules that are in stay in: they capture.
pub(super) fn program(
    node: &Node,
    subject: &Subject,
    held: &Held,
    ports: Ports,
    abandoned: &Abandoned,
) -> Result<Captured, Failure> {
    host_is_known(node, held)?;
    let (pod, ..) = subject.facts();
    let options = subject.hash(&node.options);
    let done =
        within_pod(&held.netns, node.hosts.own(), || inside(node, subject, held, ports, abandoned))
            .map_err(|error| unreachable(&error))??;
    let until = Instant::now() + ARRIVAL;
    let report = done.proof.finish(until).map_err(|error| not_proved(&error))?;
    tracing::info!(
        ns = pod.namespace,
        pod = pod.name,
        uid = pod.uid,
        netns = %held.netns.id(),
        backend = %done.programmed.kind,
        applied = %done.programmed.applied,
        reason = done.programmed.note,
        ipv6 = ?done.plan.ipv6,
        dns = done.plan.dns,
        proved = report.is_complete(),
        proof = %report,
        "rules for ztunnel are in"
    );
    let drifted = done.recorded && done.programmed.applied != Applied::Unchanged;
    Ok(Captured { options, drifted })
}

fn inside(
    node: &Node,
    subject: &Subject,
    held: &Held,
    ports: Ports,
    abandoned: &Abandoned,
) -> Result<Done, Failure> {
    let failed = |what: String| Failure::Transient(what);
    let addresses = routing::addresses().map_err(|error| failed(causes(&error)))?;
    let ipv6 = routing::ipv6().map_err(|error| failed(causes(&error)))?;
    let (plan, ignored) = subject.plan(&node.options, ipv6);
    let (PodKey { namespace, name, uid }, ..) = subject.facts();
    for problem in ignored {
        tracing::warn!(ns = namespace, pod = name, uid, reason = %problem, "annotation ignored: the pod runs already");
    }
    let mut recorded = false;
    // First: an agent that is killed in between must find the namespace again.
    if let Some(name) = record_name(held, &subject.uid()) {
        let mut record = record(node, held, subject, &plan, addresses.clone());
        // One that cannot be read is replaced.
        if let Ok(Some(before)) = node.records.read(&name) {
            recorded = !before.leaving
                && before.netns == record.netns
                && before.backend == record.backend
                && before.rules == record.rules;
            record.join(&before);
        }
        let written = abandoned.unless(|| node.records.write(&name, &record));
        // Its pod may be gone, and nobody would remove the record.
        let written = written.ok_or_else(given_up)?;
        written.map_err(|error| failed(format!("record not written: {}", causes(&error))))?;
    }
    routing::bring_loopback_up().map_err(|error| failed(causes(&error)))?;
    if abandoned.is_set() {
        return Err(given_up());
    }
    let programmed = node.backend.program(&plan).map_err(failed)?;
    if plan.dns && programmed.applied != Applied::Unchanged {
        // Sockets that asked before go on asking past the resolver.
        flush_dns(Queries::Direct).map_err(|error| failed(causes(&error)))?;
    }
    let proof = ambient_inside(&plan, &addresses, ports).map_err(|error| not_proved(&error))?;
    Ok(Done { plan, programmed, proof, recorded })
}

fn given_up() -> Failure {
    Failure::Transient("given up".to_owned())
}

/// Begins so: who answers the plugin tells it from rules that could not be written.
fn not_proved(error: &ProbeError) -> Failure {
    Failure::Transient(format!("{NOT_PROVED}: {}", causes(error)))
}

/// Takes everything of ours out, and looks whether it is.
///
/// # Errors
/// When something is left.
pub(super) fn unprogram(
    node: &Node,
    names: &[SandboxId],
    held: &Held,
    abandoned: &Abandoned,
) -> Result<(), Failure> {
    host_is_known(node, held)?;
    names.iter().for_each(|name| strike_out(node, name, abandoned));
    within_pod(&held.netns, node.hosts.own(), || {
        if abandoned.is_set() {
            return Err(given_up());
        }
        node.backend.clear().map_err(Failure::Transient)
    })
    .map_err(|error| unreachable(&error))?
}

/// Notes in a pod's record that its rules go: an agent that starts anew, and is not told
/// of the pod, would put them in again.
fn strike_out(node: &Node, name: &SandboxId, abandoned: &Abandoned) {
    let strike = || match node.records.read(name) {
        Ok(Some(record)) if record.ambient.is_some() && !record.leaving => {
            node.records.write(name, &Record { leaving: true, ..record })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Some(Err(error)) = abandoned.unless(strike) {
        tracing::warn!(reason = %causes(&error), "a record does not say that its pod is being un-enrolled");
    }
}

/// Nothing is programmed where nothing tells a pod's namespace from the host's.
fn host_is_known(node: &Node, held: &Held) -> Result<(), Failure> {
    let id = held.netns.id();
    if node.hosts.contains(id) {
        return Err(Failure::Refused(format!("network namespace {id} is the host's")));
    }
    if !node.hosts.are_certain() {
        let what = format!("network namespace {id} cannot be told from the host's yet");
        return Err(Failure::Transient(what));
    }
    Ok(())
}

/// A namespace that cannot be entered is no dead one: it lives as long as its
/// descriptor.
fn unreachable(error: &NetnsError) -> Failure {
    match error {
        NetnsError::Host { .. } | NetnsError::Elsewhere { .. } => Failure::Refused(causes(error)),
        _ => Failure::Transient(causes(error)),
    }
}

fn record(
    node: &Node,
    held: &Held,
    subject: &Subject,
    plan: &AmbientPlan,
    addresses: Vec<IpAddr>,
) -> Record {
    let (pod, facts, ambient) = subject.facts();
    let id = held.netns.id();
    Record {
        version: Record::VERSION,
        sandbox: held.sandbox.clone().unwrap_or_default(),
        interface: held.interface.clone(),
        interfaces: BTreeSet::new(),
        pod,
        netns: record::Namespace { dev: id.dev, ino: id.ino },
        backend: node.backend.kind().to_string(),
        rules: rules_hash(plan),
        addresses,
        facts,
        path: held.path.clone(),
        ambient,
        leaving: false,
    }
}
