//! Kubelet's probes on the host: the rules of [`redirect::host`] in the kernel, who
//! kubelet is, and the thread that keeps all of it so.
//!
//! [`Keeper`] is what the agent uses. Below it: [`Programmer`] looks at and writes
//! the rules of the calling thread's namespace in either dialect, [`kubelet`] finds
//! kubelet and its cgroup, [`trial`] proves with a packet what this kernel can do,
//! [`watch`] hears of changes, [`upstream`] knows what Istio leaves on a host,
//! [`branch`] owns the policy rules of AWS' branch interfaces.

pub mod branch;
mod error;
mod expression;
mod ipset;
mod keeper;
pub mod kubelet;
mod nft;
mod picture;
pub mod trial;
pub mod upstream;
mod watch;
mod xtables;

#[cfg(test)]
mod tests;

pub use error::HostError;
pub use keeper::{Cause, Config, Event, Keeper, Status};
pub use redirect::host::{
    Caller, Change, Check, Declared, HostRules, Kubelet, Owner, Port, ProbeSet, Process, Refused,
    Sources, Target, declared,
};

use crate::backend::{BackendKind, Diff};
use crate::iptables::Iptables;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the calling thread's namespace has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Something of ours is there.
    pub present: bool,
    /// How the rules differ from what is wanted; elements are told apart.
    pub diff: Diff,
    /// Elements of the sets.
    pub elements: BTreeSet<Target>,
    /// Chains of others that may translate kubelet's connections before ours.
    pub ahead: Vec<String>,
    /// Connections that got the source, since the rules were last written; nftables
    /// only.
    pub packets: Option<u64>,
}

/// Removes all of ours from the calling thread's namespace: both dialects, and policy
/// rules of branch interfaces. `tools` where [`upstream::needs_tools`]. Fine when nothing
/// is there.
///
/// # Errors
/// All that went wrong.
pub fn remove(tools: Option<&Arc<Iptables>>) -> Result<(), Vec<HostError>> {
    let tools = tools.map(|tools| Programmer::Iptables(Arc::clone(tools)));
    let dialects = std::iter::once(Programmer::Nftables).chain(tools);
    let mut errors: Vec<_> = dialects.filter_map(|each| each.remove().err()).flatten().collect();
    errors.extend(branch::reconcile(&BTreeSet::new()).err());
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Looks at and writes the host's rules, in the calling thread's namespace.
#[derive(Debug, Clone)]
pub enum Programmer {
    /// nf_tables over netlink.
    Nftables,
    /// iptables-restore, and ipsets over netlink.
    Iptables(Arc<Iptables>),
}

impl Programmer {
    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        match self {
            Self::Nftables => BackendKind::Nftables,
            Self::Iptables(_) => BackendKind::Iptables,
        }
    }

    /// What is there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&self, rules: &HostRules) -> Result<Observed, HostError> {
        match self {
            Self::Nftables => picture::observe(rules),
            Self::Iptables(tools) => xtables::observe(tools, rules),
        }
    }

    /// Writes the rules and just these elements, whatever is there: with nftables in
    /// one batch, with iptables the sets and then each family's table.
    ///
    /// # Errors
    /// When the kernel refuses; with nftables all is then as it was.
    pub fn install(&self, rules: &HostRules, targets: &BTreeSet<Target>) -> Result<(), HostError> {
        match self {
            Self::Nftables => nft::install(rules, targets),
            Self::Iptables(tools) => xtables::install(tools, rules, targets),
        }
    }

    /// Changes elements, in one batch with nftables. False when the sets, or with
    /// nftables an element that goes, are not there: look, and install.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&self, rules: &HostRules, change: &Change) -> Result<bool, HostError> {
        self.update_over(&mut nft::Line::default(), rules, change)
    }

    fn update_over(
        &self,
        line: &mut nft::Line,
        rules: &HostRules,
        change: &Change,
    ) -> Result<bool, HostError> {
        match self {
            Self::Nftables => nft::update(line, rules, change),
            Self::Iptables(_) => xtables::update(rules, change),
        }
    }

    /// Removes all of ours of this dialect. Fine when nothing is there.
    ///
    /// # Errors
    /// All that went wrong.
    pub fn remove(&self) -> Result<(), Vec<HostError>> {
        let errors = match self {
            Self::Nftables => nft::remove(redirect::host::rules::TABLE).err().into_iter().collect(),
            Self::Iptables(tools) => xtables::remove(tools),
        };
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}
