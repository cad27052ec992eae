//! The one thread that owns the machine: it feeds events in the order in which they
//! come, and starts what the machine asks for. Nothing here waits for a step.

use super::audit::{Audits, Check, Checked};
use super::figures::{self, Figures, Why};
use super::find::{self, Named, Recalled, Search};
use super::jobs::{Held, Jobs, Key, Outcome, Outcomes};
use super::look::Look;
use super::node::{Node, id, record_name};
use super::probes::Probes;
use super::report;
use super::roster::Roster;
use super::speaker::Speaker;
use super::steps::Steps;
use super::timers::Timers;
use super::ztunnel::Ztunnels;
use crate::health::Beat;
use crate::source::follow::{Change, Told};
use crate::source::kubernetes::object::PodName;
use ambient::action::{Action, Message, Refusal, Report};
use ambient::event::{Event, Identity};
use ambient::id::{NetnsId, PodUid, RequestId, SandboxId, SessionId, StepId, TimerId};
use ambient::machine::{Audit, Machine};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};
use sys::probe::Ports;
use sys::seqpacket::server;
use sys::watch::Notice;

/// How often the loop goes round at least.
const BEAT: Duration = Duration::from_secs(1);

/// How soon the audit is tried again when it is its turn and a look is under way.
const AGAIN: Duration = Duration::from_millis(50);

/// Inputs in a row after which a search begins though more have come. Many pods that
/// are labelled at once are looked for together.
const ROW: usize = 1024;

/// What comes to the driver.
#[derive(Debug)]
pub(super) enum Input {
    /// From the source of pods.
    Change(Change),
    /// From the plugin.
    Add(Box<Call>),
    /// The runtime made a sandbox for a pod of this uid, which is not captured.
    Passed(String, Named),
    /// The runtime took a sandbox down.
    SandboxGone(String),
    /// An address that was exempted from capture before the start.
    ProbeFound(IpAddr),
    /// From ztunnel's socket.
    Peer(server::Event),
    /// A job has ended.
    Done(Key, Outcomes),
    /// Somebody wants to see how things are.
    Look(SyncSender<Look>),
    /// The operator wants every pod un-enrolled.
    Drain,
    /// The audit has looked at pods.
    Audited(Vec<Checked>),
    /// Something was heard of namespaces.
    Notice(Notice),
}

/// A request of the plugin.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) told: Told,
    pub(super) sandbox: String,
    pub(super) held: Held,
    pub(super) ips: Vec<IpAddr>,
    pub(super) deadline: Instant,
    pub(super) reply: SyncSender<Result<(), Refusal>>,
}

/// What is due at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Due {
    Machine(TimerId),
    Request(RequestId),
    Audit,
    /// To look at what something was heard of.
    Heard,
    /// To see whether Istio's own exemption can go.
    TakeOver,
}

/// See the module.
pub(super) struct Driver {
    node: Arc<Node>,
    machine: Machine,
    inputs: Receiver<Input>,
    steps: Steps,
    ztunnels: Ztunnels,
    figures: Arc<Figures>,
    timers: Timers<Due>,
    roster: Roster,
    held: HashMap<NetnsId, Held>,
    /// Namespaces that some ztunnel was told of, and may listen in.
    offered: HashSet<NetnsId>,
    requests: HashMap<RequestId, SyncSender<Result<(), Refusal>>>,
    next_request: u64,
    audits: Audits,
    speaker: Speaker,
}

impl Driver {
    pub(super) fn new(
        node: Arc<Node>,
        machine: Machine,
        (sender, inputs): (Sender<Input>, Receiver<Input>),
        (ztunnels, probes): (Ztunnels, Arc<Probes>),
        figures: Arc<Figures>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let feedback = sender.clone();
        let jobs = Jobs::new(runtime, move |key, outcomes| {
            // Nobody listens at the end of the process.
            drop(sender.send(Input::Done(key, outcomes)));
        });
        let speaker = Speaker::new(Arc::clone(&node.notices));
        let steps = Steps::new(Arc::clone(&node), jobs, probes, Arc::clone(&figures));
        Self {
            roster: Roster::new(Arc::clone(&node)),
            node,
            machine,
            inputs,
            steps,
            ztunnels,
            figures,
            timers: Timers::default(),
            held: HashMap::new(),
            offered: HashSet::new(),
            requests: HashMap::new(),
            next_request: 0,
            audits: Audits::new(feedback),
            speaker,
        }
    }

    /// Works for as long as somebody may have something to say.
    pub(super) fn run(mut self, beat: &Beat) {
        self.recall();
        self.timers.set(Due::Audit, Instant::now() + self.node.options.audit);
        self.timers.set(Due::TakeOver, Instant::now() + BEAT);
        let mut row = 0;
        loop {
            beat.beat();
            let now = Instant::now();
            while let Some(due) = self.timers.take(now) {
                match due {
                    Due::Machine(timer) => self.feed(Event::Timer(timer)),
                    Due::Request(request) => self.feed(Event::Expired(request)),
                    Due::Audit => self.audit(),
                    Due::Heard => self.audit_heard(),
                    Due::TakeOver => self.take_over(),
                }
            }
            if let Some(at) = self.audits.due() {
                self.timers.set(Due::Heard, at);
            }
            row += 1;
            let come = if row < ROW { self.inputs.try_recv().ok() } else { None };
            let input = come.map_or_else(
                || {
                    row = 0;
                    self.steps.search();
                    let due = self.timers.earliest().map(|at| at.saturating_duration_since(now));
                    self.inputs.recv_timeout(due.unwrap_or(BEAT).min(BEAT))
                },
                Ok,
            );
            match input {
                // Nobody can connect any more: without a sign of life the kubelet
                // restarts the agent.
                Ok(Input::Peer(server::Event::Stopped(errno))) => {
                    tracing::error!(reason = %errno, "ztunnel's socket is not served any more");
                    return;
                }
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// What was captured before the agent started.
    fn recall(&mut self) {
        for recalled in find::recall(&self.node) {
            let Recalled { record, uid, identity, sandbox, held, addresses } = recalled;
            self.roster.is_recorded(&uid, record);
            let Identity { namespace, name, .. } = identity.clone();
            self.roster.recall(PodName { namespace, name }, uid.clone());
            self.roster.has_addresses(uid.clone(), addresses);
            let netns = held.as_ref().map(|held| id(held.netns.id()));
            // A ztunnel from before may run in it.
            self.offered.extend(netns);
            self.held.extend(netns.zip(held));
            let sandbox = sandbox.as_deref().map(SandboxId::new);
            self.feed(Event::Recorded { uid, identity: Some(identity), sandbox, netns });
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Change(Change::Pod(told)) => {
                self.pod(told);
            }
            Input::Change(Change::Gone(name)) => self.gone(&name),
            Input::Change(Change::Complete) => {
                // Told of by a request, and deleted since.
                self.roster.ended().iter().for_each(|name| self.gone(name));
                for uid in self.roster.doubtful() {
                    tracing::warn!(
                        uid = uid.as_str(),
                        "a pod that was captured before cannot be decided about: it is left as it is"
                    );
                    self.feed(Event::Doubtful(uid));
                }
                self.feed(Event::Listed);
            }
            Input::Add(call) => self.add(*call),
            Input::Passed(uid, sandbox) => self.passed(PodUid::new(&uid), sandbox),
            Input::SandboxGone(sandbox) => {
                self.roster.sandbox_gone(&sandbox);
                self.feed(Event::SandboxGone { sandbox: SandboxId::new(&sandbox) });
            }
            Input::ProbeFound(ip) => self.feed(Event::ProbeFound { ip }),
            Input::Peer(event) => {
                if let Some(event) = self.ztunnels.read(event) {
                    self.feed(event);
                }
            }
            Input::Done(key, outcomes) => self.done(&key, outcomes),
            // Who asked may be gone.
            Input::Look(reply) => drop(reply.try_send(Look::take(&self.machine, &self.figures))),
            Input::Drain => {
                tracing::warn!("the operator un-enrols every ambient pod of this node");
                self.feed(Event::Drain);
            }
            Input::Audited(checked) => self.audited(checked),
            Input::Notice(notice) => self.audits.heard(notice, &self.held),
        }
    }

    /// The pod was left alone, and may be wanted by now.
    fn passed(&mut self, uid: PodUid, sandbox: Named) {
        let again = self.roster.without_address(&uid);
        self.roster.is_in(uid, sandbox);
        if let Some(told) = again {
            self.pod(told);
        }
    }

    /// Tells the machine of a pod; false when nothing can be decided about it.
    fn pod(&mut self, told: Told) -> bool {
        let update = self.roster.tell(told);
        if let Some(replaced) = update.replaced {
            self.figures.told(figures::Told::Delete);
            self.feed(Event::PodGone(replaced));
        }
        let what = if update.is_new { figures::Told::Add } else { figures::Told::Update };
        self.figures.told(what);
        let Some(state) = update.state else { return false };
        self.feed(Event::Pod(state));
        true
    }

    fn gone(&mut self, name: &PodName) {
        if let Some(uid) = self.roster.gone(name) {
            self.figures.told(figures::Told::Delete);
            self.feed(Event::PodGone(uid));
        }
    }

    fn add(&mut self, call: Call) {
        let Call { told, sandbox, held, ips, deadline, reply } = call;
        let uid = PodUid::new(&told.uid());
        // What the request saw may be older than what was told since: of this pod, or of
        // the next one of its name.
        let now = self.node.source.told(&told.name());
        if !now.is_some_and(|now| now.uid() == uid.as_str() && self.pod(now)) {
            // Nobody waits for an answer any more, or has it.
            drop(reply.try_send(Err(Refusal::Unknown)));
            return;
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.requests.insert(request, reply);
        self.timers.set(Due::Request(request), deadline);
        let netns = id(held.netns.id());
        self.roster.has_addresses(uid.clone(), ips.clone());
        // For when it is labelled again.
        self.roster.is_in(uid.clone(), Named::of(&held, &ips));
        self.held.insert(netns, held);
        let sandbox = SandboxId::new(&sandbox);
        self.feed(Event::Add { request, uid, sandbox, netns, ips });
    }

    fn done(&mut self, key: &Key, outcomes: Outcomes) {
        self.steps.ended(key);
        for (step, outcome) in outcomes {
            let annotating = self.steps.over(step, &outcome);
            if let (Some((uid, value)), Outcome::Annotated(Ok(version))) = (&annotating, &outcome) {
                self.roster.wrote(uid, *value, version);
            }
            let is_written = matches!(outcome, Outcome::Programmed(Ok(_)));
            let (event, brought) = outcome.event(step);
            if let Some((netns, held)) = brought {
                self.held.entry(netns).or_insert(held);
            }
            self.feed(event);
            if let Some((uid, _)) = annotating {
                self.say(&uid, None);
            }
            if let (true, Key::Netns(netns)) = (is_written, key) {
                self.audits.written(*netns);
            }
        }
    }

    fn feed(&mut self, event: Event) {
        tracing::trace!(?event, "ambient");
        for action in self.machine.on(event) {
            tracing::trace!(?action, "ambient");
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Find { step, uid } => self.find(step, uid),
            Action::Program { step, uid, netns, .. } => self.program(step, &uid, netns),
            Action::Unprogram { step, netns, .. } => {
                self.steps.unprogram(step, netns, self.held.get(&netns).cloned());
            }
            Action::Release(netns) => {
                self.held.remove(&netns);
                self.offered.remove(&netns);
                self.audits.released(netns);
            }
            Action::Forget(uid) => self.forget(&uid),
            Action::Send { session, message } => self.send(session, message),
            Action::Close(session) => self.ztunnels.close(session),
            Action::SetProbe { step, ip, ports, .. } => self.steps.set_probe(step, ip, ports),
            Action::ClearProbe { step, ip } => self.steps.clear_probe(step, ip),
            Action::Annotate { step, uid, value } => {
                let told = self.roster.told(&uid);
                self.steps.annotate(step, uid, value, told);
            }
            Action::Answer { request, result } => {
                self.timers.cancel(&Due::Request(request));
                if let Some(reply) = self.requests.remove(&request) {
                    // Who asked may be gone.
                    drop(reply.try_send(result));
                }
            }
            Action::Timer { timer, delay, jitter } => {
                let more =
                    if jitter { delay.mul_f64(fastrand::f64() / 5.0) } else { Duration::ZERO };
                self.timers.set(Due::Machine(timer), Instant::now() + delay + more);
            }
            Action::Cancel(timer) => self.timers.cancel(&Due::Machine(timer)),
            Action::Standing { uid, standing } => {
                self.figures.stands(&uid, standing);
                self.say(&uid, None);
            }
            Action::Report { uid, report } => {
                let who = uid.as_ref().map(|uid| (uid, self.roster.told(uid)));
                report::tell(who, &report);
                self.say_reported(uid.as_ref(), &report);
                // What was found is programmed again at once.
                if let Report::Repaired { .. } | Report::Drifted { .. } = report {
                    self.figures.repaired("rules");
                }
            }
            Action::Drained => tracing::info!("every ambient pod is un-enrolled"),
        }
    }

    /// Says of a pod in the cluster how it stands.
    fn say(&self, uid: &PodUid, report: Option<&Report>) {
        self.speaker.pod(self.machine.pod(uid).as_ref(), self.roster.told(uid), report);
    }

    /// The same of every pod: not all that makes one well again is an event of its own.
    fn say_all(&self) {
        for view in self.machine.pods() {
            self.speaker.pod(Some(&view), self.roster.told(&view.uid), None);
        }
    }

    fn say_reported(&mut self, uid: Option<&PodUid>, report: &Report) {
        if let Some(uid) = uid {
            self.say(uid, Some(report));
        } else if self.speaker.node(report) {
            self.say_all();
        }
    }

    fn find(&mut self, step: StepId, uid: PodUid) {
        let uids = self.roster.told(&uid).map_or_else(|| vec![uid.as_str().to_owned()], Told::uids);
        self.steps.find(Search {
            step,
            uids,
            addresses: self.roster.addresses(&uid),
            records: self.roster.records(&uid).cloned().collect(),
            sandbox: self.roster.sandbox(&uid).cloned(),
            uid,
        });
    }

    fn program(&mut self, step: StepId, uid: &PodUid, netns: NetnsId) {
        let is_offered = self.offered.contains(&netns);
        let ports = if is_offered { Ports::Ztunnels } else { Ports::Ours };
        self.audits.forget(uid);
        let held = self.held.get(&netns).cloned();
        if let Some(name) = held.as_ref().and_then(|held| record_name(held, uid.as_str())) {
            self.roster.is_recorded(uid, name);
        }
        let told = self.roster.told(uid).cloned();
        self.steps.program(step, netns, (told, held), ports);
    }

    fn send(&mut self, session: SessionId, message: Message) {
        let held = match &message {
            Message::Add { netns, .. } => {
                self.offered.insert(*netns);
                self.held.get(netns)
            }
            _ => None,
        };
        self.ztunnels.send(session, message, held);
    }

    /// Looks at all pods that are captured, beside everything else.
    fn audit(&mut self) {
        if self.audits.is_running() {
            self.timers.set(Due::Audit, Instant::now() + AGAIN);
            return;
        }
        self.timers.set(Due::Audit, Instant::now() + self.node.options.audit);
        self.roster.cleared().iter().for_each(|name| self.gone(name));
        self.say_all();
        let all: Vec<Audit> = self.machine.audits().collect();
        let checks = all.into_iter().filter_map(|audit| {
            let since = self.audits.take_one(audit.netns);
            self.check(audit, since)
        });
        let checks = checks.collect();
        self.look_at(checks, Why::Period);
    }

    /// Looks at those of which something was heard. What is being written to now is
    /// looked at after that.
    fn audit_heard(&mut self) {
        if self.audits.is_running() {
            return;
        }
        let heard = self.audits.take();
        let found = self.machine.audits().filter_map(|audit| {
            let since = heard.get(&audit.netns)?;
            self.check(audit, Some(*since))
        });
        let checks = found.collect();
        self.look_at(checks, Why::Heard);
    }

    fn check(&self, audit: Audit, since: Option<Instant>) -> Option<Check> {
        Some(Check {
            addresses: self.roster.addresses(&audit.uid),
            told: self.roster.told(&audit.uid)?.clone(),
            held: self.held.get(&audit.netns)?.clone(),
            uid: audit.uid,
            since,
        })
    }

    fn look_at(&mut self, checks: Vec<Check>, why: Why) {
        checks.iter().for_each(|_| self.figures.looked(why));
        self.audits.begin(&mut self.steps.jobs, &self.node, checks, why);
    }

    /// Istio's own exemption of kubelet's probes goes once no pod needs it.
    fn take_over(&mut self) {
        if self.machine.exempts_all() {
            self.steps.take_over();
        } else {
            self.timers.set(Due::TakeOver, Instant::now() + BEAT);
        }
    }

    fn audited(&mut self, checked: Vec<Checked>) {
        for Checked { uid, netns, verdict, brought, since } in self.audits.end(checked) {
            if let Some((netns, held)) = brought {
                self.held.entry(netns).or_insert(held);
            }
            self.feed(Event::Audited { uid: uid.clone(), netns, verdict });
            if let Some(since) = since {
                self.figures.exposed_since(&uid, since);
            }
        }
    }

    fn forget(&mut self, uid: &PodUid) {
        self.audits.forget(uid);
        for name in self.roster.forget(uid) {
            // The sandbox may have become another pod's, with a record of its own.
            let is_own = |record| find::is_of(&record, uid.as_str());
            if self.node.records.read(&name).ok().flatten().is_some_and(is_own) {
                report::forgotten(self.node.records.remove(&name));
            }
        }
    }
}
