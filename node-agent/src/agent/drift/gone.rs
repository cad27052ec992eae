//! A pod whose namespace is gone. As a rule so is the pod, or is about to be, and nothing
//! is done or said: that is the source's to know, and costs no look at any process. Where
//! the source still wants it captured, its sandbox may have been made anew while our
//! plugin was out of the chain ([`successor`]). Then it is captured where it runs now, as
//! by an ADD.
//!
//! Some runtimes start a sandbox's process before they call the chain, whose ADD is on its
//! way then. So what is found is looked at once more a moment later.

use super::{LIMIT, LOUD, Look, Looked, Past, key};
use crate::agent::running::Before;
use crate::agent::{Agent, addresses};
use crate::failure::causes;
use crate::notice::{State, Trouble};
use crate::place::{Place, successor};
use crate::record::{Namespace, PodKey, Record, SandboxId};
use crate::source::Pods;
use crate::source::follow::Told;
use crate::source::kubernetes::object::PodName;
use ::ambient::action::{Cause, Standing};
use redirect::enroll::{Decision, decide};
use redirect::pod::Pod;
use redirect::sidecar::plan;
use std::time::{Duration, Instant};
use sys::netns::{NetnsId, within_pod};

/// How long a sandbox is left to the chain.
const SETTLED: Duration = Duration::from_secs(1);

impl Agent {
    /// Looks where else the pod is, and captures it there.
    pub(super) fn look_elsewhere(&self, look: &Look<'_>, record: &Record) -> Looked {
        let Some(told) = self.wanted(record) else {
            self.drop_found(look, record);
            return Looked::NotThere;
        };
        // Between the periods only what was found is looked at again.
        if look.since.is_some() && look.past.successor.is_none() {
            return Looked::Later;
        }
        let hosts = &self.hosts;
        let search = |survey: &_| successor::find(&told, record, survey, hosts);
        match look.survey.ask(hosts.all(), search) {
            Some(Ok(None)) => Looked::NotThere,
            Some(Ok(Some(place))) => self.take_over(look, record, told.facts(), &place),
            Some(Err(error)) => self.lose(look, record, &causes(&error)),
            None => self.lose(look, record, "the host's processes cannot be listed"),
        }
    }

    /// The pod as the source has it, if it is to be captured for its sidecar.
    fn wanted(&self, record: &Record) -> Option<Told> {
        let told = self.source.told(&name_of(record))?;
        let ends = told.status().is_some_and(|status| status.over || status.deleting);
        if ends || !successor::is_same(&told, record) {
            return None;
        }
        let namespace = self.source.namespace(&told.facts().namespace);
        let decision = decide(told.facts(), namespace.as_ref(), &self.config);
        matches!(decision, Ok(Decision::Sidecar)).then_some(told)
    }

    /// A record of a sandbox whose name in the runtime is not known is dropped with its
    /// pod: no DEL will name it.
    fn drop_found(&self, look: &Look<'_>, record: &Record) {
        if !look.id.is_of_found() || !is_listed(&self.source) {
            return;
        }
        let name = name_of(record);
        let is_gone = match self.source.told(&name) {
            Some(told) => !successor::is_same(&told, record),
            None => !self.source.may_have(&name),
        };
        if is_gone {
            self.supersede(look.id, record);
        }
    }

    /// The pod runs there now.
    fn take_over(&self, look: &Look<'_>, record: &Record, pod: &Pod, place: &Place) -> Looked {
        let netns = place.netns.id();
        if self.is_recorded(look.id, record, netns) {
            self.supersede(look.id, record);
            return Looked::Superseded;
        }
        let key = key(look.id, record);
        let seen = look.past.successor.filter(|(seen, _)| *seen == netns);
        let (_, since) = seen.unwrap_or((netns, Instant::now()));
        let past = Past { successor: Some((netns, since)), ..Past::default() };
        if since.elapsed() < SETTLED {
            return Looked::Elsewhere { key, past, again: true };
        }
        let figures = &look.tools.figures;
        let (drift, is_exposed) = match self.differences(pod, place) {
            Ok(drift) => (drift.clone(), look.past.unproved || !drift.is_empty()),
            Err(why) => (why, look.past.unproved),
        };
        if is_exposed {
            figures.stands(&key, Standing::Exposed(Cause::NamespaceGone));
            figures.exposed_since(&key, since);
        } else {
            figures.stands(&key, Standing::Unverified(Cause::NamespaceGone));
        }
        // Its addresses changed, where the namespace is the same and lives.
        let is_same = !look.dead && record.netns == Namespace { dev: netns.dev, ino: netns.ino };
        let before = if is_same { Before::Same(record) } else { Before::Former(record) };
        let found = Found { pod, place, before, drift, is_exposed };
        match self.capture_found(look, record, &found) {
            Some(id) if id == *look.id => Looked::At { key, netns, past: Past::default() },
            Some(_) => {
                self.supersede(look.id, record);
                Looked::Superseded
            }
            None => {
                let past = Past { unproved: is_exposed, ..past };
                Looked::Elsewhere { key, past, again: false }
            }
        }
    }

    /// Captures it there, and says how it stands. The name of the new record.
    fn capture_found(
        &self,
        look: &Look<'_>,
        record: &Record,
        found: &Found<'_>,
    ) -> Option<SandboxId> {
        let Found { pod, place, before, ref drift, is_exposed } = *found;
        let (ns, name, uid, netns) = (&pod.namespace, &pod.name, &pod.uid, place.netns.id());
        let sandbox = look.id.as_str();
        match self.capture_in(pod, place, before) {
            Ok((id, proof)) => {
                let figures = &look.tools.figures;
                figures.stands(&key(look.id, record), Standing::Outside);
                self.say(pod, State::Well);
                if is_exposed {
                    figures.repaired("namespace");
                    tracing::error!(
                        ns,
                        pod = name,
                        uid,
                        %netns,
                        sandbox,
                        drift,
                        proof,
                        "a sidecar pod ran uncaptured in a namespace made without an ADD, and was captured"
                    );
                } else {
                    tracing::warn!(
                        ns,
                        pod = name,
                        uid,
                        %netns,
                        sandbox,
                        proof,
                        "a sidecar pod runs in a namespace made without an ADD, and is captured"
                    );
                }
                Some(id)
            }
            Err(error) => {
                let reason = causes(&error);
                tracing::error!(
                    ns,
                    pod = name,
                    uid,
                    %netns,
                    sandbox,
                    drift,
                    reason,
                    "a sidecar pod runs in a namespace made without an ADD, and cannot be captured; tried again"
                );
                self.say(pod, State::Stuck(Trouble::Rules, reason));
                None
            }
        }
    }

    /// An ADD has captured the pod there, and its record is another one.
    fn is_recorded(&self, id: &SandboxId, record: &Record, netns: NetnsId) -> bool {
        let others = self.records.ids().into_iter().filter(|other| other != id);
        let mut others = others.filter_map(|id| self.records.read(&id).ok()?);
        let netns = Namespace { dev: netns.dev, ino: netns.ino };
        others.any(|other| {
            other.netns == netns
                && (&other.pod.namespace, &other.pod.name, &other.pod.uid)
                    == (&record.pod.namespace, &record.pod.name, &record.pod.uid)
        })
    }

    /// What is not there of what an ADD would write, in words; empty when all is.
    fn differences(&self, pod: &Pod, place: &Place) -> Result<String, String> {
        within_pod(&place.netns, self.hosts.own(), || {
            let addresses = addresses().map_err(|error| causes(&error))?;
            let plan = plan(pod, &self.config, &addresses).map_err(|error| causes(&error))?;
            let diff = self.backend.observe(&plan)?;
            Ok(diff.to_string().lines().collect::<Vec<_>>().join("; "))
        })
        .map_err(|error| causes(&error))?
    }

    /// Drops a record that says nothing of its pod any more. The runtime may delete that
    /// sandbox later, and finds nothing to do.
    fn supersede(&self, id: &SandboxId, record: &Record) {
        let Ok(_turn) = self.turns(Some(id), None, Instant::now() + LIMIT) else { return };
        // What was written in between is another's word.
        let now = self.records.read(id).ok().flatten();
        if now.is_none_or(|now| now.netns != record.netns) {
            return;
        }
        if let Err(error) = self.records.remove(id) {
            tracing::error!(sandbox = id.as_str(), reason = %causes(&error), "the record of a sandbox that is gone stays");
        }
    }

    /// Where it runs cannot be found out.
    fn lose(&self, look: &Look<'_>, record: &Record, reason: &str) -> Looked {
        let key = key(look.id, record);
        look.tools.figures.stands(&key, Standing::Unverified(Cause::NotFound));
        let blind = look.past.blind.saturating_add(1);
        let PodKey { namespace: ns, name, uid } = &record.pod;
        tracing::warn!(
            ns,
            pod = name,
            uid,
            sandbox = look.id.as_str(),
            reason,
            times = blind,
            "the namespace of a sidecar pod is gone, and where it runs cannot be found out"
        );
        if blind >= LOUD {
            self.say(&record.pod(), State::Stuck(Trouble::Namespace, reason.to_owned()));
        }
        let (successor, unproved) = (look.past.successor, look.past.unproved);
        let past = Past { blind, successor, unproved, ..Past::default() };
        Looked::Elsewhere { key, past, again: false }
    }
}

/// A pod where it runs instead.
struct Found<'a> {
    pod: &'a Pod,
    place: &'a Place,
    before: Before<'a>,
    /// What is not there of what must be.
    drift: String,
    /// Its traffic passes the mesh by.
    is_exposed: bool,
}

fn name_of(record: &Record) -> PodName {
    PodName { namespace: record.pod.namespace.clone(), name: record.pod.name.clone() }
}

/// What the source does not have there is not.
fn is_listed(source: &Pods) -> bool {
    match source {
        Pods::Kubernetes(kubernetes) => kubernetes.synced().borrow().is_complete(),
        Pods::Directory(_) => true,
    }
}
