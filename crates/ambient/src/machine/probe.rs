//! Addresses that kubelet's probes may reach uncaptured. An address belongs to the pod
//! that claimed it last, so that a late end of its former owner takes nothing from its
//! present one; what is in the set is compared, never assumed.

use super::desk::{Alarm, Desk, Work};
use super::retry::{Retry, Told};
use crate::action::{Action, ProbeOwner};
use crate::config::Config;
use crate::event::Failure;
use crate::id::{PodUid, SandboxId, StepId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What a pod wants exempted for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) uid: PodUid,
    pub(super) sandbox: Option<SandboxId>,
    pub(super) ports: BTreeSet<u16>,
}

/// A claim, and whether its pod is known to be where it is: the status of one that is
/// not may name an address that another pod has by now.
#[derive(Debug)]
struct Claimed {
    claim: Claim,
    placed: bool,
}

/// All addresses.
#[derive(Debug, Default)]
pub(super) struct Probes {
    slots: BTreeMap<IpAddr, Slot>,
    by_pod: BTreeMap<PodUid, BTreeSet<IpAddr>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The last one of a pod that is placed owns the address; else the last one.
    claims: Vec<Claimed>,
    present: Present,
    step: Option<Step>,
    retry: Retry,
}

/// What the set has for an address.
#[derive(Debug, Default, PartialEq, Eq)]
enum Present {
    #[default]
    Nothing,
    Set(Claim),
    /// Something, or something may be.
    Unknown,
}

#[derive(Debug)]
struct Step {
    id: StepId,
    claim: Option<Claim>,
    /// The set was lost meanwhile.
    void: bool,
}

impl Probes {
    /// A pod claims exactly these addresses, on these terms. True when that is new.
    pub(super) fn claim(&mut self, ips: &[IpAddr], claim: &Claim, placed: bool) -> bool {
        let ips: BTreeSet<IpAddr> = ips.iter().copied().collect();
        let mut changed = self.disclaim_but(&claim.uid, &ips);
        for ip in &ips {
            let slot = self.slots.entry(*ip).or_default();
            match slot.claims.iter_mut().find(|c| c.claim.uid == claim.uid) {
                Some(known) if known.claim == *claim && known.placed == placed => {}
                Some(known) => {
                    *known = Claimed { claim: claim.clone(), placed };
                    changed = true;
                }
                None => {
                    slot.claims.push(Claimed { claim: claim.clone(), placed });
                    changed = true;
                }
            }
        }
        if !ips.is_empty() {
            self.by_pod.insert(claim.uid.clone(), ips);
        }
        changed
    }

    /// A pod claims nothing any more.
    pub(super) fn disclaim(&mut self, uid: &PodUid) -> bool {
        self.disclaim_but(uid, &BTreeSet::new())
    }

    fn disclaim_but(&mut self, uid: &PodUid, keep: &BTreeSet<IpAddr>) -> bool {
        let Some(ips) = self.by_pod.remove(uid) else { return false };
        let mut changed = false;
        for ip in ips.difference(keep) {
            if let Some(slot) = self.slots.get_mut(ip) {
                slot.claims.retain(|c| c.claim.uid != *uid);
                changed = true;
            }
        }
        changed
    }

    /// All of the pod's claims are in the set, or a later owner's are.
    pub(super) fn set(&self, uid: &PodUid) -> bool {
        let ips = self.by_pod.get(uid);
        ips.is_none_or(|ips| ips.iter().all(|ip| self.slots.get(ip).is_some_and(Slot::is_set)))
    }

    /// The set has something of the pod's, or may have.
    pub(super) fn holds(&self, uid: &PodUid) -> bool {
        self.by_pod.contains_key(uid)
            || self.slots.values().any(|slot| {
                matches!(&slot.present, Present::Set(c) if c.uid == *uid)
                    || slot
                        .step
                        .as_ref()
                        .is_some_and(|s| s.claim.as_ref().is_some_and(|c| c.uid == *uid))
            })
    }

    /// The last error about one of the pod's addresses.
    pub(super) fn last(&self, uid: &PodUid) -> Option<String> {
        let ips = self.by_pod.get(uid)?;
        let retry = ips.iter().find_map(|ip| self.slots.get(ip)?.retry.last())?;
        Some(retry.to_owned())
    }

    /// One of the pod's addresses fails so often that it is loud.
    pub(super) fn loud(&self, uid: &PodUid, config: &Config) -> bool {
        self.by_pod.get(uid).is_some_and(|ips| {
            ips.iter().any(|ip| self.slots.get(ip).is_some_and(|slot| slot.retry.loud(config)))
        })
    }

    /// Something is in the set from before the start.
    pub(super) fn found(&mut self, ip: IpAddr) {
        let slot = self.slots.entry(ip).or_default();
        if slot.present == Present::Nothing && slot.step.is_none() {
            slot.present = Present::Unknown;
        }
    }

    /// The set is empty now.
    pub(super) fn lost(&mut self, desk: &mut Desk) -> Vec<PodUid> {
        for slot in self.slots.values_mut() {
            slot.present = Present::Nothing;
            slot.retry.nudge(desk);
            if let Some(step) = &mut slot.step {
                step.void = true;
            }
        }
        self.by_pod.keys().cloned().collect()
    }

    /// Starts what is due. `prune`: what nobody claims is nobody's.
    pub(super) fn advance(&mut self, desk: &mut Desk, prune: bool) {
        self.slots.retain(|ip, slot| {
            slot.advance(*ip, desk, prune);
            !slot.claims.is_empty() || slot.step.is_some() || slot.present != Present::Nothing
        });
    }

    /// A step's outcome. Comes back with the pods that it concerns, and what people are
    /// to hear about it.
    pub(super) fn done(
        &mut self,
        ip: IpAddr,
        step: StepId,
        result: Result<(), Failure>,
        desk: &mut Desk,
        config: &Config,
    ) -> (Vec<PodUid>, Told) {
        let Some(slot) = self.slots.get_mut(&ip) else { return (Vec::new(), Told::Nothing) };
        let Some(under_way) = slot.step.take_if(|s| s.id == step) else {
            return (Vec::new(), Told::Nothing);
        };
        let mut concerned: Vec<PodUid> = slot.claims.iter().map(|c| c.claim.uid.clone()).collect();
        concerned.extend(under_way.claim.as_ref().map(|c| c.uid.clone()));
        if let Present::Set(former) = &slot.present {
            concerned.push(former.uid.clone());
        }
        let told = match result {
            Ok(()) if under_way.void => {
                slot.present = Present::Unknown;
                Told::Nothing
            }
            Ok(()) => {
                slot.present = under_way.claim.map_or(Present::Nothing, Present::Set);
                slot.retry.succeed(desk, config)
            }
            Err(failure) => {
                slot.present = Present::Unknown;
                slot.retry.fail(desk, config, Alarm::Probe(ip), failure.to_string(), false)
            }
        };
        (concerned, told)
    }

    pub(super) fn ring(&mut self, ip: IpAddr, timer: crate::id::TimerId) {
        if let Some(slot) = self.slots.get_mut(&ip) {
            slot.retry.ring(timer);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.values().all(|s| s.present == Present::Nothing && s.step.is_none())
    }
}

impl Slot {
    fn owner(&self) -> Option<&Claim> {
        let placed = self.claims.iter().rev().find(|c| c.placed);
        placed.or(self.claims.last()).map(|c| &c.claim)
    }

    fn is_set(&self) -> bool {
        matches!((&self.present, self.owner()), (Present::Set(a), Some(b)) if a == b)
    }

    fn advance(&mut self, ip: IpAddr, desk: &mut Desk, prune: bool) {
        if self.step.is_some() || self.retry.waiting() {
            return;
        }
        let claim = match (self.owner(), &self.present) {
            (Some(claim), Present::Set(present)) if claim == present => return,
            (None, Present::Nothing) => return,
            (None, _) if !prune => return,
            (claim, _) => claim.cloned(),
        };
        let wanted = claim.clone();
        let id = desk.start(Work::Probe(ip), |step| match wanted {
            Some(Claim { uid, sandbox, ports }) => {
                Action::SetProbe { step, ip, ports, owner: ProbeOwner { uid, sandbox } }
            }
            None => Action::ClearProbe { step, ip },
        });
        self.step = Some(Step { id, claim, void: false });
    }
}
