//! Sidecar pods stay captured: their namespaces are compared with what was programmed,
//! by their records, and put right. (Ambient pods have an audit of their own, which
//! knows what ztunnel has of them.)
//!
//! A namespace whose rules nobody wrote to since the last look costs one question for
//! the generation of its rules and one for its routes. None is held open between looks:
//! that would keep a sandbox alive that is gone.

use super::Agent;
use crate::ambient::Figures;
use crate::backend::routing_of;
use crate::failure::causes;
use crate::health::Beat;
use crate::record::{Record, SandboxId};
use crate::repair::place::{self, Survey};
use ::ambient::action::{Cause, Standing};
use ::ambient::id::PodUid;
use redirect::desired::Routing;
use redirect::sidecar::plan;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::netns::{Netns, NetnsId, within_pod};
use sys::{nftables, routing};
use wire::request::{Extension, PodRequest};

/// Every so many looks all is compared, whatever the generation says: legacy iptables
/// does not change it.
const THOROUGH: u32 = 10;

/// Time for a repair.
const LIMIT: Duration = Duration::from_secs(4);

/// How often the thread says that it lives.
const TICK: Duration = Duration::from_secs(1);

/// How a namespace was when all was well.
#[derive(Debug, Clone)]
struct Seen {
    netns: NetnsId,
    /// Hash of the rules, as recorded.
    rules: String,
    generation: u32,
    routing: Arc<Routing>,
    looks: u32,
}

/// What one look found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// All is well, at this generation where there is one.
    Fine(Option<(u32, Arc<Routing>)>),
    /// It is not.
    Drift(String),
}

impl Agent {
    /// Looks at all captured sidecar pods from now on, on a thread of its own that ends
    /// with the agent.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn keep_captured(
        self: &Arc<Self>,
        figures: Arc<Figures>,
        period: Duration,
        beat: Arc<Beat>,
    ) -> io::Result<()> {
        let agent = Arc::downgrade(self);
        std::thread::Builder::new().name("drift".to_owned()).spawn(move || {
            let mut seen = HashMap::new();
            let mut due = Instant::now() + period;
            loop {
                std::thread::sleep(TICK.min(period));
                beat.beat();
                if Instant::now() < due {
                    continue;
                }
                let Some(agent) = agent.upgrade() else { return };
                seen = agent.look_for_drift(&seen, &figures);
                due = Instant::now() + period;
            }
        })?;
        Ok(())
    }

    fn look_for_drift(
        &self,
        before: &HashMap<SandboxId, Seen>,
        figures: &Figures,
    ) -> HashMap<SandboxId, Seen> {
        let begun = Instant::now();
        let mut survey: Option<Option<Survey>> = None;
        let mut seen = HashMap::new();
        let mut pods = 0;
        for id in self.records.ids() {
            // One that cannot be read is told of by CHECK.
            let Ok(Some(record)) = self.records.read(&id) else { continue };
            if record.ambient.is_some() {
                continue;
            }
            // Not there: its sandbox is gone, or hidden, which the plugin's DEL tells.
            let Some(netns) = self.namespace_of(&record, &mut survey) else { continue };
            pods += 1;
            let last = before.get(&id);
            let last = last.filter(|seen| seen.netns == netns.id() && seen.rules == record.rules);
            let found = self.compare(&record, &netns, last);
            if let Some(now) = self.settle(&id, &record, &netns, last, found, figures) {
                seen.insert(id, now);
            }
        }
        tracing::debug!(pods, ms = begun.elapsed().as_millis(), "sidecar pods are compared");
        seen
    }

    /// By its path where that can be seen, else among the host's processes; always with
    /// an address of the pod in it.
    fn namespace_of(
        &self,
        record: &Record,
        survey: &mut Option<Option<Survey>>,
    ) -> Option<Arc<Netns>> {
        let id = NetnsId { dev: record.netns.dev, ino: record.netns.ino };
        if let Some(netns) = place::by_path(&record.path, id, &record.addresses) {
            return Some(netns).filter(|netns| !self.hosts.contains(netns.id()));
        }
        let hosts = self.hosts.all();
        let taken = survey.get_or_insert_with(|| Survey::take(&place::root(), hosts).ok());
        let uids: Vec<String> = record.pod.uid.iter().cloned().collect();
        let (addresses, recorded) = (&record.addresses, &[id]);
        let wanted = place::Wanted { uids: &uids, addresses, recorded, hosts };
        let found = taken.as_ref()?.find(&wanted).ok()?.netns;
        (found.id() == id && !self.hosts.contains(id)).then_some(found)
    }

    fn compare(
        &self,
        record: &Record,
        netns: &Netns,
        last: Option<&Seen>,
    ) -> Result<Found, String> {
        within_pod(netns, self.hosts.own(), || {
            // A kernel without nf_tables has none, and is compared each time.
            let generation = nftables::generation().ok();
            let known = last
                .filter(|seen| Some(seen.generation) == generation && seen.looks + 1 < THOROUGH);
            if let Some(seen) = known {
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
        id: &SandboxId,
        record: &Record,
        netns: &Netns,
        last: Option<&Seen>,
        found: Result<Found, String>,
        figures: &Figures,
    ) -> Option<Seen> {
        let key = PodUid::new(record.pod.uid.as_deref().unwrap_or(id.as_str()));
        let stands = |standing| figures.stands(&key, standing);
        let (ns, pod, uid) = (&record.pod.namespace, &record.pod.name, &record.pod.uid);
        match found {
            Ok(Found::Fine(well)) => {
                stands(Standing::Outside);
                let looks = last.map_or(0, |seen| seen.looks + 1) % THOROUGH;
                well.map(|(generation, routing)| Seen {
                    netns: netns.id(),
                    rules: record.rules.clone(),
                    generation,
                    routing,
                    looks,
                })
            }
            Ok(Found::Drift(drift)) => {
                stands(Standing::Exposed(Cause::Drifted));
                match self.put_right(id, record, netns) {
                    Ok(proof) => {
                        stands(Standing::Outside);
                        figures.repaired("rules");
                        tracing::error!(
                            ns,
                            pod,
                            uid,
                            sandbox = id.as_str(),
                            drift,
                            proof,
                            "rules of a sidecar pod had been changed and were put right"
                        );
                    }
                    Err(reason) => tracing::error!(
                        ns,
                        pod,
                        uid,
                        sandbox = id.as_str(),
                        drift,
                        reason,
                        "rules of a sidecar pod were changed and cannot be put right; tried again"
                    ),
                }
                None
            }
            Err(reason) => {
                stands(Standing::Unverified(Cause::Unreadable));
                tracing::warn!(
                    ns,
                    pod,
                    uid,
                    sandbox = id.as_str(),
                    reason,
                    "a sidecar pod cannot be looked at"
                );
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
