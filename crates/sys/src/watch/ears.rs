//! The sockets of the watch, and what their messages mean.

use super::{NUMBER, WatchError};
use crate::netlink::{NetlinkError, attributes, ne32};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    self as sock, AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag,
    SockProtocol, SockType, sockopt,
};
use redirect::ambient::REPLY_TABLE;
use redirect::plan::TPROXY_TABLE;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// NFNLGRP_NFTABLES
const NF_TABLES: u32 = 7;
/// RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE
/// and NSID.
const ROUTING: [u32; 8] = [1, 5, 7, 8, 9, 11, 19, 28];

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const DEL_NUMBER: u16 = 89;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// All that is looked at of a message, by far.
const BEGINNING: usize = 256;
/// What may wait to be read. Only used when somebody changes that much at once.
const RECEIVE: usize = 1 << 20;
/// Messages that are read before they are told.
const AT_ONCE: usize = 4096;

/// What a message says; namespaces by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sound {
    /// Something of ours may have been changed there.
    Change(i32),
    /// It died.
    Death(i32),
    /// Some messages were lost.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ears {
    rules: OwnedFd,
    routing: OwnedFd,
}

impl Ears {
    /// Opens them in the namespace of the calling thread.
    pub(super) fn open() -> Result<Self, WatchError> {
        let rules = open(SockProtocol::NetlinkNetFilter, &[NF_TABLES])?;
        Ok(Self { rules, routing: open(SockProtocol::NetlinkRoute, &ROUTING)? })
    }

    /// Both.
    pub(super) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.rules.as_fd(), self.routing.as_fd()]
    }

    /// What came since, each thing once.
    pub(super) fn hear(&mut self) -> Vec<Sound> {
        let mut sounds = Vec::new();
        for _ in 0..AT_ONCE {
            match receive(&self.rules) {
                Ok((_, from)) => note(&mut sounds, from.map(Sound::Change)),
                Err(Errno::EAGAIN) => break,
                Err(_) => note(&mut sounds, Some(Sound::Lost)),
            }
        }
        for _ in 0..AT_ONCE {
            match receive(&self.routing) {
                Ok((message, from)) => note(&mut sounds, meaning(&message, from)),
                Err(Errno::EAGAIN) => break,
                // A death may be among them: its entry stays until the end, and does
                // no harm.
                Err(_) => note(&mut sounds, Some(Sound::Lost)),
            }
        }
        sounds
    }
}

fn note(sounds: &mut Vec<Sound>, sound: Option<Sound>) {
    // Few differ: most of a burst is of one namespace.
    if let Some(sound) = sound.filter(|sound| !sounds.contains(sound)) {
        sounds.push(sound);
    }
}

fn open(protocol: SockProtocol, groups: &[u32]) -> Result<OwnedFd, WatchError> {
    let failed = |what| move |source| NetlinkError::Socket { what, source };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = sock::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
        .map_err(failed("open"))?;
    hear_all(&fd).map_err(|source| WatchError::Refused { source })?;
    if sock::setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE).is_err() {
        // Without the right to more, what the system allows.
        let _ = sock::setsockopt(&fd, sockopt::RcvBuf, &RECEIVE);
    }
    let groups = groups.iter().fold(0, |all, group| all | 1 << (group - 1));
    sock::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed("subscribe"))?;
    Ok(fd)
}

/// `NETLINK_LISTEN_ALL_NSID`
fn hear_all(fd: &OwnedFd) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call, and its size; the
    // descriptor is open.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_LISTEN_ALL_NSID,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// The beginning of the next message, and the number of the namespace that it came
/// from; none: from that of the sockets.
fn receive(fd: &OwnedFd) -> Result<(Vec<u8>, Option<i32>), Errno> {
    let mut bytes = [0; BEGINNING];
    let mut space = cmsg_space!(i32);
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let raw = fd.as_raw_fd();
        match sock::recvmsg::<()>(raw, &mut parts, Some(&mut space), MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(message) => {
                let number = message.cmsgs().ok().into_iter().flatten().find_map(number);
                let len = message.bytes.min(BEGINNING);
                return Ok((bytes[..len].to_vec(), number));
            }
        }
    }
}

fn number(control: ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(message) = control else { return None };
    let header = message.cmsg_header;
    let is_number =
        header.cmsg_level == libc::SOL_NETLINK && header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID;
    let bytes = message.data_bytes.get(..4).filter(|_| is_number)?;
    Some(i32::from_ne_bytes(bytes.try_into().ok()?))
}

/// What a message of rtnetlink is about. Its fixed part, for links and addresses, has
/// the interface at 4; that of a route has the table there, as far as it fits.
fn meaning(message: &[u8], from: Option<i32>) -> Option<Sound> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let body = message.get(HEADER..)?;
    match (kind, from) {
        (DEL_NUMBER, None) => {
            let (_, value) = attributes(body.get(4..)?).find(|(kind, _)| *kind == NUMBER)?;
            Some(Sound::Death(i32::from_ne_bytes(value.try_into().ok()?)))
        }
        (NEW_LINK | DEL_LINK | NEW_ADDRESS | DEL_ADDRESS, Some(from)) => {
            let interface = ne32(body.get(4..8)?)?;
            // A pod whose IPv6 was off has it from its first such address on.
            let is_ipv6 = kind == NEW_ADDRESS && i32::from(*body.first()?) == libc::AF_INET6;
            (is_ipv6 || interface == crate::routing::LOOPBACK).then_some(Sound::Change(from))
        }
        (NEW_ROUTE | DEL_ROUTE, Some(from)) => {
            let table = u32::from(*body.get(4)?);
            let is_ours = table == TPROXY_TABLE || table == REPLY_TABLE;
            is_ours.then_some(Sound::Change(from))
        }
        (NEW_RULE | DEL_RULE, Some(from)) => Some(Sound::Change(from)),
        _ => None,
    }
}
