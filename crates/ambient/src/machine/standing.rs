//! What is known of a pod's capture, told when it changes.

use super::Machine;
use super::pod::{By, Goal, Place, Pod, Rules};
use crate::action::{Action, Cause, Report, Standing};
use crate::id::PodUid;

impl Machine {
    pub(super) fn tell_standing(&mut self, uid: &PodUid, goal: Goal) {
        let Some(pod) = self.pods.get(uid) else { return };
        let standing = self.standing(uid, pod, goal);
        let whole = matches!(goal, Goal::In(_)) && self.stage(uid).is_none();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if pod.standing != standing {
            pod.standing = standing;
            self.desk.push(Action::Standing { uid: uid.clone(), standing });
        }
        if whole && !pod.enrolled {
            pod.enrolled = true;
            self.desk.report(uid, Report::Enrolled);
        }
        if whole {
            pod.refused = false;
        }
    }

    fn standing(&self, uid: &PodUid, pod: &Pod, goal: Goal) -> Standing {
        let options = match goal {
            Goal::In(options) => options,
            Goal::Keep(_) => return kept(pod),
            Goal::Wait if pod.doubtful => return Standing::Unverified(Cause::Unreadable),
            Goal::Wait | Goal::Leave | Goal::Gone => return Standing::Outside,
        };
        match (&pod.place, pod.rules) {
            (Place::At(_), Rules::Proved(present)) => {
                if present != options && pod.program.failures() > 0 {
                    Standing::Unverified(Cause::NotProgrammed)
                } else if !self.accepted(uid, pod) {
                    Standing::Unverified(Cause::NotAccepted)
                } else if pod.audit.failures() > 0 {
                    Standing::Unverified(Cause::Unreadable)
                } else {
                    Standing::Verified
                }
            }
            // No process runs in a sandbox that is being made.
            (Place::At(placed), _) if placed.by == By::Request => Standing::Unverified(pod.cause),
            // What an earlier agent proved was left alone by everybody, as a rule.
            (Place::At(placed), _) if placed.by == By::Record && pod.cause == Cause::New => {
                Standing::Unverified(Cause::New)
            }
            // It could not be looked at any more, or is being looked at again because
            // the plugin asked again; nobody has seen it without rules.
            (Place::At(_), _) if matches!(pod.cause, Cause::Unreadable) => {
                Standing::Unverified(pod.cause)
            }
            (Place::At(placed), _) if placed.by == By::Started && pod.cause == Cause::New => {
                Standing::Unverified(Cause::New)
            }
            (Place::At(_), _) => Standing::Exposed(pod.cause),
            (Place::Lost { down: true }, _) => Standing::Unverified(pod.cause),
            (Place::Lost { down: false }, _) => Standing::Exposed(pod.cause),
            (Place::Unknown, _) if pod.ips().is_empty() => Standing::Unverified(pod.cause),
            (Place::Unknown, _) => Standing::Exposed(pod.cause),
        }
    }
}

/// Of a pod that only its record tells of, so that nobody knows whether it is to be
/// captured still.
fn kept(pod: &Pod) -> Standing {
    match &pod.place {
        Place::At(_) if pod.drift.is_some() => Standing::Exposed(pod.cause),
        // The runtime took its sandbox down: it need not have another.
        Place::Lost { down: true } => Standing::Outside,
        Place::At(_) | Place::Lost { .. } | Place::Unknown if pod.doubtful => {
            Standing::Unverified(Cause::Unreadable)
        }
        Place::At(_) if pod.audit.failures() > 0 => Standing::Unverified(Cause::Unreadable),
        Place::At(_) => Standing::Unverified(Cause::New),
        Place::Lost { down: false } => Standing::Unverified(Cause::NamespaceGone),
        Place::Unknown => Standing::Unverified(Cause::NotFound),
    }
}
