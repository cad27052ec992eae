//! Which pod is in which namespace: one pod to a namespace, one namespace to a pod.
//!
//! The plugin's word counts most, since the runtime makes a namespace for exactly one
//! sandbox; a record or a search never takes a namespace from another pod.

use super::Machine;
use super::desk::Alarm;
use super::pod::{By, Goal, Place, Placed, Pod, Proxy, Rules};
use super::retry::Told;
use super::session::NOWHERE;
use crate::action::{Action, Cause, Report, Stage};
use crate::event::{self, Failure, Identity};
use crate::id::{NetnsId, OptionsHash, PodUid, SandboxId, StepId};

/// What a record says of a pod's place.
pub(super) struct Recorded {
    pub(super) sandbox: Option<SandboxId>,
    pub(super) netns: Option<NetnsId>,
    pub(super) options: Option<OptionsHash>,
}

impl Machine {
    /// Puts a pod into a namespace that nobody else is in.
    pub(super) fn enter(&mut self, uid: &PodUid, mut placed: Placed) {
        let former = self.pods.get(uid).and_then(Pod::placed);
        let same = former.is_some_and(|p| p.netns == placed.netns);
        if same && former.is_some_and(|p| p.by == By::Started) {
            // Asked for once more; it runs already.
            placed.by = By::Started;
        }
        if !same {
            self.leave(uid, false);
        }
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !same {
            // Whatever a step did in another place says nothing about this one.
            if let Some(step) = pod.step.take() {
                self.desk.abandon(step);
            }
            pod.program.reset(&mut self.desk);
            pod.audit.reset(&mut self.desk);
            // Failures stay counted: what ztunnel cannot take disturbs all others.
            pod.accept.nudge(&mut self.desk);
        }
        self.owners.insert(placed.netns, uid.clone());
        pod.rules = Rules::Unknown;
        pod.recorded = true;
        pod.maybe_rules = false;
        pod.place = Place::At(placed);
        self.dirty.insert(uid.clone());
    }

    /// Takes a pod out of its namespace, which is dead, or is not its own. Rules stay
    /// in it: whatever still runs there stays captured.
    pub(super) fn leave(&mut self, uid: &PodUid, down: bool) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Some(netns) = pod.netns() else { return };
        if let Some(step) = pod.step.take() {
            self.desk.abandon(step);
        }
        pod.lose(down);
        if self.owners.get(&netns) == Some(uid) {
            self.owners.remove(&netns);
        }
        self.desk.push(Action::Release(netns));
        self.dirty.insert(uid.clone());
    }

    /// Closes a descriptor that came with an event and that nobody is in.
    pub(super) fn release_unowned(&mut self, netns: NetnsId) {
        if !self.owners.contains_key(&netns) {
            self.desk.push(Action::Release(netns));
        }
    }

    /// Another pod that is in the namespace.
    pub(super) fn other_owner(&self, uid: &PodUid, netns: NetnsId) -> Option<PodUid> {
        self.owners.get(&netns).filter(|owner| *owner != uid).cloned()
    }

    pub(super) fn on_recorded(
        &mut self,
        uid: PodUid,
        identity: Option<Identity>,
        Recorded { sandbox, netns, options }: Recorded,
    ) {
        let pod = self.pods.entry(uid.clone()).or_insert_with(Pod::new);
        pod.recorded = true;
        pod.recorded_as = identity.clone().or(pod.recorded_as.take());
        self.dirty.insert(uid.clone());
        let known = pod.placed().is_some();
        if !known {
            pod.recorded_options = options;
        }
        let Some(netns) = netns else {
            if !known {
                pod.maybe_rules = true;
                pod.rules_in = sandbox;
            }
            if let (Some(identity), false) = (identity, self.listed) {
                // Wherever it runs, it is under this name.
                self.inherited.push((uid, Proxy { identity, netns: NOWHERE }));
            }
            return;
        };
        if let Some(owner) = self.other_owner(&uid, netns) {
            self.desk.report(&uid, Report::Conflict { netns, owner });
        } else if self.listed || known {
            self.release_unowned(netns);
        } else {
            if let Some(identity) = identity {
                self.inherited.push((uid.clone(), Proxy { identity, netns }));
            }
            self.enter(&uid, Placed { netns, sandbox, by: By::Record });
        }
    }

    /// Looks for the pod's namespace where that is due.
    pub(super) fn search(&mut self, uid: &PodUid, goal: Goal) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if goal == Goal::Gone && std::mem::take(&mut pod.maybe_rules) {
            self.leave_behind(uid);
        }
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let sought = match (goal, &pod.place) {
            (_, Place::At(_)) => return,
            (Goal::In(_), Place::Unknown) => true,
            (Goal::In(_), Place::Lost { .. }) => !pod.deleting(),
            (Goal::Leave, Place::Unknown) => pod.hides_rules(),
            (Goal::Wait | Goal::Keep(_) | Goal::Gone | Goal::Leave, _) => false,
        };
        if !sought {
            // What the search brings is of no use any more.
            if let Some(step) = pod.step.take() {
                self.desk.abandon(step);
            }
        } else if pod.step.is_none() && !pod.find.waiting() && !pod.ips().is_empty() {
            let uid = uid.clone();
            let work = super::desk::Work::Find(uid.clone());
            pod.step = Some(self.desk.start(work, |step| Action::Find { step, uid }));
        }
    }

    pub(super) fn on_found(&mut self, step: StepId, result: Result<event::Place, Failure>) {
        let awaited = self.desk.finish(step);
        let Some(super::desk::Work::Find(uid)) = awaited else {
            if let Ok(place) = result {
                self.release_unowned(place.netns);
            }
            return;
        };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        pod.step = None;
        match result {
            Ok(place) => match self.other_owner(&uid, place.netns) {
                Some(owner) => {
                    let error = format!("namespace {} is pod {owner}'s", place.netns);
                    self.desk.report(&uid, Report::Conflict { netns: place.netns, owner });
                    self.not_found(&uid, error);
                }
                None => {
                    let by = By::Search;
                    self.enter(&uid, Placed { netns: place.netns, sandbox: place.sandbox, by });
                }
            },
            Err(failure) => self.not_found(&uid, failure.to_string()),
        }
        self.dirty.insert(uid);
    }

    /// Counts a search without a result. Failures are counted until rules are in, so
    /// that a dead namespace that is found again and again is not looked for in a hot
    /// loop.
    pub(super) fn not_found(&mut self, uid: &PodUid, error: String) {
        let draining = self.draining;
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if pod.cause == Cause::New {
            pod.cause = Cause::NotFound;
        }
        let alarm = Alarm::Find(uid.clone());
        let told = pod.find.fail(&mut self.desk, &self.config, alarm, error, false);
        match told {
            Told::Stuck { failures, error } if pod.goal(draining) == Goal::Leave => {
                self.desk.report(uid, Report::RulesMayRemain { failures, error });
            }
            // A sandbox that was taken down in good order need not have a successor.
            told if pod.place != (Place::Lost { down: true }) => {
                self.desk.tell(Some(uid), Stage::Namespace, told);
            }
            _ => {}
        }
    }

    pub(super) fn on_sandbox_gone(&mut self, sandbox: &SandboxId) {
        let dead = |pod: &Pod| pod.maybe_rules && pod.rules_in.as_ref() == Some(sandbox);
        for (uid, pod) in self.pods.iter_mut().filter(|(_, pod)| dead(pod)) {
            // They died with it, wherever it was.
            pod.maybe_rules = false;
            self.dirty.insert(uid.clone());
        }
        let uids: Vec<PodUid> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.placed().is_some_and(|p| p.sandbox.as_ref() == Some(sandbox)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in uids {
            self.refuse_all(&uid, &crate::action::Refusal::SandboxGone);
            self.leave(&uid, true);
            let Some(pod) = self.pods.get_mut(&uid) else { continue };
            pod.cause = Cause::New;
            // A new sandbox says so itself; one that does not is found later.
            let alarm = Alarm::Find(uid);
            pod.find.pause(&mut self.desk, self.config.retry, alarm);
        }
    }

    /// The pod's namespace died while it was believed to be there.
    pub(super) fn namespace_gone(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Some(placed) = pod.placed().cloned() else { return };
        pod.cause = Cause::NamespaceGone;
        self.refuse_all(uid, &crate::action::Refusal::SandboxGone);
        self.leave(uid, placed.by == By::Request);
        if placed.by != By::Request {
            self.desk.report(uid, Report::Moved { from: placed.netns, to: None });
        }
    }
}
