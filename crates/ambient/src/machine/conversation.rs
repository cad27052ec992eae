//! What is said to each ztunnel, and when (zds.md 3 and 7).
//!
//! * The newest session whose snapshot is out gets Adds; every session gets Dels. An
//!   older one gets an Add only for what it was told to keep, wherever that is.
//! * A pod has at most one message on its way in a session; messages about different
//!   pods are sent without waiting for each other, up to the window.
//! * A pod that ztunnel refused or was silent about is kept in a snapshot and added
//!   after it, so that the others' acks come first.
//! * An Add that ztunnel was silent about is sent again when no other pod has anything
//!   to say or is about to, and alone: it has ever more time then, as long as nobody
//!   comes to wait behind it.
//! * What a process may still run decides what it may be told: never a second pod for
//!   a namespace, never another name for a pod that runs. In a snapshot such a pod is
//!   left out, so that `SnapshotSent` stops what runs; later it is deleted first.

use super::Machine;
use super::pod::{Goal, Proxy, Want};
use super::session::{Phase, Sent, Session, Status};
use crate::action::{Action, Message};
use crate::id::{PodUid, SessionId};
use std::collections::VecDeque;

impl Machine {
    /// The session that gets Adds.
    pub(super) fn newest(&self) -> Option<SessionId> {
        self.sessions.iter().rev().find(|(_, s)| s.open()).map(|(id, _)| *id)
    }

    /// Sends what may be sent on each session.
    pub(super) fn converse(&mut self) {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            while let Some(sent) = self.next_message(id) {
                self.send(id, sent);
            }
        }
    }

    /// The next message of a session; `None` when there is none to send now.
    fn next_message(&mut self, id: SessionId) -> Option<Sent> {
        let settled = self.settled;
        let session = self.sessions.get_mut(&id)?;
        if session.unanswered.len() >= self.config.window.max(1) {
            return None;
        }
        if session.phase == Phase::Waiting {
            if !settled {
                return None;
            }
            session.phase = Phase::Snapshot(self.pods.snapshot_order());
        }
        loop {
            let session = self.sessions.get_mut(&id)?;
            if let Phase::Snapshot(todo) = &mut session.phase {
                let Some(uid) = todo.pop_front() else {
                    session.phase = Phase::Ending;
                    self.dirty.extend(self.pods.keys().cloned());
                    return Some(Sent::End);
                };
                if let Some(sent) = self.in_snapshot(id, &uid) {
                    return Some(sent);
                }
            } else {
                let Some(uid) = session.dequeue() else { return self.suspect(id) };
                match self.after_snapshot(id, &uid) {
                    Some(sent) if self.is_suspect(id, &sent) => {
                        self.sessions.get_mut(&id)?.suspects.insert(uid);
                    }
                    Some(sent) => return Some(sent),
                    None => {}
                }
            }
        }
    }

    /// ztunnel was silent the last time that it was told this.
    fn is_suspect(&self, id: SessionId, sent: &Sent) -> bool {
        let Sent::Add(uid, _) = sent else { return false };
        let peer = self.sessions.get(&id).and_then(|s| self.peers.get(&s.peer));
        peer.is_some_and(|peer| peer.silences_about(uid) > 0)
    }

    /// The next Add of those that were put off, when nobody would wait behind it.
    fn suspect(&mut self, id: SessionId) -> Option<Sent> {
        loop {
            let session = self.sessions.get(&id)?;
            let uid = session.suspects.first()?.clone();
            if !session.unanswered.is_empty() || self.others_come(&uid) {
                return None;
            }
            self.sessions.get_mut(&id)?.suspects.remove(&uid);
            if let Some(sent) = self.after_snapshot(id, &uid) {
                return Some(sent);
            }
        }
    }

    /// Another pod is on its way to ztunnel. One that has failed before is not counted:
    /// it may fail for ever.
    fn others_come(&self, uid: &PodUid) -> bool {
        self.pods.iter().any(|(other, pod)| {
            other != uid
                && pod.step.is_some()
                && pod.find.failures() == 0
                && pod.program.failures() == 0
                && matches!(pod.goal(self.draining), Goal::In(_))
        })
    }

    fn want(&self, uid: &PodUid) -> Want {
        self.pods.get(uid).map_or(Want::Absent, |pod| pod.want(pod.goal(self.draining)))
    }

    /// What a snapshot says about a pod.
    fn in_snapshot(&self, id: SessionId, uid: &PodUid) -> Option<Sent> {
        let pod = self.pods.get(uid)?;
        let peer = self.peers.get(&self.sessions.get(&id)?.peer)?;
        let renamed = pod.state.as_ref().is_some_and(|s| peer.misnames(uid, &s.identity));
        match self.want(uid) {
            Want::Absent => None,
            _ if renamed => None,
            Want::AsIs => Some(Sent::Keep(uid.clone())),
            Want::Present(proxy) if peer.crowded(uid, &proxy) => None,
            Want::Present(proxy) => {
                let later = pod.accept.failures() > 0 || self.crowded(uid, &proxy);
                Some(if later { Sent::Keep(uid.clone()) } else { Sent::Add(uid.clone(), proxy) })
            }
        }
    }

    /// What is said about a pod once the snapshot is out.
    fn after_snapshot(&self, id: SessionId, uid: &PodUid) -> Option<Sent> {
        let session = self.sessions.get(&id)?;
        let peer = self.peers.get(&session.peer)?;
        let newest = self.newest() == Some(id);
        let entry = session.entries.get(uid);
        let del = || {
            let ready = entry.is_some_and(|e| !e.undeleted.waiting());
            ready.then(|| Sent::Del(uid.clone()))
        };
        let proxy = match (self.want(uid), entry.map(|e| &e.status)) {
            (_, Some(Status::Asked)) | (Want::AsIs, _) | (Want::Absent, None) => return None,
            (Want::Absent, Some(_)) => return del(),
            (Want::Present(proxy), Some(Status::Taken(p))) if *p == proxy => return None,
            (Want::Present(_), Some(Status::Taken(_) | Status::Refused(_))) if !newest => {
                return del();
            }
            // It may be in a namespace that the pod is not in any more. An Add puts that
            // right, and does nothing otherwise.
            (Want::Present(proxy), Some(Status::Kept)) if !newest => proxy,
            (Want::Present(_), _) if !newest => return None,
            (Want::Present(proxy), _) => proxy,
        };
        if entry.is_some() && peer.misnames(uid, &proxy.identity) {
            return del();
        }
        let paused = self.pods.get(uid).is_none_or(|pod| pod.accept.waiting());
        if paused || peer.misnames(uid, &proxy.identity) || self.crowded(uid, &proxy) {
            return None;
        }
        Some(Sent::Add(uid.clone(), proxy))
    }

    /// A connected ztunnel may run another pod in this pod's namespace. It is being
    /// told to let go; its confirmation makes the pod due again.
    fn crowded(&self, uid: &PodUid, proxy: &Proxy) -> bool {
        self.sessions
            .values()
            .filter_map(|s| self.peers.get(&s.peer))
            .any(|peer| peer.crowded(uid, proxy))
    }

    fn send(&mut self, id: SessionId, sent: Sent) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let message = match &sent {
            Sent::Add(uid, proxy) => {
                session.note(uid, Status::Asked);
                self.peers.entry(session.peer).or_default().may_run(uid, proxy);
                let Proxy { identity, netns } = proxy.clone();
                Message::Add { uid: uid.clone(), identity, netns }
            }
            Sent::Keep(uid) => {
                session.note(uid, Status::Asked);
                Message::Keep(uid.clone())
            }
            Sent::Del(uid) => {
                session.note(uid, Status::Asked);
                Message::Del(uid.clone())
            }
            Sent::End => Message::SnapshotSent,
        };
        session.unanswered.push_back(sent);
        self.desk.push(Action::Send { session: id, message });
        self.hurry(id);
        self.watch(id);
    }
}

impl super::Machine {
    /// Makes a pod's turn come in every session whose snapshot is out.
    pub(super) fn enqueue(&mut self, uid: &PodUid) {
        for session in self.sessions.values_mut().filter(|s: &&mut Session| s.open()) {
            session.enqueue(uid);
        }
    }
}

/// The order in which a snapshot names pods: those that ztunnel had no trouble with
/// first.
pub(super) trait SnapshotOrder {
    fn snapshot_order(&self) -> VecDeque<PodUid>;
}

impl SnapshotOrder for super::pod::Pods {
    fn snapshot_order(&self) -> VecDeque<PodUid> {
        let mut uids: Vec<(bool, &PodUid)> =
            self.iter().map(|(uid, pod)| (pod.accept.failures() > 0, uid)).collect();
        uids.sort();
        uids.into_iter().map(|(_, uid)| uid.clone()).collect()
    }
}
