//! One tracked connection, as ctnetlink writes it.

use crate::netlink::{Buffer, attributes, be16, be32};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Numbers of `linux/netfilter/nfnetlink_conntrack.h`.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// IPS_SEEN_REPLY
const ANSWERED: u32 = 1 << 1;
/// TCP_CONNTRACK_SYN_SENT, TCP_CONNTRACK_SYN_RECV
const SYN_SENT: u8 = 1;
const SYN_RECEIVED: u8 = 2;

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// State of a TCP connection, by the kernel's number (`tcp_conntrack`): 3 is
/// established.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpState(pub u8);

/// A tracked connection with ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub source: SocketAddr,
    /// To whom, as the opener sees it.
    pub destination: SocketAddr,
    /// Who answers: the destination, unless it is translated.
    pub reply_source: SocketAddr,
    /// To whom the answers go.
    pub reply_destination: SocketAddr,
    /// Its conntrack zone.
    pub zone: u16,
    /// Its mark.
    pub mark: u32,
    /// Its state, of a TCP connection.
    pub state: Option<TcpState>,
    status: u32,
    /// The original tuple and the id as they came, to name it by.
    original: Vec<u8>,
    id: Vec<u8>,
}

fn find(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

impl Entry {
    /// `None` for what has no ports, and for what cannot be read.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let attributes = body.get(4..)?;
        let original = find(attributes, TUPLE_ORIGINAL)?;
        let (protocol, source, destination) = tuple(original)?;
        let (_, reply_source, reply_destination) = tuple(find(attributes, TUPLE_REPLY)?)?;
        let state = find(attributes, PROTOCOL_INFO)
            .and_then(|info| find(find(info, INFO_TCP)?, TCP_STATE)?.first().copied());
        Some(Self {
            protocol,
            source,
            destination,
            reply_source,
            reply_destination,
            zone: find(attributes, ZONE).and_then(be16).unwrap_or(0),
            mark: find(attributes, MARK).and_then(be32).unwrap_or(0),
            state: state.map(TcpState),
            status: find(attributes, STATUS).and_then(be32).unwrap_or(0),
            original: original.to_vec(),
            id: find(attributes, ID).unwrap_or_default().to_vec(),
        })
    }

    /// True for a TCP connection whose handshake has begun and not ended.
    #[must_use]
    pub fn is_half(&self) -> bool {
        self.state.is_some_and(|TcpState(state)| (SYN_SENT..=SYN_RECEIVED).contains(&state))
    }

    /// True when packets went both ways.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.status & ANSWERED != 0
    }

    /// What names it in a request: another connection of the same addresses and ports
    /// has another id.
    pub(super) fn write_key(&self, b: &mut Buffer) {
        b.raw(&header(self.source.is_ipv4()));
        b.nested(TUPLE_ORIGINAL, |b| b.raw(&self.original));
        if self.zone != 0 {
            b.attribute(ZONE, &self.zone.to_be_bytes());
        }
        if !self.id.is_empty() {
            b.attribute(ID, &self.id);
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol} {} to {}", self.source, self.destination)?;
        if self.zone != 0 {
            write!(f, " zone {}", self.zone)?;
        }
        Ok(())
    }
}

/// `struct nfgenmsg` of a request: AF_INET or AF_INET6.
pub(super) fn header(v4: bool) -> [u8; 4] {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    [family.to_le_bytes()[0], 0, 0, 0]
}

/// The original tuple of a connection.
pub(super) fn write_tuple(
    b: &mut Buffer,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) {
    let number: u8 = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    b.nested(TUPLE_ORIGINAL, |b| {
        b.nested(TUPLE_IP, |b| {
            for (address, v4, v6) in [
                (source.ip(), V4_SOURCE, V6_SOURCE),
                (destination.ip(), V4_DESTINATION, V6_DESTINATION),
            ] {
                match address {
                    IpAddr::V4(a) => b.attribute(v4, &a.octets()),
                    IpAddr::V6(a) => b.attribute(v6, &a.octets()),
                }
            }
        });
        b.nested(TUPLE_PROTOCOL, |b| {
            b.attribute(NUMBER, &[number]);
            b.attribute(SOURCE_PORT, &source.port().to_be_bytes());
            b.attribute(DESTINATION_PORT, &destination.port().to_be_bytes());
        });
    });
}

fn tuple(tuple: &[u8]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (ip, transport) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTOCOL)?);
    let protocol = match find(transport, NUMBER)? {
        [6] => Protocol::Tcp,
        [17] => Protocol::Udp,
        _ => return None,
    };
    let address = |v4, v6| -> Option<IpAddr> {
        if let Some(bytes) = find(ip, v4) {
            return <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
        }
        <[u8; 16]>::try_from(find(ip, v6)?).ok().map(IpAddr::from)
    };
    let port = |kind| find(transport, kind).and_then(be16);
    let source = SocketAddr::new(address(V4_SOURCE, V6_SOURCE)?, port(SOURCE_PORT)?);
    let destination =
        SocketAddr::new(address(V4_DESTINATION, V6_DESTINATION)?, port(DESTINATION_PORT)?);
    Some((protocol, source, destination))
}
