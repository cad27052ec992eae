//! Hears of what others do: nf_tables' notifications, and cgroups that come and go.

use crate::netlink::{NetlinkError, attributes, text};
use crate::nftables::abi::*;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{
    self as sock, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
};
use redirect::host::rules::{CHAIN, TABLE};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// NFNLGRP_NFTABLES
const GROUP: u32 = 7;
/// Datagrams that are read before the caller looks at other things again.
const DATAGRAMS: usize = 256;

/// nf_tables' notifications of a namespace.
#[derive(Debug)]
pub(super) struct Notifications {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Notifications {
    /// Those of the calling thread's namespace, from now on.
    pub(super) fn subscribe() -> Result<Self, NetlinkError> {
        let failed = |what| move |source| NetlinkError::Socket { what, source };
        let fd = sock::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("open"))?;
        let groups = NetlinkAddr::new(0, 1 << (GROUP - 1));
        sock::bind(fd.as_raw_fd(), &groups).map_err(failed("subscribe to nf_tables"))?;
        Ok(Self { fd, buffer: vec![0; 64 << 10] })
    }

    /// Reads what came. True when something of it is about our rules or may be: a
    /// lost notification counts, what was done over the socket `own` does not.
    pub(super) fn concern_us(&mut self, own: u32) -> bool {
        let mut concern = false;
        for _ in 0..DATAGRAMS {
            match sock::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) => {
                    let whole = self.buffer.get(..len);
                    concern |= whole.is_none_or(|bytes| any_concerns_us(bytes, own));
                }
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => break,
                // Some were lost (ENOBUFS), or the socket is not well.
                Err(_) => return true,
            }
        }
        concern
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// True when one message of a datagram is about our table, about our chain in
/// iptables' or the place of the jump to it, or about a new hook.
fn any_concerns_us(mut bytes: &[u8], own: u32) -> bool {
    let ne =
        |field: Option<&[u8]>| field.and_then(|f| Some(u32::from_ne_bytes(f.try_into().ok()?)));
    while let Some(len) = ne(bytes.get(..4)).and_then(|len| usize::try_from(len).ok()) {
        let Some(message) = bytes.get(..len).filter(|_| len >= 20) else { return true };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let by_us = own != 0 && ne(message.get(12..16)) == Some(own);
        if !by_us && concerns_us(kind, message[16], &message[20..]) {
            return true;
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn concerns_us(kind: u16, family: u8, body: &[u8]) -> bool {
    if kind == NEWGEN {
        return false;
    }
    let name = |kind| attributes(body).find(|(k, _)| *k == kind).map(|(_, value)| text(value));
    // The first attribute of every kind of message is its table.
    let table = name(TABLE_NAME).unwrap_or_default();
    let hooked = kind == NEWCHAIN && attributes(body).any(|(k, _)| k == CHAIN_HOOK);
    if hooked || (family == NFPROTO_INET && table == TABLE) {
        return true;
    }
    if table != "nat" || !matches!(family, NFPROTO_IPV4 | NFPROTO_IPV6) {
        return false;
    }
    let chain = match kind {
        NEWTABLE | DELTABLE => return true,
        NEWCHAIN | DELCHAIN => name(CHAIN_NAME),
        _ => name(RULE_CHAIN),
    };
    chain.is_some_and(|chain| chain == "POSTROUTING" || chain == CHAIN)
}

/// A directory of cgroups.
#[derive(Debug)]
pub(super) struct Directory {
    inotify: Inotify,
}

impl Directory {
    /// Watches what is made and removed in it; `None` where that cannot be had.
    pub(super) fn watch(dir: &Path) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(dir, events).ok()?;
        Some(Self { inotify })
    }

    /// Reads what came. True when it is about that name, or about the directory.
    pub(super) fn concerns(&self, name: Option<&str>) -> bool {
        let mut concern = false;
        for _ in 0..DATAGRAMS {
            match self.inotify.read_events() {
                Ok(events) => {
                    let about = |found: &std::ffi::OsString| found.to_str() == name;
                    concern |= events.iter().any(|event| event.name.as_ref().is_none_or(about));
                }
                Err(Errno::EINTR) => (),
                Err(_) => break,
            }
        }
        concern
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
