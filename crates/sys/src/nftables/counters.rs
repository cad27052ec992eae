//! What our rules have counted: packets that were sent to a port of the proxy. Rules
//! take a connection's first packet only, so these are connections, and queries.

use super::abi::*;
use super::decode;
use super::kernel::{attribute, bodies, our_tables};
use crate::backend::BackendError;
use crate::netlink::{Protocol, Socket, attributes, text};
use redirect::nft::Statement;
use std::collections::BTreeMap;

/// NFTA_COUNTER_PACKETS
const PACKETS: u16 = 2;

/// Packets by the port of the proxy that the rules of the calling thread's namespace
/// sent them to, since the rules were last written. A rule without a counter counts
/// nothing; a rule that is not understood is passed over.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn captured() -> Result<BTreeMap<u16, u64>, BackendError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut counts = BTreeMap::new();
    for (table, _) in our_tables(&mut socket)? {
        let replies = socket.dump(&format!("list rules of table inet {table}"), GETRULE, |b| {
            b.raw(&nfgenmsg(NFPROTO_INET));
            b.text(RULE_TABLE, &table);
        })?;
        for (family, body) in bodies(&replies, NEWRULE) {
            let of = text(attribute(body, RULE_TABLE).unwrap_or_default());
            // Not every kernel heeds the table that was asked for.
            if family != NFPROTO_INET || of != table {
                continue;
            }
            let expressions = attribute(body, RULE_EXPRESSIONS).unwrap_or_default();
            if let Some(port) = port(expressions) {
                *counts.entry(port).or_default() += packets(expressions);
            }
        }
    }
    Ok(counts)
}

/// Where a rule sends packets.
fn port(expressions: &[u8]) -> Option<u16> {
    // Which ports a set holds makes no difference here.
    let statements = decode::rule(expressions, &mut |_| Some(Vec::new())).ok()?;
    statements.iter().find_map(|statement| match statement {
        Statement::Redirect(port) | Statement::Tproxy { port, .. } => Some(*port),
        _ => None,
    })
}

fn packets(expressions: &[u8]) -> u64 {
    let field = |of: &[u8], kind: u16| -> Vec<u8> {
        let mut all = attributes(of);
        all.find(|(k, _)| *k == kind).map(|(_, value)| value.to_vec()).unwrap_or_default()
    };
    let counters = attributes(expressions).filter_map(|(_, element)| {
        let is_counter = text(&field(element, EXPR_NAME)) == "counter";
        let count = field(&field(element, EXPR_DATA), PACKETS);
        is_counter.then(|| count.try_into().map_or(0, u64::from_be_bytes))
    });
    counters.sum()
}
