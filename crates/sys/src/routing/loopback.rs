//! The interface `lo`: that it is up, and addresses on it.

use super::address::list;
use super::{LOOPBACK, NLM_F_CREATE, NLM_F_EXCL, address_family, address_name, write};
use crate::backend::BackendError;
use crate::netlink::{NetlinkError, Protocol, Socket};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use nix::errno::Errno;
use redirect::net::Cidr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// Brings `lo` up. True when it was down.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn bring_loopback_up() -> Result<bool, BackendError> {
    Ok(up(&mut Socket::open(Protocol::Route)?)?)
}

fn header() -> LinkHeader {
    LinkHeader { index: LOOPBACK, ..LinkHeader::default() }
}

/// Asked by the old requests, which take no lock: RTM_GETLINK waits for whoever changes
/// a link anywhere on the node, for milliseconds where another pod's namespace ends.
pub(super) fn is_up(socket: &Socket) -> Result<bool, NetlinkError> {
    let refused =
        |source| NetlinkError::Refused { object: "get link lo".to_owned(), detail: None, source };
    // SAFETY: a structure of numbers, for which zeroes are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = LOOPBACK as libc::c_int;
    for what in [libc::SIOCGIFNAME, libc::SIOCGIFFLAGS] {
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: both read and write the `ifreq` that is borrowed for the call, the second
        // by the name that the first has put there; the descriptor is open.
        Errno::result(unsafe { libc::ioctl(fd, what, &raw mut request) }).map_err(refused)?;
    }
    // SAFETY: the kernel has just written this part of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
}

pub(super) fn up(socket: &mut Socket) -> Result<bool, NetlinkError> {
    if is_up(socket)? {
        return Ok(false);
    }
    let mut header = header();
    header.flags = LinkFlags::Up;
    header.change_mask = LinkFlags::Up;
    let object = || "set link lo up".to_owned();
    socket.request(object, libc::RTM_NEWLINK, 0, |b| write(b, &header))?;
    Ok(true)
}

/// Waits until somebody else has brought `lo` up, and has had the time to look at its
/// addresses, which the `loopback` plugin does next.
pub(super) fn wait_until_up(socket: &mut Socket, patience: Duration) -> Result<(), NetlinkError> {
    const LOOK: Duration = Duration::from_millis(1);
    // Few sandboxes are that close a race, and a busy machine takes its time.
    const SETTLED: Duration = Duration::from_millis(100);
    let end = Instant::now() + patience;
    let mut waited = false;
    while !is_up(socket)? {
        if Instant::now() >= end {
            return Ok(());
        }
        waited = true;
        std::thread::sleep(LOOK);
    }
    if waited {
        std::thread::sleep(SETTLED);
    }
    Ok(())
}

pub(super) fn has(socket: &mut Socket, cidr: &Cidr) -> Result<bool, NetlinkError> {
    Ok(list(socket)?.iter().any(|found| {
        (found.index, found.addr, found.prefix_len) == (LOOPBACK, cidr.addr(), cidr.prefix_len())
    }))
}

pub(super) fn add(socket: &mut Socket, cidr: &Cidr) -> Result<(), NetlinkError> {
    let object = || format!("add {}", address_name(cidr));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let added = socket.request(object, libc::RTM_NEWADDR, flags, |b| write(b, &message(cidr)));
    match added {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

pub(super) fn delete(socket: &mut Socket, cidr: &Cidr) -> Result<(), NetlinkError> {
    if !has(socket, cidr)? {
        return Ok(());
    }
    let object = || format!("delete {}", address_name(cidr));
    socket.request(object, libc::RTM_DELADDR, 0, |b| write(b, &message(cidr)))
}

fn message(cidr: &Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(cidr.family());
    message.header.prefix_len = cidr.prefix_len();
    message.header.index = LOOPBACK;
    message.attributes =
        vec![AddressAttribute::Local(cidr.addr()), AddressAttribute::Address(cidr.addr())];
    message
}
