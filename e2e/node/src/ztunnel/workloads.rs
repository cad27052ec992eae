//! What the agent's requests do: proxies that run, those that could not be started,
//! and the snapshot that a new connection begins with.

use super::pod::Proxy;
use super::run::Shared;
use nix::sys::stat::fstat;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use zds::{DecodeError, Request, WorkloadInfo};

/// What is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done.
    Ack,
    /// It was not; all goes on.
    Nack(String),
    /// The agent breaks the protocol: the answer, and then the end of the process.
    Fatal(String),
}

/// The state of all pods.
#[derive(Default)]
pub(super) struct Workloads {
    running: BTreeMap<String, Running>,
    /// Not started; tried again with the descriptor that came with the Add.
    pending: BTreeMap<String, Pending>,
    /// Those that were named on this connection, until SnapshotSent.
    snapshot: Option<BTreeSet<String>>,
    received: bool,
    ready: bool,
    started: u64,
    stopped: u64,
}

struct Running {
    proxy: Proxy,
    id: (u64, u64),
    /// It pins the namespace until the proxy ends.
    _fd: OwnedFd,
}

struct Pending {
    info: WorkloadInfo,
    fd: OwnedFd,
}

/// A pod, for those who look.
pub(super) struct View<'a> {
    pub(super) uid: &'a str,
    pub(super) info: &'a WorkloadInfo,
    /// Device and inode of the namespace of a running one.
    pub(super) netns: Option<(u64, u64)>,
    pub(super) connections: usize,
}

impl Workloads {
    /// A new connection: all that runs goes on, until the snapshot is complete.
    pub(super) fn connected(&mut self) {
        self.snapshot = Some(BTreeSet::new());
        self.received = false;
        self.pending.clear();
        self.ready = false;
    }

    /// The connection is gone, and everything runs on.
    pub(super) fn disconnected(&mut self) {
        self.ready = false;
    }

    /// Does what a request says.
    pub(super) fn handle(
        &mut self,
        shared: &Arc<Shared>,
        request: Result<Request, DecodeError>,
        fd: Option<OwnedFd>,
    ) -> Outcome {
        let outcome = match (request, fd) {
            (Ok(Request::Add { uid, info }), Some(fd)) => self.add(shared, uid, info, fd),
            (Ok(Request::Keep { uid }), _) => self.keep(uid),
            (Ok(Request::Del { uid }), _) => self.del(&uid),
            (Ok(Request::SnapshotSent), _) => self.snapshot_sent(),
            (Err(err), _) => Outcome::Fatal(format!("ProtocolError({err:?})")),
            (Ok(Request::Add { .. }), None) => Outcome::Nack("no descriptor".to_owned()),
        };
        if outcome == Outcome::Ack {
            self.look();
        }
        outcome
    }

    fn add(
        &mut self,
        shared: &Arc<Shared>,
        uid: String,
        info: WorkloadInfo,
        fd: OwnedFd,
    ) -> Outcome {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(uid.clone());
        }
        let id = id_of(&fd);
        match self.running.get(&uid) {
            // Whatever it is called by now.
            Some(running) if running.id == id => return Outcome::Ack,
            Some(_) => self.stop(&uid),
            None => {}
        }
        self.pending.remove(&uid);
        match self.start(shared, &uid, &info, fd) {
            Ok(()) => Outcome::Ack,
            Err((err, fd)) => {
                self.pending.insert(uid, Pending { info, fd });
                Outcome::Nack(format!("failure to start proxy : {err}"))
            }
        }
    }

    fn keep(&mut self, uid: String) -> Outcome {
        match &mut self.snapshot {
            Some(snapshot) => {
                snapshot.insert(uid);
                Outcome::Ack
            }
            None => Outcome::Fatal("ProtocolError(keep after snapshot sent)".to_owned()),
        }
    }

    fn del(&mut self, uid: &str) -> Outcome {
        self.pending.remove(uid);
        match &mut self.snapshot {
            // It runs until the snapshot is complete.
            Some(snapshot) => {
                snapshot.remove(uid);
            }
            None => self.stop(uid),
        }
        Outcome::Ack
    }

    fn snapshot_sent(&mut self) -> Outcome {
        let Some(named) = self.snapshot.take() else {
            return Outcome::Fatal("ProtocolError(snapshot sent twice)".to_owned());
        };
        let others: Vec<_> =
            self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in others {
            self.stop(&uid);
        }
        self.received = true;
        Outcome::Ack
    }

    /// Tries those again that could not be started. The agent is not told.
    pub(super) fn retry(&mut self, shared: &Arc<Shared>) {
        for (uid, Pending { info, fd }) in std::mem::take(&mut self.pending) {
            if let Err((_, fd)) = self.start(shared, &uid, &info, fd) {
                self.pending.insert(uid, Pending { info, fd });
            }
        }
        self.look();
    }

    fn start(
        &mut self,
        shared: &Arc<Shared>,
        uid: &str,
        info: &WorkloadInfo,
        fd: OwnedFd,
    ) -> Result<(), (String, OwnedFd)> {
        if shared.faults().refuses(uid) {
            return Err(("injected".to_owned(), fd));
        }
        match Proxy::start(shared, uid, info, &fd) {
            Ok(proxy) => {
                let id = id_of(&fd);
                self.running.insert(uid.to_owned(), Running { proxy, id, _fd: fd });
                self.started += 1;
                Ok(())
            }
            Err(err) => Err((err, fd)),
        }
    }

    /// The answer does not wait for the end.
    fn stop(&mut self, uid: &str) {
        if let Some(Running { proxy, _fd, .. }) = self.running.remove(uid) {
            self.stopped += 1;
            // Now: its successor in another namespace may be about to say where it is.
            proxy.pod.shared.own(uid, None);
            std::thread::spawn(move || {
                proxy.stop();
                drop(_fd);
            });
        }
    }

    /// Ready or not is decided after each success.
    fn look(&mut self) {
        self.ready = self.received && self.pending.is_empty();
    }

    /// Closes all listeners, and leaves the connections.
    pub(super) fn close(&mut self) -> Vec<Arc<super::pod::Pod>> {
        let running = std::mem::take(&mut self.running);
        running.into_values().map(|running| running.proxy.close()).collect()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn has_snapshot(&self) -> bool {
        self.received
    }

    /// Proxies started and stopped so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.started, self.stopped)
    }

    /// Every pod, running or not.
    pub(super) fn views(&self) -> Vec<View<'_>> {
        let running = self.running.iter().map(|(uid, running)| View {
            uid,
            info: &running.proxy.pod.info,
            netns: Some(running.id),
            connections: running.proxy.connections(),
        });
        let pending = self.pending.iter().map(|(uid, pending)| View {
            uid,
            info: &pending.info,
            netns: None,
            connections: 0,
        });
        running.chain(pending).collect()
    }
}

/// What ztunnel knows a namespace by.
fn id_of(fd: &OwnedFd) -> (u64, u64) {
    fstat(fd).map_or((0, 0), |stat| (stat.st_dev, stat.st_ino))
}
