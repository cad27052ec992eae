//! The pod's conntrack table, looked at from wherever the proof is.

use super::dial::Dial;
use super::{ProbeError, socket};
use crate::conntrack::{self, Entry, Protocol};
use crate::netlink::{self, NetlinkError, Socket};
use nix::errno::Errno;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a packet may take from the node to the pod: a neighbour may have to be
/// found first.
const WAIT: Duration = Duration::from_millis(400);
/// Time for the answer of a listener in the same namespace.
const ANSWER: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(2);

/// What became of a connection's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing is known of it in the pod.
    Nothing,
    /// It was sent there; somebody answered, or nobody did.
    Sent { to: SocketAddr, answered: bool },
}

/// A socket that stays in the namespace in which it was opened, whoever uses it.
#[derive(Debug)]
pub(super) struct Tracker(Socket);

fn unreadable(error: NetlinkError) -> ProbeError {
    let source = error.errno().unwrap_or(Errno::EPROTO);
    socket("read tracked connections")(source)
}

impl Tracker {
    pub(super) fn open() -> Result<Self, ProbeError> {
        Socket::open(netlink::Protocol::Netfilter).map(Self).map_err(unreadable)
    }

    /// Waits for the entry of a connection that is under way; when it is to go to
    /// `port`, also for an answer. The entry is removed. `is_sent`: not held back for
    /// want of a neighbour.
    pub(super) fn watch(
        &mut self,
        dial: &Dial,
        target: SocketAddr,
        port: u16,
        is_sent: bool,
    ) -> Result<Seen, ProbeError> {
        let source = dial.source();
        let end = Instant::now() + WAIT;
        let mut found: Option<(Entry, Instant)> = None;
        loop {
            let entry = self.find(Protocol::Tcp, source, target)?;
            let now = Instant::now();
            match (entry, &mut found) {
                (Some(entry), found) => {
                    let since = found.as_ref().map_or(now, |(_, since)| *since);
                    let awaited = entry.reply_source.port() == port && !entry.is_answered();
                    let over = !awaited || now >= since + ANSWER;
                    *found = Some((entry, since));
                    if over {
                        break;
                    }
                }
                // Gone again: refused.
                (None, Some(_)) => break,
                (None, None) if now >= end => break,
                (None, None) => (),
            }
            std::thread::sleep(PAUSE);
        }
        let entry = match found {
            Some((entry, _)) => Some(entry),
            None if !is_sent => None,
            // The node may have changed the source. The kernel walks over the entries of
            // all namespaces for this: they are in one table.
            None => self.list()?.into_iter().find(|entry| {
                entry.protocol == Protocol::Tcp && entry.destination == target && entry.is_half()
            }),
        };
        let Some(entry) = entry else {
            return Ok(Seen::Nothing);
        };
        conntrack::delete(&mut self.0, &entry).map_err(unreadable)?;
        Ok(Seen::Sent { to: entry.reply_source, answered: entry.is_answered() })
    }

    /// The port that a datagram was sent to. The entry is removed.
    pub(super) fn datagram(
        &mut self,
        source: SocketAddr,
        target: SocketAddr,
    ) -> Result<Option<u16>, ProbeError> {
        let Some(entry) = self.find(Protocol::Udp, source, target)? else {
            return Ok(None);
        };
        conntrack::delete(&mut self.0, &entry).map_err(unreadable)?;
        Ok(Some(entry.reply_source.port()))
    }

    fn find(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Option<Entry>, ProbeError> {
        conntrack::find(&mut self.0, protocol, source, destination).map_err(unreadable)
    }

    fn list(&mut self) -> Result<Vec<Entry>, ProbeError> {
        conntrack::list(&mut self.0).map_err(unreadable)
    }
}
