//! What the audit saw, and what follows.

use super::Machine;
use super::pod::{By, Goal, Placed, Rules};
use crate::action::{Cause, Report, Stage};
use crate::event::{Place, Verdict};
use crate::id::{NetnsId, PodUid};

impl Machine {
    pub(super) fn on_audited(&mut self, uid: &PodUid, netns: NetnsId, verdict: Verdict) {
        let current = self.pods.get(uid).is_some_and(|pod| {
            pod.netns() == Some(netns)
                && pod.step.is_none()
                && matches!(pod.goal(self.draining), Goal::In(_) | Goal::Keep(_))
        });
        if !current {
            if let Verdict::Elsewhere(place) = verdict {
                self.release_unowned(place.netns);
            }
            return;
        }
        self.dirty.insert(uid.clone());
        match verdict {
            Verdict::Fine => self.audited(uid),
            Verdict::Broken { drift } => {
                self.desk.report(uid, Report::Drifted { drift: drift.clone() });
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.drift = Some(drift);
                    pod.rules = Rules::Unknown;
                    pod.cause = Cause::Drifted;
                }
            }
            Verdict::Gone => self.namespace_gone(uid),
            Verdict::Elsewhere(place) => self.moved(uid, netns, place),
            Verdict::Unreadable(failure) => self.unreadable(uid, failure.to_string()),
        }
    }

    fn audited(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let told = pod.audit.succeed(&mut self.desk, &self.config);
        self.desk.tell(Some(uid), Stage::Rules, told);
    }

    fn moved(&mut self, uid: &PodUid, from: NetnsId, place: Place) {
        if place.netns == from {
            self.audited(uid);
        } else if let Some(owner) = self.other_owner(uid, place.netns) {
            let error = format!("found in namespace {}, which is pod {owner}'s", place.netns);
            self.desk.report(uid, Report::Conflict { netns: place.netns, owner });
            self.unreadable(uid, error);
        } else {
            self.desk.report(uid, Report::Moved { from, to: Some(place.netns) });
            self.refuse_all(uid, &crate::action::Refusal::SandboxGone);
            let by = By::Search;
            self.enter(uid, Placed { netns: place.netns, sandbox: place.sandbox, by });
            if let Some(pod) = self.pods.get_mut(uid) {
                pod.cause = Cause::NamespaceGone;
            }
        }
    }

    /// After some audits in a row that could not look, the rules count as unknown: to
    /// program them is to look in another way, and to be told why it does not work.
    fn unreadable(&mut self, uid: &PodUid, error: String) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let told = pod.audit.count(&self.config, error);
        if pod.audit.loud(&self.config) {
            pod.rules = Rules::Unknown;
            pod.cause = Cause::Unreadable;
        }
        self.desk.tell(Some(uid), Stage::Rules, told);
    }
}
