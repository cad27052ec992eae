//! What others may look at: the audit's list, and the operator's.

use super::Machine;
use super::pod::{Goal, Pod, Rules};
use super::session::{Phase, Status};
use crate::action::{Stage, Standing};
use crate::event::{Annotation, Identity};
use crate::id::{NetnsId, OptionsHash, PeerId, PodUid, RequestId, SandboxId, SessionId};
use std::net::IpAddr;

/// A pod that is to be audited: its rules were proved, or a record says that they are in,
/// and no step is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The pod.
    pub uid: PodUid,
    /// Its namespace.
    pub netns: NetnsId,
    /// What must be in it.
    pub options: OptionsHash,
}

/// A pod, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Its uid.
    pub uid: PodUid,
    /// `None` for one that only a record knows.
    pub identity: Option<Identity>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// It is to be captured.
    pub wanted: bool,
    /// Its namespace.
    pub netns: Option<NetnsId>,
    /// Its sandbox, where known.
    pub sandbox: Option<SandboxId>,
    /// The options that its rules were proved with.
    pub rules: Option<OptionsHash>,
    /// Sessions whose ztunnel took it as it is now.
    pub accepted_by: Vec<SessionId>,
    /// No session has it, but one that is gone had: its proxy is believed to run.
    pub held: bool,
    /// The annotation, as far as is known.
    pub annotation: Annotation,
    /// What its capture waits for, or the end of it; `None` when all is in place, or
    /// nothing can be left in its namespace.
    pub waiting_for: Option<Stage>,
    /// The last error of that stage, and how often it failed in a row.
    pub trouble: Option<(u32, String)>,
    /// All that it wants exempted for kubelet's probes is, or a later owner's is.
    pub exempt: bool,
    /// As told by [`Action::Standing`](crate::action::Action::Standing).
    pub standing: Standing,
}

/// A session, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// Which.
    pub session: SessionId,
    /// Its process, as told.
    pub peer: PeerId,
    /// It has confirmed its snapshot.
    pub live: bool,
    /// It gets Adds.
    pub newest: bool,
    /// Messages without a response.
    pub unanswered: usize,
    /// Pods that it took.
    pub taken: usize,
    /// Pods that it refused.
    pub refused: usize,
}

impl Machine {
    /// Pods to audit, with what must be in their namespaces.
    pub fn audits(&self) -> impl Iterator<Item = Audit> {
        self.pods.iter().filter_map(|(uid, pod)| {
            let options = match (pod.goal(self.draining), pod.rules, pod.step) {
                (Goal::In(_), Rules::Proved(options), None) => options,
                // What has drifted is being programmed.
                (Goal::Keep(options), _, None) if pod.drift.is_none() => options,
                _ => return None,
            };
            Some(Audit { uid: uid.clone(), netns: pod.netns()?, options })
        })
    }

    /// Every pod that is known, wanted or not.
    pub fn pods(&self) -> impl Iterator<Item = PodView> {
        self.pods.keys().filter_map(|uid| self.pod(uid))
    }

    /// One pod.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<PodView> {
        let pod = self.pods.get(uid)?;
        let proxy = pod.proxy();
        let accepted_by = self
            .sessions
            .iter()
            .filter(|(_, s)| proxy.as_ref().is_some_and(|p| s.has(uid, p)))
            .map(|(id, _)| *id)
            .collect::<Vec<_>>();
        let stage = self.stage(uid).or_else(|| self.lacking(pod));
        let retry = match stage {
            Some(Stage::Namespace) => Some(&pod.find),
            Some(Stage::Rules) => Some(&pod.program),
            Some(Stage::Ztunnel | Stage::Connection) => Some(&pod.accept),
            _ => Some(&pod.marker.retry),
        };
        Some(PodView {
            uid: uid.clone(),
            identity: pod.state.as_ref().map(|s| s.identity.clone()),
            ips: pod.ips().to_vec(),
            wanted: matches!(pod.goal(self.draining), Goal::In(_)),
            netns: pod.netns(),
            sandbox: pod.placed().and_then(|p| p.sandbox.clone()),
            rules: match pod.rules {
                Rules::Proved(options) => Some(options),
                Rules::Absent | Rules::Unknown => None,
            },
            held: accepted_by.is_empty() && proxy.is_some() && pod.held == proxy,
            accepted_by,
            annotation: pod.marker.seen,
            waiting_for: stage,
            trouble: retry.and_then(|r| Some((r.failures(), r.last()?.to_owned()))),
            exempt: self.probes.set(uid),
            standing: pod.standing,
        })
    }

    /// What keeps rules from being out, or the pod from being more than a record.
    fn lacking(&self, pod: &Pod) -> Option<Stage> {
        match (pod.goal(self.draining), pod.rules) {
            (Goal::Keep(_), _) if pod.drift.is_some() => Some(Stage::Rules),
            (Goal::Keep(_), _) => (!self.listed).then_some(Stage::Listing),
            (Goal::Leave, _) if pod.hides_rules() => Some(Stage::Namespace),
            (Goal::Leave, Rules::Unknown | Rules::Proved(_)) => Some(Stage::Rules),
            _ => None,
        }
    }

    /// Every session, oldest first.
    pub fn sessions(&self) -> impl Iterator<Item = SessionView> {
        let newest = self.newest();
        self.sessions.iter().map(move |(id, session)| SessionView {
            session: *id,
            peer: session.peer,
            live: session.phase == Phase::Live,
            newest: newest == Some(*id),
            unanswered: session.unanswered.len(),
            taken: session
                .entries
                .values()
                .filter(|e| matches!(e.status, Status::Taken(_)))
                .count(),
            refused: session
                .entries
                .values()
                .filter(|e| matches!(e.status, Status::Refused(_)))
                .count(),
        })
    }

    /// Whether a pod could be enrolled now: the list is in and a ztunnel has its
    /// snapshot.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.listed && self.sessions.values().any(|s| s.phase == Phase::Live)
    }

    /// Every pod that may be captured has its own exemption of kubelet's probes, or
    /// needs none: another agent's is not needed any more.
    #[must_use]
    pub fn exempts_all(&self) -> bool {
        self.settled
            && self.pods.iter().all(|(uid, pod)| match pod.goal(self.draining) {
                Goal::In(_) => self.probes.set(uid),
                Goal::Leave => pod.rules == Rules::Absent && !pod.hides_rules(),
                Goal::Wait | Goal::Keep(_) => false,
                Goal::Gone => true,
            })
    }

    /// [`Event::Drain`](crate::event::Event::Drain) came: no pod is enrolled any more.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// [`Action::Drained`](crate::action::Action::Drained) was said.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Pods of which something is left somewhere.
    pub fn left(&self) -> impl Iterator<Item = &PodUid> {
        self.pods.keys().filter(|uid| !self.nothing_left(uid))
    }

    /// Requests that are not answered yet.
    pub fn requests(&self) -> impl Iterator<Item = (RequestId, PodUid)> {
        self.requests.iter().map(|(id, request)| (*id, request.uid.clone()))
    }

    /// Steps and timers that are awaited, and whether the probe set is empty: at rest,
    /// all of them are accounted for.
    #[must_use]
    pub fn awaited(&self) -> (usize, usize, bool) {
        let (steps, timers) = self.desk.awaited();
        (steps, timers, self.probes.is_empty())
    }
}
