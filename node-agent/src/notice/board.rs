//! What is to be said, decided from what is so and what was said: no clock, no API.

use super::condition::Captured;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An Event is kept for an hour by default: trouble that stays is said again before.
const REPEAT: Duration = Duration::from_secs(30 * 60);

/// Between two things said of a pod: what comes and goes is not followed at each turn.
const GAP: Duration = Duration::from_secs(10);

/// What keeps a pod from being captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// It is not known where it runs.
    Namespace,
    /// Its rules are not there, or not proved.
    Rules,
    /// The node has no ztunnel.
    NoZtunnel,
    /// ztunnel does not take it.
    Refused,
    /// kubelet's probes would be captured too.
    Probes,
    /// The control plane is not told of it.
    Annotation,
    /// It is to be left alone, and rules may be left in it.
    Remains,
}

impl Trouble {
    /// Every one.
    pub(super) const ALL: [Self; 7] = [
        Self::Namespace,
        Self::Rules,
        Self::NoZtunnel,
        Self::Refused,
        Self::Probes,
        Self::Annotation,
        Self::Remains,
    ];

    /// `reason` of the Event and of the condition.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Namespace => "NetworkNamespaceNotFound",
            Self::Rules => "CaptureRulesFailed",
            Self::NoZtunnel => "NoZtunnel",
            Self::Refused => "ZtunnelRefused",
            Self::Probes => "ProbeExemptionFailed",
            Self::Annotation => "AnnotationFailed",
            Self::Remains => "CaptureRulesRemain",
        }
    }

    /// A stable word for metrics.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Namespace => "namespace-not-found",
            Self::Rules => "not-programmed",
            Self::NoZtunnel => "no-ztunnel",
            Self::Refused => "not-accepted",
            Self::Probes => "probes",
            Self::Annotation => "annotation",
            Self::Remains => "rules-remain",
        }
    }

    /// What it means for the pod, and what somebody can do.
    fn meaning(self) -> (&'static str, &'static str) {
        match self {
            Self::Namespace => (
                "the pod is not captured: its network namespace was not found",
                "if it stays, delete the pod",
            ),
            Self::Rules => (
                "the pod is not captured: its rules are not in place, or could not be proved",
                "the agent's log of this pod has more; if it stays, delete the pod",
            ),
            Self::NoZtunnel => (
                "no ztunnel is connected to this node's agent, so the pod is not in the mesh",
                "look at the ztunnel pod of this node",
            ),
            Self::Refused => (
                "the node's ztunnel does not take the pod, so the pod reaches nobody",
                "look in the log of this node's ztunnel",
            ),
            Self::Probes => (
                "the pod is captured, but kubelet's probes of it are not exempted and may fail",
                "look at the host's rules: sluice status on the node",
            ),
            Self::Annotation => (
                "the pod is captured, but the control plane is not told so, and others reach it in plain text",
                "look at the agent's ClusterRole, and whether an admission policy or webhook refuses its patch",
            ),
            Self::Remains => (
                "the pod is to be left alone, but the rules in its network namespace could not be taken out",
                "if it stays, delete the pod",
            ),
        }
    }

    /// The whole message.
    pub(super) fn message(self, error: &str) -> String {
        let (what, next) = self.meaning();
        if error.is_empty() {
            return format!("{what}. It is tried again; {next}.");
        }
        format!("{what}: {error}. It is tried again; {next}.")
    }
}

/// How a pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Captured.
    Well,
    /// It cannot be, with the last error.
    Stuck(Trouble, String),
    /// It is not to be.
    Outside,
}

/// A pod of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its own uid; empty where a manifest has none.
    pub(crate) uid: String,
    /// It runs no more, or not for long.
    pub(crate) over: bool,
    /// The condition that it has.
    pub(crate) condition: Option<Captured>,
}

/// What was said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Well,
    /// By this agent for the reason, else by an earlier one.
    Stuck(Option<Trouble>),
    Outside,
}

#[derive(Debug)]
struct Row {
    subject: Subject,
    state: State,
    event: Option<(Said, Instant)>,
    /// What was written; until then the pod's own tells.
    condition: Option<Said>,
    /// Nothing is said before.
    quiet_until: Option<Instant>,
}

impl Row {
    fn event_due(&self, now: Instant) -> bool {
        match (&self.state, self.event) {
            (State::Stuck(trouble, _), Some((Said::Stuck(Some(said)), at))) => {
                said != *trouble || now.saturating_duration_since(at) >= REPEAT
            }
            (State::Stuck(..), _) => true,
            (State::Well, Some((Said::Stuck(_), _))) => true,
            // An earlier agent said so.
            (State::Well, None) => self.has() == Some(Said::Stuck(None)),
            (State::Well | State::Outside, _) => false,
        }
    }

    fn has(&self) -> Option<Said> {
        self.condition.or(match self.subject.condition {
            Some(Captured::Yes) => Some(Said::Well),
            Some(Captured::No) => Some(Said::Stuck(None)),
            None => None,
        })
    }

    /// A pod that was never stuck has no condition: one request less for each.
    fn condition_due(&self) -> bool {
        match (self.wanted(), self.has()) {
            (Said::Stuck(_), has) => has != Some(self.wanted()),
            (_, None | Some(Said::Outside)) => false,
            (wanted, Some(has)) => has != wanted,
        }
    }

    /// What the condition is to say.
    fn wanted(&self) -> Said {
        match &self.state {
            State::Well => Said::Well,
            State::Outside | State::Stuck(Trouble::Remains, _) => Said::Outside,
            State::Stuck(trouble, _) => Said::Stuck(Some(*trouble)),
        }
    }

    /// All is said, and nothing is wrong.
    fn is_done(&self, conditions: bool, now: Instant) -> bool {
        let due = self.event_due(now) || (conditions && self.condition_due());
        let stuck = matches!(self.state, State::Stuck(..));
        !due && !stuck && self.quiet_until.is_none_or(|at| at <= now)
    }
}

/// Something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Telling {
    pub(super) subject: Subject,
    pub(super) state: State,
    /// As an Event.
    pub(super) event: bool,
    /// As a condition.
    pub(super) condition: bool,
}

/// Pods that something is or was wrong with.
#[derive(Debug, Default)]
pub(super) struct Board {
    rows: BTreeMap<(String, String), Row>,
    /// Conditions are written.
    pub(super) conditions: bool,
    /// Events are.
    pub(super) events: bool,
}

impl Board {
    /// The pod stands so; true when there may be something to say.
    pub(super) fn set(&mut self, subject: Subject, state: State, now: Instant) -> bool {
        let key = (subject.namespace.clone(), subject.name.clone());
        let known = self.rows.get_mut(&key).filter(|row| row.subject.uid == subject.uid);
        if let Some(row) = known {
            row.subject = subject;
            row.state = state;
            return row.event_due(now) || row.condition_due();
        }
        let row = Row { subject, state, event: None, condition: None, quiet_until: None };
        let needed = row.event_due(now) || row.condition_due();
        if needed {
            self.rows.insert(key, row);
        } else {
            self.rows.remove(&key);
        }
        needed
    }

    /// Keeps those that are still there.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Subject) -> bool) {
        self.rows.retain(|_, row| {
            let over = row.subject.over && !matches!(row.state, State::Stuck(..));
            !over && is_there(&row.subject)
        });
    }

    /// The next thing to say; that which was never said comes first.
    pub(super) fn next(&self, now: Instant) -> Option<Telling> {
        let due = self.rows.values().filter(|row| row.quiet_until.is_none_or(|at| at <= now));
        let due = due.filter_map(|row| {
            let event = self.events && row.event_due(now);
            let condition = self.conditions && row.condition_due();
            (event || condition).then_some((row, event, condition))
        });
        let (row, event, condition) = due.min_by_key(|(row, ..)| row.quiet_until)?;
        Some(Telling { subject: row.subject.clone(), state: row.state.clone(), event, condition })
    }

    /// It was said, as an Event or as a condition or not: the rest is tried again.
    pub(super) fn said(&mut self, telling: &Telling, event: bool, condition: bool, now: Instant) {
        let key = (telling.subject.namespace.clone(), telling.subject.name.clone());
        let Some(row) = self.rows.get_mut(&key) else { return };
        if row.subject.uid != telling.subject.uid {
            return;
        }
        let said = match &telling.state {
            State::Well => Said::Well,
            State::Outside => Said::Outside,
            State::Stuck(trouble, _) => Said::Stuck(Some(*trouble)),
        };
        if event {
            row.event = Some((said, now));
        }
        if condition {
            row.condition = Some(match said {
                Said::Stuck(Some(Trouble::Remains)) => Said::Outside,
                other => other,
            });
        }
        row.quiet_until = Some(now + GAP);
    }

    /// There is no such pod any more.
    pub(super) fn gone(&mut self, subject: &Subject) {
        let key = (subject.namespace.clone(), subject.name.clone());
        if self.rows.get(&key).is_some_and(|row| row.subject.uid == subject.uid) {
            self.rows.remove(&key);
        }
    }

    /// Drops pods that all is said of.
    pub(super) fn tidy(&mut self, now: Instant) {
        let conditions = self.conditions;
        self.rows.retain(|_, row| !row.is_done(conditions, now));
    }

    /// Whether there is anything to look after.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Pods that are stuck, by what in.
    pub(super) fn stuck(&self) -> BTreeMap<Trouble, i64> {
        let mut counts: BTreeMap<Trouble, i64> =
            Trouble::ALL.into_iter().map(|trouble| (trouble, 0)).collect();
        for row in self.rows.values() {
            if let State::Stuck(trouble, _) = row.state {
                *counts.entry(trouble).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests;
