//! Sessions begin, answer and end.

use super::Machine;
use super::desk::Alarm;
use super::pod::Want;
use super::retry::doubled;
use super::session::{NOWHERE, Peer, Phase, Sent, Session, Status};
use crate::action::{Action, Report, Stage};
use crate::id::{NetnsId, PeerId, PodUid, SessionId, TimerId};

/// Processes whose proxies are remembered without a session. More than two ztunnels
/// of one node at a time are not known to happen.
const REMEMBERED_PEERS: usize = 8;

impl Machine {
    pub(super) fn on_connected(&mut self, id: SessionId, peer: PeerId) {
        if self.sessions.contains_key(&id) {
            return;
        }
        let peer = if peer == PeerId(0) { self.nameless(id) } else { peer };
        // A process has one connection: its former one is dead, whether or not its end
        // was seen.
        let former: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| s.peer == peer).map(|(id, _)| *id).collect();
        for id in former {
            self.close(id);
        }
        let inherited = &self.inherited;
        let known = self.peers.entry(peer).or_insert_with(|| Peer::new(inherited));
        known.last = Some(id);
        self.forget_peers();
        self.sessions.insert(id, Session::new(peer));
    }

    /// A process that the kernel does not name. It is taken for all such that have lost
    /// their sessions: there is one, as a rule.
    fn nameless(&mut self, id: SessionId) -> PeerId {
        const FIRST: PeerId = PeerId(1 << 63);
        let lost: Vec<PeerId> = self
            .peers
            .range(FIRST..)
            .filter(|(peer, _)| !self.sessions.values().any(|s| s.peer == **peer))
            .map(|(peer, _)| *peer)
            .collect();
        // What records said at the start counts for the first of them: since then it was
        // told what it runs, and the numbers of namespaces are used again.
        let inherited = if lost.is_empty() { &self.inherited[..] } else { &[] };
        let mut known = Peer::new(inherited);
        for peer in lost.iter().filter_map(|peer| self.peers.remove(peer)) {
            known.absorb(peer);
        }
        let peer = PeerId(FIRST.0 | id.0);
        self.peers.insert(peer, known);
        peer
    }

    fn forget_peers(&mut self) {
        while self.peers.len() > REMEMBERED_PEERS {
            let connected = |peer: &PeerId| self.sessions.values().any(|s| s.peer == *peer);
            let newest = self.peers.values().map(|p| p.last).max().flatten();
            let oldest = self
                .peers
                .iter()
                .filter(|(id, peer)| !connected(id) && peer.last != newest)
                .min_by_key(|(_, peer)| peer.last)
                .map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.peers.remove(&oldest);
        }
    }

    /// Closes a session and forgets it.
    pub(super) fn close(&mut self, id: SessionId) {
        if self.lose(id) {
            self.desk.push(Action::Close(id));
        }
    }

    /// Forgets a session. Its proxies keep running.
    pub(super) fn lose(&mut self, id: SessionId) -> bool {
        let Some(mut session) = self.sessions.remove(&id) else { return false };
        if let Some(timer) = session.timer.take() {
            self.desk.cancel(timer);
        }
        for (uid, entry) in &mut session.entries {
            entry.undeleted.nudge(&mut self.desk);
            let Some(pod) = self.pods.get_mut(uid) else { continue };
            match (&entry.status, pod.proxy()) {
                (Status::Taken(had), Some(proxy)) if *had == proxy => pod.held = Some(proxy),
                _ => {}
            }
        }
        self.dirty.extend(self.pods.keys().cloned());
        self.watch_connection();
        true
    }

    /// Runs the timer of a session's oldest message.
    pub(super) fn watch(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.unanswered.is_empty() {
            if let Some(timer) = session.timer.take() {
                self.desk.cancel(timer);
            }
        } else if session.timer.is_none() {
            let times = self.peers.get(&session.peer).map_or(0, |peer| {
                let about = session.lone_add().map_or(0, |uid| peer.silences_about(uid));
                peer.silences.max(about)
            });
            let delay = doubled(self.config.ack_timeout, times, self.config.ack_timeout_max);
            session.timer = Some(self.desk.arm(Alarm::Ack(id), delay, false));
        }
    }

    /// Somebody waits behind an Add that had more than its share of time.
    pub(super) fn hurry(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(peer) = self.peers.get(&session.peer) else { return };
        if let (2, Some(Sent::Add(uid, _))) = (session.unanswered.len(), session.unanswered.front())
            && peer.silences_about(uid) > peer.silences
            && let Some(timer) = session.timer.take()
        {
            self.desk.cancel(timer);
        }
    }

    /// Runs the grace timer while no ztunnel has its snapshot.
    pub(super) fn watch_connection(&mut self) {
        let live = self.sessions.values().any(|s| s.phase == Phase::Live);
        match (live, self.grace) {
            (true, Some(timer)) => {
                self.desk.cancel(timer);
                self.grace = None;
            }
            (false, None) if self.listed && !self.no_ztunnel => {
                self.grace = Some(self.desk.arm(Alarm::Grace, self.config.ztunnel_grace, false));
            }
            _ => {}
        }
        if live && self.no_ztunnel {
            self.no_ztunnel = false;
            self.desk.report_node(Report::ZtunnelBack);
            self.dirty.extend(self.pods.keys().cloned());
        }
    }

    /// No ztunnel for too long: nobody's proxy counts as running any more.
    pub(super) fn on_grace(&mut self) {
        self.grace = None;
        self.no_ztunnel = true;
        self.desk.report_node(Report::NoZtunnel);
        for (uid, pod) in &mut self.pods {
            pod.held = None;
            self.dirty.insert(uid.clone());
        }
    }

    /// The oldest message has no response: from now on nobody can tell which response
    /// is whose, so the session ends, and the next snapshot says everything anew.
    pub(super) fn on_silence(&mut self, id: SessionId, timer: TimerId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.timer != Some(timer) {
            return;
        }
        session.timer = None;
        let oldest = session.unanswered.front().cloned();
        if let Some(peer) = self.peers.get_mut(&session.peer) {
            peer.silences = peer.silences.saturating_add(1);
            if let Some(Sent::Add(uid, _)) = &oldest {
                peer.was_silent(uid);
            }
        }
        self.desk.report_node(Report::Silent { session: id });
        if let Some(Sent::Add(uid, _)) = oldest {
            self.not_accepted(&uid, "ztunnel did not answer in time".to_owned());
        }
        self.close(id);
    }

    pub(super) fn on_response(&mut self, id: SessionId, error: Option<String>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let peer = session.peer;
        let Some(sent) = session.unanswered.pop_front() else {
            self.desk.report_node(Report::Unasked { session: id });
            self.close(id);
            return;
        };
        if let Some(timer) = session.timer.take() {
            self.desk.cancel(timer);
        }
        match (sent, error) {
            (Sent::End, None) => self.snapshot_taken(id, peer),
            (Sent::End, Some(error)) => {
                self.desk.report_node(Report::SnapshotRefused { session: id, error });
                self.close(id);
            }
            (Sent::Keep(uid), None) => {
                session.note(&uid, Status::Kept);
                self.dirty.insert(uid);
            }
            (Sent::Keep(uid), Some(_)) => {
                session.entries.remove(&uid);
                self.dirty.insert(uid);
            }
            (Sent::Add(uid, proxy), None) => {
                let known = self.peers.entry(peer).or_default();
                known.answered(&uid);
                let freed = known.started(&uid, &proxy);
                session.note(&uid, Status::Taken(proxy));
                self.freed(freed);
                if let Some(pod) = self.pods.get_mut(&uid) {
                    let told = pod.accept.succeed(&mut self.desk, &self.config);
                    self.desk.tell(Some(&uid), Stage::Ztunnel, told);
                }
                self.dirty.insert(uid);
            }
            (Sent::Add(uid, proxy), Some(error)) => {
                self.peers.entry(peer).or_default().answered(&uid);
                session.note(&uid, Status::Refused(proxy));
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.held = None;
                }
                self.not_accepted(&uid, error);
                self.dirty.insert(uid);
            }
            (Sent::Del(uid), None) => {
                if let Some(mut entry) = session.entries.remove(&uid) {
                    let told = entry.undeleted.succeed(&mut self.desk, &self.config);
                    self.desk.tell(Some(&uid), Stage::Ztunnel, told);
                }
                let freed = self.peers.entry(peer).or_default().stopped(&uid);
                self.freed(freed);
                self.dirty.insert(uid);
            }
            (Sent::Del(uid), Some(error)) => self.not_deleted(id, &uid, error),
        }
        self.watch(id);
    }

    fn snapshot_taken(&mut self, id: SessionId, peer: PeerId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.phase = Phase::Live;
        if let Some(known) = self.peers.get_mut(&peer) {
            known.silences = 0;
            let freed = known.retain(|uid| session.entries.contains_key(uid));
            self.freed(freed);
        }
        // Pods that were left out of the snapshot are due now.
        self.dirty.extend(self.pods.keys().cloned());
        self.watch_connection();
    }

    /// A ztunnel has let go of these namespaces: whoever waits for one is due.
    fn freed(&mut self, namespaces: Vec<NetnsId>) {
        for netns in namespaces {
            if netns == NOWHERE {
                self.dirty.extend(self.pods.keys().cloned());
            }
            self.dirty.extend(self.owners.get(&netns).cloned());
        }
    }

    /// ztunnel refused a pod, or was silent about it.
    fn not_accepted(&mut self, uid: &PodUid, error: String) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !matches!(pod.want(pod.goal(self.draining)), Want::Present(_)) {
            return;
        }
        let alarm = Alarm::Accept(uid.clone());
        let told = pod.accept.fail(&mut self.desk, &self.config, alarm, error, false);
        if pod.accept.loud(&self.config) {
            pod.held = None;
        }
        self.desk.tell(Some(uid), Stage::Ztunnel, told);
    }

    /// ztunnel refused a deletion. It is said again until it is confirmed, or until
    /// the session is gone.
    fn not_deleted(&mut self, id: SessionId, uid: &PodUid, error: String) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // Whatever it runs now, it is not known.
        session.note(uid, Status::Kept);
        if let Some(entry) = session.entries.get_mut(uid) {
            let alarm = Alarm::Resend(id, uid.clone());
            let told = entry.undeleted.fail(&mut self.desk, &self.config, alarm, error, false);
            self.desk.tell(Some(uid), Stage::Ztunnel, told);
        }
        self.dirty.insert(uid.clone());
    }
}
