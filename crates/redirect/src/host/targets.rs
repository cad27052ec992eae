//! Which elements the host's set must have, and who wants each.
//!
//! An element is wanted as long as one owner wants it. An owner is a pod's
//! sandbox, so a late DEL of a sandbox takes nothing from the next one, and a pod
//! that got the address of one that is just ending keeps what both want. Nothing
//! that nobody is known to want is taken out before the view is complete: after a
//! restart the set is full and this value is empty (istio/istio#52218 and others).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where kubelet's connections go: an address and a TCP port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The pod's address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Who wants an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// `metadata.uid`.
    pub pod: String,
    /// What tells one sandbox of the pod from the next: the container id of the
    /// CNI request, or the network namespace.
    pub sandbox: String,
}

/// Elements to put in and to take out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// To put in.
    pub add: BTreeSet<Target>,
    /// To take out.
    pub remove: BTreeSet<Target>,
}

impl Change {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// All owners with what they want.
#[derive(Debug, Clone, Default)]
pub struct ProbeSet {
    owners: BTreeMap<Owner, BTreeSet<Target>>,
    /// How many owners want an element; never 0.
    claims: BTreeMap<Target, usize>,
    complete: bool,
}

impl ProbeSet {
    /// Says what an owner wants, all of it; what it wanted before no longer counts.
    pub fn upsert(&mut self, owner: Owner, targets: BTreeSet<Target>) -> Change {
        let before = self.owners.insert(owner, targets.clone()).unwrap_or_default();
        self.exchange(&before, &targets)
    }

    /// Forgets an owner.
    pub fn release(&mut self, owner: &Owner) -> Change {
        let before = self.owners.remove(owner).unwrap_or_default();
        self.exchange(&before, &BTreeSet::new())
    }

    /// Forgets all sandboxes of a pod.
    pub fn release_pod(&mut self, pod: &str) -> Change {
        let gone: Vec<Owner> =
            self.owners.keys().filter(|owner| owner.pod == pod).cloned().collect();
        let mut all = Change::default();
        for owner in gone {
            all.remove.extend(self.release(&owner).remove);
        }
        all
    }

    /// Says that every enrolled pod of the node was told: from now on elements that
    /// nobody wants are taken out.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// True after [`Self::complete`].
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// True when somebody wants the element.
    #[must_use]
    pub fn wants(&self, target: &Target) -> bool {
        self.claims.contains_key(target)
    }

    /// Every wanted element.
    pub fn wanted(&self) -> impl Iterator<Item = Target> {
        self.claims.keys().copied()
    }

    /// How many owners there are.
    #[must_use]
    pub fn owners(&self) -> usize {
        self.owners.len()
    }

    /// What makes a set that holds `found` the wanted one.
    #[must_use]
    pub fn reconcile(&self, found: &BTreeSet<Target>) -> Change {
        let add = self.wanted().filter(|target| !found.contains(target)).collect();
        let stale = found.iter().filter(|target| self.complete && !self.wants(target));
        Change { add, remove: stale.copied().collect() }
    }

    fn exchange(&mut self, before: &BTreeSet<Target>, after: &BTreeSet<Target>) -> Change {
        let mut change = Change::default();
        for target in after.difference(before) {
            *self.claims.entry(*target).or_insert(0) += 1;
        }
        // All of them, not the new ones: a repeated request repairs too.
        change.add.extend(after);
        for target in before.difference(after) {
            let count = self.claims.get(target).copied().unwrap_or(0);
            if count > 1 {
                self.claims.insert(*target, count - 1);
                continue;
            }
            self.claims.remove(target);
            if self.complete {
                change.remove.insert(*target);
            }
        }
        change
    }
}
