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

mod rounds;

pub(super) use rounds::Word;

use super::Agent;
use crate::backend::{generation, routing_of};
use crate::failure::causes;
use crate::metrics::figures::{Figures, Why};
use crate::notice::{State, Trouble};
use crate::place;
use crate::record::{Record, SandboxId};
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

/// Time for a repair.
const LIMIT: Duration = Duration::from_secs(4);

/// How a namespace was when all was well.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    netns: NetnsId,
    /// Hash of the rules, as recorded.
    rules: String,
    generation: u32,
    routing: Arc<Routing>,
    looks: u32,
    /// What is changed in it is heard of.
    watched: bool,
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
    /// Its namespace is gone, or hidden.
    NotThere,
    /// It was looked at, and put right where it was not.
    At {
        /// Whose figures it counts for.
        key: PodUid,
        /// Where it is.
        netns: NetnsId,
        /// How it is when all is well.
        seen: Option<Seen>,
    },
}

impl Agent {
    /// Looks at a pod, and puts it right.
    fn look_at(
        &self,
        id: &SandboxId,
        last: Option<Seen>,
        since: Option<Instant>,
        survey: &SharedSurvey,
        Tools { figures, watch }: &Tools,
    ) -> Looked {
        // One that cannot be read is told of by CHECK.
        let record = self.records.read(id).ok().flatten();
        let Some(record) = record.filter(|record| record.ambient.is_none()) else {
            return Looked::NotOurs;
        };
        figures.looked(if since.is_some() { Why::Heard } else { Why::Period });
        // Not there: its sandbox is gone, or hidden, which the plugin's DEL tells.
        let Some(netns) = self.namespace_of(&record, last.as_ref(), survey) else {
            return Looked::NotThere;
        };
        let last = last.filter(|seen| seen.netns == netns.id() && seen.rules == record.rules);
        // First: what is changed while it is looked at is heard of.
        let watched = match (&last, watch) {
            (Some(last), _) => last.watched,
            (None, Some(watch)) => is_heard(watch, &netns),
            (None, None) => false,
        };
        let found = self.compare(&record, &netns, last.as_ref(), since.is_some());
        // Numbers of namespaces are used again: nothing is written by the number alone.
        if matches!(found, Ok(Found::Drift(_)))
            && last.is_some()
            && self.namespace_of(&record, None, survey).is_none()
        {
            return Looked::NotThere;
        }
        let key = PodUid::new(record.pod.uid.as_deref().unwrap_or(id.as_str()));
        let pod = Pod { id, record: &record, netns: &netns, key: &key, watched };
        let seen = self.settle(&pod, last.as_ref(), found, since, figures);
        Looked::At { key, netns: netns.id(), seen }
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
        let found = survey.find(&wanted)?;
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
    fn settle(
        &self,
        pod: &Pod<'_>,
        last: Option<&Seen>,
        found: Result<Found, String>,
        since: Option<Instant>,
        figures: &Figures,
    ) -> Option<Seen> {
        let Pod { id, record, netns, key, watched } = *pod;
        let stands = |standing| figures.stands(key, standing);
        let (ns, pod, uid) = (&record.pod.namespace, &record.pod.name, &record.pod.uid);
        let sandbox = id.as_str();
        match found {
            Ok(Found::Fine(well)) => {
                stands(Standing::Outside);
                self.say(&record.pod(), State::Well);
                let looks = last.map_or(0, |seen| seen.looks + 1) % THOROUGH;
                let (netns, rules) = (netns.id(), record.rules.clone());
                well.map(|(generation, routing)| Seen {
                    netns,
                    rules,
                    generation,
                    routing,
                    looks,
                    watched,
                })
            }
            Ok(Found::Drift(drift)) => {
                stands(Standing::Exposed(Cause::Drifted));
                if let Some(since) = since {
                    figures.exposed_since(key, since);
                }
                match self.put_right(id, record, netns) {
                    Ok(proof) => {
                        stands(Standing::Outside);
                        self.say(&record.pod(), State::Well);
                        figures.repaired("rules");
                        tracing::error!(
                            ns,
                            pod,
                            uid,
                            sandbox,
                            drift,
                            proof,
                            "rules of a sidecar pod had been changed and were put right"
                        );
                    }
                    Err(reason) => {
                        tracing::error!(
                            ns,
                            pod,
                            uid,
                            sandbox,
                            drift,
                            reason,
                            "rules of a sidecar pod were changed and cannot be put right; tried again"
                        );
                        self.say(&record.pod(), State::Stuck(Trouble::Rules, reason));
                    }
                }
                None
            }
            Err(reason) => {
                stands(Standing::Unverified(Cause::Unreadable));
                tracing::warn!(ns, pod, uid, sandbox, reason, "a sidecar pod cannot be looked at");
                None
            }
        }
    }

    /// Captures it as by an ADD, from what was planned then.
    fn put_right(&self, id: &SandboxId, record: &Record, netns: &Netns) -> Result<String, String> {
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
        self.capture(&request, Some(id), netns, &record.pod(), deadline)
            .map(|answer| answer.reason)
            .map_err(|failure| failure.to_string())
    }
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
#[derive(Clone, Copy)]
struct Pod<'a> {
    id: &'a SandboxId,
    record: &'a Record,
    netns: &'a Netns,
    key: &'a PodUid,
    watched: bool,
}
