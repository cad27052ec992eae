//! What the machine asks to be done in the kernel and at the API, made into jobs, and
//! how long each took.

use super::annotate::annotate;
use super::find::{self, Search};
use super::jobs::{Abandoned, Held, Job, Jobs, Key, Kind, Outcome, Work};
use super::node::Node;
use super::probes::Probes;
use super::program;
use super::subject::Subject;
use crate::metrics::figures::Figures;
use crate::record::SandboxId;
use crate::source::Pods;
use crate::source::follow::Told;
use ambient::action::Stage;
use ambient::event::{Annotation, Failure};
use ambient::id::{NetnsId, PodUid, StepId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use sys::probe::Ports;

/// See the module.
pub(super) struct Steps {
    node: Arc<Node>,
    pub(super) jobs: Jobs,
    probes: Arc<Probes>,
    figures: Arc<Figures>,
    /// Waiting for the search that is under way.
    searches: Vec<Search>,
    searching: bool,
    /// When each step was asked for.
    begun: HashMap<StepId, Instant>,
    annotating: HashMap<StepId, (PodUid, Annotation)>,
    /// Whose rules are being written, or taken out.
    programming: HashMap<StepId, PodUid>,
    /// Captured by an agent before, and not programmed by this one.
    recalled: HashSet<PodUid>,
}

impl Steps {
    /// None yet.
    pub(super) fn new(
        node: Arc<Node>,
        jobs: Jobs,
        probes: Arc<Probes>,
        figures: Arc<Figures>,
    ) -> Self {
        Self {
            node,
            jobs,
            probes,
            figures,
            searches: Vec::new(),
            searching: false,
            begun: HashMap::new(),
            annotating: HashMap::new(),
            programming: HashMap::new(),
            recalled: HashSet::new(),
        }
    }

    /// A record says that the pod was captured before the start.
    pub(super) fn recall(&mut self, uid: PodUid) {
        self.recalled.insert(uid);
    }

    /// A job has ended.
    pub(super) fn ended(&mut self, key: &Key) {
        self.searching &= *key != Key::Search;
        self.jobs.ended(key);
    }

    /// Counts a step that is over; the pod whose annotation it was about.
    pub(super) fn over(&mut self, step: StepId, outcome: &Outcome) -> Option<(PodUid, Annotation)> {
        self.jobs.over(step);
        self.programming.remove(&step);
        let begun = self.begun.remove(&step);
        let stage = match outcome {
            Outcome::Found(Ok(_)) => Some(Stage::Namespace),
            Outcome::Programmed(Ok(_)) => Some(Stage::Rules),
            Outcome::Probe(Ok(())) => Some(Stage::Probes),
            Outcome::Annotated(Ok(_)) => Some(Stage::Annotation),
            _ => None,
        };
        if let Some((begun, stage)) = begun.zip(stage) {
            self.figures.took(stage, begun.elapsed());
        }
        self.annotating.remove(&step)
    }

    /// Looks for a pod's namespace, together with all that are waiting.
    pub(super) fn find(&mut self, search: Search) {
        self.begun.insert(search.step, Instant::now());
        self.searches.push(search);
    }

    /// Starts the search for all that are waiting: one look at the processes.
    pub(super) fn search(&mut self) {
        if self.searching || self.searches.is_empty() {
            return;
        }
        self.searching = true;
        let searches = std::mem::take(&mut self.searches);
        let node = Arc::clone(&self.node);
        self.jobs.push(Job {
            key: Key::Search,
            kind: Kind::Find,
            steps: searches.iter().map(|search| search.step).collect(),
            work: Work::Thread(Box::new(move |_| find::find(&node, searches))),
        });
    }

    /// Puts rules into a pod's namespace.
    pub(super) fn program(
        &mut self,
        step: StepId,
        uid: &PodUid,
        netns: NetnsId,
        (subject, held): (Option<Subject>, Option<Held>),
        ports: Ports,
    ) {
        self.programming.insert(step, uid.clone());
        // What an audit finds changed is told and counted by the machine.
        let is_first = self.recalled.remove(uid) && matches!(subject, Some(Subject::Told(_)));
        let (figures, pod) = (Arc::clone(&self.figures), uid.clone());
        self.within(step, netns, held, Kind::Program, move |node, held, abandoned| {
            let unknown = || Failure::Transient("the pod is not known".to_owned());
            let captured = subject
                .ok_or_else(unknown)
                .and_then(|subject| program::program(node, &subject, held, ports, abandoned));
            if is_first && captured.as_ref().is_ok_and(|captured| captured.drifted) {
                figures.repaired("rules");
                tracing::error!(
                    uid = %pod,
                    netns = %held.netns.id(),
                    "rules had been changed while the agent was away and were put right"
                );
            }
            Outcome::Programmed(captured.map(|captured| captured.options))
        });
    }

    /// Nothing of the pod is to be left: what is still being done in its namespace writes
    /// no record of it once this returns.
    pub(super) fn forget(&mut self, uid: &PodUid) {
        self.recalled.remove(uid);
        let own = self.programming.iter().filter(|(_, of)| *of == uid);
        own.for_each(|(step, _)| self.jobs.give_up(*step));
    }

    /// Takes them out. `records`: names of those that there may be of the pod.
    pub(super) fn unprogram(
        &mut self,
        step: StepId,
        uid: &PodUid,
        netns: NetnsId,
        held: Option<Held>,
        records: Vec<SandboxId>,
    ) {
        self.programming.insert(step, uid.clone());
        self.within(step, netns, held, Kind::Unprogram, move |node, held, abandoned| {
            Outcome::Unprogrammed(program::unprogram(node, &records, held, abandoned))
        });
    }

    fn within(
        &mut self,
        step: StepId,
        netns: NetnsId,
        held: Option<Held>,
        kind: Kind,
        work: impl FnOnce(&Node, &Held, &Abandoned) -> Outcome + Send + 'static,
    ) {
        let node = Arc::clone(&self.node);
        self.thread(step, Key::Netns(netns), kind, move |abandoned| match held {
            Some(held) => work(&node, &held, abandoned),
            None => kind.failed(Failure::Transient(format!(
                "no descriptor of network namespace {netns} is held"
            ))),
        });
    }

    /// Exempts these ports of an address for kubelet's probes.
    pub(super) fn set_probe(&mut self, step: StepId, ip: IpAddr, ports: BTreeSet<u16>) {
        let probes = Arc::clone(&self.probes);
        self.thread(step, Key::Address(ip), Kind::Probe, move |_| {
            Outcome::Probe(probes.set(ip, &ports))
        });
    }

    /// Exempts nothing of it.
    pub(super) fn clear_probe(&mut self, step: StepId, ip: IpAddr) {
        let probes = Arc::clone(&self.probes);
        self.thread(step, Key::Address(ip), Kind::Probe, move |_| Outcome::Probe(probes.clear(ip)));
    }

    /// Takes Istio's own exemption off the host; on a thread of its own.
    pub(super) fn take_over(&self) {
        self.probes.take_over();
    }

    fn thread(
        &mut self,
        step: StepId,
        key: Key,
        kind: Kind,
        work: impl FnOnce(&Abandoned) -> Outcome + Send + 'static,
    ) {
        self.begun.insert(step, Instant::now());
        let work = Work::Thread(Box::new(move |abandoned| vec![(step, work(abandoned))]));
        self.jobs.push(Job { key, kind, steps: vec![step], work });
    }

    /// Writes a pod's annotation.
    pub(super) fn annotate(
        &mut self,
        step: StepId,
        uid: PodUid,
        value: Annotation,
        told: Option<&Told>,
    ) {
        self.begun.insert(step, Instant::now());
        let target = match (&self.node.source, told) {
            (Pods::Kubernetes(kubernetes), Some(told)) => {
                let own = told.facts().uid.clone().unwrap_or_default();
                Some((Arc::clone(kubernetes.api()), told.name(), own))
            }
            // Manifests have nobody to write to, and what is gone needs nothing.
            _ => None,
        };
        self.annotating.insert(step, (uid.clone(), value));
        let work = Work::Task(Box::pin(async move {
            let result = match target {
                Some((api, name, own)) => annotate(&api, &name, &own, value).await,
                None => Ok(String::new()),
            };
            vec![(step, Outcome::Annotated(result))]
        }));
        let key = Key::Annotation(uid);
        self.jobs.push(Job { key, kind: Kind::Annotate, steps: vec![step], work });
    }
}
