//! A node whose driver is the story: it says what happens, and reads what the machine
//! asks for in words.

use ambient::action::{Action, Message, Standing};
use ambient::config::Config;
use ambient::event::{Annotation, Event, Failure, Identity, Place, PodState, Verdict, Wanted};
use ambient::id::{
    NetnsId, OptionsHash, PeerId, PodUid, RequestId, SandboxId, SessionId, StepId, TimerId,
};
use ambient::machine::Machine;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub(crate) struct Node {
    pub(crate) machine: Machine,
    steps: Vec<(StepId, Action)>,
    timers: Vec<(TimerId, Duration)>,
    pub(crate) standing: Vec<(String, Standing)>,
}

pub(crate) fn uid(name: &str) -> PodUid {
    PodUid::new(name)
}

pub(crate) fn netns(ino: u64) -> NetnsId {
    NetnsId { dev: 4, ino }
}

pub(crate) fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A pod that is wanted, probed on port 80, and has the address 10.0.0.`last`.
pub(crate) fn pod(name: &str, last: u8) -> PodState {
    PodState {
        uid: uid(name),
        identity: Identity {
            namespace: "shop".into(),
            name: name.into(),
            service_account: "default".into(),
        },
        ips: vec![ip(last)],
        wanted: Wanted::Ambient(OptionsHash(1)),
        terminal: false,
        deleting: false,
        probe_ports: BTreeSet::from([80]),
        annotation: Annotation::Absent,
    }
}

/// A pod whose sandbox is being made: its status has no address yet.
pub(crate) fn starting(name: &str) -> Event {
    Event::Pod(PodState { ips: Vec::new(), ..pod(name, 0) })
}

fn words(action: &Action) -> Option<String> {
    Some(match action {
        Action::Find { uid, .. } => format!("find {uid}"),
        Action::Program { uid, netns, options, .. } => {
            format!("program {uid} in {} with {}", netns.ino, options.0)
        }
        Action::Unprogram { uid, netns, .. } => format!("unprogram {uid} in {}", netns.ino),
        Action::Release(netns) => format!("release {}", netns.ino),
        Action::Forget(uid) => format!("forget {uid}"),
        Action::Send { session, message } => format!(
            "to {}: {}",
            session.0,
            match message {
                Message::Add { uid, netns, .. } => format!("add {uid} in {}", netns.ino),
                Message::Keep(uid) => format!("keep {uid}"),
                Message::Del(uid) => format!("del {uid}"),
                Message::SnapshotSent => "snapshot sent".into(),
            }
        ),
        Action::Close(session) => format!("close {}", session.0),
        Action::SetProbe { ip, owner, .. } => format!("exempt {ip} of {}", owner.uid),
        Action::ClearProbe { ip, .. } => format!("clear {ip}"),
        Action::Annotate { uid, value, .. } => format!("annotate {uid} {value:?}"),
        Action::Answer { request, result } => match result {
            Ok(()) => format!("answer {}: captured", request.0),
            Err(refusal) => format!("answer {}: {refusal}", request.0),
        },
        Action::Report { uid, report } => {
            let of = uid.as_ref().map_or("node", |u| u.as_str());
            format!("report {of}: {report:?}")
        }
        Action::Drained => "drained".into(),
        Action::Timer { .. } | Action::Cancel(_) | Action::Standing { .. } => return None,
    })
}

/// How a step ends.
fn outcome(step: StepId, action: &Action, result: Result<(), Failure>) -> Event {
    match action {
        Action::Find { .. } => Event::Found {
            step,
            result: Err(result.err().unwrap_or(Failure::Transient("no process".into()))),
        },
        Action::Program { options, .. } => {
            Event::Programmed { step, result: result.map(|()| *options) }
        }
        Action::Unprogram { .. } => Event::Unprogrammed { step, result },
        Action::Annotate { .. } => Event::Annotated { step, result },
        _ => Event::ProbeDone { step, result },
    }
}

impl Node {
    /// Nothing is known.
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        Self {
            machine: Machine::new(config),
            steps: Vec::new(),
            timers: Vec::new(),
            standing: Vec::new(),
        }
    }

    /// The list of pods is in, and it is empty.
    pub(crate) fn listed() -> Self {
        let mut node = Self::new();
        node.tell(Event::Listed);
        node
    }

    /// As [`listed`](Self::listed), with a ztunnel that has its snapshot.
    pub(crate) fn ready() -> Self {
        let mut node = Self::listed();
        assert_eq!(node.connect(1, 100), ["to 1: snapshot sent"]);
        node.ack(1);
        node
    }

    /// As [`ready`](Self::ready), with an ADD under way: of pod a, in namespace 1.
    pub(crate) fn asked(request: u64) -> Self {
        let mut node = Self::ready();
        node.tell(starting("a"));
        node.add(request, "a", "s", 1);
        node
    }

    /// As [`ready`](Self::ready), with pods that are captured: in namespace 1, 2, ...
    pub(crate) fn captured(names: &[&str]) -> Self {
        let mut node = Self::ready();
        for (name, n) in names.iter().zip(1..) {
            node.tell(starting(name));
            node.add(u64::from(n), name, &format!("sandbox-{n}"), u64::from(n));
            node.settle(1);
            let annotation = Annotation::Enabled;
            assert!(node.tell(Event::Pod(PodState { annotation, ..pod(name, n) })).is_empty());
        }
        node
    }

    pub(crate) fn tell(&mut self, event: Event) -> Vec<String> {
        let actions = self.machine.on(event);
        let said = actions.iter().filter_map(words).collect();
        for action in actions {
            match &action {
                Action::Find { step, .. }
                | Action::Program { step, .. }
                | Action::Unprogram { step, .. }
                | Action::SetProbe { step, .. }
                | Action::ClearProbe { step, .. }
                | Action::Annotate { step, .. } => self.steps.push((*step, action.clone())),
                Action::Timer { timer, delay, .. } => self.timers.push((*timer, *delay)),
                Action::Cancel(timer) => self.timers.retain(|(t, _)| t != timer),
                Action::Standing { uid, standing } => {
                    self.standing.push((uid.to_string(), *standing));
                }
                _ => {}
            }
        }
        said
    }

    /// CNI ADD; the chain gave it the address 10.0.0.`ns`.
    pub(crate) fn add(&mut self, request: u64, name: &str, sandbox: &str, ns: u64) -> Vec<String> {
        self.tell(Event::Add {
            request: RequestId(request),
            uid: uid(name),
            sandbox: SandboxId::new(sandbox),
            netns: netns(ns),
            ips: vec![ip((ns % 250) as u8)],
        })
    }

    pub(crate) fn connect(&mut self, session: u64, pid: u64) -> Vec<String> {
        self.tell(Event::Connected { session: SessionId(session), peer: PeerId(pid) })
    }

    pub(crate) fn ack(&mut self, session: u64) -> Vec<String> {
        self.tell(Event::Response { session: SessionId(session), error: None })
    }

    pub(crate) fn nack(&mut self, session: u64, error: &str) -> Vec<String> {
        let error = Some(error.to_owned());
        self.tell(Event::Response { session: SessionId(session), error })
    }

    /// Takes the oldest step that begins with these words.
    fn step(&mut self, begins: &str) -> (StepId, Action) {
        let found = self
            .steps
            .iter()
            .position(|(_, action)| words(action).is_some_and(|w| w.starts_with(begins)));
        let found = found.unwrap_or_else(|| panic!("nobody asked to {begins}: {:?}", self.steps));
        self.steps.remove(found)
    }

    /// A step ends well.
    pub(crate) fn done(&mut self, begins: &str) -> Vec<String> {
        self.end(begins, Ok(()))
    }

    pub(crate) fn fails(&mut self, begins: &str, error: &str) -> Vec<String> {
        self.end(begins, Err(Failure::Transient(error.into())))
    }

    pub(crate) fn end(&mut self, begins: &str, result: Result<(), Failure>) -> Vec<String> {
        let (step, action) = self.step(begins);
        self.tell(outcome(step, &action, result))
    }

    pub(crate) fn found(&mut self, name: &str, ns: u64) -> Vec<String> {
        let (step, _) = self.step(&format!("find {name}"));
        let result = Ok(Place { netns: netns(ns), sandbox: None });
        self.tell(Event::Found { step, result })
    }

    pub(crate) fn audit(&mut self, name: &str, ns: u64, verdict: Verdict) -> Vec<String> {
        self.tell(Event::Audited { uid: uid(name), netns: netns(ns), verdict })
    }

    /// Every step ends well and this session acks, until nothing is asked for.
    pub(crate) fn settle(&mut self, session: u64) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..1000 {
            if let Some((step, action)) = self.steps.pop() {
                said.extend(self.tell(outcome(step, &action, Ok(()))));
            } else if self.unanswered(session) > 0 {
                said.extend(self.ack(session));
            } else {
                return said;
            }
        }
        panic!("never settles");
    }

    /// Rules and probes are in.
    pub(crate) fn settle_rules(&mut self, name: &str) {
        self.done("exempt");
        self.done(&format!("program {name}"));
    }

    pub(crate) fn unanswered(&self, session: u64) -> usize {
        let found = self.machine.sessions().find(|s| s.session == SessionId(session));
        found.map_or(0, |s| s.unanswered)
    }

    /// Delays of all timers, shortest first.
    pub(crate) fn delays(&self) -> Vec<Duration> {
        let mut delays: Vec<Duration> = self.timers.iter().map(|(_, delay)| *delay).collect();
        delays.sort();
        delays
    }

    /// The timer with this delay rings.
    pub(crate) fn ring(&mut self, delay: Duration) -> Vec<String> {
        let found = self.timers.iter().position(|(_, d)| *d == delay);
        let found = found.unwrap_or_else(|| panic!("no timer of {delay:?}: {:?}", self.timers));
        let timer = self.timers.remove(found).0;
        self.tell(Event::Timer(timer))
    }

    pub(crate) fn stands(&self, name: &str) -> Option<Standing> {
        self.standing.iter().rev().find(|(n, _)| n == name).map(|(_, standing)| *standing)
    }
}
