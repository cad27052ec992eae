//! The state machine. [`Machine::on`] notes what an event says, then brings every pod
//! that it concerns one step further, then talks to the ztunnels, until nothing is due.
//!
//! A pod is never driven by the event itself: `advance` compares what it is
//! with what it is to be, whatever led there, so that an order of events that nobody
//! thought of ends where any other does.

mod annotation;
mod audit;
mod conversation;
mod desk;
mod place;
mod pod;
mod probe;
mod request;
mod retry;
mod rules;
mod session;
mod standing;
mod view;
mod ztunnel;

pub use view::{Audit, PodView, SessionView};

use crate::action::{Action, Report, Standing};
use crate::config::Config;
use crate::event::{Annotation, Event, Identity, PodState};
use crate::id::{NetnsId, PeerId, PodUid, RequestId, SessionId, TimerId};
use desk::{Alarm, Desk, Work};
use place::Recorded;
use pod::{Goal, Pod, Pods, Proxy, Rules};
use probe::{Claim, Probes};
use request::{Add, Request};
use session::{Peer, Session};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Names remembered for the sake of mirror pods.
const REMEMBERED_NAMES: usize = 256;

/// How often a pod may come up in one event, on average: by far more than it ever does.
const ROUNDS: usize = 1_000;

/// What a pod of another uid may share.
fn name(identity: &Identity) -> (String, String) {
    (identity.namespace.clone(), identity.name.clone())
}

/// All of ambient capture on a node.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    desk: Desk,
    pods: Pods,
    /// Whose a namespace is.
    owners: BTreeMap<NetnsId, PodUid>,
    requests: BTreeMap<RequestId, Request>,
    sessions: BTreeMap<SessionId, Session>,
    peers: BTreeMap<PeerId, Peer>,
    /// What ztunnels may run from before the start, by the records.
    inherited: Vec<(PodUid, Proxy)>,
    probes: Probes,
    /// Names (namespace, name) of deleted pods whose rules were left to die with their
    /// sandbox. The mirror of a static pod gets a new uid in the same sandbox.
    left_behind: VecDeque<(String, String)>,
    /// Pods that something has changed for.
    dirty: BTreeSet<PodUid>,
    listed: bool,
    /// The first snapshot may go out.
    settled: bool,
    settle: Option<TimerId>,
    grace: Option<TimerId>,
    /// No ztunnel has its snapshot, for longer than the grace.
    no_ztunnel: bool,
    draining: bool,
    drained: bool,
}

impl Machine {
    /// A machine that knows nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            desk: Desk::default(),
            pods: Pods::new(),
            owners: BTreeMap::new(),
            requests: BTreeMap::new(),
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            inherited: Vec::new(),
            probes: Probes::default(),
            left_behind: VecDeque::new(),
            dirty: BTreeSet::new(),
            listed: false,
            settled: false,
            settle: None,
            grace: None,
            no_ztunnel: false,
            draining: false,
            drained: false,
        }
    }

    /// Takes an event; says what is to be done.
    #[must_use]
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        self.note(event);
        // Pods that keep calling each other are a defect of ours: what is left of them
        // waits for the next event, so that all others go on.
        let mut left = ROUNDS * (self.pods.len() + 1);
        loop {
            while let Some(uid) = self.dirty.pop_first() {
                self.advance(&uid);
                left = left.saturating_sub(1);
                if left == 0 {
                    break;
                }
            }
            debug_assert!(left > 0, "pods that call each other for ever: {:?}", self.dirty);
            self.advance_probes();
            self.settle();
            self.converse();
            if self.dirty.is_empty() || left == 0 {
                break;
            }
        }
        self.finish_drain();
        self.desk.take()
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Pod(state) => self.on_pod(state),
            Event::PodGone(uid) => {
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.gone = true;
                    self.dirty.insert(uid);
                }
            }
            Event::Doubtful(uid) => {
                if let Some(pod) = self.pods.get_mut(&uid).filter(|pod| pod.state.is_none()) {
                    pod.doubtful = true;
                    self.dirty.insert(uid);
                }
            }
            Event::Listed => self.on_listed(),
            Event::Recorded { uid, identity, sandbox, netns, options } => {
                self.on_recorded(uid, identity, Recorded { sandbox, netns, options });
            }
            Event::ProbeFound { ip } => self.probes.found(ip),
            Event::Add { request, uid, sandbox, netns, ips } => {
                self.on_add(Add { request, uid, sandbox, netns, ips });
            }
            Event::Expired(request) => self.on_expired(request),
            Event::SandboxGone { sandbox } => self.on_sandbox_gone(&sandbox),
            Event::Found { step, result } => self.on_found(step, result),
            Event::Programmed { step, result } => self.on_programmed(step, result),
            Event::Unprogrammed { step, result } => self.on_unprogrammed(step, result),
            Event::ProbeDone { step, result } => {
                let Some(Work::Probe(ip)) = self.desk.finish(step) else { return };
                let (uids, told) = self.probes.done(ip, step, result, &mut self.desk, &self.config);
                self.desk.tell(uids.first(), crate::action::Stage::Probes, told);
                self.dirty.extend(uids);
            }
            Event::ProbesLost => self.dirty.extend(self.probes.lost(&mut self.desk)),
            Event::Annotated { step, result } => self.on_annotated(step, result),
            Event::Connected { session, peer } => self.on_connected(session, peer),
            Event::Response { session, error } => self.on_response(session, error),
            Event::Disconnected(session) => {
                self.lose(session);
            }
            Event::Audited { uid, netns, verdict } => self.on_audited(&uid, netns, verdict),
            Event::Timer(timer) => self.on_timer(timer),
            Event::Drain => {
                self.draining = true;
                let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
                for uid in &uids {
                    self.reconsider(uid);
                }
                self.dirty.extend(uids);
            }
        }
    }

    fn on_pod(&mut self, state: PodState) {
        let uid = state.uid.clone();
        let draining = self.draining;
        let pod = self.pods.entry(uid.clone()).or_insert_with(Pod::new);
        let before = (pod.goal(draining), pod.state.as_ref().map(|s| s.identity.clone()));
        if before.1.as_ref() != Some(&state.identity) {
            pod.held = None;
        }
        let known = pod.state.as_ref().map(|s| s.annotation);
        let newly = known != Some(state.annotation)
            && matches!(state.annotation, Annotation::Enabled | Annotation::Pending);
        let inherits =
            (known.is_none() || pod.gone) && self.left_behind.contains(&name(&state.identity));
        if (newly || inherits) && pod.place == pod::Place::Unknown {
            pod.maybe_rules = true;
        }
        let annotation = state.annotation;
        pod.gone = false;
        pod.doubtful = false;
        pod.state = Some(state);
        let changed = before.0 != pod.goal(draining);
        self.see(&uid, annotation);
        if changed {
            self.reconsider(&uid);
        }
        self.dirty.insert(uid);
    }

    /// A pod ended with rules in its namespace, which is to die. Should its successor be
    /// in the same one, it may have to be rid of them. One that has ended as well is rid of
    /// nothing: two of them would tell each other for ever.
    fn leave_behind(&mut self, uid: &PodUid) {
        let draining = self.draining;
        let Some(left) = self.pods.get(uid).and_then(Pod::identity).map(name) else { return };
        for (other, pod) in self.pods.iter_mut().filter(|(other, _)| *other != uid) {
            let same = pod.identity().map(name).as_ref() == Some(&left);
            if same && pod.place == pod::Place::Unknown && pod.goal(draining) != Goal::Gone {
                pod.maybe_rules = true;
                self.dirty.insert(other.clone());
            }
        }
        self.left_behind.retain(|known| *known != left);
        self.left_behind.push_back(left);
        if self.left_behind.len() > REMEMBERED_NAMES {
            self.left_behind.pop_front();
        }
    }

    fn on_listed(&mut self) {
        if self.listed {
            return;
        }
        self.listed = true;
        self.settle = Some(self.desk.arm(Alarm::Settle, self.config.settle, false));
        for (uid, pod) in &mut self.pods {
            pod.gone |= pod.state.is_none() && !pod.doubtful;
            self.dirty.insert(uid.clone());
        }
        self.watch_connection();
    }

    fn on_timer(&mut self, timer: TimerId) {
        let Some(alarm) = self.desk.ring(timer) else { return };
        match &alarm {
            Alarm::Settle => {
                self.settle = None;
                self.settled = true;
            }
            Alarm::Grace => self.on_grace(),
            Alarm::Ack(session) => self.on_silence(*session, timer),
            Alarm::AnnotationWait(request) => self.on_annotation_waited(*request),
            Alarm::Probe(ip) => self.probes.ring(*ip, timer),
            Alarm::Resend(session, uid) => {
                let entry = self.sessions.get_mut(session).and_then(|s| s.entries.get_mut(uid));
                if let Some(entry) = entry {
                    entry.undeleted.ring(timer);
                }
                self.dirty.insert(uid.clone());
            }
            Alarm::Find(uid) | Alarm::Rules(uid) | Alarm::Accept(uid) | Alarm::Annotation(uid) => {
                if let Some(known) = self.pods.get_mut(uid) {
                    match alarm {
                        Alarm::Find(_) => known.find.ring(timer),
                        Alarm::Rules(_) => known.program.ring(timer),
                        Alarm::Accept(_) => known.accept.ring(timer),
                        _ => known.marker.retry.ring(timer),
                    }
                    self.dirty.insert(uid.clone());
                }
            }
        }
    }

    /// Brings a pod as far as it can come by itself.
    fn advance(&mut self, uid: &PodUid) {
        self.enqueue(uid);
        self.refuse_impossible(uid);
        let draining = self.draining;
        let Some(goal) = self.pods.get(uid).map(|p| p.goal(draining)) else { return };
        if matches!(goal, Goal::Leave | Goal::Gone) {
            // Peers stop to send to ztunnel before ztunnel stops to listen.
            self.annotate(uid, goal);
        }
        self.program(uid, goal);
        self.search(uid, goal);
        self.claim(uid, goal);
        if let Goal::In(_) = goal {
            self.annotate(uid, goal);
            if self.stage(uid).is_none() {
                self.grant_all(uid);
            }
        }
        self.tell_standing(uid, goal);
        self.part(uid, goal);
    }

    /// Claims the pod's addresses for kubelet's probes, or gives them up: last of all
    /// where a running pod is un-enrolled, since its probes pass by rules until then.
    fn claim(&mut self, uid: &PodUid, goal: Goal) {
        let Some(pod) = self.pods.get(uid) else { return };
        let Some(state) = &pod.state else { return };
        let lost = matches!(pod.place, pod::Place::Lost { .. });
        let changed = match goal {
            Goal::In(_) if !lost && !state.probe_ports.is_empty() => {
                let claim = Claim {
                    uid: uid.clone(),
                    sandbox: pod.placed().and_then(|p| p.sandbox.clone()),
                    ports: state.probe_ports.clone(),
                };
                self.probes.claim(pod.ips(), &claim, pod.placed().is_some())
            }
            Goal::Leave if pod.rules != Rules::Absent => false,
            Goal::Wait | Goal::Keep(_) => false,
            Goal::In(_) | Goal::Leave | Goal::Gone => self.probes.disclaim(uid),
        };
        if changed {
            self.advance_probes();
        }
    }

    /// Addresses that nobody claims are given up once every pod had the chance to.
    fn advance_probes(&mut self) {
        let all = self.settled && !self.pods.values().any(|pod| pod.doubtful);
        self.probes.advance(&mut self.desk, all);
    }

    /// Forgets a pod of which nothing is left.
    fn part(&mut self, uid: &PodUid, goal: Goal) {
        let over = match goal {
            Goal::Gone | Goal::Leave => self.nothing_left(uid),
            Goal::In(_) | Goal::Keep(_) | Goal::Wait => false,
        };
        let Some(pod) = self.pods.get_mut(uid).filter(|_| over) else { return };
        if pod.recorded {
            pod.recorded = false;
            self.desk.push(Action::Forget(uid.clone()));
        }
        if pod.enrolled && goal == Goal::Leave {
            self.desk.report(uid, Report::Unenrolled);
        }
        pod.enrolled = false;
        pod.find.reset(&mut self.desk);
        pod.program.reset(&mut self.desk);
        pod.accept.reset(&mut self.desk);
        if pod.gone {
            pod.marker.retry.reset(&mut self.desk);
            if let Some((step, _)) = pod.marker.writing.take() {
                self.desk.abandon(step);
            }
            self.pods.remove(uid);
        }
    }

    /// Nothing of the pod is left: no namespace of its own, no ztunnel that was told of
    /// it, no exempted address, no annotation that says otherwise.
    fn nothing_left(&self, uid: &PodUid) -> bool {
        let Some(pod) = self.pods.get(uid) else { return true };
        let goal = pod.goal(self.draining);
        pod.placed().is_none()
            && pod.step.is_none()
            && (goal == Goal::Gone || !pod.hides_rules())
            && pod.requests.is_empty()
            && pod.standing == Standing::Outside
            && (pod.gone || pod.marker.seen == Annotation::Absent)
            && !self.sessions.values().any(|s| s.entries.contains_key(uid))
            && !self.probes.holds(uid)
    }

    /// Lets the first snapshot go out, once every pod was tried.
    fn settle(&mut self) {
        if self.settled || !self.listed {
            return;
        }
        if self.pods.values().all(|pod| pod.tried(pod.goal(self.draining))) {
            self.settled = true;
            if let Some(timer) = self.settle.take() {
                self.desk.cancel(timer);
            }
        }
    }

    fn finish_drain(&mut self) {
        if self.draining
            && !self.drained
            && self.listed
            && self.pods.keys().all(|uid| self.nothing_left(uid))
        {
            self.drained = true;
            self.desk.push(Action::Drained);
        }
    }
}
