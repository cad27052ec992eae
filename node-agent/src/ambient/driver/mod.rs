//! The one thread that owns the machine: it feeds events in the order in which they
//! come, and starts what the machine asks for. Nothing here waits for a step.

mod action;
mod look;

use super::audit::{Audits, Checked};
use super::find::{self, Named, Recalled};
use super::jobs::{Held, Jobs, Key, Outcome, Outcomes};
use super::look::Look;
use super::node::{Node, id};
use super::probes::Probes;
use super::roster::Roster;
use super::speaker::Speaker;
use super::steps::Steps;
use super::subject;
use super::timers::Timers;
use super::ztunnel::Ztunnels;
use crate::health::Beat;
use crate::metrics::figures::{self, Figures};
use crate::source::follow::{Change, Told};
use crate::source::kubernetes::object::PodName;
use ambient::action::Refusal;
use ambient::event::Event;
use ambient::id::{NetnsId, PodUid, RequestId, SandboxId, TimerId};
use ambient::machine::Machine;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};
use sys::seqpacket::server;
use sys::watch::Notice;

/// How often the loop goes round at least.
const BEAT: Duration = Duration::from_secs(1);

/// How soon after the start all are looked at that were captured before: those that the
/// source has not told of by then are kept as their records say.
const FIRST_LOOK: Duration = Duration::from_secs(3);

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
        let first = if self.held.is_empty() { self.node.options.audit } else { FIRST_LOOK };
        self.timers.set(Due::Audit, Instant::now() + first.min(self.node.options.audit));
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
            let Recalled { name, record, uid, identity, sandbox, held } = recalled;
            self.roster.is_recorded(&uid, name);
            self.steps.recall(uid.clone());
            let options = subject::recorded_hash(&record, &self.node.options);
            let options = (!record.leaving).then_some(options);
            self.roster.has_addresses(uid.clone(), record.addresses.clone());
            self.roster.recall(uid.clone(), record, held.is_some());
            let netns = held.as_ref().map(|held| id(held.netns.id()));
            // A ztunnel from before may run in it.
            self.offered.extend(netns);
            self.held.extend(netns.zip(held));
            let sandbox = sandbox.as_deref().map(SandboxId::new);
            let identity = Some(identity);
            self.feed(Event::Recorded { uid, identity, sandbox, netns, options });
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
                // Somebody's write may have been told of before the answer to ours came.
                if let Some(state) = self.roster.overtaken(&uid) {
                    self.feed(Event::Pod(state));
                }
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

    /// Istio's own exemption of kubelet's probes goes once no pod needs it.
    fn take_over(&mut self) {
        if self.machine.exempts_all() {
            self.steps.take_over();
        } else {
            self.timers.set(Due::TakeOver, Instant::now() + BEAT);
        }
    }
}
