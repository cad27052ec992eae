//! What goes out, and what is awaited: numbers of steps and timers are given here and
//! nowhere else, so that an outcome or a timer that nobody waits for is known as such.

use crate::action::{Action, Report, Stage};
use crate::id::{NetnsId, PodUid, RequestId, SessionId, StepId, TimerId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A step under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    Find(PodUid),
    Program(PodUid, NetnsId),
    Unprogram(PodUid, NetnsId),
    Probe(IpAddr),
    Annotate(PodUid),
}

/// What a timer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Alarm {
    /// The first snapshot waits no longer.
    Settle,
    /// No ztunnel for too long.
    Grace,
    /// A session's oldest message has no response.
    Ack(SessionId),
    /// A request waits no longer for the annotation.
    AnnotationWait(RequestId),
    /// A retry may start.
    Find(PodUid),
    Rules(PodUid),
    Accept(PodUid),
    Annotation(PodUid),
    Probe(IpAddr),
    Resend(SessionId, PodUid),
}

/// Outgoing actions and the numbers given.
#[derive(Debug, Default)]
pub(super) struct Desk {
    out: Vec<Action>,
    last_step: u64,
    last_timer: u64,
    steps: BTreeMap<StepId, Work>,
    timers: BTreeMap<TimerId, Alarm>,
}

impl Desk {
    pub(super) fn push(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(super) fn report(&mut self, uid: &PodUid, report: Report) {
        self.push(Action::Report { uid: Some(uid.clone()), report });
    }

    pub(super) fn report_node(&mut self, report: Report) {
        self.push(Action::Report { uid: None, report });
    }

    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }

    /// Starts a step: the number is registered, the action goes out.
    pub(super) fn start(&mut self, work: Work, action: impl FnOnce(StepId) -> Action) -> StepId {
        self.last_step += 1;
        let step = StepId(self.last_step);
        self.steps.insert(step, work);
        self.push(action(step));
        step
    }

    /// The step's outcome is here; `None` when nobody waits for it.
    pub(super) fn finish(&mut self, step: StepId) -> Option<Work> {
        self.steps.remove(&step)
    }

    /// Nobody waits for the step any more.
    pub(super) fn abandon(&mut self, step: StepId) {
        self.steps.remove(&step);
    }

    pub(super) fn arm(&mut self, alarm: Alarm, delay: Duration, jitter: bool) -> TimerId {
        self.last_timer += 1;
        let timer = TimerId(self.last_timer);
        self.timers.insert(timer, alarm);
        self.push(Action::Timer { timer, delay, jitter });
        timer
    }

    pub(super) fn cancel(&mut self, timer: TimerId) {
        if self.timers.remove(&timer).is_some() {
            self.push(Action::Cancel(timer));
        }
    }

    /// The timer is over; `None` when it was cancelled.
    pub(super) fn ring(&mut self, timer: TimerId) -> Option<Alarm> {
        self.timers.remove(&timer)
    }

    /// Says that a lane is stuck, or works again.
    pub(super) fn tell(&mut self, uid: Option<&PodUid>, stage: Stage, told: super::retry::Told) {
        let report = match told {
            super::retry::Told::Nothing => return,
            super::retry::Told::Stuck { failures, error } => {
                Report::Stuck { stage, failures, error }
            }
            super::retry::Told::Recovered => Report::Recovered(stage),
        };
        self.push(Action::Report { uid: uid.cloned(), report });
    }

    /// Steps and timers that are awaited; tests look for leaks.
    pub(super) fn awaited(&self) -> (usize, usize) {
        (self.steps.len(), self.timers.len())
    }
}
