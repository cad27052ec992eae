//! The rules as types.
//!
//! **nftables.** `socket cgroupv2` is allowed where a packet leaves its socket
//! (output) and not where its source is translated (postrouting). What carries the
//! finding from one hook to the other is a set of flows (both addresses, both
//! ports) in our own table, whose element lives for a second and is deleted by the
//! rule that uses it. A mark would be one instruction less, and every bit of the
//! packet's and the connection's mark belongs to somebody already (kube-proxy
//! 0x4000 and 0x8000, Calico 0xffff0000, Cilium 0x0f00); connection labels are
//! OVN's, and an extension of every connection of the host. Both chains are of
//! type nat, so only the first packet of a connection comes by.
//!
//! Known by its user, kubelet needs no flows: `meta skuid` is allowed in
//! postrouting.
//!
//! **iptables.** xt_cgroup is allowed in POSTROUTING, so one rule is enough.

use super::kubelet::Caller;
use super::{SOURCE_V4, SOURCE_V6};
use crate::net::Family;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of our table in nftables, family inet.
pub const TABLE: &str = "sluice-probe";
/// Name of our chain in iptables.
pub const CHAIN: &str = "SLUICE_PROBE";
/// Before everybody's translation (kube-proxy's, masquerade of the CNI: 100, Istio's
/// 100): the first that decides about a connection has the last word. Nothing may
/// be below -199 in a nat chain.
pub const PRIORITY: i32 = -190;
/// How long a flow may take from output to postrouting, in ms. It is the same call
/// in the kernel, unless a rule between hands the packet to a program.
pub const FLOW_MS: u64 = 1000;
/// Most flows at once.
pub const FLOWS: u32 = 65_535;

/// The source that kubelet's connections get, per family. A family without one is
/// left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sources {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Default for Sources {
    fn default() -> Self {
        Self { v4: Some(SOURCE_V4), v6: Some(SOURCE_V6) }
    }
}

impl Sources {
    /// The source of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Families that have one.
    pub fn families(&self) -> impl Iterator<Item = (Family, IpAddr)> {
        [Family::V4, Family::V6].into_iter().filter_map(|family| Some((family, self.of(family)?)))
    }
}

/// What must hold on the host, but for the elements of the sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRules {
    /// Who kubelet is.
    pub caller: Caller,
    /// What its source becomes.
    pub sources: Sources,
}

/// Name of a set of targets, in nftables and as ipset.
#[must_use]
pub fn targets_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "sluice-probe-v4",
        Family::V6 => "sluice-probe-v6",
    }
}

/// Name of a set of flows.
#[must_use]
pub fn flows_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "sluice-flow-v4",
        Family::V6 => "sluice-flow-v6",
    }
}

/// A set of nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// Family of its addresses.
    pub family: Family,
    /// True for flows, whose elements come from a rule and go by time.
    pub flows: bool,
}

/// A part of an nftables rule. Each knows its family, so that what it loads can be
/// told from the statement alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// TCP of this family.
    Tcp(Family),
    /// Destination and port are an element of the targets.
    ToTarget(Family),
    /// The socket's ancestor on this level is that cgroup.
    Cgroup {
        /// The level.
        level: u8,
        /// The cgroup's number.
        id: u64,
    },
    /// The socket's user.
    Uid(u32),
    /// Count packets.
    Counter,
    /// Put the flow into the set.
    Remember(Family),
    /// The flow is in the set.
    Known(Family),
    /// Take the flow out of the set.
    Forget(Family),
    /// Make this the source.
    Snat(IpAddr),
}

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Packets of local processes.
    Output,
    /// Packets that leave.
    Postrouting,
}

/// A base chain of type nat at [`PRIORITY`], policy accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its hook, and by that its name.
    pub point: Point,
    /// Its rules.
    pub rules: Vec<Vec<Term>>,
}

impl Chain {
    /// Name of the chain.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.point {
            Point::Output => "output",
            Point::Postrouting => "postrouting",
        }
    }
}

impl HostRules {
    /// Sets of the nftables form.
    #[must_use]
    pub fn sets(&self) -> Vec<Set> {
        let by_cgroup = matches!(self.caller, Caller::Cgroup { .. });
        let mut sets = Vec::new();
        for (family, _) in self.sources.families() {
            sets.push(Set { name: targets_set(family), family, flows: false });
            if by_cgroup {
                sets.push(Set { name: flows_set(family), family, flows: true });
            }
        }
        sets
    }

    /// Chains of the nftables form.
    #[must_use]
    pub fn chains(&self) -> Vec<Chain> {
        let mut output = Chain { point: Point::Output, rules: Vec::new() };
        let mut postrouting = Chain { point: Point::Postrouting, rules: Vec::new() };
        for (family, source) in self.sources.families() {
            let tcp = Term::Tcp(family);
            match self.caller {
                Caller::Cgroup { level, id, .. } => {
                    let who = Term::Cgroup { level, id };
                    let to = Term::ToTarget(family);
                    output.rules.push(vec![tcp, to, who, Term::Counter, Term::Remember(family)]);
                    let (known, forget) = (Term::Known(family), Term::Forget(family));
                    let snat = Term::Snat(source);
                    postrouting.rules.push(vec![tcp, known, forget, Term::Counter, snat]);
                }
                Caller::Uid(uid) => {
                    let (to, who) = (Term::ToTarget(family), Term::Uid(uid));
                    let snat = Term::Snat(source);
                    postrouting.rules.push(vec![tcp, to, who, Term::Counter, snat]);
                }
            }
        }
        [output, postrouting].into_iter().filter(|chain| !chain.rules.is_empty()).collect()
    }

    /// The rule of [`CHAIN`] in iptables' words, as `iptables -S` says it back but
    /// for quotes; `None` for a family that is left alone.
    ///
    /// The cgroup's number stands in a comment: xt_cgroup resolves the path when
    /// the rule is loaded and keeps that cgroup, also when it is gone, and does not
    /// tell its number.
    #[must_use]
    pub fn iptables_rule(&self, family: Family) -> Option<String> {
        let source = self.sources.of(family)?;
        let set = targets_set(family);
        let who = match &self.caller {
            Caller::Cgroup { path, id, .. } => {
                format!("-m cgroup --path \"{path}\" -m comment --comment cgroup-{id}")
            }
            Caller::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        };
        let target = format!("-m set --match-set {set} dst,dst -j SNAT --to-source {source}");
        Some(format!("-A {CHAIN} -p tcp {who} {target}"))
    }
}
