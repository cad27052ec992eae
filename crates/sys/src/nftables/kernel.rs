//! What the kernel has: tables, chains and rules of the calling thread's
//! namespace, as one consistent picture.

use super::abi::*;
use super::decode::{self, Foreign};
use crate::netlink::{NetlinkError, Protocol, Replies, Socket, attributes, be16, be32, text};
use redirect::nft::{Statement, TABLES};
use std::collections::HashMap;

/// A picture is taken again when the rules changed meanwhile, this often at most. Several
/// who write at once on a busy machine overtook each of five.
const PICTURES: u32 = 20;

/// Our tables as they are.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub(super) tables: Vec<Table>,
}

/// A table of ours.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// Its chains are not called.
    pub(super) dormant: bool,
    pub(super) chains: Vec<Chain>,
}

#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    /// `type nat hook prerouting priority -100 ; policy accept`
    pub(super) hook: Option<String>,
    pub(super) rules: Vec<Result<Vec<Statement>, Foreign>>,
}

/// Names and flags of all tables that are ours.
pub(super) fn our_tables(socket: &mut Socket) -> Result<Vec<(String, u32)>, NetlinkError> {
    let replies = socket.dump("list nf_tables tables", GETTABLE, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
    })?;
    let mut tables = Vec::new();
    for (family, body) in bodies(&replies, NEWTABLE) {
        let name = text(attribute(body, TABLE_NAME).unwrap_or_default());
        // Not every kernel heeds the family that was asked for.
        if family == NFPROTO_INET && TABLES.contains(&name.as_str()) {
            let flags = attribute(body, TABLE_FLAGS).and_then(be32).unwrap_or(0);
            tables.push((name, flags));
        }
    }
    Ok(tables)
}

/// The generation of the namespace's rules: changes with every transaction, of
/// whomever.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let object = "get nf_tables generation";
    let replies = socket.get(object, GETGEN, |b| b.raw(&nfgenmsg(NFPROTO_UNSPEC)))?;
    let generation = bodies(&replies, NEWGEN)
        .next()
        .and_then(|(_, body)| attribute(body, GEN_ID).and_then(be32));
    generation.ok_or_else(|| NetlinkError::Malformed {
        object: object.to_owned(),
        what: "no generation in it",
    })
}

impl Picture {
    pub(super) fn take() -> Result<Self, NetlinkError> {
        let mut socket = Socket::open(Protocol::Netfilter)?;
        let mut before = generation(&mut socket)?;
        for _ in 0..PICTURES {
            let picture = Self::read(&mut socket);
            let after = generation(&mut socket)?;
            if before == after {
                return picture;
            }
            before = after;
        }
        Err(NetlinkError::Interrupted {
            object: "list nf_tables rules".to_owned(),
            tries: PICTURES,
        })
    }

    fn read(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let mut tables = Vec::new();
        for (name, flags) in our_tables(socket)? {
            tables.push(Table { chains: Vec::new(), dormant: flags & TABLE_F_DORMANT != 0, name });
        }
        if tables.is_empty() {
            return Ok(Self { tables });
        }
        let replies = socket.dump("list nf_tables chains", GETCHAIN, |b| {
            b.raw(&nfgenmsg(NFPROTO_INET));
        })?;
        for (family, body) in bodies(&replies, NEWCHAIN) {
            let of = text(attribute(body, CHAIN_TABLE).unwrap_or_default());
            let table = tables.iter_mut().find(|table| table.name == of);
            if let (NFPROTO_INET, Some(table)) = (family, table) {
                table.chains.push(Chain {
                    name: text(attribute(body, CHAIN_NAME).unwrap_or_default()),
                    hook: attribute(body, CHAIN_HOOK).map(|hook| hook_text(body, hook)),
                    rules: Vec::new(),
                });
            }
        }
        for table in &mut tables {
            table.read_rules(socket)?;
        }
        Ok(Self { tables })
    }
}

impl Table {
    fn read_rules(&mut self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let object = format!("list rules of table inet {}", self.name);
        let replies = socket.dump(&object, GETRULE, |b| {
            b.raw(&nfgenmsg(NFPROTO_INET));
            b.text(RULE_TABLE, &self.name);
        })?;
        let mut sets = HashMap::new();
        let mut failure = None;
        for (family, body) in bodies(&replies, NEWRULE) {
            let of = text(attribute(body, RULE_TABLE).unwrap_or_default());
            let chain = text(attribute(body, RULE_CHAIN).unwrap_or_default());
            if family != NFPROTO_INET || of != self.name {
                continue;
            }
            let expressions = attribute(body, RULE_EXPRESSIONS).unwrap_or_default();
            let rule = decode::rule(expressions, &mut |set: &str| {
                let known = sets.entry(set.to_owned());
                known
                    .or_insert_with(|| {
                        ports_of(socket, &of, set).unwrap_or_else(|error| {
                            failure = Some(error);
                            None
                        })
                    })
                    .clone()
            });
            if let Some(chain) = self.chains.iter_mut().find(|c| c.name == chain) {
                chain.rules.push(rule);
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Elements of a set of ports; `None` when it is another kind of set.
fn ports_of(socket: &mut Socket, table: &str, set: &str) -> Result<Option<Vec<u16>>, NetlinkError> {
    let object = format!("list elements of set inet {table} {set}");
    let replies = socket.dump(&object, GETSETELEM, |b| {
        b.raw(&nfgenmsg(NFPROTO_INET));
        b.text(ELEM_LIST_TABLE, table);
        b.text(ELEM_LIST_SET, set);
    })?;
    let mut ports = Vec::new();
    for (_, body) in bodies(&replies, NEWSETELEM) {
        for (_, element) in attributes(attribute(body, ELEM_LIST_ELEMENTS).unwrap_or_default()) {
            let find = |kind| attributes(element).find(|(k, _)| *k == kind).map(|(_, v)| v);
            let key = find(ELEM_KEY)
                .and_then(|key| attributes(key).find(|(kind, _)| *kind == DATA_VALUE))
                .and_then(|(_, value)| be16(value));
            let flags = find(ELEM_FLAGS).and_then(be32).unwrap_or(0);
            match key {
                Some(port) if flags == 0 && find(ELEM_KEY_END).is_none() => ports.push(port),
                _ => return Ok(None),
            }
        }
    }
    Ok(Some(ports))
}

/// Chains of the tables that `iptables-nft` keeps, by the name they begin with:
/// (`ip` or `ip6`, table, chain).
pub(crate) fn compat_chains(
    socket: &mut Socket,
    prefix: &str,
) -> Result<Vec<(&'static str, String, String)>, NetlinkError> {
    let mut found = Vec::new();
    for (number, family) in [(NFPROTO_IPV4, "ip"), (NFPROTO_IPV6, "ip6")] {
        let object = format!("list nf_tables chains of family {family}");
        let replies = socket.dump(&object, GETCHAIN, |b| b.raw(&nfgenmsg(number)))?;
        for (of, body) in bodies(&replies, NEWCHAIN) {
            let table = text(attribute(body, CHAIN_TABLE).unwrap_or_default());
            let chain = text(attribute(body, CHAIN_NAME).unwrap_or_default());
            let theirs = matches!(table.as_str(), "nat" | "mangle" | "raw" | "filter");
            if of == number && theirs && chain.starts_with(prefix) {
                found.push((family, table, chain));
            }
        }
    }
    Ok(found)
}

/// Family and attributes of each message of a type.
pub(super) fn bodies(replies: &Replies, kind: u16) -> impl Iterator<Item = (u8, &[u8])> {
    replies.iter().filter_map(move |(of, body)| {
        let (header, attributes) = body.split_at_checked(4)?;
        (of == kind).then_some((header[0], attributes))
    })
}

pub(super) fn attribute(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn hook_text(chain: &[u8], hook: &[u8]) -> String {
    let kind = text(attribute(chain, CHAIN_TYPE).unwrap_or_default());
    let point = match attribute(hook, HOOK_NUMBER).and_then(be32) {
        Some(PREROUTING) => "prerouting".to_owned(),
        Some(OUTPUT) => "output".to_owned(),
        Some(number) => format!("number {number}"),
        None => "unknown".to_owned(),
    };
    let priority = attribute(hook, HOOK_PRIORITY)
        .and_then(be32)
        .map_or(0, |bits| i32::from_ne_bytes(bits.to_ne_bytes()));
    let policy = match attribute(chain, CHAIN_POLICY).and_then(be32) {
        Some(ACCEPT) => "accept",
        Some(DROP) => "drop",
        _ => "unknown",
    };
    format!("type {kind} hook {point} priority {priority} ; policy {policy}")
}
