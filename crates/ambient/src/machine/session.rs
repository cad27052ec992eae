//! One connection of a ztunnel, and what the process behind it may run.

use super::pod::Proxy;
use crate::event::Identity;
use crate::id::{NetnsId, PeerId, PodUid, SessionId, TimerId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where a proxy runs of which only the name is known; no namespace has this number.
pub(super) const NOWHERE: NetnsId = NetnsId { dev: 0, ino: 0 };

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: PeerId,
    pub(super) phase: Phase,
    /// Messages that have no response yet, oldest first: responses have no name, only
    /// an order.
    pub(super) unanswered: VecDeque<Sent>,
    /// Runs while there are any.
    pub(super) timer: Option<TimerId>,
    /// What ztunnel was told on this connection, by pod.
    pub(super) entries: BTreeMap<PodUid, Entry>,
    queue: VecDeque<PodUid>,
    queued: BTreeSet<PodUid>,
    /// Pods whose Add is put off until nobody would wait behind it.
    pub(super) suspects: BTreeSet<PodUid>,
}

/// How far a session is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The snapshot cannot be made yet.
    Waiting,
    /// These are still to be named in it.
    Snapshot(VecDeque<PodUid>),
    /// `SnapshotSent` is out. What comes after it may be sent already.
    Ending,
    /// ztunnel has the snapshot, and runs nothing else.
    Live,
}

/// A message without its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sent {
    Add(PodUid, Proxy),
    Keep(PodUid),
    Del(PodUid),
    /// `SnapshotSent`.
    End,
}

/// What ztunnel was told about a pod.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) status: Status,
    /// Refused deletions in a row, and the pause after the last.
    pub(super) undeleted: super::retry::Retry,
}

/// See [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    /// A message is on its way; nothing else is said about the pod meanwhile.
    Asked,
    /// It runs.
    Taken(Proxy),
    /// It may run whatever it ran before.
    Kept,
    /// It could not be started; ztunnel tries by itself, without saying so.
    Refused(Proxy),
}

impl Session {
    pub(super) fn new(peer: PeerId) -> Self {
        Self {
            peer,
            phase: Phase::Waiting,
            unanswered: VecDeque::new(),
            timer: None,
            entries: BTreeMap::new(),
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            suspects: BTreeSet::new(),
        }
    }

    /// Adds and deletions may be sent.
    pub(super) fn open(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::Live)
    }

    /// The pod of the only message that has no response, if that is an Add.
    pub(super) fn lone_add(&self) -> Option<&PodUid> {
        match self.unanswered.front() {
            Some(Sent::Add(uid, _)) if self.unanswered.len() == 1 => Some(uid),
            _ => None,
        }
    }

    pub(super) fn enqueue(&mut self, uid: &PodUid) {
        if self.queued.insert(uid.clone()) {
            self.queue.push_back(uid.clone());
        }
    }

    pub(super) fn dequeue(&mut self) -> Option<PodUid> {
        let uid = self.queue.pop_front()?;
        self.queued.remove(&uid);
        Some(uid)
    }

    /// Sets what was told about a pod; refused deletions stay counted.
    pub(super) fn note(&mut self, uid: &PodUid, status: Status) {
        match self.entries.get_mut(uid) {
            Some(entry) => entry.status = status,
            None => {
                let entry = Entry { status, undeleted: super::retry::Retry::default() };
                self.entries.insert(uid.clone(), entry);
            }
        }
    }

    /// ztunnel said on this connection that it runs exactly this.
    pub(super) fn has(&self, uid: &PodUid, proxy: &Proxy) -> bool {
        matches!(self.entries.get(uid).map(|e| &e.status), Some(Status::Taken(p)) if p == proxy)
    }
}

/// What a ztunnel process may run: all that it was told, on any connection, and that
/// it has not confirmed to be gone.
#[derive(Debug, Default)]
pub(super) struct Peer {
    running: BTreeMap<PodUid, Vec<Proxy>>,
    /// Adds in a row that it was silent about, by pod.
    silent_about: BTreeMap<PodUid, u32>,
    /// Sessions in a row that ended for want of a response.
    pub(super) silences: u32,
    pub(super) last: Option<SessionId>,
}

impl Peer {
    /// A process that nothing is known of but what records say.
    pub(super) fn new(inherited: &[(PodUid, Proxy)]) -> Self {
        let mut peer = Self::default();
        for (uid, proxy) in inherited {
            peer.may_run(uid, proxy);
        }
        peer
    }

    /// The other may have been this one.
    pub(super) fn absorb(&mut self, other: Self) {
        self.silences = self.silences.max(other.silences);
        for (uid, times) in other.silent_about {
            let known = self.silent_about.entry(uid).or_default();
            *known = times.max(*known);
        }
        for (uid, proxies) in other.running {
            for proxy in proxies {
                self.may_run(&uid, &proxy);
            }
        }
    }

    /// It did not answer an Add.
    pub(super) fn was_silent(&mut self, uid: &PodUid) {
        let times = self.silent_about.entry(uid.clone()).or_default();
        *times = times.saturating_add(1);
    }

    /// It answered an Add, or the pod is not to be added any more.
    pub(super) fn answered(&mut self, uid: &PodUid) {
        self.silent_about.remove(uid);
    }

    /// Adds of the pod in a row that it did not answer.
    pub(super) fn silences_about(&self, uid: &PodUid) -> u32 {
        self.silent_about.get(uid).copied().unwrap_or_default()
    }

    pub(super) fn may_run(&mut self, uid: &PodUid, proxy: &Proxy) {
        let proxies = self.running.entry(uid.clone()).or_default();
        if !proxies.contains(proxy) {
            proxies.push(proxy.clone());
        }
    }

    /// ztunnel runs exactly this for the pod. Namespaces that it let go come back.
    pub(super) fn started(&mut self, uid: &PodUid, proxy: &Proxy) -> Vec<NetnsId> {
        let former = self.running.insert(uid.clone(), vec![proxy.clone()]).unwrap_or_default();
        former.into_iter().map(|p| p.netns).filter(|n| *n != proxy.netns).collect()
    }

    /// ztunnel runs nothing for the pod. Namespaces that it let go come back.
    pub(super) fn stopped(&mut self, uid: &PodUid) -> Vec<NetnsId> {
        self.answered(uid);
        self.running.remove(uid).into_iter().flatten().map(|p| p.netns).collect()
    }

    /// ztunnel runs nothing that was not named to it. Namespaces that it let go come
    /// back.
    pub(super) fn retain(&mut self, named: impl Fn(&PodUid) -> bool) -> Vec<NetnsId> {
        let mut freed = Vec::new();
        self.silent_about.retain(|uid, _| named(uid));
        self.running.retain(|uid, proxies| {
            let keep = named(uid);
            if !keep {
                freed.extend(proxies.iter().map(|p| p.netns));
            }
            keep
        });
        freed
    }

    /// It may run another pod in the namespace of this one. One that runs nobody knows
    /// where may be its predecessor in the same sandbox, as mirrors of static pods are.
    pub(super) fn crowded(&self, uid: &PodUid, proxy: &Proxy) -> bool {
        let is_there = |other: &Proxy| {
            let (a, b) = (&other.identity, &proxy.identity);
            let same_name = (&a.namespace, &a.name) == (&b.namespace, &b.name);
            other.netns == proxy.netns || other.netns == NOWHERE && same_name
        };
        self.running.iter().any(|(other, proxies)| other != uid && proxies.iter().any(is_there))
    }

    /// It may run the pod under another name. An Add would not change that.
    pub(super) fn misnames(&self, uid: &PodUid, identity: &Identity) -> bool {
        self.running.get(uid).is_some_and(|proxies| proxies.iter().any(|p| p.identity != *identity))
    }
}
