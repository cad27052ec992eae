//! The walk itself: each layer looks, and says what it saw. Those of [`ambient`] pods
//! alone are apart.

mod ambient;

use super::{Asked, tried};
use crate::failure::causes;
use crate::operator::answer::{Layer, State};
use crate::operator::kernel::{self, Places, Planned, Ports, RulesAlone, id_of};
use crate::operator::known::Known;
use crate::operator::pods::{UNKNOWN_SETTINGS, mode};
use crate::place::{self, Survey, successor};
use crate::record::Record;
use crate::source::Pods as Source;
use crate::source::follow::Told;
use redirect::enroll::{Decision, decide};
use std::net::IpAddr;
use sys::netns::{Netns, within};
use sys::probe::Outcome;

/// A walk under way.
pub(super) struct Walk<'a> {
    pub(super) known: &'a Known,
    pub(super) asked: Option<&'a Asked<'a>>,
    pub(super) told: Option<Told>,
    pub(super) record: Option<Record>,
    /// Records that cannot be read.
    pub(super) wrong: Vec<String>,
    pub(super) mode: &'static str,
    pub(super) layers: Vec<Layer>,
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
    pub(super) fn all(&mut self, places: &Places) {
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

    /// What is wanted; why nothing is.
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
                let why = "ambient, and the node was drained (sluice drain): nothing is captured until the agent starts anew";
                self.say("decision", State::Broken, why);
                return Some("the node was drained".to_owned());
            }
            Ok(Decision::Ambient) if !wanted && self.record.is_none() => {
                let over = told.status().is_some_and(|status| status.over);
                let why = if over { "the pod has ended" } else { "the pod is a ztunnel" };
                let why = format!("left alone: {why}");
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
                format!("{why}; {found} now, which was not captured")
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
        let hosts = &self.known.hosts;
        let survey = Survey::take(&place::root(), hosts.all()).ok()?;
        let told = self.told.as_ref();
        let own = told.and_then(|told| successor::find(told, record, &survey, hosts).ok()?);
        let what = if own.is_some() { "the pod runs in" } else { "the pod's address is in" };
        let found = own.or_else(|| {
            let uids = told.map(Told::uids);
            let uids = uids.unwrap_or_else(|| record.pod.uid.iter().cloned().collect());
            let hosts = hosts.all();
            survey.find(&place::Wanted { uids: &uids, addresses, recorded: &[], hosts }).ok()
        });
        let found = found?.netns.id();
        (found != id_of(record)).then(|| format!("{what} {found}"))
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
            self.skip(&["rules", "routing"], UNKNOWN_SETTINGS);
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
}
