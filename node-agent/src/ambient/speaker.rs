//! What is said of ambient pods in the cluster, by what the machine knows of them.

use crate::notice::{Notices, State, Trouble};
use crate::source::follow::Told;
use ambient::action::{Report, Stage, Standing};
use ambient::event::Annotation;
use ambient::machine::PodView;
use std::sync::Arc;

/// Failures in a row after which it is said: the machine's own measure.
const LOUD: u32 = 5;

/// See the module.
#[derive(Debug)]
pub(super) struct Speaker {
    notices: Arc<Notices>,
    no_ztunnel: bool,
}

impl Speaker {
    pub(super) fn new(notices: Arc<Notices>) -> Self {
        Self { notices, no_ztunnel: false }
    }

    /// Notes what is so of the whole node; true when every pod is to be looked at.
    pub(super) fn node(&mut self, report: &Report) -> bool {
        match report {
            Report::NoZtunnel => self.no_ztunnel = true,
            Report::ZtunnelBack => self.no_ztunnel = false,
            _ => return false,
        }
        true
    }

    /// Something happened to a pod, or was reported of it.
    pub(super) fn pod(&self, view: Option<&PodView>, told: Option<&Told>, report: Option<&Report>) {
        let state = match view {
            Some(view) if !view.wanted => leaving(view),
            _ => report.and_then(reported).or_else(|| judge(view?, self.no_ztunnel)),
        };
        if let (Some(told), Some(state)) = (told, state)
            && !(state == State::Outside && has_sidecar(told))
        {
            self.notices.set(told, state);
        }
    }
}

/// How such a pod stands is the sidecar audit's to say.
fn has_sidecar(told: &Told) -> bool {
    told.facts().annotation(wire::snapshot::INJECTED).is_some()
}

/// What a report alone says.
fn reported(report: &Report) -> Option<State> {
    match report {
        Report::Stuck { stage, error, .. } => Some(State::Stuck(trouble(*stage)?, error.clone())),
        _ => None,
    }
}

/// Of a pod that is to be left alone: outside once nothing can be left in its namespace.
fn leaving(view: &PodView) -> Option<State> {
    if view.waiting_for.is_none() {
        return Some(State::Outside);
    }
    let (failures, error) = view.trouble.as_ref()?;
    (*failures >= LOUD).then(|| State::Stuck(Trouble::Remains, error.clone()))
}

/// `None` when it is on its way, which says nothing new.
fn judge(view: &PodView, no_ztunnel: bool) -> Option<State> {
    let stage = match view.waiting_for {
        None if view.standing == Standing::Verified && view.annotation == Annotation::Enabled => {
            return Some(State::Well);
        }
        None => return None,
        Some(stage) => stage,
    };
    if stage == Stage::Connection && no_ztunnel {
        return Some(State::Stuck(Trouble::NoZtunnel, String::new()));
    }
    // What it has of the probes is not about them.
    let (failures, error) = view.trouble.as_ref().filter(|_| stage != Stage::Probes)?;
    (*failures >= LOUD).then(|| Some(State::Stuck(trouble(stage)?, error.clone())))?
}

/// The list of pods is of the whole node, and is told by `/readyz`.
fn trouble(stage: Stage) -> Option<Trouble> {
    match stage {
        Stage::Listing => None,
        Stage::Namespace => Some(Trouble::Namespace),
        Stage::Rules => Some(Trouble::Rules),
        Stage::Connection => Some(Trouble::NoZtunnel),
        Stage::Ztunnel => Some(Trouble::Refused),
        Stage::Probes => Some(Trouble::Probes),
        Stage::Annotation => Some(Trouble::Annotation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambient::action::Cause;
    use ambient::id::PodUid;

    fn view() -> PodView {
        PodView {
            uid: PodUid::new("a"),
            identity: None,
            ips: Vec::new(),
            wanted: true,
            netns: None,
            sandbox: None,
            rules: None,
            held: false,
            accepted_by: Vec::new(),
            annotation: Annotation::Enabled,
            waiting_for: None,
            trouble: None,
            exempt: true,
            standing: Standing::Verified,
        }
    }

    fn waiting(stage: Stage, failures: u32) -> PodView {
        let standing = Standing::Unverified(Cause::NotAccepted);
        let trouble = Some((failures, "no".to_owned()));
        PodView { waiting_for: Some(stage), trouble, standing, ..view() }
    }

    #[test]
    fn a_pod_is_stuck_after_failures_and_well_when_all_is_true() {
        let stuck = |trouble, text: &str| Some(State::Stuck(trouble, text.to_owned()));
        assert_eq!(judge(&view(), false), Some(State::Well));
        assert_eq!(judge(&PodView { annotation: Annotation::Pending, ..view() }, false), None);
        let unread = Standing::Unverified(Cause::Unreadable);
        assert_eq!(judge(&PodView { standing: unread, ..view() }, false), None);
        assert_eq!(judge(&waiting(Stage::Rules, LOUD - 1), false), None);
        assert_eq!(judge(&waiting(Stage::Rules, LOUD), false), stuck(Trouble::Rules, "no"));
        assert_eq!(judge(&waiting(Stage::Ztunnel, 9), true), stuck(Trouble::Refused, "no"));
        assert_eq!(judge(&waiting(Stage::Connection, 0), false), None, "not for long");
        assert_eq!(judge(&waiting(Stage::Connection, 0), true), stuck(Trouble::NoZtunnel, ""));
        assert_eq!(judge(&waiting(Stage::Listing, 9), true), None);
        assert_eq!(judge(&waiting(Stage::Probes, 9), true), None, "told by its report alone");
        let report = Report::Stuck { stage: Stage::Probes, failures: 5, error: "busy".into() };
        assert_eq!(reported(&report), stuck(Trouble::Probes, "busy"));
        assert_eq!(reported(&Report::Recovered(Stage::Probes)), None);
    }

    #[test]
    fn a_pod_is_outside_when_nothing_can_be_left_of_it() {
        let outside = |view| PodView { wanted: false, ..view };
        assert_eq!(leaving(&outside(view())), Some(State::Outside));
        for stage in [Stage::Namespace, Stage::Rules] {
            assert_eq!(leaving(&outside(waiting(stage, LOUD - 1))), None, "soon, perhaps");
            let remains = State::Stuck(Trouble::Remains, "no".to_owned());
            assert_eq!(leaving(&outside(waiting(stage, LOUD))), Some(remains));
        }
    }
}
