//! A node: API, runtime, kernel namespaces, ztunnels, and a driver that performs
//! actions and feeds events. Whatever the machine must never do panics here.

use crate::ztunnel::Ztunnel;
use ambient::action::{Action, Message, Report, Standing};
use ambient::config::Config;
use ambient::event::{Annotation, Event, Failure, Identity, Place, PodState, Verdict, Wanted};
use ambient::id::{
    NetnsId, OptionsHash, PeerId, PodUid, RequestId, SandboxId, SessionId, StepId, TimerId,
};
use ambient::machine::Machine;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

pub(crate) const SLOTS: usize = 4;

/// A pod in the API.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) state: PodState,
    /// Its present sandbox's namespace, if one was made.
    pub(crate) netns: Option<NetnsId>,
    /// Counts changes.
    version: u64,
    /// The last write that succeeded.
    written: Option<(u64, Annotation)>,
}

/// A namespace in the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    pub(crate) alive: bool,
    pub(crate) rules: Option<OptionsHash>,
    pub(crate) sandbox: SandboxId,
    pub(crate) ips: Vec<IpAddr>,
    /// A step said once that its rules were proved.
    pub(crate) proved: bool,
    /// Its rules went away, and the machine need not know.
    pub(crate) drifted: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Record {
    netns: NetnsId,
    identity: Identity,
    sandbox: Option<SandboxId>,
    ips: Vec<IpAddr>,
    options: OptionsHash,
    /// Its rules were being taken out.
    leaving: bool,
}

/// A step under way.
#[derive(Debug, Clone)]
enum Job {
    Find(PodUid),
    Program(PodUid, NetnsId, OptionsHash),
    Unprogram(PodUid, NetnsId),
    SetProbe(IpAddr, PodUid, BTreeSet<u16>),
    ClearProbe(IpAddr),
    Annotate(PodUid, Annotation),
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Search(PodUid),
    Netns(NetnsId),
    Ip(IpAddr),
    Api(PodUid),
}

impl Job {
    /// Steps of one lane do not overtake each other.
    fn lane(&self) -> Lane {
        match self {
            Self::Find(uid) => Lane::Search(uid.clone()),
            Self::Program(_, netns, _) | Self::Unprogram(_, netns) => Lane::Netns(*netns),
            Self::SetProbe(ip, ..) | Self::ClearProbe(ip) => Lane::Ip(*ip),
            Self::Annotate(uid, _) => Lane::Api(uid.clone()),
        }
    }
}

/// How a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    Refused,
    /// Whatever is strange for that step: done but not told so, another's namespace,
    /// a dead one.
    Odd,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) pods: [Option<Pod>; SLOTS],
    pub(crate) namespaces: BTreeMap<NetnsId, Namespace>,
    pub(crate) ztunnels: [Ztunnel; 2],
    pub(crate) probes: BTreeMap<IpAddr, (PodUid, BTreeSet<u16>)>,
    pub(crate) records: BTreeMap<PodUid, Record>,
    pub(crate) standing: BTreeMap<PodUid, Standing>,
    /// Addresses that the chain gave pods, or that records have.
    given: BTreeMap<PodUid, Vec<IpAddr>>,
    pub(crate) fds: BTreeSet<NetnsId>,
    pub(crate) open: BTreeSet<RequestId>,
    pub(crate) draining: bool,
    pub(crate) drained: bool,
    pub(crate) resting: bool,
    jobs: Vec<(StepId, Job)>,
    /// Steps whose pod was forgotten since: they write no record any more.
    barred: BTreeSet<StepId>,
    pub(crate) timers: Vec<TimerId>,
    watch: VecDeque<(u64, Event)>,
    /// What the machine was told of each pod.
    told: BTreeMap<PodUid, PodState>,
    /// The annotations as the driver knows them.
    known: BTreeMap<PodUid, Annotation>,
    disconnected: VecDeque<SessionId>,
    closed: BTreeSet<SessionId>,
    history: Vec<Event>,
    acked: BTreeSet<(PodUid, NetnsId)>,
    next: u64,
    pub(crate) activity: u64,
    pub(crate) reports: Vec<(Option<PodUid>, Report)>,
}

pub(crate) fn config() -> Config {
    Config { loud_after: 3, window: 3, ..Config::default() }
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            machine: Machine::new(config()),
            pods: Default::default(),
            namespaces: BTreeMap::new(),
            ztunnels: [Ztunnel::new(1), Ztunnel::new(2)],
            probes: BTreeMap::new(),
            records: BTreeMap::new(),
            standing: BTreeMap::new(),
            given: BTreeMap::new(),
            fds: BTreeSet::new(),
            open: BTreeSet::new(),
            draining: false,
            drained: false,
            resting: false,
            jobs: Vec::new(),
            barred: BTreeSet::new(),
            timers: Vec::new(),
            watch: VecDeque::new(),
            told: BTreeMap::new(),
            known: BTreeMap::new(),
            disconnected: VecDeque::new(),
            closed: BTreeSet::new(),
            history: Vec::new(),
            acked: BTreeSet::new(),
            next: 10,
            activity: 0,
            reports: Vec::new(),
        };
        world.watch.push_back((0, Event::Listed));
        world
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    // The driver: events in, actions out.

    pub(crate) fn feed(&mut self, event: Event) {
        let brought = match &event {
            Event::Recorded { netns, .. } => *netns,
            Event::Add { netns, .. } => Some(*netns),
            Event::Found { result: Ok(place), .. }
            | Event::Audited { verdict: Verdict::Elsewhere(place), .. } => Some(place.netns),
            _ => None,
        };
        self.fds.extend(brought);
        if let Event::Pod(state) = &event {
            self.told.insert(state.uid.clone(), state.clone());
            self.known.insert(state.uid.clone(), state.annotation);
        }
        let actions = self.machine.on(event.clone());
        self.cool(&event, &actions);
        self.activity += actions.len() as u64;
        self.history.push(event);
        for action in actions {
            self.perform(action);
        }
        let mut seen = BTreeSet::new();
        for pod in self.machine.pods() {
            if let Some(netns) = pod.netns {
                assert!(seen.insert(netns), "{netns} has two pods");
                assert!(self.fds.contains(&netns), "{netns} is named after its release");
            }
        }
    }

    /// What failed is not started again in the same breath.
    fn cool(&self, event: &Event, actions: &[Action]) {
        let failed = match event {
            Event::Found { step, result: Err(_) }
            | Event::Programmed { step, result: Err(Failure::Transient(_)) }
            | Event::Unprogrammed { step, result: Err(Failure::Transient(_)) }
            | Event::ProbeDone { step, result: Err(_) }
            | Event::Annotated { step, result: Err(_) } => *step,
            _ => return,
        };
        let Some((_, ended)) = self.jobs.iter().find(|(id, _)| *id == failed) else { return };
        for action in actions {
            let again = match (ended, action) {
                (Job::Find(a), Action::Find { uid, .. }) => a == uid,
                (Job::Program(_, a, o), Action::Program { netns, options, .. }) => {
                    a == netns && o == options
                }
                (Job::Unprogram(_, a), Action::Unprogram { netns, .. }) => a == netns,
                (Job::ClearProbe(a), Action::ClearProbe { ip, .. }) => a == ip,
                (Job::Annotate(a, v), Action::Annotate { uid, value, .. }) => {
                    a == uid && v == value
                }
                _ => false,
            };
            assert!(!again, "{action:?} right after it failed: a hot loop");
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Find { step, uid } => self.jobs.push((step, Job::Find(uid))),
            Action::Program { step, uid, netns, options } => {
                assert!(self.fds.contains(&netns), "program {netns} after its release");
                assert!(!self.draining, "program {uid}, which is not wanted");
                if let Some(told) = self.told.get(&uid) {
                    assert!(!told.terminal, "program {uid}, which is not wanted");
                    assert_ne!(told.wanted, Wanted::No, "program {uid}, which is not wanted");
                } else {
                    let record = &self.records[&uid];
                    assert!(!record.leaving, "program {uid}, which was being un-enrolled");
                    assert_eq!(record.options, options, "{uid}: not what its record says");
                }
                self.jobs.push((step, Job::Program(uid, netns, options)));
            }
            Action::Unprogram { step, uid, netns } => {
                assert!(self.fds.contains(&netns), "unprogram {netns} after its release");
                let told = &self.told[&uid];
                let leaves = self.draining || told.wanted == Wanted::No;
                assert!(leaves, "unprogram {uid}, which is wanted: its traffic escapes");
                assert!(!told.terminal);
                self.jobs.push((step, Job::Unprogram(uid, netns)));
            }
            Action::Release(netns) => {
                self.fds.remove(&netns);
            }
            Action::Forget(uid) => {
                self.records.remove(&uid);
                self.given.remove(&uid);
                let own = |job: &Job| matches!(job, Job::Program(of, ..) | Job::Unprogram(of, _) if *of == uid);
                self.barred.extend(self.jobs.iter().filter(|(_, job)| own(job)).map(|(id, _)| *id));
            }
            Action::Send { session, message } => self.send(session, message),
            Action::Close(session) => {
                assert!(self.closed.insert(session), "{session:?} closed twice");
                for ztunnel in &mut self.ztunnels {
                    let ours = ztunnel.connection.as_mut().filter(|c| c.session == session);
                    if let Some(connection) = ours {
                        connection.closed = true;
                        connection.outbox.clear();
                    }
                }
            }
            Action::SetProbe { step, ip, ports, owner } => {
                assert!(!ports.is_empty());
                self.jobs.push((step, Job::SetProbe(ip, owner.uid, ports)));
            }
            Action::ClearProbe { step, ip } => self.jobs.push((step, Job::ClearProbe(ip))),
            Action::Annotate { step, uid, value } => {
                assert_ne!(value, Annotation::Foreign);
                if value == Annotation::Enabled {
                    self.evidence(&uid);
                }
                let known = self.known.get(&uid);
                assert_ne!(known, Some(&value), "{uid}: {value:?} is written, and known to be so");
                self.jobs.push((step, Job::Annotate(uid, value)));
            }
            Action::Answer { request, result } => {
                assert!(self.open.remove(&request), "{request:?} answered twice");
                if result.is_ok() {
                    let asked = self.history.iter().rev().find_map(|e| match e {
                        Event::Add { request: r, uid, netns, .. } if *r == request => {
                            Some((uid.clone(), *netns))
                        }
                        _ => None,
                    });
                    let (uid, netns) = asked.expect("an answer to what was never asked");
                    let at = self.machine.pod(&uid).and_then(|p| p.netns);
                    assert_eq!(at, Some(netns), "{uid}: captured, but not where it was asked for");
                    self.evidence(&uid);
                }
            }
            Action::Timer { timer, .. } => self.timers.push(timer),
            Action::Cancel(timer) => self.timers.retain(|t| *t != timer),
            Action::Standing { uid, standing } => {
                let former = self.standing.insert(uid.clone(), standing);
                assert_ne!(former, Some(standing), "{uid}: the same standing told again");
                if standing == Standing::Verified {
                    self.evidence(&uid);
                }
            }
            Action::Report { uid, report } => {
                if let (Report::Repaired { .. }, Some(uid)) = (&report, &uid) {
                    let netns = self.machine.pod(uid).and_then(|pod| pod.netns);
                    let rules = netns.and_then(|netns| self.namespaces[&netns].rules);
                    assert!(rules.is_some(), "{uid}: put right, and without rules");
                }
                self.reports.push((uid, report));
            }
            Action::Drained => {
                assert!(self.draining && !self.drained);
                self.drained = true;
            }
        }
    }

    /// Whoever says that a pod is captured must have seen rules, ack and probes.
    fn evidence(&self, uid: &PodUid) {
        let pod = self.machine.pod(uid).expect("captured, but not known");
        let netns = pod.netns.expect("captured, but nowhere");
        let namespace = &self.namespaces[&netns];
        assert!(namespace.proved, "{uid}: captured, but never proved");
        let intact = namespace.rules.is_some() || namespace.drifted;
        assert!(intact, "{uid}: captured, but its rules were taken out");
        let leaving = |(_, job): &(StepId, Job)| matches!(job, Job::Unprogram(_, n) if *n == netns);
        assert!(
            !self.jobs.iter().any(leaving),
            "{uid}: captured, but its rules are being taken out"
        );
        assert!(
            self.acked.contains(&(uid.clone(), netns)),
            "{uid}: captured, but no ztunnel ever took it there"
        );
    }

    fn send(&mut self, session: SessionId, message: Message) {
        assert!(!self.closed.contains(&session), "{session:?} is closed: {message:?}");
        if let Message::Add { uid, identity, netns } = &message {
            assert!(self.fds.contains(netns), "Add with a descriptor that was released");
            assert_eq!(*identity, self.told[uid].identity);
            if let Some(record) = self.records.get_mut(uid) {
                record.identity = identity.clone();
            }
            for ztunnel in &self.ztunnels {
                let heard = ztunnel.connection.as_ref();
                if !heard.is_some_and(|c| !c.closed && !self.disconnected.contains(&c.session)) {
                    continue;
                }
                let crowd = ztunnel.proxies.iter().find(|(u, p)| *u != uid && p.netns == *netns);
                assert!(crowd.is_none(), "{uid} sent for {netns}, which has {crowd:?}");
            }
        }
        match &message {
            Message::Del(uid) if self.runs(session, uid) => self.is_rid(uid),
            Message::SnapshotSent => self.names_all_that_run(session),
            Message::Add { .. } | Message::Keep(_) | Message::Del(_) => {}
        }
        for ztunnel in &mut self.ztunnels {
            let Some(connection) = &mut ztunnel.connection else { continue };
            if connection.session == session {
                connection.inbox.push_back(message.clone());
                let waiting = connection.inbox.len() + connection.outbox.len();
                assert!(waiting <= config().window, "{waiting} messages wait");
            }
        }
    }

    /// A pod that runs and is to be left alone has to be rid of its rules before ztunnel
    /// lets go of it: else its traffic is captured to nobody.
    fn is_rid(&self, uid: &PodUid) {
        let Some(netns) = self.leaves(uid) else { return };
        assert_eq!(self.namespaces[&netns].rules, None, "{uid} in {netns}: del, with rules in");
    }

    /// The namespace of a pod that runs on and is not to be captured, by all that the
    /// machine was told.
    fn leaves(&self, uid: &PodUid) -> Option<NetnsId> {
        let told = self.told.get(uid)?;
        let pod = self.api(uid).filter(|p| !p.state.terminal)?;
        let leaves = !told.terminal && (self.draining || told.wanted == Wanted::No);
        pod.netns.filter(|netns| leaves && self.namespaces[netns].alive)
    }

    /// That ztunnel serves the pod where it is.
    fn runs(&self, session: SessionId, uid: &PodUid) -> bool {
        let own = |z: &&Ztunnel| z.connection.as_ref().is_some_and(|c| c.session == session);
        let netns = self.api(uid).and_then(|pod| pod.netns);
        let ztunnel = self.ztunnels.iter().find(own);
        ztunnel.and_then(|z| z.proxies.get(uid)).is_some_and(|proxy| Some(proxy.netns) == netns)
    }

    /// The end of a snapshot stops what it does not name.
    fn names_all_that_run(&self, session: SessionId) {
        let own = |z: &&Ztunnel| z.connection.as_ref().is_some_and(|c| c.session == session);
        let Some(ztunnel) = self.ztunnels.iter().find(own) else { return };
        for (uid, proxy) in &ztunnel.proxies {
            let same = self.told.get(uid).is_some_and(|told| told.identity == proxy.identity);
            let here = self.leaves(uid) == Some(proxy.netns);
            if same && here && !ztunnel.is_named(uid) {
                self.is_rid(uid);
            }
        }
    }

    // What happens outside.

    pub(crate) fn next_watch(&mut self) -> bool {
        let Some((version, event)) = self.watch.pop_front() else { return false };
        self.deliver(version, event);
        true
    }

    fn deliver(&mut self, version: u64, event: Event) {
        let event = match event {
            Event::Pod(mut state) => {
                let written = self.api(&state.uid).and_then(|p| p.written);
                if let Some((at, value)) = written
                    && at > version
                {
                    state.annotation = value;
                }
                if state.ips.is_empty() {
                    state.ips = self.given.get(&state.uid).cloned().unwrap_or_default();
                }
                Event::Pod(state)
            }
            event => event,
        };
        self.feed(event);
    }

    pub(crate) fn api(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods.iter().flatten().find(|p| p.state.uid == *uid)
    }

    /// Changes a pod in the API; the watch will tell.
    pub(crate) fn change(&mut self, slot: usize, change: impl FnOnce(&mut PodState)) {
        let version = self.number();
        let Some(pod) = &mut self.pods[slot] else { return };
        let before = pod.state.clone();
        change(&mut pod.state);
        if pod.state != before {
            pod.version = version;
            self.watch.push_back((version, Event::Pod(pod.state.clone())));
        }
    }

    pub(crate) fn create(&mut self, slot: usize, wanted: Wanted, ports: BTreeSet<u16>) {
        if self.pods[slot].is_some() {
            return;
        }
        let number = self.number();
        let state = PodState {
            uid: PodUid::new(&format!("u{number}")),
            identity: Identity {
                namespace: "ns".into(),
                name: format!("pod-{slot}"),
                service_account: "default".into(),
            },
            ips: Vec::new(),
            wanted,
            terminal: false,
            deleting: false,
            probe_ports: ports,
            annotation: Annotation::Absent,
        };
        self.watch.push_back((number, Event::Pod(state.clone())));
        self.pods[slot] = Some(Pod { state, netns: None, version: number, written: None });
    }

    pub(crate) fn vanish(&mut self, slot: usize) {
        if let Some(pod) = self.pods[slot].take() {
            let version = self.number();
            self.watch.push_back((version, Event::PodGone(pod.state.uid)));
        }
    }

    /// The same sandbox, but the API's object is made anew, as kubelet does with the
    /// mirror of a static pod.
    pub(crate) fn mirror(&mut self, slot: usize) {
        let Some(former) = self.pods[slot].clone() else { return };
        self.vanish(slot);
        self.create(slot, former.state.wanted, former.state.probe_ports.clone());
        if let Some(pod) = &mut self.pods[slot] {
            pod.netns = former.netns;
        }
        self.change(slot, |state| state.ips = former.state.ips);
    }

    /// The runtime makes a sandbox. The former one dies, unless `overlap`.
    pub(crate) fn sandbox(&mut self, slot: usize, told: bool, overlap: bool, two: bool) {
        let Some(pod) = &self.pods[slot] else { return };
        if pod.state.terminal || pod.state.deleting {
            return;
        }
        let former = pod.netns;
        if let Some(former) = former.filter(|_| !overlap) {
            self.kill(former);
        }
        let count = if two { 2 } else { 1 };
        let used: BTreeSet<IpAddr> =
            self.namespaces.values().filter(|n| n.alive).flat_map(|n| n.ips.clone()).collect();
        let ips: Vec<IpAddr> = (1..=20_u8)
            .map(|n| IpAddr::from([10, 0, 0, n]))
            .filter(|ip| !used.contains(ip))
            .take(count)
            .collect();
        let netns = self.free_number();
        let sandbox = SandboxId::new(&format!("s{}", self.number()));
        let namespace =
            Namespace { alive: true, rules: None, sandbox, ips, proved: false, drifted: false };
        self.namespaces.insert(netns, namespace);
        self.acked.retain(|(_, n)| *n != netns);
        for pod in self.pods.iter_mut().flatten() {
            // The number was used again: what had it is no more.
            pod.netns = pod.netns.filter(|n| *n != netns);
        }
        if let Some(pod) = &mut self.pods[slot] {
            pod.netns = Some(netns);
        }
        if told {
            self.add(slot);
        }
    }

    /// The plugin asks for the pod's present sandbox.
    pub(crate) fn add(&mut self, slot: usize) {
        let Some(pod) = self.pods[slot].clone() else { return };
        let Some(netns) = pod.netns.filter(|n| self.namespaces[n].alive) else { return };
        if pod.state.wanted == Wanted::No {
            return;
        }
        // The request's facts are as new as the API, and so is what the machine knows.
        let uid = pod.state.uid.clone();
        let (mine, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.watch)
            .into_iter()
            .partition(|(_, e)| matches!(e, Event::Pod(s) if s.uid == uid));
        self.watch = others;
        for (version, event) in mine {
            self.deliver(version, event);
        }
        let request = RequestId(self.number());
        self.open.insert(request);
        let Namespace { sandbox, ips, .. } = self.namespaces[&netns].clone();
        self.given.insert(uid.clone(), ips.clone());
        self.feed(Event::Add { request, uid, sandbox, netns, ips });
    }

    pub(crate) fn kill(&mut self, netns: NetnsId) {
        if let Some(namespace) = self.namespaces.get_mut(&netns) {
            namespace.alive = false;
        }
    }

    /// The runtime takes a sandbox down.
    pub(crate) fn down(&mut self, slot: usize, told: bool) {
        let Some(netns) = self.pods[slot].as_ref().and_then(|p| p.netns) else { return };
        self.kill(netns);
        if told {
            let sandbox = self.namespaces[&netns].sandbox.clone();
            self.feed(Event::SandboxGone { sandbox });
        }
    }

    /// DEL of a sandbox that has a successor, or none.
    pub(crate) fn late_down(&mut self, pick: usize) {
        let dead: Vec<SandboxId> =
            self.namespaces.values().filter(|n| !n.alive).map(|n| n.sandbox.clone()).collect();
        if let Some(sandbox) = choose(&dead, pick) {
            self.feed(Event::SandboxGone { sandbox });
        }
    }

    /// kubelet writes the addresses into the status.
    pub(crate) fn status(&mut self, slot: usize) {
        let netns = self.pods[slot].as_ref().and_then(|p| p.netns);
        if let Some(namespace) = netns.and_then(|n| self.namespaces.get(&n)).cloned() {
            self.change(slot, |state| state.ips = namespace.ips);
        }
    }

    /// The lowest number that no living or pinned namespace has, as the kernel does it.
    fn free_number(&self) -> NetnsId {
        (1..)
            .map(|ino| NetnsId { dev: 4, ino })
            .find(|id| {
                let alive = self.namespaces.get(id).is_some_and(|n| n.alive);
                let stepping = self.jobs.iter().any(|(_, job)| job.lane() == Lane::Netns(*id));
                let pinned = self.ztunnels.iter().any(|z| z.pins(*id));
                !alive && !stepping && !pinned && !self.fds.contains(id)
            })
            .expect("numbers do not end")
    }

    // Steps.

    pub(crate) fn steps(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn finish(&mut self, pick: usize, outcome: Outcome) {
        if self.jobs.is_empty() {
            return;
        }
        let lane = self.jobs[pick % self.jobs.len()].1.lane();
        let first = self.jobs.iter().position(|(_, job)| job.lane() == lane).expect("is there");
        let (step, job) = self.jobs[first].clone();
        let event = self.outcome(step, &job, outcome);
        self.feed(event);
        self.jobs.retain(|(id, _)| *id != step);
    }

    /// The record comes before the rules.
    fn write_down(&mut self, step: StepId, uid: &PodUid, netns: NetnsId, options: OptionsHash) {
        if self.barred.contains(&step) {
            return;
        }
        let recorded = self.records.get(uid).map(|r| &r.identity);
        let Some(identity) = recorded.or(self.told.get(uid).map(|t| &t.identity)).cloned() else {
            return;
        };
        let Namespace { sandbox, ips, .. } = self.namespaces[&netns].clone();
        let sandbox = Some(sandbox);
        let record = Record { netns, identity, sandbox, ips, options, leaving: false };
        self.records.insert(uid.clone(), record);
    }

    /// So does that they are to go.
    fn strike_out(&mut self, step: StepId, uid: &PodUid) {
        if let Some(record) = self.records.get_mut(uid).filter(|_| !self.barred.contains(&step)) {
            record.leaving = true;
        }
    }

    /// Searches fail, again and again.
    pub(crate) fn seek(&mut self, times: usize) {
        for _ in 0..times {
            let timers = self.timers.clone();
            for _ in 0..self.jobs.len() {
                if let Some(pick) = self.jobs.iter().position(|(_, j)| matches!(j, Job::Find(_))) {
                    self.finish(pick, Outcome::Failed);
                }
            }
            let new: Vec<TimerId> =
                self.timers.iter().filter(|timer| !timers.contains(timer)).copied().collect();
            for timer in new {
                self.timers.retain(|t| *t != timer);
                self.feed(Event::Timer(timer));
            }
        }
    }

    /// The options that a step writes: the driver's view may have moved on.
    fn latest(&self, uid: &PodUid, options: OptionsHash, outcome: Outcome) -> OptionsHash {
        match self.told.get(uid).map(|told| told.wanted) {
            Some(Wanted::Ambient(latest)) if outcome == Outcome::Odd => latest,
            _ => options,
        }
    }

    fn outcome(&mut self, step: StepId, job: &Job, outcome: Outcome) -> Event {
        match job {
            Job::Program(uid, netns, options) if outcome != Outcome::Refused => {
                self.write_down(step, uid, *netns, self.latest(uid, *options, outcome));
            }
            Job::Unprogram(uid, _) => self.strike_out(step, uid),
            _ => {}
        }
        let failure = match outcome {
            Outcome::Refused => Failure::Refused("refused".into()),
            _ => Failure::Transient("failed".into()),
        };
        let result = match outcome {
            Outcome::Done => Ok(()),
            _ => Err(failure.clone()),
        };
        match job {
            Job::Find(uid) => {
                let found = match outcome {
                    Outcome::Done => self.find(uid).ok_or(failure),
                    Outcome::Odd => self.someone_elses(uid).ok_or(failure),
                    _ => Err(failure),
                };
                Event::Found { step, result: found }
            }
            Job::Program(uid, netns, options) => {
                let latest = self.latest(uid, *options, outcome);
                let resting = self.resting;
                let namespace = self.namespaces.get_mut(netns).expect("it was made");
                if !namespace.alive && (resting || outcome == Outcome::Odd) {
                    return Event::Programmed { step, result: Err(Failure::NamespaceGone) };
                }
                let result = match outcome {
                    Outcome::Done | Outcome::Odd => {
                        namespace.rules = Some(latest);
                        namespace.proved = true;
                        namespace.drifted = false;
                        Ok(latest)
                    }
                    _ => {
                        // Halfway, at the worst.
                        namespace.rules = None;
                        Err(failure)
                    }
                };
                Event::Programmed { step, result }
            }
            Job::Unprogram(_, netns) => {
                let namespace = self.namespaces.get_mut(netns).expect("it was made");
                if !namespace.alive && outcome == Outcome::Odd {
                    return Event::Unprogrammed { step, result: Err(Failure::NamespaceGone) };
                }
                if matches!(outcome, Outcome::Done | Outcome::Odd) {
                    namespace.rules = None;
                }
                Event::Unprogrammed { step, result }
            }
            Job::SetProbe(ip, uid, ports) => {
                if matches!(outcome, Outcome::Done | Outcome::Odd) {
                    self.probes.insert(*ip, (uid.clone(), ports.clone()));
                }
                Event::ProbeDone { step, result }
            }
            Job::ClearProbe(ip) => {
                if matches!(outcome, Outcome::Done | Outcome::Odd) {
                    self.probes.remove(ip);
                }
                Event::ProbeDone { step, result }
            }
            Job::Annotate(uid, value) => {
                if matches!(outcome, Outcome::Done | Outcome::Odd) {
                    self.write(uid, *value, outcome == Outcome::Done);
                }
                Event::Annotated { step, result }
            }
        }
    }

    fn write(&mut self, uid: &PodUid, value: Annotation, known: bool) {
        if known {
            self.known.insert(uid.clone(), value);
        }
        let slot = self.pods.iter().position(|p| p.as_ref().is_some_and(|p| p.state.uid == *uid));
        let Some(slot) = slot else { return };
        self.change(slot, |state| state.annotation = value);
        if let Some(pod) = self.pods[slot].as_mut().filter(|_| known) {
            pod.written = Some((pod.version, value));
        }
    }

    fn find(&self, uid: &PodUid) -> Option<Place> {
        let pod = self.api(uid)?;
        let netns = pod.netns?;
        let namespace = self.namespaces.get(&netns).filter(|n| n.alive)?;
        let owned = namespace.ips.iter().any(|ip| pod.state.ips.contains(ip));
        let sandbox = Some(namespace.sandbox.clone());
        owned.then_some(Place { netns, sandbox })
    }

    /// A namespace that is another pod's, and that the machine knows to be.
    fn someone_elses(&self, uid: &PodUid) -> Option<Place> {
        let netns = self.machine.pods().find(|p| p.uid != *uid && p.netns.is_some())?.netns?;
        Some(Place { netns, sandbox: None })
    }

    pub(crate) fn ring(&mut self, pick: usize) {
        if let Some(timer) = choose(&self.timers, pick) {
            self.timers.retain(|t| *t != timer);
            self.feed(Event::Timer(timer));
        }
    }

    pub(crate) fn expire(&mut self, pick: usize) {
        let open: Vec<RequestId> = self.open.iter().copied().collect();
        if let Some(request) = choose(&open, pick) {
            self.feed(Event::Expired(request));
            assert!(!self.open.contains(&request), "an expired request is answered at once");
        }
    }

    /// An event comes twice, or very late.
    pub(crate) fn again(&mut self, pick: usize) {
        let repeatable: Vec<Event> = self
            .history
            .iter()
            .rev()
            .filter(|e| match e {
                Event::Found { result: Ok(place), .. } => {
                    // The driver opens it once more.
                    self.namespaces[&place.netns].alive
                }
                Event::Found { .. }
                | Event::Programmed { .. }
                | Event::Unprogrammed { .. }
                | Event::ProbeDone { .. }
                | Event::Annotated { .. }
                | Event::Timer(_)
                | Event::Expired(_)
                | Event::Disconnected(_)
                | Event::Listed => true,
                Event::PodGone(uid) => self.api(uid).is_none(),
                Event::SandboxGone { sandbox } => {
                    !self.namespaces.values().any(|n| n.alive && n.sandbox == *sandbox)
                }
                _ => false,
            })
            .take(8)
            .cloned()
            .collect();
        if let Some(event) = choose(&repeatable, pick) {
            let seen = !matches!(event, Event::Listed) || self.history.contains(&Event::Listed);
            if seen {
                self.feed(event);
            }
        }
    }

    // ztunnels.

    pub(crate) fn connect(&mut self, z: usize) {
        if self.ztunnels[z].connection.as_ref().is_some_and(|c| !c.closed) {
            return;
        }
        let session = SessionId(self.number());
        self.ztunnels[z].connect(session);
        let peer = PeerId(self.ztunnels[z].pid);
        self.feed(Event::Connected { session, peer });
    }

    pub(crate) fn disconnect(&mut self, z: usize) {
        if let Some(connection) = self.ztunnels[z].connection.take_if(|c| !c.closed) {
            self.disconnected.push_back(connection.session);
        }
    }

    pub(crate) fn crash(&mut self, z: usize) {
        self.disconnect(z);
        let pid = self.number();
        self.ztunnels[z] = Ztunnel::new(pid);
    }

    pub(crate) fn end_of_file(&mut self) -> bool {
        let Some(session) = self.disconnected.pop_front() else { return false };
        self.closed.insert(session);
        self.feed(Event::Disconnected(session));
        true
    }

    pub(crate) fn respond(&mut self, z: usize) -> bool {
        let Some(connection) = &mut self.ztunnels[z].connection else { return false };
        let session = connection.session;
        let Some(error) = connection.outbox.pop_front() else { return false };
        let acks: Vec<(PodUid, NetnsId)> = self.ztunnels[z]
            .proxies
            .iter()
            .map(|(uid, proxy)| (uid.clone(), proxy.netns))
            .collect();
        self.acked.extend(acks);
        self.feed(Event::Response { session, error });
        true
    }

    // The audit.

    pub(crate) fn audit(&mut self, pick: usize, how: Outcome) {
        let audits: Vec<_> = self.machine.audits().collect();
        let Some(audit) = choose(&audits, pick) else { return };
        let namespace = &self.namespaces[&audit.netns];
        let (alive, intact) = (namespace.alive, namespace.rules == Some(audit.options));
        let place = self.find(&audit.uid);
        let here = place.as_ref().is_some_and(|p| p.netns == audit.netns);
        let known = self.api(&audit.uid).is_some();
        let is_told = self.told.contains_key(&audit.uid);
        let verdict = match (how, place) {
            (Outcome::Refused, _) => Verdict::Unreadable(Failure::Transient("no".into())),
            (_, Some(place)) if !here => Verdict::Elsewhere(place),
            _ if !alive => Verdict::Gone,
            _ if !known && is_told => return,
            _ if intact => Verdict::Fine,
            _ => Verdict::Broken { drift: "flushed".into() },
        };
        self.feed(Event::Audited { uid: audit.uid, netns: audit.netns, verdict });
    }

    pub(crate) fn drift(&mut self, slot: usize) {
        let netns = self.pods[slot].as_ref().and_then(|p| p.netns);
        if let Some(namespace) = netns.and_then(|n| self.namespaces.get_mut(&n)) {
            namespace.rules = None;
            namespace.drifted = true;
        }
    }

    /// The agent starts while the API is away, and rules are flushed: they are put right
    /// by what the records say, and ztunnel is told nothing.
    pub(crate) fn unlisted(&mut self, slot: usize) {
        self.restart(true, false);
        self.connect(0);
        self.drift(slot);
        for _ in 0..4 {
            for pick in 0..SLOTS * 2 {
                self.audit(pick, Outcome::Done);
            }
            while !self.jobs.is_empty() {
                self.finish(0, Outcome::Done);
            }
            for _ in 0..self.timers.len() {
                self.ring(0);
            }
        }
        for (uid, record) in self.records.iter().filter(|(_, record)| !record.leaving) {
            let pod = self.machine.pod(uid).expect("a pod with a record is not known");
            let Some(netns) = pod.netns else { continue };
            let namespace = &self.namespaces[&netns];
            let intact = namespace.rules == Some(record.options);
            assert!(intact || !namespace.alive, "{uid}: left as it is: {pod:?}");
            assert!(matches!(pod.standing, Standing::Unverified(_)), "{uid}: {pod:?}");
        }
        let told = self.ztunnels[0].connection.as_ref().map_or(0, |c| c.inbox.len());
        assert_eq!(told, 0, "ztunnel was told something");
    }

    pub(crate) fn flush_probes(&mut self) {
        self.probes.clear();
        self.feed(Event::ProbesLost);
    }

    pub(crate) fn drain(&mut self) {
        self.draining = true;
        self.feed(Event::Drain);
    }

    /// A second thing that the records cannot tell: that of two ztunnels one runs a pod
    /// under its former name. A record has one name, the later.
    fn forget_former_names(&mut self) {
        let records = &self.records;
        let is_new = |uid: &PodUid, proxy: &crate::ztunnel::Proxy| {
            records.get(uid).is_some_and(|record| record.identity == proxy.identity)
        };
        let all = self.ztunnels.iter().flat_map(|z| &z.proxies);
        let renamed: BTreeSet<PodUid> =
            all.filter(|(uid, proxy)| is_new(uid, proxy)).map(|(uid, _)| uid.clone()).collect();
        for ztunnel in &mut self.ztunnels {
            ztunnel.proxies.retain(|uid, proxy| is_new(uid, proxy) || !renamed.contains(uid));
        }
    }

    /// The agent dies and starts. Steps under way are done, or not.
    /// `blind`: no namespace can be opened meanwhile.
    pub(crate) fn restart(&mut self, done: bool, blind: bool) {
        for (step, job) in std::mem::take(&mut self.jobs) {
            if done {
                let _ = self.outcome(step, &job, Outcome::Odd);
            } else if step.0 % 2 == 0 {
                match &job {
                    Job::Program(uid, netns, options) => {
                        self.write_down(step, uid, *netns, *options);
                    }
                    Job::Unprogram(uid, _) => self.strike_out(step, uid),
                    _ => {}
                }
            }
        }
        self.barred.clear();
        let living: BTreeSet<PodUid> =
            self.pods.iter().flatten().map(|p| p.state.uid.clone()).collect();
        let gone = |uid: &PodUid| !living.contains(uid);
        for ztunnel in &mut self.ztunnels {
            // A ztunnel that was away when a pod was forgotten, and is still away when
            // the agent starts, is more than the records can tell. So is where a pod was that
            // has ended, when nothing can be opened.
            while ztunnel.work(false) {}
            let known = |uid: &PodUid| self.records.contains_key(uid) && !(blind && gone(uid));
            ztunnel.proxies.retain(|uid, _| known(uid));
            ztunnel.connection = None;
            ztunnel.pending.clear();
        }
        self.forget_former_names();
        for pod in self.pods.iter().flatten() {
            // A third thing that the records cannot tell: that the mirror of a static
            // pod, made anew and not found yet, has its predecessor's rules.
            if !self.records.contains_key(&pod.state.uid)
                && let Some(namespace) = pod.netns.and_then(|n| self.namespaces.get_mut(&n))
            {
                namespace.rules = None;
            }
        }
        self.machine = Machine::new(config());
        self.fds.clear();
        self.given.clear();
        self.timers.clear();
        self.open.clear();
        self.history.clear();
        self.told.clear();
        self.standing.clear();
        self.disconnected.clear();
        self.watch.clear();
        (self.draining, self.drained) = (false, false);
        for (uid, record) in self.records.clone() {
            let alive = self.namespaces.get(&record.netns).is_some_and(|n| {
                n.alive && record.sandbox.as_ref().is_none_or(|s| *s == n.sandbox)
            });
            let owned = self.api(&uid).is_none_or(|p| p.netns == Some(record.netns));
            let Record { netns, identity, sandbox, ips, options, leaving } = record;
            let options = (!leaving).then_some(options);
            self.given.insert(uid.clone(), ips);
            let (identity, netns) = (Some(identity), (alive && owned && !blind).then_some(netns));
            self.feed(Event::Recorded { uid, identity, sandbox, netns, options });
        }
        for ip in self.probes.keys().copied().collect::<Vec<_>>() {
            self.feed(Event::ProbeFound { ip });
        }
        for pod in self.pods.iter_mut().flatten() {
            pod.written = None;
            self.watch.push_back((pod.version, Event::Pod(pod.state.clone())));
        }
        self.watch.push_back((u64::MAX, Event::Listed));
    }
}

fn choose<T: Clone>(from: &[T], pick: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[pick % from.len()].clone())
}
