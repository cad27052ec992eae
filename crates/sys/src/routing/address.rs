//! Which addresses, interfaces and routes there are.

use super::{address_family, family_of, write};
use crate::backend::BackendError;
use crate::netlink::{NetlinkError, Protocol, Socket, attributes, text};
use netlink_packet_core::Parseable;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkHeader;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use nix::errno::Errno;
use redirect::net::Family;
use std::net::IpAddr;

/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

/// An address and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address itself, not the peer's.
    pub addr: IpAddr,
    /// Length of the prefix on that link.
    pub prefix_len: u8,
}

/// Addresses of the namespace in the kernel's order (IPv4 first, by interface),
/// without loopback and link-local ones.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn addresses() -> Result<Vec<IpAddr>, BackendError> {
    Ok(outside(&mut Socket::open(Protocol::Route)?)?)
}

pub(super) fn outside(socket: &mut Socket) -> Result<Vec<IpAddr>, NetlinkError> {
    let all = list(socket)?.into_iter().map(|found| found.addr);
    Ok(all.filter(|addr| !is_local(*addr)).collect())
}

/// Every address with its interface, in the kernel's order.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn interface_addresses() -> Result<Vec<Address>, BackendError> {
    Ok(list(&mut Socket::open(Protocol::Route)?)?)
}

/// Index and name of every interface.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn interface_names() -> Result<Vec<(u32, String)>, BackendError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let replies = socket.dump("list links", libc::RTM_GETLINK, |b| {
        write(b, &LinkHeader::default());
    })?;
    let mut names = Vec::new();
    for (_, body) in replies.iter().filter(|(kind, _)| *kind == libc::RTM_NEWLINK) {
        // The header only: a link has dozens of attributes, more with each kernel.
        let header = LinkHeader::parse(body).map_err(|_| malformed("list links"))?;
        let rest = body.get(LINK_HEADER..).unwrap_or_default();
        let name = attributes(rest).find(|(kind, _)| *kind == libc::IFLA_IFNAME);
        if let Some((_, name)) = name {
            names.push((header.index, text(name)));
        }
    }
    Ok(names)
}

/// True when the main rules have a way to `to`: a local process could send there.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn route_exists(to: IpAddr) -> Result<bool, BackendError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let object = format!("get route to {to}");
    let answer = socket.get(&object, libc::RTM_GETROUTE, |b| {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(Family::of(to));
        message.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
        let to = match to {
            IpAddr::V4(addr) => RouteAddress::Inet(addr),
            IpAddr::V6(addr) => RouteAddress::Inet6(addr),
        };
        message.attributes.push(RouteAttribute::Destination(to));
        write(b, &message);
    });
    let replies = match answer {
        Ok(replies) => replies,
        Err(error) if error.errno().is_some_and(is_no_route) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let (_, body) = replies.iter().next().ok_or_else(|| malformed(&object))?;
    let header =
        netlink_packet_route::route::RouteHeader::parse(body).map_err(|_| malformed(&object))?;
    // IPv6 answers with a route that refuses, instead of an error.
    Ok(matches!(header.kind, RouteType::Unicast | RouteType::Local))
}

/// Answers for: no route; the routes `unreachable`, `prohibit` and `blackhole`; and
/// a kernel without IPv6.
fn is_no_route(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::EACCES
            | Errno::EINVAL
            | Errno::EOPNOTSUPP
            | Errno::EAFNOSUPPORT
    )
}

pub(super) fn list(socket: &mut Socket) -> Result<Vec<Address>, NetlinkError> {
    const OBJECT: &str = "list addresses";
    let replies = socket.dump(OBJECT, libc::RTM_GETADDR, |b| {
        write(b, &AddressMessage::default());
    })?;
    let mut found = Vec::new();
    for (_, body) in replies.iter().filter(|(kind, _)| *kind == libc::RTM_NEWADDR) {
        let message = AddressMessage::parse(body).map_err(|_| malformed(OBJECT))?;
        if family_of(message.header.family).is_none() {
            continue;
        }
        // On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL is ours.
        let mut addr = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(local) => addr = Some(*local),
                AddressAttribute::Address(address) => addr = addr.or(Some(*address)),
                _ => (),
            }
        }
        found.push(Address {
            index: message.header.index,
            addr: addr.ok_or_else(|| malformed(OBJECT))?,
            prefix_len: message.header.prefix_len,
        });
    }
    Ok(found)
}

fn is_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_loopback() || addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_loopback() || addr.is_unicast_link_local(),
    }
}

pub(super) fn malformed(object: &str) -> NetlinkError {
    NetlinkError::Malformed { object: object.to_owned(), what: "not of the form of its type" }
}
