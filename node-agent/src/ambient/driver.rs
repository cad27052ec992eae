//! The one thread that owns the machine: it feeds events in the order in which they
//! come, and starts what the machine asks for. Nothing here waits for a step.

use super::annotate::{Written, annotate};
use super::audit::{Audits, Check, Checked};
use super::figures::{self, Figures};
use super::find::{self, Recalled, Search};
use super::jobs::{Abandoned, Held, Job, Jobs, Key, Kind, Outcome, Outcomes, Work};
use super::look::Look;
use super::node::{Node, id};
use super::probes::Probes;
use super::program;
use super::report;
use super::subject;
use super::timers::Timers;
use super::ztunnel::Ztunnels;
use crate::health::Beat;
use crate::source::Pods;
use crate::source::follow::{Change, Told};
use crate::source::kubernetes::object::PodName;
use ambient::action::{Action, Message, Refusal, Report, Stage};
use ambient::event::{Annotation, Event, Failure, Wanted};
use ambient::id::{NetnsId, PodUid, RequestId, SandboxId, SessionId, StepId, TimerId};
use ambient::machine::Machine;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};
use sys::probe::Ports;
use sys::seqpacket::server;

/// How often the loop goes round at least.
const BEAT: Duration = Duration::from_secs(1);

/// What comes to the driver.
#[derive(Debug)]
pub(super) enum Input {
    /// From the source of pods.
    Change(Change),
    /// From the plugin.
    Add(Box<Call>),
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
}

/// What is known of a pod.
#[derive(Debug)]
struct Known {
    told: Told,
    /// As it was decided last; kept while its namespace is not known.
    wanted: Wanted,
    written: Option<Written>,
}

/// See the module.
pub(super) struct Driver {
    node: Arc<Node>,
    machine: Machine,
    inputs: Receiver<Input>,
    jobs: Jobs,
    ztunnels: Ztunnels,
    probes: Arc<Probes>,
    figures: Arc<Figures>,
    timers: Timers<Due>,
    pods: HashMap<PodUid, Known>,
    names: HashMap<PodName, PodUid>,
    /// Addresses that the chain gave pods, or that records have.
    addresses: HashMap<PodUid, Vec<IpAddr>>,
    held: HashMap<NetnsId, Held>,
    requests: HashMap<RequestId, SyncSender<Result<(), Refusal>>>,
    next_request: u64,
    searches: Vec<Search>,
    searching: bool,
    /// When each message was sent that has no response.
    sent: HashMap<SessionId, VecDeque<(bool, Instant)>>,
    /// When each step was asked for.
    begun: HashMap<StepId, Instant>,
    annotating: HashMap<StepId, (PodUid, Annotation)>,
    /// Namespaces that some ztunnel was told of, and may listen in.
    offered: HashSet<NetnsId>,
    audits: Audits,
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
        Self {
            node,
            machine,
            inputs,
            jobs,
            ztunnels,
            probes,
            figures,
            timers: Timers::default(),
            pods: HashMap::new(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            held: HashMap::new(),
            requests: HashMap::new(),
            next_request: 0,
            searches: Vec::new(),
            searching: false,
            sent: HashMap::new(),
            begun: HashMap::new(),
            annotating: HashMap::new(),
            offered: HashSet::new(),
            audits: Audits::new(feedback),
        }
    }

    /// Works for as long as somebody may have something to say.
    pub(super) fn run(mut self, beat: &Beat) {
        self.recall();
        self.timers.set(Due::Audit, Instant::now() + self.node.options.audit);
        loop {
            beat.beat();
            let now = Instant::now();
            while let Some(due) = self.timers.take(now) {
                match due {
                    Due::Machine(timer) => self.feed(Event::Timer(timer)),
                    Due::Request(request) => self.feed(Event::Expired(request)),
                    Due::Audit => self.audit(),
                }
            }
            self.search();
            let due = self.timers.earliest().map(|at| at.saturating_duration_since(now));
            match self.inputs.recv_timeout(due.unwrap_or(BEAT).min(BEAT)) {
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
            let Recalled { uid, identity, sandbox, held, addresses } = recalled;
            self.addresses.insert(uid.clone(), addresses);
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
                let gone = |name: &&PodName| !self.node.source.has(name);
                let gone: Vec<PodName> = self.names.keys().filter(gone).cloned().collect();
                gone.iter().for_each(|name| self.gone(name));
                self.feed(Event::Listed);
            }
            Input::Add(call) => self.add(*call),
            Input::SandboxGone(sandbox) => {
                self.feed(Event::SandboxGone { sandbox: SandboxId::new(&sandbox) });
            }
            Input::ProbeFound(ip) => self.feed(Event::ProbeFound { ip }),
            Input::Peer(event) => {
                if let Some(event) = self.ztunnels.read(event) {
                    self.heard(&event);
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
        }
    }

    /// Tells the machine of a pod; false when nothing can be decided about it.
    fn pod(&mut self, told: Told) -> bool {
        let uid = PodUid::new(&told.uid());
        let name = told.name();
        let before = self.names.insert(name, uid.clone());
        if let Some(before) = before.filter(|before| *before != uid) {
            self.lose(before);
        }
        let known = self.pods.remove(&uid);
        let is_new = known.is_none();
        self.figures.told(if is_new { figures::Told::Add } else { figures::Told::Update });
        let namespace = self.node.source.namespace(&told.facts().namespace);
        let decided =
            subject::wanted(&told, namespace.as_ref(), &self.node.policy, &self.node.options);
        let (last, mut written) = known.map_or((None, None), |k| (Some(k.wanted), k.written));
        let wanted = match (decided, last) {
            (Ok(wanted), _) => wanted,
            // What it was, until it is known what it is.
            (Err(_), Some(Wanted::Ambient(_))) => {
                Wanted::Ambient(subject::hash(&told, &self.node.options))
            }
            (Err(_), Some(Wanted::No)) => Wanted::No,
            (Err(error), None) => {
                tracing::warn!(
                    ns = told.facts().namespace,
                    pod = told.facts().name,
                    uid = uid.as_str(),
                    reason = %error,
                    "cannot be decided about yet"
                );
                return false;
            }
        };
        let seen = subject::annotation(told.facts());
        let mut annotation = seen;
        if let Some(own) = &written {
            let (believed, over) = own.judge(seen, told.status().map(|s| s.version));
            annotation = believed;
            if over {
                written = None;
            }
        }
        let mut state = subject::state(&told, wanted, annotation);
        if state.ips.is_empty() {
            // A manifest says none, nor does a status that kubelet has not written yet.
            state.ips = self.addresses.get(&uid).cloned().unwrap_or_default();
        }
        self.pods.insert(uid, Known { told, wanted, written });
        self.feed(Event::Pod(state));
        true
    }

    fn gone(&mut self, name: &PodName) {
        if let Some(uid) = self.names.remove(name) {
            self.lose(uid);
        }
    }

    fn lose(&mut self, uid: PodUid) {
        self.figures.told(figures::Told::Delete);
        self.pods.remove(&uid);
        self.feed(Event::PodGone(uid));
    }

    fn add(&mut self, call: Call) {
        let Call { told, sandbox, held, ips, deadline, reply } = call;
        let uid = PodUid::new(&told.uid());
        if !self.pod(told) {
            // Nobody waits for an answer any more, or has it.
            drop(reply.try_send(Err(Refusal::Unknown)));
            return;
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.requests.insert(request, reply);
        self.timers.set(Due::Request(request), deadline);
        let netns = id(held.netns.id());
        self.addresses.insert(uid.clone(), ips.clone());
        self.held.insert(netns, held);
        let sandbox = SandboxId::new(&sandbox);
        self.feed(Event::Add { request, uid, sandbox, netns, ips });
    }

    /// Notes what the figures are about.
    fn heard(&mut self, event: &Event) {
        match event {
            Event::Connected { session, .. } => {
                self.sent.insert(*session, VecDeque::new());
            }
            Event::Disconnected(session) => {
                self.sent.remove(session);
            }
            Event::Response { session, error } => {
                let sent = self.sent.get_mut(session).and_then(VecDeque::pop_front);
                if let (Some((true, at)), None) = (sent, error) {
                    self.figures.took(Stage::Ztunnel, at.elapsed());
                }
            }
            _ => {}
        }
        self.figures.ztunnels(self.sent.len());
    }

    fn done(&mut self, key: &Key, outcomes: Outcomes) {
        if *key == Key::Search {
            self.searching = false;
        }
        self.jobs.ended(key);
        for (step, outcome) in outcomes {
            self.measure(step, &outcome);
            if let (Some((uid, value)), Outcome::Annotated(Ok(version))) =
                (self.annotating.remove(&step), &outcome)
                && let Some(known) = self.pods.get_mut(&uid)
            {
                known.written = Some(Written::new(value, version));
            }
            let (event, brought) = outcome.event(step);
            if let Some((netns, held)) = brought {
                self.held.entry(netns).or_insert(held);
            }
            self.feed(event);
        }
    }

    fn measure(&mut self, step: StepId, outcome: &Outcome) {
        let Some(begun) = self.begun.remove(&step) else { return };
        let stage = match outcome {
            Outcome::Found(Ok(_)) => Stage::Namespace,
            Outcome::Programmed(Ok(_)) => Stage::Rules,
            Outcome::Probe(Ok(())) => Stage::Probes,
            Outcome::Annotated(Ok(_)) => Stage::Annotation,
            _ => return,
        };
        self.figures.took(stage, begun.elapsed());
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
            Action::Unprogram { step, netns, .. } => self.unprogram(step, netns),
            Action::Release(netns) => {
                self.held.remove(&netns);
                self.offered.remove(&netns);
            }
            Action::Forget(uid) => self.forget(&uid),
            Action::Send { session, message } => self.send(session, message),
            Action::Close(session) => {
                self.sent.remove(&session);
                self.figures.ztunnels(self.sent.len());
                self.ztunnels.close(session);
            }
            Action::SetProbe { step, ip, ports, .. } => {
                self.probe(step, ip, move |probes| probes.set(ip, &ports));
            }
            Action::ClearProbe { step, ip } => {
                self.probe(step, ip, move |probes| probes.clear(ip));
            }
            Action::Annotate { step, uid, value } => self.annotate(step, uid, value),
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
            Action::Standing { uid, standing } => self.figures.stands(&uid, standing),
            Action::Report { uid, report } => {
                let who = uid.as_ref().map(|uid| (uid, self.pods.get(uid).map(|k| &k.told)));
                report::tell(who, &report);
                // What was found is programmed again at once.
                if let Report::Repaired { .. } | Report::Drifted { .. } = report {
                    self.figures.repaired("rules");
                }
            }
            Action::Drained => tracing::info!("every ambient pod is un-enrolled"),
        }
    }

    /// Addresses by its status, or those that the chain gave it.
    fn addresses_of(&self, uid: &PodUid) -> Vec<IpAddr> {
        let told = self.pods.get(uid).map(|known| &known.told);
        let status = told.and_then(Told::status).map(|s| s.addresses.to_vec());
        let addresses = status.filter(|ips| !ips.is_empty());
        addresses.or_else(|| self.addresses.get(uid).cloned()).unwrap_or_default()
    }

    fn find(&mut self, step: StepId, uid: PodUid) {
        let addresses = self.addresses_of(&uid);
        let told = self.pods.get(&uid).map(|known| &known.told);
        let uids = told.map_or_else(|| vec![uid.as_str().to_owned()], Told::uids);
        self.begun.insert(step, Instant::now());
        self.searches.push(Search { step, uid, uids, addresses });
    }

    /// All that are waiting, in one look at the processes.
    fn search(&mut self) {
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

    /// Starts a step in a namespace.
    fn within(
        &mut self,
        step: StepId,
        netns: NetnsId,
        kind: Kind,
        work: impl FnOnce(&Node, &Held, &Abandoned) -> Outcome + Send + 'static,
    ) {
        self.begun.insert(step, Instant::now());
        let (node, held) = (Arc::clone(&self.node), self.held.get(&netns).cloned());
        let work = Work::Thread(Box::new(move |abandoned| {
            let outcome = match held {
                Some(held) => work(&node, &held, abandoned),
                None => kind.failed(Failure::Transient(format!(
                    "no descriptor of network namespace {netns} is held"
                ))),
            };
            vec![(step, outcome)]
        }));
        self.jobs.push(Job { key: Key::Netns(netns), kind, steps: vec![step], work });
    }

    fn program(&mut self, step: StepId, uid: &PodUid, netns: NetnsId) {
        let told = self.pods.get(uid).map(|known| known.told.clone());
        let is_offered = self.offered.contains(&netns);
        let ports = if is_offered { Ports::Ztunnels } else { Ports::Ours };
        self.audits.forget(uid);
        self.within(step, netns, Kind::Program, move |node, held, abandoned| {
            let told = told.ok_or_else(|| Failure::Transient("the pod is not known".to_owned()));
            Outcome::Programmed(
                told.and_then(|t| program::program(node, &t, held, ports, abandoned)),
            )
        });
    }

    fn unprogram(&mut self, step: StepId, netns: NetnsId) {
        self.within(step, netns, Kind::Unprogram, |node, held, abandoned| {
            Outcome::Unprogrammed(program::unprogram(node, held, abandoned))
        });
    }

    fn probe(
        &mut self,
        step: StepId,
        ip: IpAddr,
        work: impl FnOnce(&Probes) -> Result<(), Failure> + Send + 'static,
    ) {
        self.begun.insert(step, Instant::now());
        let probes = Arc::clone(&self.probes);
        let work = Work::Thread(Box::new(move |_| vec![(step, Outcome::Probe(work(&probes)))]));
        self.jobs.push(Job { key: Key::Address(ip), kind: Kind::Probe, steps: vec![step], work });
    }

    fn annotate(&mut self, step: StepId, uid: PodUid, value: Annotation) {
        self.begun.insert(step, Instant::now());
        let target = match (&self.node.source, self.pods.get(&uid)) {
            (Pods::Kubernetes(kubernetes), Some(known)) => {
                let own = known.told.facts().uid.clone().unwrap_or_default();
                Some((Arc::clone(kubernetes.api()), known.told.name(), own))
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

    fn send(&mut self, session: SessionId, message: Message) {
        let held = match &message {
            Message::Add { netns, .. } => {
                self.offered.insert(*netns);
                self.held.get(netns)
            }
            _ => None,
        };
        let is_add = matches!(message, Message::Add { .. });
        match self.ztunnels.send(session, message, held) {
            Ok(()) => {
                if let Some(sent) = self.sent.get_mut(&session) {
                    sent.push_back((is_add, Instant::now()));
                }
            }
            Err(error) => {
                let reason = crate::failure::causes(&error);
                tracing::error!(session = session.0, reason, "cannot be sent to ztunnel");
                // Its end comes back as an event.
                self.ztunnels.close(session);
            }
        }
    }

    /// Looks at all pods that are captured, beside everything else.
    fn audit(&mut self) {
        self.timers.set(Due::Audit, Instant::now() + self.node.options.audit);
        let mut checks = Vec::new();
        for audit in self.machine.audits() {
            let held = self.held.get(&audit.netns).cloned();
            let known = self.pods.get(&audit.uid);
            let (Some(held), Some(known)) = (held, known) else { continue };
            checks.push(Check {
                addresses: self.addresses_of(&audit.uid),
                told: known.told.clone(),
                uid: audit.uid,
                held,
            });
        }
        self.audits.begin(&mut self.jobs, &self.node, checks);
    }

    fn audited(&mut self, checked: Vec<Checked>) {
        for Checked { uid, netns, verdict, brought } in self.audits.end(checked) {
            if let Some((netns, held)) = brought {
                self.held.entry(netns).or_insert(held);
            }
            self.feed(Event::Audited { uid, netns, verdict });
        }
    }

    fn forget(&mut self, uid: &PodUid) {
        self.audits.forget(uid);

        self.addresses.remove(uid);
        for (name, record) in self.node.recorded() {
            if find::uid_of(&record) == uid.as_str() {
                report::forgotten(self.node.records.remove(&name));
            }
        }
    }
}
