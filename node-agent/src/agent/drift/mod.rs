//! Sidecar pods stay captured: their namespaces are compared with what was programmed,
//! by their records, and put right. (Ambient pods have an audit of their own, which
//! knows what ztunnel has of them.)
//!
//! [`rounds`] says when: as soon as the kernel notifies of a change, and in each period
//! whether it does or not. Legacy iptables does not, nor has it a generation: there all
//! is compared each time. A namespace whose rules nobody wrote to since the last look
//! costs one question for the generation of its rules, and one for its routes where
//! changes of those are not heard of. None is held open between looks: that would keep a
//! sandbox alive that is gone.

mod gone;
mod rounds;

pub(super) use rounds::Word;

use super::Agent;
use crate::backend::{generation, routing_of};
use crate::failure::causes;
use crate::metrics::figures::Why;
use crate::notice::{State, Trouble};
use crate::place;
use crate::record::{PodKey, Record, SandboxId};
use ::ambient::action::{Cause, Standing};
use ::ambient::id::PodUid;
use redirect::desired::Routing;
use redirect::sidecar::plan;
use rounds::{SharedSurvey, Tools};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::netns::{Netns, NetnsId, within_pod};
use sys::routing;
use sys::watch::Watch;
use wire::request::{Extension, PodRequest};

/// Every so many looks all is compared, whatever the generation says.
const THOROUGH: u32 = 10;

/// So many looks in a row that can see nothing are said in the cluster.
const LOUD: u32 = 3;

/// Time for a repair.
const LIMIT: Duration = Duration::from_secs(4);

/// How a namespace was when all was well.
#[derive(Debug, Clone)]
struct Seen {
    netns: NetnsId,
    /// Hash of the rules, as recorded.
    rules: String,
    generation: u32,
    routing: Arc<Routing>,
    looks: u32,
    /// What is changed in it is heard of.
    watched: bool,
}

/// What is known of a pod from the looks before.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    /// Its namespace, where all was well.
    well: Option<Seen>,
    /// Looks in a row that could not tell how it is.
    blind: u32,
    /// What was written last is not proved: that it is there says nothing.
    unproved: bool,
    /// The namespace that it was seen in instead of its own, and since when.
    successor: Option<(NetnsId, Instant)>,
}

/// A look at a pod.
pub(super) struct Look<'a> {
    id: &'a SandboxId,
    past: &'a Past,
    /// When a change was heard of.
    since: Option<Instant>,
    /// The namespace that was programmed is dead.
    dead: bool,
    survey: &'a SharedSurvey,
    tools: &'a Tools,
}

/// What one look found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// All is well, at this generation where there is one.
    Fine(Option<(u32, Arc<Routing>)>),
    /// It is not.
    Drift(String),
}

/// What became of one look.
#[derive(Debug)]
pub(super) enum Looked {
    /// There is no record of a sidecar pod.
    NotOurs,
    /// Its namespace is gone, or hidden, and it runs nowhere as far as is seen.
    NotThere,
    /// Its namespace is gone, or hidden; more in the next period.
    Later,
    /// It may run in another namespace, and is not known to be captured there.
    Elsewhere {
        /// Whose figures it counts for.
        key: PodUid,
        /// What is known of it by now.
        past: Past,
        /// It is to be looked at once more, soon.
        again: bool,
    },
    /// Another record has taken the place of this one.
    Superseded,
    /// It was looked at, and put right where it was not.
    At {
        /// Whose figures it counts for.
        key: PodUid,
        /// Where it is.
        netns: NetnsId,
        /// What is known of it by now.
        past: Past,
    },
}

impl Agent {
    /// Looks at a pod, and puts it right.
    fn look_at(&self, look: &Look<'_>) -> Looked {
        // One that cannot be read is told of by CHECK.
        let record = self.records.read(look.id).ok().flatten();
        let Some(record) = record.filter(|record| record.ambient.is_none()) else {
            return Looked::NotOurs;
        };
        if look.dead {
            return self.look_elsewhere(look, &record);
        }
        let Tools { figures, watch } = look.tools;
        figures.looked(if look.since.is_some() { Why::Heard } else { Why::Period });
        let Some(netns) = self.namespace_of(&record, look.past.well.as_ref(), look.survey) else {
            return self.look_elsewhere(look, &record);
        };
        let last = look.past.well.as_ref();
        let last = last.filter(|seen| seen.netns == netns.id() && seen.rules == record.rules);
        // First: what is changed while it is looked at is heard of.
        let watched = match (last, watch) {
            (Some(last), _) => last.watched,
            (None, Some(watch)) => is_heard(watch, &netns),
            (None, None) => false,
        };
        let found = self.compare(&record, &netns, last, look.since.is_some());
        // Numbers of namespaces are used again: nothing is written by the number alone.
        if matches!(found, Ok(Found::Drift(_)))
            && last.is_some()
            && self.namespace_of(&record, None, look.survey).is_none()
        {
            return self.look_elsewhere(look, &record);
        }
        let key = key(look.id, &record);
        let pod = Pod { record: &record, netns: &netns, key: &key, last, watched };
        let past = self.settle(look, &pod, found);
        Looked::At { key, netns: netns.id(), past }
    }

    /// By its path where that can be seen, else among the host's processes; with an
    /// address of the pod in it, unless all was well there before.
    fn namespace_of(
        &self,
        record: &Record,
        last: Option<&Seen>,
        survey: &SharedSurvey,
    ) -> Option<Arc<Netns>> {
        let id = NetnsId { dev: record.netns.dev, ino: record.netns.ino };
        if self.hosts.contains(id) {
            return None;
        }
        let is_known = last.is_some_and(|seen| seen.netns == id);
        if is_known && let Some(netns) = place::named(&record.path, id) {
            return Some(Arc::new(netns));
        }
        if let Some(netns) = place::by_path(&record.path, id, &record.addresses) {
            return Some(netns);
        }
        let hosts = self.hosts.all();
        let uids: Vec<String> = record.pod.uid.iter().cloned().collect();
        let (addresses, recorded) = (&record.addresses, &[id]);
        let wanted = place::Wanted { uids: &uids, addresses, recorded, hosts };
        let found = survey.ask(hosts, |survey| survey.find(&wanted))?.ok()?.netns;
        (found.id() == id).then_some(found)
    }

    fn compare(
        &self,
        record: &Record,
        netns: &Netns,
        last: Option<&Seen>,
        is_called: bool,
    ) -> Result<Found, String> {
        within_pod(netns, self.hosts.own(), || {
            // Where there is none, all is compared each time.
            let generation = generation();
            let known = last
                .filter(|seen| Some(seen.generation) == generation && seen.looks + 1 < THOROUGH);
            if let Some(seen) = known {
                // A change of its routes would have been heard of.
                if seen.watched && !is_called {
                    return Ok(Found::Fine(Some((seen.generation, Arc::clone(&seen.routing)))));
                }
                let missing = routing::missing(&seen.routing).map_err(|error| causes(&error))?;
                if missing.is_empty() {
                    return Ok(Found::Fine(Some((seen.generation, Arc::clone(&seen.routing)))));
                }
                return Ok(Found::Drift(missing.join("; ")));
            }
            let plan = plan(&record.pod(), &self.config, &record.addresses)
                .map_err(|error| causes(&error))?;
            let diff = self.backend.observe(&plan)?;
            if diff.is_empty() {
                let routing = || Arc::new(routing_of(&plan));
                return Ok(Found::Fine(generation.map(|generation| (generation, routing()))));
            }
            Ok(Found::Drift(diff.to_string().lines().collect::<Vec<_>>().join("; ")))
        })
        .map_err(|error| causes(&error))?
    }

    /// Notes what was found, and puts right what is not as it must be.
    fn settle(&self, look: &Look<'_>, pod: &Pod<'_>, found: Result<Found, String>) -> Past {
        match found {
            Ok(Found::Fine(well)) if !look.past.unproved => {
                look.tools.figures.stands(pod.key, Standing::Outside);
                self.say(&pod.record.pod(), State::Well);
                Past { well: well.map(|well| pod.seen(well)), ..Past::default() }
            }
            Ok(Found::Fine(_)) => self.restore(look, pod, "nothing, since its last repair failed"),
            Ok(Found::Drift(drift)) => self.restore(look, pod, &drift),
            Err(reason) => self.miss(look, pod, &reason),
        }
    }

    /// Puts right what had changed; counted when that is proved.
    fn restore(&self, look: &Look<'_>, pod: &Pod<'_>, drift: &str) -> Past {
        let (figures, sandbox) = (&look.tools.figures, look.id.as_str());
        figures.stands(pod.key, Standing::Exposed(Cause::Drifted));
        if let Some(since) = look.since {
            figures.exposed_since(pod.key, since);
        }
        let PodKey { namespace: ns, name, uid } = &pod.record.pod;
        match self.put_right(look, pod) {
            Ok(proof) => {
                figures.repaired("rules");
                tracing::error!(
                    ns,
                    pod = name,
                    uid,
                    sandbox,
                    drift,
                    proof,
                    "rules of a sidecar pod had been changed and were put right"
                );
                Past::default()
            }
            Err(reason) => {
                tracing::error!(
                    ns,
                    pod = name,
                    uid,
                    sandbox,
                    drift,
                    reason,
                    "rules of a sidecar pod were changed and cannot be put right; tried again"
                );
                Past { unproved: true, ..Past::default() }
            }
        }
    }

    /// It could not be looked at. After some times in a row it is programmed: that is to
    /// look in another way, and to be told why that fails, too.
    fn miss(&self, look: &Look<'_>, pod: &Pod<'_>, reason: &str) -> Past {
        let sandbox = look.id.as_str();
        let PodKey { namespace: ns, name, uid } = &pod.record.pod;
        look.tools.figures.stands(pod.key, Standing::Unverified(Cause::Unreadable));
        let blind = look.past.blind.saturating_add(1);
        tracing::warn!(
            ns,
            pod = name,
            uid,
            sandbox,
            reason,
            times = blind,
            "a sidecar pod cannot be looked at"
        );
        let unproved = look.past.unproved;
        if blind < LOUD {
            return Past { blind, unproved, ..Past::default() };
        }
        match self.put_right(look, pod) {
            Ok(proof) => {
                tracing::warn!(
                    ns,
                    pod = name,
                    uid,
                    sandbox,
                    proof,
                    "a sidecar pod that could not be looked at was captured anew"
                );
                Past::default()
            }
            Err(reason) => {
                tracing::error!(
                    ns,
                    pod = name,
                    uid,
                    sandbox,
                    reason,
                    "a sidecar pod can neither be looked at nor captured anew; tried again"
                );
                Past { blind, unproved, ..Past::default() }
            }
        }
    }

    /// Captures it as by an ADD, from what was planned then, and says how it stands.
    fn put_right(&self, look: &Look<'_>, pod: &Pod<'_>) -> Result<String, String> {
        let record = pod.record;
        let request = PodRequest {
            netns: record.path.clone(),
            pod_name: record.pod.name.clone(),
            pod_namespace: record.pod.namespace.clone(),
            sluice: Some(Extension {
                container_id: record.sandbox.clone(),
                if_name: record.interface.clone(),
                pod_uid: record.pod.uid.clone().unwrap_or_default(),
                ..Extension::default()
            }),
            ..PodRequest::default()
        };
        let deadline = Instant::now() + LIMIT;
        match self.capture(&request, Some(look.id), pod.netns, &record.pod(), deadline) {
            Ok(answer) => {
                look.tools.figures.stands(pod.key, Standing::Outside);
                self.say(&record.pod(), State::Well);
                Ok(answer.reason)
            }
            Err(failure) => {
                let reason = failure.to_string();
                self.say(&record.pod(), State::Stuck(Trouble::Rules, reason.clone()));
                Err(reason)
            }
        }
    }
}

/// Whose figures a record's pod counts for.
fn key(id: &SandboxId, record: &Record) -> PodUid {
    PodUid::new(record.pod.uid.as_deref().unwrap_or(id.as_str()))
}

/// What is changed in it is heard of from now on.
fn is_heard(watch: &Watch, netns: &Netns) -> bool {
    let watched = watch.add(netns);
    watched
        .inspect_err(|error| {
            tracing::warn!(netns = %netns.id(), reason = %causes(error), "changes of a pod's namespace will not be heard of, it is looked at by the period");
        })
        .is_ok()
}

/// A pod where it is looked at.
struct Pod<'a> {
    record: &'a Record,
    netns: &'a Netns,
    key: &'a PodUid,
    /// How all was there last, if it was well.
    last: Option<&'a Seen>,
    /// What is changed in it is heard of.
    watched: bool,
}

impl Pod<'_> {
    /// As it is now that all is well.
    fn seen(&self, (generation, routing): (u32, Arc<Routing>)) -> Seen {
        Seen {
            netns: self.netns.id(),
            rules: self.record.rules.clone(),
            generation,
            routing,
            looks: self.last.map_or(0, |seen| seen.looks + 1) % THOROUGH,
            watched: self.watched,
        }
    }
}
