//! The node's pods, as the source told of them last, and what else is known of each:
//! addresses that the chain gave it, the sandbox that the runtime named, what was
//! written to it and about it.

use super::annotate::Written;
use super::find::Named;
use super::node::Node;
use super::subject::{self, Subject};
use crate::record::{PodKey, Record, SandboxId};
use crate::source::follow::Told;
use crate::source::kubernetes::object::PodName;
use ambient::event::{Annotation, PodState, Wanted};
use ambient::id::PodUid;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Sandboxes that are remembered. More than a node's pods: those whose pod the source
/// never told of are forgotten with the runtime's word only.
const SANDBOXES: usize = 2048;

/// What is known of a pod.
#[derive(Debug)]
struct Known {
    told: Told,
    /// As it was decided last; kept while its namespace is not known.
    wanted: Wanted,
    written: Option<Written>,
}

/// What became of the word of a source.
#[derive(Debug)]
pub(super) struct Update {
    /// A pod that had the name before.
    pub(super) replaced: Option<PodUid>,
    /// It was not known before.
    pub(super) is_new: bool,
    /// What the machine is to be told; `None` when nothing can be decided about it.
    pub(super) state: Option<PodState>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Roster {
    node: Arc<Node>,
    pods: HashMap<PodUid, Known>,
    names: HashMap<PodName, PodUid>,
    /// Addresses that the chain gave pods, or that records have.
    addresses: HashMap<PodUid, Vec<IpAddr>>,
    /// Where the runtime said that pods are, whether they were captured or passed.
    sandboxes: HashMap<PodUid, Named>,
    /// Names of the records that there may be.
    records: HashMap<PodUid, BTreeSet<SandboxId>>,
    /// Pods that were captured before the start.
    recalled: Vec<(PodName, PodUid)>,
    /// Their records; of those that the source has not told of.
    untold: HashMap<PodUid, Arc<Record>>,
}

impl Roster {
    /// Nobody yet.
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            pods: HashMap::new(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            sandboxes: HashMap::new(),
            records: HashMap::new(),
            recalled: Vec::new(),
            untold: HashMap::new(),
        }
    }

    /// A record says that the pod was captured before the start. Of several the first
    /// counts whose namespace is there.
    pub(super) fn recall(&mut self, uid: PodUid, record: Record, is_there: bool) {
        let PodKey { namespace, name, .. } = record.pod.clone();
        self.recalled.push((PodName { namespace, name }, uid.clone()));
        if is_there {
            self.untold.entry(uid).or_insert_with(|| Arc::new(record));
        }
    }

    /// Recalled pods that the source has, or may have, and could tell nothing of.
    pub(super) fn doubtful(&mut self) -> Vec<PodUid> {
        let mut found = Vec::new();
        for (name, uid) in &self.recalled {
            let is_anothers = self.names.get(name).is_some_and(|other| other != uid);
            let is_told = is_anothers || self.pods.contains_key(uid);
            if !is_told && self.node.source.may_have(name) {
                self.names.insert(name.clone(), uid.clone());
                found.push(uid.clone());
            }
        }
        found
    }

    /// Those of them that the source certainly does not have, by now.
    pub(super) fn cleared(&self) -> Vec<PodName> {
        let is_doubtful = |name: &PodName, uid: &PodUid| {
            self.names.get(name) == Some(uid) && !self.pods.contains_key(uid)
        };
        let all = self.recalled.iter().filter(|(name, uid)| is_doubtful(name, uid));
        let gone = all.filter(|(name, _)| !self.node.source.may_have(name));
        gone.map(|(name, _)| name.clone()).collect()
    }

    /// Takes the word of a source.
    pub(super) fn tell(&mut self, told: Told) -> Update {
        let uid = PodUid::new(&told.uid());
        let before = self.names.insert(told.name(), uid.clone());
        let replaced = before.filter(|before| *before != uid);
        if let Some(replaced) = &replaced {
            self.lose(replaced);
        }
        let known = self.pods.remove(&uid);
        let is_new = known.is_none();
        let (last, written) = known.map_or((None, None), |k| (Some(k.wanted), k.written));
        let state = self.decide(&told, last).map(|wanted| self.state(&uid, told, wanted, written));
        Update { replaced, is_new, state }
    }

    /// What is wanted of a pod; `None` while that cannot be known.
    fn decide(&self, told: &Told, last: Option<Wanted>) -> Option<Wanted> {
        let namespace = self.node.source.namespace(&told.facts().namespace);
        let decided =
            subject::wanted(told, namespace.as_ref(), &self.node.policy, &self.node.options);
        match (decided, last) {
            (Ok(wanted), _) => Some(wanted),
            // What it was, until it is known what it is.
            (Err(_), Some(Wanted::Ambient(_))) => {
                Some(Wanted::Ambient(subject::hash(told, &self.node.options)))
            }
            (Err(_), Some(Wanted::No)) => Some(Wanted::No),
            (Err(error), None) => {
                tracing::warn!(
                    ns = told.facts().namespace,
                    pod = told.facts().name,
                    uid = told.uid(),
                    reason = %error,
                    "cannot be decided about yet"
                );
                None
            }
        }
    }

    fn state(
        &mut self,
        uid: &PodUid,
        told: Told,
        wanted: Wanted,
        mut written: Option<Written>,
    ) -> PodState {
        let seen = subject::annotation(told.facts());
        let mut annotation = seen;
        if let Some(own) = &written {
            let (believed, over) = own.judge(seen, told.status().map(|s| s.version));
            annotation = believed;
            if over {
                written = None;
            }
        }
        let mut state = subject::state(&told, wanted, annotation);
        if state.ips.is_empty() {
            // A manifest says none, nor does a status that kubelet has not written yet.
            state.ips = self.given(uid).to_vec();
        }
        self.untold.remove(uid);
        self.pods.insert(uid.clone(), Known { told, wanted, written });
        state
    }

    /// The pod that had the name is gone.
    pub(super) fn gone(&mut self, name: &PodName) -> Option<PodUid> {
        let uid = self.names.remove(name)?;
        self.lose(&uid);
        Some(uid)
    }

    fn lose(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
        self.sandboxes.remove(uid);
    }

    /// Those that the source, whose list is complete, does not have (any more).
    pub(super) fn ended(&self) -> Vec<PodName> {
        self.names.keys().filter(|name| !self.node.source.has(name)).cloned().collect()
    }

    /// A pod as it was told of last.
    pub(super) fn told(&self, uid: &PodUid) -> Option<&Told> {
        self.pods.get(uid).map(|known| &known.told)
    }

    /// Who says what is wanted of it: the source, or else its record.
    pub(super) fn subject(&self, uid: &PodUid) -> Option<Subject> {
        let recorded = || self.untold.get(uid).cloned().map(Subject::Recorded);
        self.told(uid).cloned().map(Subject::Told).or_else(recorded)
    }

    /// Addresses by its status, or those that the chain gave it.
    pub(super) fn addresses(&self, uid: &PodUid) -> Vec<IpAddr> {
        let status = self.told(uid).and_then(Told::status).map(|s| s.addresses.to_vec());
        let addresses = status.filter(|ips| !ips.is_empty());
        addresses.unwrap_or_else(|| self.given(uid).to_vec())
    }

    /// What the chain gave it, captured or not.
    fn given(&self, uid: &PodUid) -> &[IpAddr] {
        let passed = || Some(&self.sandboxes.get(uid)?.addresses);
        self.addresses.get(uid).or_else(passed).map_or(&[], Vec::as_slice)
    }

    /// A pod that is to be captured and was told of without an address: to be told of
    /// again once it has one.
    pub(super) fn without_address(&self, uid: &PodUid) -> Option<Told> {
        let known = self.pods.get(uid).filter(|k| matches!(k.wanted, Wanted::Ambient(_)))?;
        self.addresses(uid).is_empty().then(|| known.told.clone())
    }

    /// Addresses by the chain, or by a record.
    pub(super) fn has_addresses(&mut self, uid: PodUid, addresses: Vec<IpAddr>) {
        self.addresses.insert(uid, addresses);
    }

    /// The runtime made it this sandbox. Of several interfaces the first counts.
    pub(super) fn is_in(&mut self, uid: PodUid, sandbox: Named) {
        let same = |known: &Named| known.id == sandbox.id && known.netns == sandbox.netns;
        if self.sandboxes.get(&uid).is_some_and(same) {
            return;
        }
        if self.sandboxes.len() >= SANDBOXES {
            let pods = &self.pods;
            self.sandboxes.retain(|uid, _| pods.contains_key(uid));
        }
        if self.sandboxes.len() < SANDBOXES {
            self.sandboxes.insert(uid, sandbox);
        }
    }

    /// The runtime took a sandbox down.
    pub(super) fn sandbox_gone(&mut self, id: &str) {
        self.sandboxes.retain(|_, sandbox| sandbox.id != id);
    }

    /// The sandbox that the runtime made it last.
    pub(super) fn sandbox(&self, uid: &PodUid) -> Option<&Named> {
        self.sandboxes.get(uid)
    }

    /// There is a record of it, or is going to be.
    pub(super) fn is_recorded(&mut self, uid: &PodUid, name: SandboxId) {
        self.records.entry(uid.clone()).or_default().insert(name);
    }

    /// Names of the records that there may be of it.
    pub(super) fn records(&self, uid: &PodUid) -> impl Iterator<Item = &SandboxId> {
        self.records.get(uid).into_iter().flatten()
    }

    /// The annotation was written.
    pub(super) fn wrote(&mut self, uid: &PodUid, value: Annotation, version: &str) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.written = Some(Written::new(value, version));
        }
    }

    /// The pod as it was told of last, where that is newer than what was written last.
    pub(super) fn overtaken(&mut self, uid: &PodUid) -> Option<PodState> {
        let Known { told, written, .. } = self.pods.get(uid)?;
        let (seen, version) = (subject::annotation(told.facts()), told.status()?.version);
        let (_, is_newer) = written.as_ref()?.judge(seen, Some(version));
        let told = told.clone();
        if is_newer { self.tell(told).state } else { None }
    }

    /// Nothing of it is left in the kernel: its records go, too. Comes back with them.
    pub(super) fn forget(&mut self, uid: &PodUid) -> BTreeSet<SandboxId> {
        self.addresses.remove(uid);
        self.untold.remove(uid);
        self.records.remove(uid).unwrap_or_default()
    }
}
