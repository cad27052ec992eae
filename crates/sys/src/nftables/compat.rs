//! Rules that iptables-nft wrote for Istio or for us. They are ordinary chains of
//! nf_tables in the tables `ip nat` and the like, so a batch of ours can take them out
//! while it puts ours in: no packet meets both or none, and no iptables is needed.
//!
//! Only what ambient rules leave is known here: chains named `ISTIO_...` and the jumps
//! to them. A sidecar's rules in chains of others are the iptables backend's to know.

use super::abi::*;
use super::kernel::{attribute, bodies, compat_chains};
use crate::netlink::{NetlinkError, Socket, attributes, be32, text};
use std::fmt;

/// Every chain of a pod with this prefix is Istio's or ours.
pub(super) const PREFIX: &str = "ISTIO_";
/// GOTO of a verdict: -4 in the header.
const GOTO: u32 = 0xffff_fffc;

/// A family as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompatFamily(pub(super) u8);

impl CompatFamily {
    fn name(self) -> &'static str {
        if self.0 == NFPROTO_IPV4 { "ip" } else { "ip6" }
    }
}

/// What a batch has to delete, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CompatObject {
    /// A rule in a chain of others.
    Jump { family: CompatFamily, table: String, chain: String, handle: u64 },
    /// All rules of a chain of ours.
    Rules { family: CompatFamily, table: String, chain: String },
    /// The chain, which nothing refers to any more by then.
    Chain { family: CompatFamily, table: String, chain: String },
}

impl CompatObject {
    pub(super) fn family(&self) -> u8 {
        match self {
            Self::Jump { family, .. } | Self::Rules { family, .. } | Self::Chain { family, .. } => {
                family.0
            }
        }
    }
}

impl fmt::Display for CompatObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump { family, table, chain, handle } => {
                write!(f, "rule {} {table} {chain} handle {handle}", family.name())
            }
            Self::Rules { family, table, chain } => {
                write!(f, "rules of chain {} {table} {chain}", family.name())
            }
            Self::Chain { family, table, chain } => {
                write!(f, "chain {} {table} {chain}", family.name())
            }
        }
    }
}

/// Everything of the kind in the calling thread's namespace: chains whose name begins
/// so and is `theirs`, and the jumps to them.
pub(super) fn find(
    socket: &mut Socket,
    prefix: &str,
    theirs: impl Fn(&str) -> bool,
) -> Result<Vec<CompatObject>, NetlinkError> {
    let mut chains = compat_chains(socket, prefix)?;
    chains.retain(|(_, _, chain)| theirs(chain));
    let mut found = Vec::new();
    for (number, name) in [(NFPROTO_IPV4, "ip"), (NFPROTO_IPV6, "ip6")] {
        let family = CompatFamily(number);
        let of_family = || chains.iter().filter(|(of, ..)| *of == name);
        if of_family().next().is_none() {
            continue;
        }
        found.extend(jumps(socket, family, &|chain| chain.starts_with(prefix) && theirs(chain))?);
        let parts = |(_, table, chain): &(_, String, String)| (table.clone(), chain.clone());
        found.extend(of_family().map(parts).map(|(table, chain)| CompatObject::Rules {
            family,
            table,
            chain,
        }));
        found.extend(of_family().map(parts).map(|(table, chain)| CompatObject::Chain {
            family,
            table,
            chain,
        }));
    }
    Ok(found)
}

/// Rules of other chains that lead to ours.
fn jumps(
    socket: &mut Socket,
    family: CompatFamily,
    theirs: &dyn Fn(&str) -> bool,
) -> Result<Vec<CompatObject>, NetlinkError> {
    let object = format!("list nf_tables rules of family {}", family.name());
    let replies = socket.dump(&object, GETRULE, |b| b.raw(&nfgenmsg(family.0)))?;
    let mut found = Vec::new();
    for (of, body) in bodies(&replies, NEWRULE) {
        let table = text(attribute(body, RULE_TABLE).unwrap_or_default());
        let chain = text(attribute(body, RULE_CHAIN).unwrap_or_default());
        let handle = attribute(body, RULE_HANDLE).and_then(|h| h.try_into().ok());
        let expressions = attribute(body, RULE_EXPRESSIONS).unwrap_or_default();
        let target = target(expressions).is_some_and(|to| theirs(&to));
        if let (true, Some(handle)) = (of == family.0 && target && !theirs(&chain), handle) {
            let handle = u64::from_be_bytes(handle);
            found.push(CompatObject::Jump { family, table, chain, handle });
        }
    }
    Ok(found)
}

/// The chain that a rule jumps or goes to.
fn target(expressions: &[u8]) -> Option<String> {
    attributes(expressions).find_map(|(_, expression)| {
        let data = attribute(expression, EXPR_DATA)?;
        if text(attribute(expression, EXPR_NAME)?) != "immediate" {
            return None;
        }
        let verdict = attribute(attribute(data, IMMEDIATE_DATA)?, DATA_VERDICT)?;
        let code = attribute(verdict, VERDICT_CODE).and_then(be32)?;
        let chain = attribute(verdict, VERDICT_CHAIN)?;
        matches!(code, JUMP | GOTO).then(|| text(chain))
    })
}
