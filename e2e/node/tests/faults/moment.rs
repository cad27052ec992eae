//! The table of moments: what a node is asked for while something is wrong, and a
//! cell of the matrix from its beginning to its end.

use crate::check;
use crate::fault::Fault;
use crate::pod::{Kind, Subject};
use crate::stage::Stage;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the node is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Add,
    Del,
    /// The agent ends and comes again; pods are added while it is away.
    Restart,
    /// The next release is installed, plugin and configuration too, while pods come
    /// and go.
    Upgrade,
}

impl Moment {
    pub(crate) const ALL: [Self; 4] = [Self::Add, Self::Del, Self::Restart, Self::Upgrade];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Restart => "restart",
            Self::Upgrade => "upgrade",
        }
    }
}

/// How long after its start an agent is killed again, where the fault is that. The
/// last one is left alone.
const KILLED_AFTER: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(120)];

/// What was seen in a cell.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Pods of the mesh: captured at the first ADD, and at a later one.
    mesh: [usize; 2],
    /// Others: started at the first ADD, while the fault went on, and after it.
    plain: [usize; 3],
    /// The slowest first ADD of a pod outside the mesh that started by it.
    slowest: Duration,
    /// The slowest DEL.
    del: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mesh: [at_once, later], plain: [first, meanwhile, after], slowest, del } = self;
        write!(f, "mesh: {at_once} captured at once, {later} refused, then captured; ")?;
        write!(f, "others: {first} at once (slowest {} ms), ", slowest.as_millis())?;
        write!(f, "{meanwhile} meanwhile, {after} after; DEL at most {} ms", del.as_millis())
    }
}

/// A fault and a moment, and all that must hold.
pub(crate) fn cell(stage: &mut Stage, fault: Fault, moment: Moment) -> Seen {
    let mut seen = Seen::default();
    let mut running = settled(stage);
    let mut subjects: Vec<Subject> = Vec::new();
    if moment != Moment::Del {
        subjects.extend(Kind::all(true).map(|kind| Subject::publish(stage, kind)));
        stage.await_known(&subjects);
    }
    fault.begin(stage, &mut running);
    if moment != Moment::Del {
        subjects.extend(Kind::all(false).map(|kind| Subject::publish(stage, kind)));
    }
    match moment {
        Moment::Add => {
            batch(stage, &mut subjects);
            check::started_at_once(fault, &subjects, fault == Fault::AgentKilled);
            fault.strike_again(stage);
        }
        Moment::Del => {
            let took = running.iter_mut().flat_map(|subject| {
                let first = subject.del(stage);
                // As containerd does: once more, without the namespace.
                subject.pod.attachment.netns.clear();
                [first, subject.del(stage)]
            });
            seen.del = took.max().unwrap_or_default();
            running.iter().for_each(|subject| subject.withdraw(stage));
            running.clear();
        }
        Moment::Restart => {
            stage.stop();
            fault.go_on(stage);
            batch(stage, &mut subjects);
            check::started_at_once(fault, &subjects, true);
            start(stage, fault);
            fault.strike_again(stage);
        }
        Moment::Upgrade => upgrade(stage, fault, &mut subjects),
    }
    let restarted = matches!(moment, Moment::Restart | Moment::Upgrade);
    for subject in &mut subjects {
        if !subject.started && fault.starts_meanwhile(subject.kind, restarted) {
            stage.eventually(&format!("{subject:?} starts"), || {
                subject.add(stage);
                subject.started
            });
        }
    }
    let meanwhile: Vec<bool> = subjects.iter().map(|subject| subject.started).collect();
    running.iter_mut().chain(&mut subjects).for_each(|subject| subject.look(stage));

    fault.end(stage);
    for (subject, meanwhile) in subjects.iter_mut().zip(&meanwhile) {
        stage.eventually("everybody starts when the fault is over", || {
            if !subject.started {
                subject.add(stage);
            }
            subject.started
        });
        seen.note(subject, *meanwhile);
    }
    // After them: what they ask for tells the agent that its API server is back.
    stage.await_ready();
    running.append(&mut subjects);
    running.iter_mut().for_each(|subject| subject.look(stage));
    check::whole(stage, &running);
    for subject in &mut running {
        seen.del = seen.del.max(subject.del(stage));
        subject.withdraw(stage);
    }
    check::tidy(stage);
    seen
}

impl Seen {
    fn note(&mut self, subject: &Subject, meanwhile: bool) {
        let (at_once, took) = subject.first.unwrap_or_default();
        if subject.kind.mesh {
            self.mesh[usize::from(!at_once)] += 1;
        } else {
            self.plain[if at_once { 0 } else { 1 + usize::from(!meanwhile) }] += 1;
            if at_once {
                self.slowest = self.slowest.max(took);
            }
        }
    }
}

/// Pods that run before the fault.
fn settled(stage: &Stage) -> Vec<Subject> {
    let kinds = [(true, true), (true, false), (false, true)];
    let kinds = kinds.map(|(mesh, hints)| Kind { mesh, hints, known: true });
    let mut running: Vec<_> = kinds.into_iter().map(|kind| Subject::publish(stage, kind)).collect();
    stage.await_known(&running);
    batch(stage, &mut running);
    for subject in &mut running {
        assert!(subject.started, "without a fault: {subject:?}; {}", stage.log());
        subject.look(stage);
    }
    running
}

/// One ADD each for those that have not started, all at once.
pub(crate) fn batch(stage: &Stage, subjects: &mut [Subject]) {
    std::thread::scope(|scope| {
        for subject in subjects.iter_mut().filter(|subject| !subject.started) {
            scope.spawn(|| subject.add(stage));
        }
    });
}

/// Starts the agent, which is killed some more where that is the fault.
fn start(stage: &Stage, fault: Fault) {
    stage.start();
    if fault == Fault::AgentKilled {
        for moment in KILLED_AFTER {
            std::thread::sleep(moment);
            stage.kill();
            stage.start();
        }
    }
    stage.await_serving();
}

/// Pods come and go all the time, while agent, plugin and configuration are replaced.
fn upgrade(stage: &Stage, fault: Fault, subjects: &mut [Subject]) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for subject in subjects {
            let over = &over;
            scope.spawn(move || {
                loop {
                    subject.add(stage);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    if subject.started {
                        subject.del(stage);
                    }
                    std::thread::sleep(Duration::from_millis(40));
                }
            });
        }
        // The others end with this one, also when it fails.
        let _over = Over(&over);
        stage.next_release();
        stage.stop();
        fault.go_on(stage);
        start(stage, fault);
        fault.strike_again(stage);
        if fault != Fault::DiskFull {
            stage.eventually("the next release's plugin is there", || {
                stage.host.is_current().unwrap_or(false)
            });
        }
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
