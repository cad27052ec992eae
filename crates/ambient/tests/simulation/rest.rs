//! The world comes to rest: nothing fails any more, everything is delivered, and then
//! everything must be as it should be.

use crate::world::{Outcome, SLOTS, World};
use ambient::action::{Stage, Standing};
use ambient::event::{Annotation, Wanted};
use ambient::id::{NetnsId, PodUid};
use std::collections::BTreeSet;

/// Enough for every back-off to have run twice.
const ROUNDS: usize = 10;
/// No schedule of a few dozen operations has that much to do.
const LIMIT: usize = 3_000;

impl World {
    pub(crate) fn rest(&mut self) {
        self.resting = true;
        for namespace in self.dying() {
            self.kill(namespace);
        }
        for round in 0..ROUNDS {
            for slot in 0..SLOTS {
                self.status(slot);
            }
            self.flow();
            if round < ROUNDS - 1 {
                for _ in 0..self.timers.len() {
                    self.ring(0);
                }
                for pick in 0..SLOTS * 2 {
                    self.audit(pick, Outcome::Done);
                }
                self.ztunnels.iter_mut().for_each(|z| z.retry());
                self.flow();
            }
        }
    }

    /// Namespaces that nobody will keep: of former sandboxes, of pods that ended.
    fn dying(&self) -> Vec<NetnsId> {
        let kept: BTreeSet<NetnsId> = self
            .pods
            .iter()
            .flatten()
            .filter(|p| !p.state.terminal && !p.state.deleting)
            .filter_map(|p| p.netns)
            .collect();
        self.namespaces.keys().filter(|n| !kept.contains(n)).copied().collect()
    }

    /// Everything that waits for nothing happens.
    fn flow(&mut self) {
        for _ in 0..LIMIT {
            let mut busy = self.next_watch() || self.end_of_file();
            for z in 0..self.ztunnels.len() {
                self.connect(z);
                busy |= self.ztunnels[z].work(false);
                busy |= self.respond(z);
            }
            if self.steps() > 0 {
                self.finish(0, Outcome::Done);
                busy = true;
            }
            if !busy {
                return;
            }
        }
        panic!("never comes to rest");
    }

    pub(crate) fn verify(&self) {
        assert!(self.open.is_empty(), "requests without an answer: {:?}", self.open);
        assert_eq!(self.steps(), 0);
        let known: BTreeSet<NetnsId> = self.machine.pods().filter_map(|p| p.netns).collect();
        assert_eq!(self.fds, known, "descriptors that are held, and namespaces that are known");
        let uids: BTreeSet<PodUid> =
            self.pods.iter().flatten().map(|p| p.state.uid.clone()).collect();
        for pod in self.machine.pods() {
            assert!(uids.contains(&pod.uid), "a ghost: {pod:?}");
        }
        for uid in self.records.keys() {
            assert!(uids.contains(uid), "a record of a ghost: {uid}");
        }
        for ztunnel in &self.ztunnels {
            for uid in ztunnel.proxies.keys().chain(ztunnel.pending.keys()) {
                assert!(uids.contains(uid), "a proxy of a ghost: {uid}");
            }
        }
        for (ip, (uid, _)) in &self.probes {
            assert!(uids.contains(uid), "an exempted address of a ghost: {ip} of {uid}");
        }
        for (uid, standing) in &self.standing {
            assert!(uids.contains(uid) || *standing == Standing::Outside, "{uid}: {standing:?}");
        }
        self.pods.iter().flatten().for_each(|pod| self.verify_pod(pod));
        let lost = |uid: &PodUid| self.api(uid).is_some_and(|pod| self.is_lost(pod));
        if self.draining && !self.drained {
            let left: Vec<&PodUid> = self.machine.left().collect();
            assert!(!left.is_empty() && left.iter().all(|uid| lost(uid)), "not drained: {left:?}");
        }
    }

    /// Its sandbox died, nobody said so, and it has no other: it may be anywhere, with
    /// rules in it. Nothing but the end of the pod, or a sandbox, ends the search.
    fn is_lost(&self, pod: &crate::world::Pod) -> bool {
        let alive = pod.netns.is_some_and(|n| self.namespaces[&n].alive);
        let view = self.machine.pod(&pod.state.uid);
        let sought = view.is_some_and(|view| view.waiting_for == Some(Stage::Namespace));
        !alive && !pod.state.terminal && sought
    }

    fn verify_pod(&self, pod: &crate::world::Pod) {
        let (state, uid) = (&pod.state, &pod.state.uid);
        let netns = pod.netns.filter(|n| self.namespaces[n].alive);
        let view = self.machine.pod(uid).expect("a pod of the API is not known");
        let standing = self.standing.get(uid).copied().unwrap_or(Standing::Outside);
        assert_eq!(standing, view.standing);
        let wanted = !self.draining && !state.terminal && state.wanted != Wanted::No;
        let exempted: Vec<_> = self.probes.iter().filter(|(_, (u, _))| u == uid).collect();
        match (wanted, netns) {
            (true, Some(netns)) => {
                let options = self.namespaces[&netns].rules;
                assert_eq!(options.map(Wanted::Ambient), Some(state.wanted), "{uid}: lost: rules");
                assert_eq!(view.netns, Some(netns), "{uid}: lost: namespace");
                assert_eq!(view.waiting_for, None, "{uid}: lost: {view:?}");
                assert_eq!(standing, Standing::Verified, "{uid}");
                assert_eq!(state.annotation, Annotation::Enabled, "{uid}");
                let running: Vec<_> =
                    self.ztunnels.iter().filter_map(|z| z.proxies.get(uid)).collect();
                assert!(!running.is_empty(), "{uid}: lost: no ztunnel runs it");
                for proxy in running {
                    assert_eq!((&proxy.identity, proxy.netns), (&state.identity, netns), "{uid}");
                }
                let newest = self.machine.sessions().find(|s| s.newest).expect("one is open");
                assert!(view.accepted_by.contains(&newest.session), "{uid}: not by the newest");
                for ip in state.ips.iter().filter(|_| !state.probe_ports.is_empty()) {
                    let expected = Some(&(uid.clone(), state.probe_ports.clone()));
                    assert_eq!(self.probes.get(ip), expected, "{uid}: probes of {ip}");
                }
                let count = if state.probe_ports.is_empty() { 0 } else { state.ips.len() };
                assert_eq!(exempted.len(), count, "{uid}: {exempted:?}");
            }
            (true, None) => {
                let over = state.deleting || state.ips.is_empty();
                let said = state.annotation == Annotation::Enabled;
                assert!(over || !said, "{uid}: says enabled, and runs nowhere: {view:?}");
                assert_ne!(standing, Standing::Verified, "{uid}");
                assert_eq!(view.netns, None, "{uid}");
            }
            (false, _) if self.is_lost(pod) => {
                assert_eq!(standing, Standing::Outside, "{uid}");
                assert_ne!(state.annotation, Annotation::Enabled, "{uid}: is not said to be lost");
            }
            (false, netns) => {
                if let Some(netns) = netns.filter(|_| !state.terminal) {
                    assert_eq!(self.namespaces[&netns].rules, None, "{uid}: rules remain");
                }
                assert_eq!(view.netns, None, "{uid}");
                assert_eq!(standing, Standing::Outside, "{uid}");
                assert_eq!(state.annotation, Annotation::Absent, "{uid}");
                assert!(exempted.is_empty(), "{uid}: {exempted:?}");
                for ztunnel in &self.ztunnels {
                    assert!(!ztunnel.proxies.contains_key(uid), "{uid}: a ghost in ztunnel");
                    assert!(!ztunnel.pending.contains_key(uid), "{uid}: a ghost in ztunnel");
                }
                assert!(!self.records.contains_key(uid), "{uid}: its record remains");
            }
        }
    }
}
