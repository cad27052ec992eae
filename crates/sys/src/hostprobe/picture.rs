//! What the kernel has of our table on the host, and which chains come before it.

use super::expression::{Expression, expressions, packets, same};
use super::nft::{POSTROUTING, SET_F_EVAL, SET_F_TIMEOUT};
use super::{HostError, Observed};
use crate::backend::Diff;
use crate::netlink::{NetlinkError, Protocol, Replies, Socket, attributes, be16, be32, text};
use crate::nftables::abi::*;
use crate::nftables::kernel;
use nix::errno::Errno;
use redirect::host::rules::{PRIORITY, Point, TABLE, targets_set};
use redirect::host::{HostRules, Target};
use redirect::net::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The rules change while they are listed; after this many rounds it is an error.
const ROUNDS: u32 = 16;
const GETSET: u16 = message(10);

/// The target of an element's bytes.
fn target(key: &[u8]) -> Option<Target> {
    let (address, port) = key.split_at_checked(key.len().checked_sub(4)?)?;
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(Target { address, port: be16(port.get(..2)?)? })
}

/// True when there is a table of that name in family inet.
pub(super) fn has_table(socket: &mut Socket, name: &str) -> Result<bool, NetlinkError> {
    let object = format!("get table inet {name}");
    let found = socket.get(&object, GETTABLE, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
        b.text(TABLE_NAME, name);
    });
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the kernel has of `rules`, all of one generation.
pub(super) fn observe(rules: &HostRules) -> Result<Observed, HostError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut before = kernel::generation(&mut socket)?;
    for _ in 0..ROUNDS {
        let found = read(&mut socket, rules);
        let after = kernel::generation(&mut socket)?;
        if before == after {
            return found;
        }
        before = after;
    }
    let object = format!("list table inet {TABLE}");
    Err(NetlinkError::Interrupted { object, tries: ROUNDS }.into())
}

fn read(socket: &mut Socket, rules: &HostRules) -> Result<Observed, HostError> {
    let mut found = Observed { present: has_table(socket, TABLE)?, ..Observed::default() };
    let chains = list_chains(socket)?;
    let ours = |family: &str, table: &str, _: &str| (family, table) == ("inet", TABLE);
    found.ahead = ahead_in(&chains, PRIORITY, ours);
    if !found.present {
        found.diff.missing.push(format!("table inet {TABLE}"));
        return Ok(found);
    }
    compare_table(socket, &mut found.diff)?;
    compare_sets(socket, rules, &mut found.diff)?;
    for (family, _) in rules.sources.families() {
        read_elements(socket, targets_set(family), &mut found.elements)?;
    }
    let kernel_rules = socket.dump("list rules of our table", GETRULE, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
        b.text(RULE_TABLE, TABLE);
    })?;
    compare_chains(rules, &chains, &kernel_rules, &mut found);
    Ok(found)
}

fn bodies(replies: &Replies, want: u16) -> impl Iterator<Item = (u8, &[u8])> {
    let of_kind = replies.iter().filter(move |(kind, _)| *kind == want);
    of_kind.filter_map(|(_, body)| Some((*body.first()?, body.get(4..)?)))
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn name_of(body: &[u8], kind: u16) -> String {
    text(attribute(body, kind).unwrap_or_default())
}

/// Hook number and priority of a base chain, with its type.
fn hook_of(body: &[u8]) -> Option<(u32, i32, String)> {
    let hook = attribute(body, CHAIN_HOOK)?;
    let number = attribute(hook, HOOK_NUMBER).and_then(be32)?;
    let priority = attribute(hook, HOOK_PRIORITY).and_then(be32)?;
    let priority = i32::from_be_bytes(priority.to_be_bytes());
    Some((number, priority, name_of(body, CHAIN_TYPE)))
}

fn list_chains(socket: &mut Socket) -> Result<Replies, NetlinkError> {
    socket.dump("list nf_tables chains", GETCHAIN, |b| b.raw(&nfgenmsg(NFPROTO_UNSPEC)))
}

/// Chains of others that may translate a source before one at `priority`; of equal
/// ones the older comes first. `ours` is asked with family, table and chain.
pub(super) fn ahead(
    priority: i32,
    ours: impl Fn(&str, &str, &str) -> bool,
) -> Result<Vec<String>, HostError> {
    let chains = list_chains(&mut Socket::open(Protocol::Netfilter)?)?;
    Ok(ahead_in(&chains, priority, ours))
}

fn ahead_in(chains: &Replies, limit: i32, ours: impl Fn(&str, &str, &str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (family, body) in bodies(chains, NEWCHAIN) {
        let (table, chain) = (name_of(body, CHAIN_TABLE), name_of(body, CHAIN_NAME));
        let family = match family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => continue,
        };
        if let Some((POSTROUTING, priority, kind)) = hook_of(body)
            && kind == "nat"
            && priority <= limit
            && !ours(family, &table, &chain)
        {
            lines.push(format!("chain {family} {table} {chain} priority {priority}"));
        }
    }
    lines
}

fn compare_table(socket: &mut Socket, diff: &mut Diff) -> Result<(), NetlinkError> {
    let replies = socket.get("get our table", GETTABLE, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
        b.text(TABLE_NAME, TABLE);
    })?;
    for (_, body) in bodies(&replies, NEWTABLE) {
        let flags = attribute(body, TABLE_FLAGS).and_then(be32).unwrap_or(0);
        if flags & TABLE_F_DORMANT != 0 {
            diff.unexpected.push(format!("table inet {TABLE} {{ flags dormant }}"));
        }
    }
    Ok(())
}

fn compare_sets(
    socket: &mut Socket,
    rules: &HostRules,
    diff: &mut Diff,
) -> Result<(), NetlinkError> {
    let replies = socket.dump("list sets of our table", GETSET, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
        b.text(SET_TABLE, TABLE);
    })?;
    let mut found: Vec<(String, u32, u32)> = Vec::new();
    for (_, body) in bodies(&replies, NEWSET) {
        let number = |kind| attribute(body, kind).and_then(be32).unwrap_or(0);
        if name_of(body, SET_TABLE) == TABLE {
            found.push((name_of(body, SET_NAME), number(SET_KEY_LEN), number(SET_FLAGS)));
        }
    }
    for set in rules.sets() {
        let end = if set.family == Family::V4 { 8 } else { 20 };
        let (len, flags) = if set.flows { (2 * end, SET_F_TIMEOUT | SET_F_EVAL) } else { (end, 0) };
        let line = format!("set inet {TABLE} {}", set.name);
        match found.iter().position(|(name, ..)| name == set.name) {
            Some(at) if found[at].1 == len && found[at].2 == flags => {
                found.swap_remove(at);
            }
            _ => diff.missing.push(line),
        }
    }
    diff.unexpected.extend(found.into_iter().map(|(name, ..)| format!("set inet {TABLE} {name}")));
    Ok(())
}

fn read_elements(
    socket: &mut Socket,
    set: &str,
    into: &mut BTreeSet<Target>,
) -> Result<(), NetlinkError> {
    let object = format!("list elements of set inet {TABLE} {set}");
    let replies = socket.dump(&object, GETSETELEM, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
        b.text(ELEM_LIST_TABLE, TABLE);
        b.text(ELEM_LIST_SET, set);
    });
    let replies = match replies {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    for (_, body) in bodies(&replies, NEWSETELEM) {
        let list = attribute(body, ELEM_LIST_ELEMENTS).unwrap_or_default();
        for (_, element) in attributes(list) {
            let data = attribute(element, ELEM_KEY).and_then(|key| attribute(key, DATA_VALUE));
            into.extend(data.and_then(target));
        }
    }
    Ok(())
}

fn compare_chains(rules: &HostRules, chains: &Replies, found: &Replies, into: &mut Observed) {
    let diff = &mut into.diff;
    let mut unexpected: Vec<String> = bodies(chains, NEWCHAIN)
        .filter(|(family, body)| *family == NFPROTO_INET && name_of(body, CHAIN_TABLE) == TABLE)
        .map(|(_, body)| name_of(body, CHAIN_NAME))
        .collect();
    for chain in rules.chains() {
        let name = chain.name();
        let place = format!("inet {TABLE} {name}");
        unexpected.retain(|found| found != name);
        let number = match chain.point {
            Point::Output => OUTPUT,
            Point::Postrouting => POSTROUTING,
        };
        let hook = bodies(chains, NEWCHAIN)
            .filter(|(family, body)| *family == NFPROTO_INET && name_of(body, CHAIN_TABLE) == TABLE)
            .find(|(_, body)| name_of(body, CHAIN_NAME) == name)
            .and_then(|(_, body)| hook_of(body));
        if hook != Some((number, PRIORITY, "nat".to_owned())) {
            diff.missing.push(format!("chain {place}"));
        }
        let here: Vec<&[u8]> = bodies(found, NEWRULE)
            .filter(|(_, body)| {
                name_of(body, RULE_TABLE) == TABLE && name_of(body, RULE_CHAIN) == name
            })
            .map(|(_, body)| attribute(body, RULE_EXPRESSIONS).unwrap_or_default())
            .collect();
        let want: Vec<Vec<Expression>> = chain.rules.iter().map(|rule| expressions(rule)).collect();
        for (n, rule) in want.iter().enumerate() {
            if !here.get(n).is_some_and(|found| same(rule, found)) {
                diff.missing.push(format!("rule {} of chain {place}", n + 1));
            }
        }
        if here.len() > want.len() {
            let more = here.len() - want.len();
            diff.unexpected.push(format!("{more} more rules in chain {place}"));
        }
        if chain.point == Point::Postrouting {
            into.packets = Some(here.iter().map(|rule| packets(rule)).sum());
        }
    }
    diff.unexpected
        .extend(unexpected.into_iter().map(|chain| format!("chain inet {TABLE} {chain}")));
}
