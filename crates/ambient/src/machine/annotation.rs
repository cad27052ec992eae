//! The annotation says the truth, with as few writes as that takes: none while a
//! repair is under way, one when it is done or when it has failed for long.

use super::Machine;
use super::desk::{Alarm, Work};
use super::pod::{Goal, Pod, Rules};
use crate::action::{Action, Stage};
use crate::event::{Annotation, Failure};
use crate::id::{PodUid, StepId};

/// What is said of a pod that is to be left alone and whose namespace, which may have
/// rules in it, is not found. `pending` is nobody's word for captured, and an agent that
/// starts anew goes on looking because of it.
fn may_hide(pod: &Pod) -> Option<Annotation> {
    let is_said = matches!(pod.marker.seen, Annotation::Absent | Annotation::Pending);
    (pod.find.failures() > 0 && !is_said).then_some(Annotation::Pending)
}

impl Machine {
    /// What the annotation must be; `None` while what it is may stay.
    fn must_say(&self, uid: &PodUid, goal: Goal) -> Option<Annotation> {
        let pod = self.pods.get(uid).filter(|p| !p.gone)?;
        match goal {
            Goal::Wait | Goal::Keep(_) => return None,
            Goal::Leave if pod.hides_rules() => return may_hide(pod),
            Goal::Leave | Goal::Gone => return Some(Annotation::Absent),
            Goal::In(_) if self.stage(uid).is_none() => return Some(Annotation::Enabled),
            Goal::In(_) => {}
        }
        let config = &self.config;
        let lost = pod.refused
            || self.no_ztunnel
            || [&pod.find, &pod.program, &pod.accept, &pod.audit].iter().any(|r| r.loud(config))
            || self.probes.loud(uid, config);
        match (lost, pod.rules, pod.marker.seen) {
            (false, ..) => None,
            (true, Rules::Proved(_), _) => Some(Annotation::Pending),
            // Traffic is blocked or unknown; nobody takes `pending` for captured, so it
            // may stand until it is known better.
            (true, _, Annotation::Pending) if !pod.find.loud(config) => None,
            (true, ..) => Some(Annotation::Absent),
        }
    }

    /// Starts a write where one is due.
    pub(super) fn annotate(&mut self, uid: &PodUid, goal: Goal) {
        let Some(value) = self.must_say(uid, goal) else { return };
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if pod.marker.writing.is_some() {
            return;
        }
        if pod.marker.seen == value {
            let told = pod.marker.retry.succeed(&mut self.desk, &self.config);
            self.desk.tell(Some(uid), Stage::Annotation, told);
            return;
        }
        if pod.marker.retry.waiting() {
            return;
        }
        let uid = uid.clone();
        let work = Work::Annotate(uid.clone());
        let step = self.desk.start(work, |step| Action::Annotate { step, uid, value });
        pod.marker.meanwhile = None;
        pod.marker.writing = Some((step, value));
    }

    /// The watch shows a value. While a write is under way it may be older than that.
    pub(super) fn see(&mut self, uid: &PodUid, value: Annotation) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if pod.marker.writing.is_some() {
            pod.marker.meanwhile = Some(value);
        } else {
            pod.marker.seen = value;
        }
    }

    pub(super) fn on_annotated(&mut self, step: StepId, result: Result<(), Failure>) {
        let Some(Work::Annotate(uid)) = self.desk.finish(step) else { return };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        let Some((_, value)) = pod.marker.writing.take_if(|(id, _)| *id == step) else { return };
        let meanwhile = pod.marker.meanwhile.take();
        let told = match result {
            Ok(()) => {
                pod.marker.seen = value;
                pod.marker.retry.succeed(&mut self.desk, &self.config)
            }
            Err(failure) => {
                // It may have been written all the same.
                pod.marker.seen = meanwhile.unwrap_or(pod.marker.seen);
                let alarm = Alarm::Annotation(uid.clone());
                let slow = matches!(failure, Failure::Refused(_));
                let error = failure.to_string();
                pod.marker.retry.fail(&mut self.desk, &self.config, alarm, error, slow)
            }
        };
        self.desk.tell(Some(&uid), Stage::Annotation, told);
        self.dirty.insert(uid);
    }
}
