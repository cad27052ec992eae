//! Addresses, policy rules and routes of the calling thread's namespace, over
//! rtnetlink.
//!
//! Everything is looked for before it is added. The kernel takes the same `ip
//! rule` twice (each gets a priority of its own), and upstream's second
//! programming run of a TPROXY pod fails on what is there already.

mod address;
mod family;
mod loopback;
mod neighbour;
mod policy;

#[cfg(test)]
mod tests;

pub use address::{Address, addresses, interface_addresses, interface_names, route_exists};
pub use family::ipv6;
pub use loopback::bring_loopback_up;
pub use neighbour::is_unresolved;

use crate::backend::BackendError;
use crate::netlink::{Buffer, NetlinkError, Protocol, Socket};
use netlink_packet_core::Emitable;
use nix::errno::Errno;
use redirect::ambient::{REPLY_MARK, REPLY_TABLE};
use redirect::desired::{MarkRoute, Routing};
use redirect::net::{Cidr, Family};
use redirect::plan::{TPROXY_MARK, TPROXY_TABLE};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Index of `lo`, in every network namespace (LOOPBACK_IFINDEX).
pub(crate) const LOOPBACK: u32 = 1;

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// Brings `lo` up, and says which [`addresses`] there are, over one socket.
///
/// With IPv6 it first gives whoever else is to bring `lo` up this long. containerd runs
/// the `loopback` plugin beside the chain, and that one fails when it finds an address
/// on `lo` that is not of the loopback, as `::6` is.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn prepare(patience: Duration) -> Result<Vec<IpAddr>, BackendError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let addresses = address::outside(&mut socket)?;
    if addresses.iter().any(IpAddr::is_ipv6) {
        loopback::wait_until_up(&mut socket, patience)?;
    }
    loopback::up(&mut socket)?;
    Ok(addresses)
}

/// Makes `want` hold, and `lo` be up when anything is wanted. True when something
/// had to be changed.
///
/// # Errors
/// When the kernel cannot be asked or refuses;
/// [`BackendError::Ipv6Disabled`] when IPv6 is wanted where it is switched off.
pub fn ensure(want: &Routing) -> Result<bool, BackendError> {
    if want.loopback.is_empty() && want.marks.is_empty() {
        return Ok(false);
    }
    let mut socket = Socket::open(Protocol::Route)?;
    let mut changed = loopback::up(&mut socket)?;
    for cidr in &want.loopback {
        if !loopback::has(&mut socket, cidr)? {
            changed |= add(loopback::add(&mut socket, cidr), cidr.family())?;
        }
    }
    for mark in &want.marks {
        if !policy::has_rule(&mut socket, mark)? {
            changed |= add(policy::add_rule(&mut socket, mark), mark.family)?;
        }
        if !policy::has_route(&mut socket, mark)? {
            let added = match policy::add_route(&mut socket, mark) {
                // Somebody else's, or ours by somebody who was faster.
                Err(error)
                    if error.errno() == Some(Errno::EEXIST)
                        && policy::has_route(&mut socket, mark)? =>
                {
                    Ok(())
                }
                other => other,
            };
            changed |= add(added, mark.family)?;
        }
    }
    Ok(changed)
}

/// What of `want` is not there, in lines for people.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn missing(want: &Routing) -> Result<Vec<String>, BackendError> {
    let mut lines = Vec::new();
    if want.loopback.is_empty() && want.marks.is_empty() {
        return Ok(lines);
    }
    let mut socket = Socket::open(Protocol::Route)?;
    if !loopback::is_up(&socket)? {
        lines.push("link lo up".to_owned());
    }
    for cidr in &want.loopback {
        if !loopback::has(&mut socket, cidr)? {
            lines.push(address_name(cidr));
        }
    }
    for mark in &want.marks {
        if !policy::has_rule(&mut socket, mark)? {
            lines.push(rule_name(mark));
        }
        if !policy::has_route(&mut socket, mark)? {
            lines.push(route_name(mark));
        }
    }
    Ok(lines)
}

/// Removes what is there of `routing`; goes on past errors.
///
/// # Errors
/// All that went wrong.
pub fn remove(routing: &Routing) -> Result<(), Vec<BackendError>> {
    let mut socket = match Socket::open(Protocol::Route) {
        Ok(socket) => socket,
        Err(error) => return Err(vec![error.into()]),
    };
    let mut errors = Vec::new();
    let mut note = |result: Result<(), NetlinkError>| match result {
        // Somebody else was faster.
        Err(error) if error.errno().is_some_and(is_gone) => (),
        Err(error) => errors.push(error.into()),
        Ok(()) => (),
    };
    for mark in &routing.marks {
        note(policy::delete_rules(&mut socket, mark));
        note(policy::delete_routes(&mut socket, mark));
    }
    for cidr in &routing.loopback {
        note(loopback::delete(&mut socket, cidr));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// All that a plan, ours or Istio's, can have added, for a sidecar (reference 3.5)
/// or for ztunnel (4.4).
#[must_use]
pub fn everything() -> Routing {
    let sidecar = |family| MarkRoute {
        family,
        mark: TPROXY_MARK,
        mask: u32::MAX,
        table: TPROXY_TABLE,
        priority: None,
    };
    let ambient = |family| MarkRoute {
        family,
        mark: REPLY_MARK.value,
        mask: REPLY_MARK.mask,
        table: REPLY_TABLE,
        priority: None,
    };
    let marks = [Family::V4, Family::V6].map(|family| [sidecar(family), ambient(family)]);
    Routing {
        loopback: vec![Cidr::host(IpAddr::V6(Ipv6Addr::from_bits(6)))],
        marks: marks.into_iter().flatten().collect(),
    }
}

/// What an earlier plan may have added and `want` does not have: a mark that nobody
/// sets any more would still be delivered locally.
#[must_use]
pub fn stale(want: &Routing) -> Routing {
    let mut stale = everything();
    stale.loopback.retain(|cidr| !want.loopback.contains(cidr));
    // A rule with another priority does the same.
    let same = |a: &MarkRoute, b: &MarkRoute| (a.family, a.table) == (b.family, b.table);
    stale.marks.retain(|mark| !want.marks.iter().any(|wanted| same(mark, wanted)));
    stale
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL)
}

/// True: it was added. Says so when IPv6 is wanted where there is none.
fn add(result: Result<(), NetlinkError>, family: Family) -> Result<bool, BackendError> {
    match result {
        Ok(()) => Ok(true),
        Err(NetlinkError::Refused {
            object,
            source: Errno::EACCES | Errno::EPERM | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT,
            ..
        }) if family == Family::V6
            && let Some(sysctl) = ipv6_switch() =>
        {
            Err(BackendError::Ipv6Disabled { object, sysctl })
        }
        Err(error) => Err(error.into()),
    }
}

/// The setting that switches IPv6 off on `lo`, if one does.
fn ipv6_switch() -> Option<&'static str> {
    // /proc/sys/net shows the namespace of the thread that looks.
    let switches = [
        ("net.ipv6.conf.all.disable_ipv6", "/proc/sys/net/ipv6/conf/all/disable_ipv6"),
        ("net.ipv6.conf.lo.disable_ipv6", "/proc/sys/net/ipv6/conf/lo/disable_ipv6"),
    ];
    let off = |path: &str| std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0");
    switches.into_iter().find(|(_, path)| off(path)).map(|(name, _)| name)
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    }
}

fn address_name(cidr: &Cidr) -> String {
    format!("address {cidr} dev lo")
}

fn rule_name(mark: &MarkRoute) -> String {
    let MarkRoute { family, mark, mask, table, priority } = mark;
    let mark = match *mask {
        u32::MAX => mark.to_string(),
        mask => format!("{mark:#x}/{mask:#x}"),
    };
    let priority = priority.map(|p| format!(" priority {p}")).unwrap_or_default();
    format!("{} rule fwmark {mark} lookup {table}{priority}", ip(*family))
}

fn route_name(mark: &MarkRoute) -> String {
    let MarkRoute { family, table, .. } = mark;
    format!("{} route local default dev lo table {table}", ip(*family))
}

/// The number that the header of a message has room for; the attribute tells all
/// of it.
fn header_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or(libc::RT_TABLE_COMPAT)
}

fn write(buffer: &mut Buffer, message: &impl Emitable) {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    buffer.raw(&bytes);
}

fn address_family(family: Family) -> netlink_packet_route::AddressFamily {
    match family {
        Family::V4 => netlink_packet_route::AddressFamily::Inet,
        Family::V6 => netlink_packet_route::AddressFamily::Inet6,
    }
}

fn family_of(family: netlink_packet_route::AddressFamily) -> Option<Family> {
    match family {
        netlink_packet_route::AddressFamily::Inet => Some(Family::V4),
        netlink_packet_route::AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}
