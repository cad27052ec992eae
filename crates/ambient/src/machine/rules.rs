//! Rules go into a pod's namespace, and out of it. One step at a time in a namespace.

use super::Machine;
use super::desk::{Alarm, Work};
use super::pod::{Goal, Place, Rules};
use crate::action::{Action, Cause, Refusal, Report, Stage};
use crate::event::Failure;
use crate::id::{OptionsHash, PodUid, StepId};

impl Machine {
    /// Starts the next kernel step of a pod, if one is due.
    pub(super) fn program(&mut self, uid: &PodUid, goal: Goal) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Some(netns) = pod.netns() else { return };
        if pod.step.is_some() && goal != Goal::Gone {
            return;
        }
        let leaving = match (goal, pod.rules) {
            (Goal::In(options), Rules::Proved(present)) if present == options => return,
            (Goal::In(_), _) => false,
            (Goal::Gone, _) => {
                self.leave_behind(uid);
                self.leave(uid, true);
                return;
            }
            (Goal::Leave, Rules::Absent) => {
                self.leave(uid, true);
                return;
            }
            (Goal::Leave, _) => true,
            (Goal::Keep(_), _) if pod.drift.is_some() => false,
            (Goal::Wait | Goal::Keep(_), _) => return,
        };
        if pod.program.waiting() {
            return;
        }
        let uid = uid.clone();
        pod.step = Some(match goal {
            Goal::In(options) | Goal::Keep(options) if !leaving => {
                let work = Work::Program(uid.clone(), netns);
                self.desk.start(work, |step| Action::Program { step, uid, netns, options })
            }
            _ => {
                // From now on nobody may count on them, should the pod stay after all.
                pod.rules = Rules::Unknown;
                let work = Work::Unprogram(uid.clone(), netns);
                self.desk.start(work, |step| Action::Unprogram { step, uid, netns })
            }
        });
    }

    pub(super) fn on_programmed(&mut self, step: StepId, result: Result<OptionsHash, Failure>) {
        let Some(Work::Program(uid, _)) = self.desk.finish(step) else { return };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        pod.step = None;
        match result {
            Ok(options) => {
                pod.rules = Rules::Proved(options);
                pod.cause = Cause::New;
                let found = pod.find.succeed(&mut self.desk, &self.config);
                let told = pod.program.succeed(&mut self.desk, &self.config);
                let seen = pod.audit.succeed(&mut self.desk, &self.config);
                self.desk.tell(Some(&uid), Stage::Namespace, found);
                self.desk.tell(Some(&uid), Stage::Rules, told);
                self.desk.tell(Some(&uid), Stage::Rules, seen);
                if let Some(drift) = pod.drift.take() {
                    self.desk.report(&uid, Report::Repaired { drift });
                }
            }
            Err(Failure::NamespaceGone) => {
                self.namespace_gone(&uid);
                self.not_found(&uid, Failure::NamespaceGone.to_string());
            }
            Err(failure) => {
                // It may have failed halfway.
                pod.rules = Rules::Unknown;
                pod.cause = Cause::NotProgrammed;
                self.not_programmed(&uid, &failure);
                if matches!(failure, Failure::Refused(_)) {
                    self.refuse_all(&uid, &Refusal::Failed { stage: Stage::Rules, failure });
                }
            }
        }
        self.dirty.insert(uid);
    }

    pub(super) fn on_unprogrammed(&mut self, step: StepId, result: Result<(), Failure>) {
        let Some(Work::Unprogram(uid, _)) = self.desk.finish(step) else { return };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        pod.step = None;
        match result {
            Ok(()) => {
                pod.rules = Rules::Absent;
                pod.drift = None;
                let found = pod.find.succeed(&mut self.desk, &self.config);
                self.desk.tell(Some(&uid), Stage::Namespace, found);
                let told = pod.program.succeed(&mut self.desk, &self.config);
                self.desk.tell(Some(&uid), Stage::Rules, told);
            }
            Err(Failure::NamespaceGone) => {
                pod.program.reset(&mut self.desk);
                self.leave(&uid, true);
            }
            Err(failure) => {
                pod.rules = Rules::Unknown;
                self.not_programmed(&uid, &failure);
            }
        }
        self.dirty.insert(uid);
    }

    fn not_programmed(&mut self, uid: &PodUid, failure: &Failure) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let slow = matches!(failure, Failure::Refused(_));
        let alarm = Alarm::Rules(uid.clone());
        let error = failure.to_string();
        let told = pod.program.fail(&mut self.desk, &self.config, alarm, error, slow);
        self.desk.tell(Some(uid), Stage::Rules, told);
    }

    /// What was wanted of the pod's rules has changed: the pause after a failure was
    /// for something else.
    pub(super) fn reconsider(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.program.reset(&mut self.desk);
        if !matches!(pod.place, Place::At(_)) {
            pod.find.nudge(&mut self.desk);
        }
    }
}
