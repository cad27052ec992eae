//! `sluice verify`: walks the layers that a pod's capture is made of, in the order in
//! which they build on each other, and names the one that is broken. What follows from
//! a broken one is not tried: it would be named too, and hide the cause.

use super::answer::{Layer, Name, State, Verify};
use super::kernel::{self, Places, Planned, Ports, RulesAlone, id_of};
use super::known::Known;
use super::pods::{Live, mode, present};
use crate::failure::causes;
use crate::record::{Record, SandboxId};
use crate::repair::place;
use crate::source::Pods as Source;
use crate::source::follow::Told;
use crate::source::kubernetes::object::PodName;
use ambient::machine::PodView;
use redirect::enroll::{Decision, decide};
use std::collections::BTreeSet;
use std::net::IpAddr;
use sys::hostprobe;
use sys::netns::{Netns, within};
use sys::probe::{self, Outcome, ProbeError, Report};

const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Layers without which nothing is known of a pod's capture.
const ESSENTIAL: [&str; 8] =
    ["source", "decision", "record", "namespace", "rules", "routing", "ztunnel", "listeners"];

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
    Ok(walk.verdict(name))
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

struct Walk<'a> {
    known: &'a Known,
    asked: Option<&'a Asked<'a>>,
    told: Option<Told>,
    record: Option<Record>,
    /// Records that cannot be read.
    wrong: Vec<String>,
    mode: &'static str,
    layers: Vec<Layer>,
}

impl Walk<'_> {
    fn say(&mut self, name: &str, state: State, why: impl Into<String>) {
        self.layers.push(Layer { name: name.to_owned(), state, why: why.into() });
    }

    fn note(&mut self, name: &str, result: Result<String, String>) -> bool {
        let state = if result.is_ok() { State::Ok } else { State::Broken };
        let (Ok(why) | Err(why)) = result;
        self.say(name, state, why);
        state == State::Ok
    }

    fn skip(&mut self, names: &[&str], why: &str) {
        for name in names {
            self.say(name, State::NotTried, why);
        }
    }

    fn is_ambient(&self) -> bool {
        self.mode == "ambient"
    }

    /// Layers of the kernel, then those of the mode.
    fn all(&mut self, places: &Places) {
        self.source();
        let outside = self.decision();
        if let Some(record) = &self.record {
            self.mode = mode(record);
        }
        let kernel = ["namespace", "rules", "routing"];
        let over = self.told.as_ref().and_then(Told::status).is_some_and(|s| s.over);
        if let Some(why) = outside.or_else(|| over.then(|| "the pod has ended".to_owned())) {
            self.skip(&["record"], &why);
            self.skip(&kernel, &why);
            self.skip(&["listeners", "canary"], &why);
            self.mode = if over { self.mode } else { "none" };
            return;
        }
        let Some(record) = self.recorded() else {
            self.skip(&kernel, "nothing says which namespace was captured");
            return self.rest(None);
        };
        match self.namespace(places, &record) {
            Some(netns) => {
                let holds = self.rules(&netns, &record);
                self.rest(holds.then_some((&netns, &record)));
            }
            None => {
                self.skip(&kernel[1..], "the namespace is broken");
                self.rest(None);
            }
        }
    }

    fn source(&mut self) {
        let Some(asked) = self.asked else {
            return self.skip(&["source"], "the agent does not answer, and has it");
        };
        let kind = match asked.live.source {
            Source::Kubernetes(_) => "the API server",
            Source::Directory(_) => "a manifest",
        };
        let result = match &self.told {
            Some(told) => Ok(match told.status() {
                Some(s) if s.over => format!("known from {kind}; it has ended"),
                Some(s) => format!("known from {kind}, with addresses {:?}", s.addresses),
                None => format!("known from {kind}"),
            }),
            None => {
                Err(format!("not known from {kind}, or cannot be decided about; a record has it"))
            }
        };
        self.note("source", result);
    }

    /// What is wanted; why nothing is, for a pod outside the mesh.
    fn decision(&mut self) -> Option<String> {
        let Some(asked) = self.asked else {
            self.skip(&["decision"], "the agent does not answer, and takes it");
            return None;
        };
        let Some(told) = &self.told else {
            self.skip(&["decision"], "the pod is not known");
            return None;
        };
        let pod = told.facts();
        let namespace = asked.live.source.namespace(&pod.namespace);
        let draining = asked.live.look.is_some_and(|look| look.draining);
        let wanted = self.view().is_none_or(|view| view.wanted);
        let result = match decide(pod, namespace.as_ref(), &self.known.policy) {
            Ok(Decision::Sidecar) => {
                self.mode = "sidecar";
                Ok("to be captured for its sidecar".to_owned())
            }
            Ok(Decision::Ambient) if draining => {
                self.mode = "ambient";
                Err("ambient, and the node was drained (sluice drain): nothing is captured until the agent starts anew".to_owned())
            }
            Ok(Decision::Ambient) if !wanted && self.record.is_none() => {
                let why = "left alone: the pod is a ztunnel".to_owned();
                self.say("decision", State::Ok, why.clone());
                return Some(why);
            }
            Ok(Decision::Ambient) => {
                self.mode = "ambient";
                Ok("to be captured for ztunnel".to_owned())
            }
            Ok(Decision::Skip(reason)) if self.record.is_none() => {
                let why = format!("outside the mesh: {reason}");
                self.say("decision", State::Ok, why.clone());
                return Some(why);
            }
            Ok(Decision::Skip(reason)) => {
                Err(format!("outside the mesh ({reason}), and a record says that it was captured"))
            }
            Err(error) => Err(error.to_string()),
        };
        self.note("decision", result);
        None
    }

    fn recorded(&mut self) -> Option<Record> {
        let result = match &self.record {
            Some(record) => Ok(format!(
                "sandbox {:?}, {}, {}, rules {}",
                record.sandbox,
                id_of(record),
                record.backend,
                record.rules
            )),
            None if self.wrong.is_empty() => {
                Err("no sandbox of it was captured, or its record is lost".to_owned())
            }
            None => Err(format!("there is none that can be read: {}", self.wrong.join("; "))),
        };
        self.note("record", result);
        self.record.clone()
    }

    /// Addresses that the pod has by its status, else by its record.
    fn addresses(&self, record: &Record) -> Vec<IpAddr> {
        let told = self.told.as_ref().and_then(Told::status).map(|s| s.addresses.to_vec());
        told.filter(|all| !all.is_empty()).unwrap_or_else(|| record.addresses.clone())
    }

    fn namespace(&mut self, places: &Places, record: &Record) -> Option<Netns> {
        let addresses = self.addresses(record);
        let opened = places.open(record).and_then(|netns| {
            if self.known.hosts.contains(netns.id()) {
                return Err(format!("the record names the host's {}", netns.id()));
            }
            let own = within(&netns, || kernel::owns(&addresses)).map_err(|e| causes(&e))??;
            Ok((netns, own))
        });
        let opened = opened.map_err(|why| match self.elsewhere(record, &addresses) {
            Some(found) => {
                format!("{why}; the pod's address is in {found} now, which was not captured")
            }
            None => why,
        });
        let (result, netns) = match opened {
            Ok((netns, own)) => {
                (Ok(format!("{}, with the pod's address {own}", netns.id())), Some(netns))
            }
            Err(why) => (Err(why), None),
        };
        self.note("namespace", result);
        netns
    }

    /// Where the pod is instead.
    fn elsewhere(&self, record: &Record, addresses: &[IpAddr]) -> Option<String> {
        let uids = self.told.as_ref().map(Told::uids);
        let uids = uids.unwrap_or_else(|| record.pod.uid.iter().cloned().collect());
        let wanted =
            place::Wanted { uids: &uids, addresses, recorded: &[], hosts: self.known.hosts.all() };
        let found = place::find(&place::root(), &wanted).ok()?.netns.id();
        (found != id_of(record)).then(|| found.to_string())
    }

    /// Rules and routing; true when both hold.
    fn rules(&mut self, netns: &Netns, record: &Record) -> bool {
        let backend = self.known.backend(record);
        let certain = self.known.is_certain();
        let seen = within(netns, || {
            let plan = Planned::of(self.known, record)?;
            let diff = backend.observe(&RulesAlone(&plan))?;
            let routing = plan.routing();
            let missing = sys::routing::missing(&routing).map_err(|error| causes(&error))?;
            let wanted = routing.loopback.len() + routing.marks.len();
            let same = crate::backend::rules_hash(&plan) == record.rules;
            Ok((diff, missing, wanted, same))
        });
        let (diff, missing, wanted, same) =
            match seen.map_err(|error| causes(&error)).and_then(|seen: Result<_, String>| seen) {
                Ok(seen) => seen,
                Err(why) => {
                    self.note("rules", Err(format!("cannot be looked at: {why}")));
                    self.skip(&["routing"], "the namespace cannot be looked at");
                    return false;
                }
            };
        if !certain && !same {
            let why = "the agent's settings are not those of this environment (AMBIENT_*, ISTIO_OUTBOUND_*, ...), so what must be there is not known";
            self.skip(&["rules", "routing"], why);
            return false;
        }
        let rules = self.note(
            "rules",
            if diff.is_empty() {
                Ok(format!("as they must be, by {}", record.backend))
            } else {
                let count = diff.missing.len() + diff.unexpected.len() + diff.misplaced.len();
                Err(format!("{count} differences: {}", kernel::short(&diff)))
            },
        );
        let routing = self.note(
            "routing",
            match (missing.is_empty(), wanted) {
                (true, 0) => Ok("none is needed".to_owned()),
                (true, _) => Ok("ip rules, routes and addresses are there".to_owned()),
                (false, _) => Err(format!("missing: {}", missing.join("; "))),
            },
        );
        rules && routing
    }

    /// What comes after the kernel's part; `place` when that holds.
    fn rest(&mut self, place: Option<(&Netns, &Record)>) {
        let has_ztunnel = if self.is_ambient() { self.ztunnel() } else { true };
        match place {
            Some((netns, record)) => {
                let listen = self.listeners(netns, record, has_ztunnel);
                if listen {
                    self.canary(netns, record);
                } else {
                    self.skip(&["canary"], "nobody is there to take it");
                }
            }
            None => self.skip(&["listeners", "canary"], "a layer before it is broken or not known"),
        }
        if self.is_ambient() {
            self.probes();
            self.annotation();
        }
    }

    fn view(&self) -> Option<&PodView> {
        let uid = match (&self.told, &self.record) {
            (Some(told), _) => told.uid(),
            (None, Some(record)) => super::pods::key(record),
            (None, None) => return None,
        };
        Some(&self.asked?.live.look?.pod(&uid)?.0)
    }

    fn ztunnel(&mut self) -> bool {
        let Some(asked) = self.asked else {
            self.skip(&["ztunnel"], "the agent does not answer, and is who ztunnel answers to");
            return true;
        };
        let Some(look) = asked.live.look else {
            return self.note("ztunnel", Err("ambient mode is off, or does not answer".to_owned()));
        };
        let result = match self.view() {
            None => Err("ambient capture does not know the pod".to_owned()),
            Some(view) if !view.accepted_by.is_empty() => {
                let who = view.accepted_by.iter().map(|id| {
                    let pid = look.sessions.iter().find(|s| s.session == *id).map(|s| s.peer.0);
                    format!("session {}, pid {}", id.0, pid.unwrap_or_default())
                });
                Ok(format!("acknowledged ({})", who.collect::<Vec<_>>().join("; ")))
            }
            Some(_) if look.sessions.is_empty() => {
                Err("no ztunnel is connected to the agent".to_owned())
            }
            Some(view) => {
                let why = match (&view.trouble, view.waiting_for) {
                    (Some((failures, error)), _) => format!("{error} ({failures} times)"),
                    (None, Some(stage)) => format!("waiting for {stage}"),
                    (None, None) => "it has not been told yet".to_owned(),
                };
                Err(format!("no ztunnel that is connected has taken it: {why}"))
            }
        };
        self.note("ztunnel", result)
    }

    fn listeners(&mut self, netns: &Netns, record: &Record, has_ztunnel: bool) -> bool {
        let seen = within(netns, || {
            let want = Planned::of(self.known, record)?.ports();
            Ok((want.missing_in(&Ports::listening()?), want.text()))
        });
        let result = seen.map_err(|error| causes(&error)).and_then(|seen: Result<_, String>| seen);
        let whose = if record.ambient.is_some() { "ztunnel" } else { "the sidecar" };
        match result {
            Ok((missing, all)) if missing.is_empty() => {
                self.note("listeners", Ok(format!("{whose} listens on {all}")))
            }
            Ok((missing, _)) if !has_ztunnel => {
                let missing = missing.join(", ");
                self.skip(&["listeners"], &format!("none on {missing}, as follows from ztunnel"));
                false
            }
            Ok((missing, _)) => {
                let missing = missing.join(", ");
                let why = format!("nobody listens on {missing}: {whose} does not run there");
                self.note("listeners", Err(why))
            }
            Err(why) => self.note("listeners", Err(why)),
        }
    }

    fn canary(&mut self, netns: &Netns, record: &Record) {
        let result = match tried(self.known, netns, record) {
            Ok(report) => {
                let seen = |outcome: &Outcome| {
                    matches!(outcome, Outcome::Proved(_) | Outcome::Accepted(_))
                };
                if !report.findings.iter().any(|finding| seen(&finding.outcome)) {
                    return self.skip(&["canary"], &report.to_string());
                }
                Ok(report.to_string())
            }
            Err(why) => Err(why),
        };
        self.note("canary", result);
    }

    fn probes(&mut self) {
        let Some(asked) = self.asked else {
            return self.skip(&["probes"], "the agent does not answer, and keeps the host's rules");
        };
        let ports = match (&self.told, &self.record) {
            (Some(told), _) => told.workload().probe_ports.to_vec(),
            (None, Some(Record { ambient: Some(facts), .. })) => facts.probe_ports.clone(),
            _ => Vec::new(),
        };
        if ports.is_empty() {
            return self.say("probes", State::Ok, "kubelet connects to none of its ports");
        }
        let result = (asked.exemption)().and_then(|status| {
            if !status.holds {
                return Err(
                    "the host's rules for kubelet's probes are not as they must be".to_owned()
                );
            }
            if !self.view().is_some_and(|view| view.exempt) {
                return Err(format!("kubelet's connections to ports {ports:?} are not exempted"));
            }
            Ok(format!(
                "kubelet reaches ports {ports:?} past ztunnel; it is known by {}",
                status.kubelet
            ))
        });
        self.note("probes", result);
    }

    fn annotation(&mut self) {
        let (Some(asked), Some(told)) = (self.asked, &self.told) else {
            return self.skip(&["annotation"], "the pod as the API has it is not known");
        };
        if matches!(asked.live.source, Source::Directory(_)) {
            return self.skip(&["annotation"], "pods come from manifests, which nobody writes to");
        }
        let result = match told.facts().annotation(REDIRECTION) {
            Some("enabled") => Ok("enabled".to_owned()),
            Some(other) => {
                Err(format!("{REDIRECTION} is {other:?}: peers do not send through ztunnel"))
            }
            None => Err(format!("{REDIRECTION} is not there: peers do not send through ztunnel")),
        };
        self.note("annotation", result);
    }

    fn verdict(self, name: PodName) -> Verify {
        let broken = self.layers.iter().find(|layer| layer.state == State::Broken);
        let essential = |layer: &&Layer| {
            layer.state == State::NotTried && ESSENTIAL.contains(&layer.name.as_str())
        };
        let over = self.told.as_ref().and_then(Told::status).is_some_and(|s| s.over);
        let verdict = match broken {
            Some(_) => "broken",
            None if self.mode == "none" && self.asked.is_some() || over => "outside",
            None if self.layers.iter().any(|layer| essential(&layer)) => "incomplete",
            None => "ok",
        };
        let uid = self.told.as_ref().map(Told::uid);
        Verify {
            namespace: name.namespace,
            name: name.name,
            uid: uid.or_else(|| self.record.as_ref().and_then(|r| r.pod.uid.clone())),
            mode: self.mode.to_owned(),
            verdict: verdict.to_owned(),
            broken: broken.map(|layer| layer.name.clone()),
            next: broken.map(|layer| next(&layer.name, self.mode).to_owned()),
            layers: self.layers,
            ..Verify::default()
        }
    }
}

/// A connection through the capture, as an ADD proves it.
fn tried(known: &Known, netns: &Netns, record: &Record) -> Result<Report, String> {
    let text = |error: ProbeError| causes(&error);
    let entered = |error: sys::netns::NetnsError| causes(&error);
    let plan = within(netns, || Planned::of(known, record)).map_err(entered)??;
    match plan {
        Planned::Sidecar(plan) => {
            let inside = within(netns, || probe::inside(&plan, &record.addresses));
            inside.map_err(entered)?.map_err(text)?.finish(netns).map_err(text)
        }
        Planned::Ambient(plan) => {
            let inside = within(netns, || {
                let own = sys::routing::addresses().map_err(|error| causes(&error))?;
                probe::ambient_inside(&plan, &own, probe::Ports::Ztunnels).map_err(text)
            });
            inside.map_err(entered)??.finish().map_err(text)
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
        "rules" | "routing" if is_ambient => {
            "the agent puts it right with its next audit; if it stays, look in its log, and who else writes rules there"
        }
        "rules" | "routing" => {
            "delete the pod so that its sandbox is made anew; until then its traffic may pass by the proxy"
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
