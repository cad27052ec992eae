//! Connections that the kernel tracks in the calling thread's namespace (ctnetlink).
//!
//! Rules are asked about a connection's first packet only; afterwards its entry
//! decides. Those of UDP queries outlive a change of rules: a socket that goes on
//! sending would miss the resolver for ever ([`flush_dns`]). TCP connections that
//! ztunnel holds end with the capture of their pod: ztunnel has no gentle end
//! (reference zds.md), and to wait for theirs would keep a pod that has opted out half
//! in the mesh for as long as any peer keeps a connection.
//!
//! All entries of a node are in one hash table, and the kernel walks all of it for a
//! listing of one namespace. What is asked first is how many this namespace has.

mod entry;

pub use entry::{Entry, Protocol, TcpState};

use crate::backend::BackendError;
use crate::netlink::{self, NetlinkError, Socket};
use nix::errno::Errno;
use redirect::plan::DNS_PORT;
use std::io::ErrorKind;
use std::net::SocketAddr;

/// Port of DNS.
const DOMAIN: u16 = 53;
/// How many entries the thread's namespace has.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*.
const NEW: u16 = 1 << 8;
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;

/// Which queries go on by an entry of before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// Those that go past the resolver: after enrolment.
    Direct,
    /// Those that go to it: after un-enrolment.
    Captured,
}

/// Removes entries of UDP queries, so that the next query of the same socket meets the
/// rules that hold now. Call it when they do. Returns how many were removed. Queries
/// that the resolver itself sends are left alone, and so are those that go the right
/// way already: an answer under way would be lost.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn flush_dns(which: Queries) -> Result<usize, BackendError> {
    let mut socket = match open()? {
        Some(socket) => socket,
        None => return Ok(0),
    };
    let mut removed = 0;
    for entry in list(&mut socket)? {
        let captured = entry.reply_source.port() == DNS_PORT;
        let query = entry.protocol == Protocol::Udp
            && entry.destination.port() == DOMAIN
            && entry.zone == 0;
        if query && captured == (which == Queries::Captured) {
            removed += usize::from(delete(&mut socket, &entry)?);
        }
    }
    Ok(removed)
}

/// All entries of the calling thread's namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn entries() -> Result<Vec<Entry>, BackendError> {
    match open()? {
        Some(mut socket) => Ok(list(&mut socket)?),
        None => Ok(Vec::new()),
    }
}

/// `None` when there is nothing to list.
fn open() -> Result<Option<Socket>, BackendError> {
    match std::fs::read_to_string(COUNT) {
        Ok(count) if count.trim() == "0" => return Ok(None),
        Ok(_) => (),
        // No connection tracking in this kernel, or nobody has used it yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BackendError::File { path: COUNT, source }),
    }
    Ok(Some(Socket::open(netlink::Protocol::Netfilter)?))
}

pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Entry>, NetlinkError> {
    // struct nfgenmsg: of any family.
    let replies = socket.dump("list tracked connections", GET, |b| b.raw(&[0; 4]))?;
    let bodies = replies.iter().filter(|(kind, _)| *kind == NEW);
    Ok(bodies.filter_map(|(_, body)| Entry::parse(body)).collect())
}

/// The entry of one connection, as its opener sees it, in no zone.
pub(crate) fn find(
    socket: &mut Socket,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Option<Entry>, NetlinkError> {
    let object = "look a connection up";
    let found = socket.get(object, GET, |b| {
        b.raw(&entry::header(source.is_ipv4()));
        entry::write_tuple(b, protocol, source, destination);
    });
    match found {
        Ok(replies) => Ok(replies.iter().find_map(|(_, body)| Entry::parse(body))),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True when it was there.
pub(crate) fn delete(socket: &mut Socket, entry: &Entry) -> Result<bool, NetlinkError> {
    let object = || format!("forget connection {entry}");
    match socket.request(object, DELETE, 0, |b| entry.write_key(b)) {
        Ok(()) => Ok(true),
        // Over, or another one by now.
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
