//! What is counted of captured pods, sidecar and ambient: Istio's two figures of ambient
//! mode (reference 1.7) and ours. `samples` says them.

use ambient::action::{Cause, Stage, Standing};
use ambient::id::PodUid;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Buckets of a step's time, in seconds.
const TIMES: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Stages whose time is measured.
const STAGES: [Stage; 5] =
    [Stage::Namespace, Stage::Rules, Stage::Ztunnel, Stage::Probes, Stage::Annotation];

/// All causes that a pod can have.
const CAUSES: [Cause; 7] = [
    Cause::New,
    Cause::NotFound,
    Cause::NamespaceGone,
    Cause::NotProgrammed,
    Cause::Drifted,
    Cause::Unreadable,
    Cause::NotAccepted,
];

/// What happened to a pod of the node, as Istio counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    /// It came.
    Add,
    /// It, or its namespace, changed.
    Update,
    /// It went.
    Delete,
}

impl Told {
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// What can be repaired: a pod's rules, the host's, and what a pod lost that runs in
/// another namespace.
const REPAIRS: [&str; 3] = ["rules", "host-rules", "namespace"];

/// Why a pod's namespace was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Something was heard of it, or it was written to.
    Heard,
    /// It was time.
    Period,
}

impl Why {
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Period => "period",
        }
    }
}

/// A pod that is, or is to be, captured.
#[derive(Debug)]
struct Row {
    standing: Standing,
    since: Instant,
    /// What was before is known.
    floor: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    ztunnels: usize,
    told: BTreeMap<Told, u64>,
    pods: HashMap<PodUid, Row>,
    /// Time for which traffic could escape, of pods that are in order again.
    exposed: BTreeMap<Cause, Duration>,
    repaired: BTreeMap<&'static str, u64>,
    looks: BTreeMap<Why, u64>,
}

/// The figures.
#[derive(Debug)]
pub(crate) struct Figures {
    inner: Mutex<Inner>,
    times: BTreeMap<Stage, Histogram>,
}

impl Default for Figures {
    fn default() -> Self {
        let times = STAGES.into_iter().map(|stage| (stage, Histogram::new(TIMES)));
        Self { inner: Mutex::default(), times: times.collect() }
    }
}

impl Figures {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod was told of.
    pub(crate) fn told(&self, what: Told) {
        *self.lock().told.entry(what).or_default() += 1;
    }

    /// So many ztunnels are connected.
    pub(crate) fn ztunnels(&self, count: usize) {
        self.lock().ztunnels = count;
    }

    /// A step took so long.
    pub(crate) fn took(&self, stage: Stage, time: Duration) {
        if let Some(times) = self.times.get(&stage) {
            times.observe(time.as_secs_f64());
        }
    }

    /// A pod's rules were put right.
    pub(crate) fn repaired(&self, reason: &'static str) {
        *self.lock().repaired.entry(reason).or_default() += 1;
    }

    /// A pod's namespace was looked at.
    pub(crate) fn looked(&self, why: Why) {
        *self.lock().looks.entry(why).or_default() += 1;
    }

    /// A pod stands so from now on.
    pub(crate) fn stands(&self, uid: &PodUid, standing: Standing) {
        let now = Instant::now();
        let mut inner = self.lock();
        let mut floor = None;
        if let Some(before) = inner.pods.remove(uid) {
            floor = Some(before.since);
            if let Standing::Exposed(cause) = before.standing {
                *inner.exposed.entry(cause).or_default() += now.duration_since(before.since);
                floor = Some(now);
            }
        }
        if standing != Standing::Outside {
            inner.pods.insert(uid.clone(), Row { standing, since: now, floor });
        }
    }

    /// A pod that is exposed has been so since then: what was found now was done when
    /// it was heard of. No time is counted twice.
    pub(crate) fn exposed_since(&self, uid: &PodUid, since: Instant) {
        let mut inner = self.lock();
        if let Some(row) = inner.pods.get_mut(uid)
            && matches!(row.standing, Standing::Exposed(_))
        {
            row.since = row.since.min(row.floor.map_or(since, |floor| floor.max(since)));
        }
    }

    /// The pod of this uid is captured, as far as is known.
    pub(crate) fn is_verified(&self, uid: &str) -> bool {
        let inner = self.lock();
        inner.pods.get(&PodUid::new(uid)).is_some_and(|row| row.standing == Standing::Verified)
    }

    /// How long the pod of this uid has stood as it does.
    pub(crate) fn stands_for(&self, uid: &PodUid) -> Option<Duration> {
        self.lock().pods.get(uid).map(|row| row.since.elapsed())
    }

    /// Pods that were told of in this way.
    pub(super) fn count(&self, what: Told) -> u64 {
        self.lock().told.get(&what).copied().unwrap_or_default()
    }

    /// Looks for this reason.
    pub(super) fn looks(&self, why: Why) -> u64 {
        self.lock().looks.get(&why).copied().unwrap_or_default()
    }

    /// Repairs by what was repaired; what never was, too.
    pub(super) fn repairs(&self) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<_, u64> = REPAIRS.into_iter().map(|reason| (reason, 0)).collect();
        counts.extend(&self.lock().repaired);
        counts
    }

    /// How long steps took.
    pub(super) fn times(&self) -> &BTreeMap<Stage, Histogram> {
        &self.times
    }

    /// Number of ztunnels.
    pub(crate) fn connected(&self) -> usize {
        self.lock().ztunnels
    }

    /// Pods that are not known to be captured, by why not.
    pub(crate) fn unverified(&self) -> BTreeMap<Cause, i64> {
        let mut counts: BTreeMap<Cause, i64> = CAUSES.into_iter().map(|cause| (cause, 0)).collect();
        for row in self.lock().pods.values() {
            if let Standing::Unverified(cause) | Standing::Exposed(cause) = row.standing {
                *counts.entry(cause).or_default() += 1;
            }
        }
        counts
    }

    /// Time for which traffic could escape, by why.
    pub(super) fn exposed(&self) -> BTreeMap<Cause, f64> {
        let inner = self.lock();
        let mut times: BTreeMap<Cause, Duration> =
            CAUSES.into_iter().map(|cause| (cause, Duration::ZERO)).collect();
        for (cause, time) in &inner.exposed {
            *times.entry(*cause).or_default() += *time;
        }
        for row in inner.pods.values() {
            if let Standing::Exposed(cause) = row.standing {
                *times.entry(cause).or_default() += row.since.elapsed();
            }
        }
        times.into_iter().map(|(cause, time)| (cause, time.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_times_are_counted_by_cause() {
        let figures = Figures::default();
        let (a, b) = (PodUid::new("a"), PodUid::new("b"));
        let stand = |uid: &PodUid, standing| figures.stands(uid, standing);
        stand(&a, Standing::Exposed(Cause::Drifted));
        stand(&b, Standing::Unverified(Cause::NotAccepted));
        std::thread::sleep(Duration::from_millis(20));
        assert!(figures.exposed()[&Cause::Drifted] >= 0.02, "it goes on");
        stand(&a, Standing::Verified);
        let after = figures.exposed()[&Cause::Drifted];
        std::thread::sleep(Duration::from_millis(5));
        assert!(after >= 0.02 && figures.exposed()[&Cause::Drifted] == after, "it is over");
        stand(&b, Standing::Outside);
        assert!(figures.is_verified("a") && !figures.is_verified("b"));
    }

    #[test]
    fn exposure_begins_when_it_was_heard_of_and_counts_once() {
        let figures = Figures::default();
        let uid = PodUid::new("a");
        let past = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let exposed = || figures.exposed()[&Cause::Drifted].floor();
        figures.exposed_since(&uid, past(9));
        assert_eq!(exposed(), 0.0, "nobody is");
        figures.stands(&uid, Standing::Exposed(Cause::Drifted));
        figures.exposed_since(&uid, past(5));
        assert_eq!(exposed(), 5.0);
        // It was not put right: the time until now is counted already.
        figures.stands(&uid, Standing::Exposed(Cause::Drifted));
        figures.exposed_since(&uid, past(5));
        assert_eq!(exposed(), 5.0);
        figures.stands(&uid, Standing::Verified);
        figures.exposed_since(&uid, past(5));
        figures.stands(&uid, Standing::Exposed(Cause::Drifted));
        figures.exposed_since(&uid, past(5));
        assert_eq!(exposed(), 5.0, "verified until now");
    }
}
