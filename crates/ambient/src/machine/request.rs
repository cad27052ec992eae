//! The plugin's requests. Each is answered exactly once: when the pod is whole, when
//! that has become impossible, or when its time is over.

use super::Machine;
use super::desk::Alarm;
use super::pod::{By, Goal, Place, Placed, Pod, Rules};
use crate::action::{Action, Refusal, Report, Stage};
use crate::id::{NetnsId, PodUid, RequestId, SandboxId, TimerId};
use std::net::IpAddr;

/// A request that is not answered yet.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) uid: PodUid,
    sandbox: SandboxId,
    /// Runs from when the pod was whole: the annotation is not waited for longer.
    wait: Option<TimerId>,
    /// That wait is over.
    waited: bool,
}

/// An ADD, as it comes.
pub(super) struct Add {
    pub(super) request: RequestId,
    pub(super) uid: PodUid,
    pub(super) sandbox: SandboxId,
    pub(super) netns: NetnsId,
    pub(super) ips: Vec<IpAddr>,
}

impl Machine {
    pub(super) fn on_add(&mut self, add: Add) {
        let Add { request, uid, sandbox, netns, ips } = add;
        if self.requests.contains_key(&request) {
            return;
        }
        if let Some(refusal) = self.refusal(&uid) {
            self.release_unowned(netns);
            self.desk.push(Action::Answer { request, result: Err(refusal) });
            return;
        }
        if let Some(other) = self.other_owner(&uid, netns) {
            self.take_from(&other, netns);
        }
        self.supersede(&uid, &sandbox);
        let place = Placed { netns, sandbox: Some(sandbox.clone()), by: By::Request };
        self.enter(&uid, place);
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        if !ips.is_empty() {
            pod.chain_ips = ips;
            pod.former_ips = pod.state.as_ref().map(|s| s.ips.clone()).unwrap_or_default();
        }
        pod.requests.insert(request);
        // A pause must not use up the request's time. A step that is under way in the
        // namespace already proves what it finds there.
        pod.program.nudge(&mut self.desk);
        pod.accept.nudge(&mut self.desk);
        self.requests.insert(request, Request { uid, sandbox, wait: None, waited: false });
    }

    /// Why a pod is not captured whatever happens.
    fn refusal(&self, uid: &PodUid) -> Option<Refusal> {
        let pod = self.pods.get(uid).filter(|p| !p.gone && p.state.is_some());
        let Some(pod) = pod else { return Some(Refusal::Unknown) };
        match pod.goal(self.draining) {
            Goal::In(_) => None,
            Goal::Gone => Some(Refusal::Ended),
            Goal::Leave if self.draining => Some(Refusal::Draining),
            Goal::Leave | Goal::Wait | Goal::Keep(_) => Some(Refusal::Unwanted),
        }
    }

    /// The runtime says whose a namespace is; another pod that was believed to be in it
    /// is elsewhere.
    fn take_from(&mut self, other: &PodUid, netns: NetnsId) {
        self.refuse_all(other, &Refusal::SandboxGone);
        let Some(pod) = self.pods.get_mut(other) else { return };
        if let Some(step) = pod.step.take() {
            self.desk.abandon(step);
        }
        pod.lose(false);
        self.owners.remove(&netns);
        self.desk.report(other, Report::Moved { from: netns, to: None });
        self.dirty.insert(other.clone());
    }

    /// Answers requests for other sandboxes of the pod: the newest counts.
    fn supersede(&mut self, uid: &PodUid, sandbox: &SandboxId) {
        let Some(pod) = self.pods.get(uid) else { return };
        let older: Vec<RequestId> = pod
            .requests
            .iter()
            .filter(|id| self.requests.get(id).is_some_and(|r| r.sandbox != *sandbox))
            .copied()
            .collect();
        for request in older {
            self.answer(request, Err(Refusal::Superseded(sandbox.clone())));
        }
    }

    pub(super) fn on_expired(&mut self, request: RequestId) {
        let Some(uid) = self.requests.get(&request).map(|r| r.uid.clone()) else { return };
        let Some(stage) = self.stage(&uid) else {
            self.grant(&uid, request);
            return;
        };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        pod.refused = true;
        let retry = match stage {
            Stage::Namespace => Some(&pod.find),
            Stage::Rules => Some(&pod.program),
            Stage::Ztunnel | Stage::Connection => Some(&pod.accept),
            Stage::Listing | Stage::Probes | Stage::Annotation => None,
        };
        let last = retry.and_then(|r| r.last()).map(str::to_owned);
        let last = last.or_else(|| (stage == Stage::Probes).then(|| self.probes.last(&uid))?);
        self.answer(request, Err(Refusal::Late { stage, last }));
        self.dirty.insert(uid);
    }

    /// What a pod is waiting for; `None` when it is whole.
    pub(super) fn stage(&self, uid: &PodUid) -> Option<Stage> {
        let pod = self.pods.get(uid)?;
        let Goal::In(options) = pod.goal(self.draining) else { return None };
        if pod.placed().is_none() {
            return Some(Stage::Namespace);
        }
        if pod.rules != Rules::Proved(options) {
            return Some(Stage::Rules);
        }
        if !self.accepted(uid, pod) {
            return Some(match (self.listed, self.newest()) {
                (false, _) => Stage::Listing,
                (true, None) => Stage::Connection,
                (true, Some(_)) => Stage::Ztunnel,
            });
        }
        (!self.probes.set(uid)).then_some(Stage::Probes)
    }

    /// A ztunnel runs the pod's proxy, as far as is known.
    pub(super) fn accepted(&self, uid: &PodUid, pod: &Pod) -> bool {
        let Some(proxy) = pod.proxy() else { return false };
        pod.held.as_ref() == Some(&proxy) || self.sessions.values().any(|s| s.has(uid, &proxy))
    }

    /// Answers the requests of a pod that is whole. The annotation is being written
    /// already; it is waited for, but not for long.
    pub(super) fn grant_all(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else { return };
        let writing = pod.marker.writing.is_some();
        for request in pod.requests.clone() {
            let Some(known) = self.requests.get_mut(&request) else { continue };
            if !writing || known.waited {
                self.grant(uid, request);
            } else if known.wait.is_none() {
                let alarm = Alarm::AnnotationWait(request);
                known.wait = Some(self.desk.arm(alarm, self.config.annotation_wait, false));
            }
        }
    }

    fn grant(&mut self, uid: &PodUid, request: RequestId) {
        if let Some(Pod { place: Place::At(placed), .. }) = self.pods.get_mut(uid) {
            placed.by = By::Started;
        }
        self.answer(request, Ok(()));
        self.dirty.insert(uid.clone());
    }

    pub(super) fn on_annotation_waited(&mut self, request: RequestId) {
        let Some(known) = self.requests.get_mut(&request) else { return };
        known.wait = None;
        known.waited = true;
        self.dirty.insert(known.uid.clone());
    }

    /// Answers requests of a pod that cannot be captured any more.
    pub(super) fn refuse_impossible(&mut self, uid: &PodUid) {
        if self.pods.get(uid).is_some_and(|pod| !pod.requests.is_empty())
            && let Some(refusal) = self.refusal(uid)
        {
            self.refuse_all(uid, &refusal);
        }
    }

    pub(super) fn refuse_all(&mut self, uid: &PodUid, refusal: &Refusal) {
        let Some(pod) = self.pods.get(uid) else { return };
        for request in pod.requests.clone() {
            self.answer(request, Err(refusal.clone()));
        }
    }

    fn answer(&mut self, request: RequestId, result: Result<(), Refusal>) {
        let Some(known) = self.requests.remove(&request) else { return };
        if let Some(timer) = known.wait {
            self.desk.cancel(timer);
        }
        if let Some(pod) = self.pods.get_mut(&known.uid) {
            pod.requests.remove(&request);
        }
        self.desk.push(Action::Answer { request, result });
    }
}
