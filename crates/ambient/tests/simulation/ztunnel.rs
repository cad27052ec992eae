//! A ztunnel, as zds.md says it behaves: messages strictly in order, one response for
//! each, its exits, its silent retries, its snapshots.

use ambient::action::Message;
use ambient::event::Identity;
use ambient::id::{NetnsId, PodUid, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) identity: Identity,
    pub(crate) netns: NetnsId,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) session: SessionId,
    /// Sent by the agent, not read yet.
    pub(crate) inbox: VecDeque<Message>,
    /// Responses that the agent has not read yet.
    pub(crate) outbox: VecDeque<Option<String>>,
    named: BTreeSet<PodUid>,
    ended: bool,
    /// The agent closed it: what is in the inbox is still read, nobody hears of it.
    pub(crate) closed: bool,
}

#[derive(Debug)]
pub(crate) struct Ztunnel {
    pub(crate) pid: u64,
    pub(crate) proxies: BTreeMap<PodUid, Proxy>,
    pub(crate) pending: BTreeMap<PodUid, Proxy>,
    pub(crate) connection: Option<Connection>,
}

impl Ztunnel {
    pub(crate) fn new(pid: u64) -> Self {
        Self { pid, proxies: BTreeMap::new(), pending: BTreeMap::new(), connection: None }
    }

    /// Reads what is left of a connection that the agent closed, then connects anew.
    pub(crate) fn connect(&mut self, session: SessionId) {
        while self.work(false) {}
        self.pending.clear();
        self.connection = Some(Connection {
            session,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            named: BTreeSet::new(),
            ended: false,
            closed: false,
        });
    }

    /// Reads one message. A panic is what makes the real one exit, or worse.
    pub(crate) fn work(&mut self, nack: bool) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let Some(message) = connection.inbox.pop_front() else { return false };
        let mut error = nack.then(|| "failure to start proxy : Bind([::]:15008)".to_owned());
        match message {
            Message::Add { uid, identity, netns } => {
                let crowd = self.proxies.iter().find(|(u, p)| **u != uid && p.netns == netns);
                assert!(crowd.is_none(), "two pods in {netns}: {uid} and {crowd:?}");
                connection.named.insert(uid.clone());
                self.pending.remove(&uid);
                let former = self.proxies.get(&uid);
                if former.is_some_and(|p| p.netns == netns) {
                    // Taken for done; another identity is ignored.
                    error = None;
                } else {
                    let proxy = Proxy { identity, netns };
                    self.proxies.remove(&uid);
                    let started = if nack { &mut self.pending } else { &mut self.proxies };
                    started.insert(uid, proxy);
                }
            }
            Message::Keep(uid) => {
                assert!(!connection.ended, "Keep of {uid} after SnapshotSent: ztunnel exits");
                if !nack {
                    connection.named.insert(uid);
                }
            }
            Message::Del(uid) => {
                if !nack {
                    self.pending.remove(&uid);
                    connection.named.remove(&uid);
                    if connection.ended {
                        self.proxies.remove(&uid);
                    }
                }
            }
            Message::SnapshotSent => {
                assert!(!connection.ended, "a second SnapshotSent: ztunnel exits");
                connection.ended = true;
                let named = &connection.named;
                self.proxies.retain(|uid, _| named.contains(uid));
            }
        }
        if !connection.closed {
            connection.outbox.push_back(error);
        }
        true
    }

    /// It tries again what it could not start, and tells nobody.
    pub(crate) fn retry(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for (uid, proxy) in pending {
            let crowded = self.proxies.iter().any(|(u, p)| *u != uid && p.netns == proxy.netns);
            assert!(!crowded, "two pods in {} by ztunnel's own retry", proxy.netns);
            self.proxies.insert(uid, proxy);
        }
    }

    /// It was told of the pod on this connection, or will have been.
    pub(crate) fn is_named(&self, uid: &PodUid) -> bool {
        let Some(connection) = &self.connection else { return false };
        connection.inbox.iter().fold(connection.named.contains(uid), |named, message| match message
        {
            Message::Add { uid: of, .. } | Message::Keep(of) if of == uid => true,
            Message::Del(of) if of == uid => false,
            _ => named,
        })
    }

    /// Namespaces that it keeps alive.
    pub(crate) fn pins(&self, netns: NetnsId) -> bool {
        let queued = self.connection.iter().flat_map(|c| &c.inbox);
        self.proxies.values().chain(self.pending.values()).any(|p| p.netns == netns)
            || queued.into_iter().any(|m| matches!(m, Message::Add { netns: n, .. } if *n == netns))
    }
}
