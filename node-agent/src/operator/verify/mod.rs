//! `sluice verify`: walks the layers that a pod's capture is made of, in the order in
//! which they build on each other, and names the one that is broken. What follows from
//! a broken one is not tried: it would be named too, and hide the cause.

mod walk;

use super::answer::{Layer, Name, State, Verify};
use super::kernel::{Places, Planned};
use super::known::Known;
use super::pods::{Live, present};
use crate::failure::causes;
use crate::record::{Record, SandboxId};
use crate::source::follow::Told;
use crate::source::kubernetes::object::PodName;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use sys::hostprobe;
use sys::netns::{Netns, NetnsError, within};
use sys::probe::{self, ProbeError, Report};
use walk::Walk;

/// Layers without which nothing is known of a pod's capture.
const ESSENTIAL: [&str; 8] =
    ["source", "decision", "record", "namespace", "rules", "routing", "ztunnel", "listeners"];

/// How long connections from the node are waited for.
const CANARY: Duration = Duration::from_secs(3);

/// Why nothing can be said about a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerifyError {
    /// Nobody knows it.
    #[error(
        "pod {0} is not known on this node: neither the source of pods nor a record has it; want [NAMESPACE/]NAME of a pod that runs here"
    )]
    Unknown(Name),
    /// Several have the name.
    #[error("pods of several namespaces are called {name}: want one of {}", found.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// All that have it.
        found: Vec<String>,
    },
}

/// What only an agent knows.
pub(super) struct Asked<'a> {
    pub(super) live: Live<'a>,
    /// The exemption of probes, asked only when it matters.
    pub(super) exemption: &'a dyn Fn() -> Result<hostprobe::Status, String>,
}

/// Says how each layer of a pod's capture is.
///
/// # Errors
/// When it is not known which pod is meant.
pub(super) fn verify(
    known: &Known,
    asked: Option<&Asked<'_>>,
    name: &Name,
) -> Result<Verify, VerifyError> {
    let (records, wrong) = known.recorded();
    let name = resolve(name, &records, asked)?;
    let told = asked.and_then(|asked| asked.live.source.told(&name));
    let places = Places::new();
    let own: Vec<(SandboxId, Record)> =
        records.into_iter().filter(|(_, record)| is_of(record, &name, told.as_ref())).collect();
    let record = present(own, &places).map(|(_, record)| record);
    let mut walk = Walk { known, asked, told, record, wrong, mode: "none", layers: Vec::new() };
    walk.all(&places);
    Ok(verdict(walk, name))
}

fn resolve(
    name: &Name,
    records: &[(SandboxId, Record)],
    asked: Option<&Asked<'_>>,
) -> Result<PodName, VerifyError> {
    let mut found: BTreeSet<PodName> = BTreeSet::new();
    let fits =
        |ns: &str, n: &str| n == name.name && (name.namespace.is_empty() || ns == name.namespace);
    let recorded = records.iter().map(|(_, r)| (&r.pod.namespace, &r.pod.name));
    let view = asked.map(|asked| asked.live.source.view(false));
    let told = view.iter().flat_map(|view| &view.pods).map(|pod| (&pod.namespace, &pod.name));
    for (namespace, name) in recorded.chain(told).filter(|(ns, n)| fits(ns, n)) {
        found.insert(PodName { namespace: namespace.clone(), name: name.clone() });
    }
    let mut all = found.into_iter();
    match (all.next(), all.next()) {
        (None, _) => Err(VerifyError::Unknown(name.clone())),
        (Some(one), None) => Ok(one),
        (Some(one), Some(two)) => {
            let found = [one, two].into_iter().chain(all).map(|name| name.to_string()).collect();
            Err(VerifyError::Ambiguous { name: name.name.clone(), found })
        }
    }
}

/// Of a pod of the name; of another one that had it before only where nobody knows the
/// present one.
fn is_of(record: &Record, name: &PodName, told: Option<&Told>) -> bool {
    let uid = |told: &Told, uid: &str| told.uid() == uid || told.uids().iter().any(|u| u == uid);
    record.pod.namespace == name.namespace
        && record.pod.name == name.name
        && match (told, &record.pod.uid) {
            (Some(told), Some(own)) => uid(told, own) || told.facts().uid.is_none(),
            _ => true,
        }
}

/// What the layers come to.
fn verdict(walk: Walk<'_>, name: PodName) -> Verify {
    let broken = walk.layers.iter().find(|layer| layer.state == State::Broken);
    let essential =
        |layer: &&Layer| layer.state == State::NotTried && ESSENTIAL.contains(&layer.name.as_str());
    let over = walk.told.as_ref().and_then(Told::status).is_some_and(|s| s.over);
    let verdict = match broken {
        Some(_) => "broken",
        None if walk.mode == "none" && walk.asked.is_some() || over => "outside",
        None if walk.layers.iter().any(|layer| essential(&layer)) => "incomplete",
        None => "ok",
    };
    let uid = walk.told.as_ref().map(Told::uid);
    Verify {
        namespace: name.namespace,
        name: name.name,
        uid: uid.or_else(|| walk.record.as_ref().and_then(|r| r.pod.uid.clone())),
        mode: walk.mode.to_owned(),
        verdict: verdict.to_owned(),
        broken: broken.map(|layer| layer.name.clone()),
        next: broken.map(|layer| next(&layer.name, walk.mode).to_owned()),
        layers: walk.layers,
        ..Verify::default()
    }
}

/// A connection through the capture, as an ADD proves it.
fn tried(known: &Known, netns: &Netns, record: &Record) -> Result<Report, String> {
    let text = |error: ProbeError| causes(&error);
    let entered = |error: NetnsError| causes(&error);
    let plan = within(netns, || Planned::of(known, record)).map_err(entered)??;
    let until = Instant::now() + CANARY;
    match plan {
        Planned::Sidecar(plan) => {
            let inside = within(netns, || probe::inside(&plan, &record.addresses));
            inside.map_err(entered)?.map_err(text)?.finish(netns, until).map_err(text)
        }
        Planned::Ambient(plan) => {
            let inside = within(netns, || {
                let own = sys::routing::addresses().map_err(|error| causes(&error))?;
                probe::ambient_inside(&plan, &own, probe::Ports::Ztunnels).map_err(text)
            });
            inside.map_err(entered)??.finish(until).map_err(text)
        }
    }
}

/// What to do about a broken layer.
fn next(layer: &str, mode: &str) -> &'static str {
    let is_ambient = mode == "ambient";
    match layer {
        "source" => {
            "look whether the pod still exists, and in the agent's log for what its source of pods is behind with"
        }
        "decision" => {
            "look at the labels of pod and namespace (sluice explain), and whether the node was drained"
        }
        "record" | "namespace" if is_ambient => {
            "the agent looks for the pod by itself; if it stays, delete the pod"
        }
        "record" | "namespace" => "delete the pod, so that its sandbox is made and captured anew",
        "rules" | "routing" => {
            "the agent puts it right with its next audit; if it stays, look in its log, and who else writes rules there"
        }
        "ztunnel" => "look at the ztunnel pod of this node and in its log",
        "listeners" if is_ambient => "look in ztunnel's log of this node",
        "listeners" => "look at the pod's istio-proxy container",
        "canary" => {
            "look for rules of others in the pod's namespace (nft list ruleset, iptables-save)"
        }
        "probes" => "look in the agent's log for the host's rules, and in sluice status",
        _ => "look in the agent's log whether it may write to the API (pods/status)",
    }
}
