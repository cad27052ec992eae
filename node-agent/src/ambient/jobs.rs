//! Steps under way: so many at once, those of one namespace (or address, or pod's
//! annotation) one after the other, each with an end in time.

use ambient::event::{Event, Failure, Place};
use ambient::id::{NetnsId, OptionsHash, PodUid, StepId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sys::netns::Netns;

/// What steps wait for, each with a limit of its own: an API server that does not answer
/// must not keep a pod from being captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    /// The kernel, in pods' namespaces; each has a thread, and waits for neighbours and
    /// answers more than it computes.
    Namespaces,
    /// The one thread that keeps the host's rules.
    Addresses,
    /// The API server.
    Annotations,
    /// Looks at many pods.
    Looks,
}

impl Lane {
    /// Steps at a time.
    fn width(self) -> usize {
        match self {
            Self::Namespaces => 16,
            Self::Addresses => 2,
            Self::Annotations => 8,
            Self::Looks => 2,
        }
    }
}

/// How long a step may take once it has begun.
const LIMIT: Duration = Duration::from_secs(20);

/// What steps of the same must not overtake each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A network namespace.
    Netns(NetnsId),
    /// An address in the probe set.
    Address(IpAddr),
    /// A pod's annotation.
    Annotation(PodUid),
    /// The one search.
    Search,
    /// The one audit.
    Audit,
}

impl Key {
    fn lane(&self) -> Lane {
        match self {
            Self::Netns(_) => Lane::Namespaces,
            Self::Address(_) => Lane::Addresses,
            Self::Annotation(_) => Lane::Annotations,
            Self::Search | Self::Audit => Lane::Looks,
        }
    }
}

/// A namespace that is held open, and what is known of it besides.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// The descriptor.
    pub(super) netns: Arc<Netns>,
    /// `CNI_NETNS`, where a request said it.
    pub(super) path: String,
    /// Interface that the sandbox was added with, where a request said it.
    pub(super) interface: String,
    /// The sandbox, where that is known.
    pub(super) sandbox: Option<String>,
}

/// What became of a step.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A search.
    Found(Result<(Place, Held), Failure>),
    /// Rules, proof, record.
    Programmed(Result<OptionsHash, Failure>),
    /// Everything out.
    Unprogrammed(Result<(), Failure>),
    /// The probe set.
    Probe(Result<(), Failure>),
    /// The annotation, and the object's version since.
    Annotated(Result<String, Failure>),
}

/// Which kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// See [`Outcome::Found`].
    Find,
    /// See [`Outcome::Programmed`].
    Program,
    /// See [`Outcome::Unprogrammed`].
    Unprogram,
    /// See [`Outcome::Probe`].
    Probe,
    /// See [`Outcome::Annotated`].
    Annotate,
}

impl Kind {
    /// A step of this kind that failed.
    pub(super) fn failed(self, failure: Failure) -> Outcome {
        match self {
            Self::Find => Outcome::Found(Err(failure)),
            Self::Program => Outcome::Programmed(Err(failure)),
            Self::Unprogram => Outcome::Unprogrammed(Err(failure)),
            Self::Probe => Outcome::Probe(Err(failure)),
            Self::Annotate => Outcome::Annotated(Err(failure)),
        }
    }
}

impl Outcome {
    /// As the machine hears of it.
    pub(super) fn event(self, step: StepId) -> (Event, Option<(NetnsId, Held)>) {
        match self {
            Self::Found(Ok((place, held))) => {
                let brought = (place.netns, held);
                (Event::Found { step, result: Ok(place) }, Some(brought))
            }
            Self::Found(Err(failure)) => (Event::Found { step, result: Err(failure) }, None),
            Self::Programmed(result) => (Event::Programmed { step, result }, None),
            Self::Unprogrammed(result) => (Event::Unprogrammed { step, result }, None),
            Self::Probe(result) => (Event::ProbeDone { step, result }, None),
            Self::Annotated(result) => (Event::Annotated { step, result: result.map(drop) }, None),
        }
    }
}

/// Says that nobody waits for a job any more.
#[derive(Debug, Clone, Default)]
pub(super) struct Abandoned(Arc<Mutex<bool>>);

impl Abandoned {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once that is so.
    pub(super) fn is_set(&self) -> bool {
        *self.lock()
    }

    /// Does what must not be done once that is so, which has to wait meanwhile; `None`
    /// when it is too late.
    pub(super) fn unless<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let is_set = self.lock();
        (!*is_set).then(act)
    }

    fn set(&self) {
        *self.lock() = true;
    }
}

/// Outcomes of all steps of a job.
pub(super) type Outcomes = Vec<(StepId, Outcome)>;

/// What a job does.
pub(super) enum Work {
    /// On a thread.
    Thread(Box<dyn FnOnce(&Abandoned) -> Outcomes + Send>),
    /// In the runtime.
    Task(Pin<Box<dyn Future<Output = Outcomes> + Send>>),
}

/// A job: one step, or a search for several pods.
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) kind: Kind,
    pub(super) steps: Vec<StepId>,
    pub(super) work: Work,
}

/// Queues and what is under way.
pub(super) struct Jobs {
    runtime: tokio::runtime::Handle,
    busy: HashSet<Key>,
    waiting: HashMap<Lane, VecDeque<Job>>,
    /// Of each step that has not ended.
    under_way: HashMap<StepId, Abandoned>,
    done: Arc<dyn Fn(Key, Outcomes) + Send + Sync>,
}

impl Jobs {
    /// None yet. `done` is told of each job that has ended.
    pub(super) fn new(
        runtime: tokio::runtime::Handle,
        done: impl Fn(Key, Outcomes) + Send + Sync + 'static,
    ) -> Self {
        Self {
            runtime,
            busy: HashSet::new(),
            waiting: HashMap::new(),
            under_way: HashMap::new(),
            done: Arc::new(done),
        }
    }

    /// Starts a job as soon as there is room.
    pub(super) fn push(&mut self, job: Job) {
        let lane = job.key.lane();
        let abandoned = Abandoned::default();
        self.under_way.extend(job.steps.iter().map(|step| (*step, abandoned.clone())));
        self.waiting.entry(lane).or_default().push_back(job);
        self.start(lane);
    }

    /// A job of that key has ended.
    pub(super) fn ended(&mut self, key: &Key) {
        self.busy.remove(key);
        self.start(key.lane());
    }

    /// A step's outcome is here.
    pub(super) fn over(&mut self, step: StepId) {
        self.under_way.remove(&step);
    }

    /// Nobody waits for the step any more, whether it has begun or not.
    pub(super) fn give_up(&self, step: StepId) {
        if let Some(abandoned) = self.under_way.get(&step) {
            abandoned.set();
        }
    }

    fn start(&mut self, lane: Lane) {
        let Some(waiting) = self.waiting.get_mut(&lane) else { return };
        let mut room = lane.width();
        room = room.saturating_sub(self.busy.iter().filter(|key| key.lane() == lane).count());
        let mut next = Vec::new();
        // One that waits holds back those of its key behind it.
        while next.len() < room
            && let Some(place) = waiting.iter().position(|job| !self.busy.contains(&job.key))
            && let Some(job) = waiting.remove(place)
        {
            self.busy.insert(job.key.clone());
            next.push(job);
        }
        next.into_iter().for_each(|job| self.launch(job));
    }

    fn launch(&self, job: Job) {
        let Job { key, kind, steps, work } = job;
        let done = Arc::clone(&self.done);
        let known = steps.first().and_then(|step| self.under_way.get(step));
        let abandoned = known.cloned().unwrap_or_default();
        let flag = abandoned.clone();
        self.runtime.spawn(async move {
            let work = async {
                match work {
                    Work::Task(task) => Ok(task.await),
                    Work::Thread(f) => {
                        tokio::task::spawn_blocking(move || f(&abandoned)).await.map_err(|error| {
                            Failure::Transient(format!("the agent's own defect: {error}"))
                        })
                    }
                }
            };
            let result = tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
                flag.set();
                let text = format!("it has not ended within {} s", LIMIT.as_secs());
                Err(Failure::Transient(text))
            });
            let outcomes = result.unwrap_or_else(|failure| {
                steps.into_iter().map(|step| (step, kind.failed(failure.clone()))).collect()
            });
            done(key, outcomes);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn job(key: Key, step: u64, work: impl FnOnce() + Send + 'static) -> Job {
        let step = StepId(step);
        let work = Work::Thread(Box::new(move |_| {
            work();
            vec![(step, Outcome::Probe(Ok(())))]
        }));
        Job { key, kind: Kind::Probe, steps: vec![step], work }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn steps_of_one_key_keep_their_order_and_others_do_not_wait() {
        let (sender, ended) = channel();
        let mut jobs = Jobs::new(tokio::runtime::Handle::current(), move |key, outcomes| {
            drop(sender.send((key, outcomes)));
        });
        let key = |n| Key::Netns(NetnsId { dev: 1, ino: n });
        let (go, gate) = channel::<()>();
        jobs.push(job(key(1), 1, move || {
            let _ = gate.recv_timeout(Duration::from_secs(10));
        }));
        jobs.push(job(key(1), 2, || ()));
        jobs.push(job(key(2), 3, || panic!("boom")));
        let next = || ended.recv_timeout(Duration::from_secs(10)).unwrap();
        let (other, outcomes) = next();
        assert_eq!(other, key(2));
        assert!(
            matches!(&outcomes[..], [(StepId(3), Outcome::Probe(Err(Failure::Transient(_))))]),
            "a panic is a failure: {outcomes:?}"
        );
        jobs.ended(&other);
        go.send(()).unwrap();
        for step in [1, 2] {
            let (key, outcomes) = next();
            assert!(matches!(&outcomes[..], [(StepId(n), Outcome::Probe(Ok(())))] if *n == step));
            jobs.ended(&key);
        }
        assert!(jobs.busy.is_empty() && jobs.waiting.values().all(VecDeque::is_empty));
    }

    /// One that has begun, one that waits behind it, and one that is in the middle of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_step_that_is_given_up_writes_nothing_afterwards() {
        let (sender, ended) = channel();
        let mut jobs = Jobs::new(tokio::runtime::Handle::current(), move |key, outcomes| {
            drop(sender.send((key, outcomes)));
        });
        let written: Arc<Mutex<Vec<&str>>> = Arc::default();
        let (begun, begins) = channel::<()>();
        let patience = Duration::from_secs(60);
        let mut gates = Vec::new();
        for (number, inside) in [(1, false), (2, false), (3, true)] {
            let (go, gate) = channel::<()>();
            gates.push(go);
            let (begun, written) = (begun.clone(), Arc::clone(&written));
            let work = Work::Thread(Box::new(move |abandoned: &Abandoned| {
                let wait = || {
                    begun.send(()).unwrap();
                    let _ = gate.recv_timeout(patience);
                };
                let write = || {
                    if inside {
                        wait();
                    }
                    written.lock().unwrap().push("written");
                };
                if !inside {
                    wait();
                }
                abandoned.unless(write);
                Vec::new()
            }));
            let key = Key::Netns(NetnsId { dev: 1, ino: u64::from(inside) });
            jobs.push(Job { key, kind: Kind::Program, steps: vec![StepId(number)], work });
        }
        // The first of each namespace has begun.
        begins.recv_timeout(patience).unwrap();
        begins.recv_timeout(patience).unwrap();
        jobs.give_up(StepId(1));
        jobs.give_up(StepId(2));
        gates[0].send(()).unwrap();
        let (key, _) = ended.recv_timeout(patience).unwrap();
        jobs.ended(&key);
        begins.recv_timeout(patience).unwrap();
        gates[1].send(()).unwrap();
        ended.recv_timeout(patience).unwrap();
        assert!(written.lock().unwrap().is_empty());
        let last = gates.remove(2);
        std::thread::spawn(move || last.send(()).unwrap());
        jobs.give_up(StepId(3));
        written.lock().unwrap().push("given up");
        ended.recv_timeout(patience).unwrap();
        assert_eq!(*written.lock().unwrap(), ["written", "given up"], "it was waited for");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_api_server_that_is_silent_keeps_no_namespace_waiting() {
        let (sender, ended) = channel();
        let mut jobs = Jobs::new(tokio::runtime::Handle::current(), move |key, outcomes| {
            drop(sender.send((key, outcomes)));
        });
        for number in 0..100 {
            jobs.push(Job {
                key: Key::Annotation(PodUid::new(&number.to_string())),
                kind: Kind::Annotate,
                steps: vec![StepId(number)],
                work: Work::Task(Box::pin(std::future::pending())),
            });
        }
        let key = Key::Netns(NetnsId { dev: 1, ino: 1 });
        jobs.push(job(key.clone(), 100, || ()));
        assert_eq!(ended.recv_timeout(Duration::from_secs(10)).unwrap().0, key);
    }
}
