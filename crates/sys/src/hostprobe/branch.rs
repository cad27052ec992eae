//! AWS' security groups for pods: a pod behind a branch interface has a routing
//! table of its own, and in strict mode (early demux off) the probe leaves through
//! the VPC and dies (reference 4.10). Two policy rules for each such pod:
//!
//! - `to POD lookup TABLE`: the host's packets find the pod's own interface;
//! - `iif INTERFACE lookup local`, before AWS' rule for that interface: the answer
//!   to the probe source, which is the host itself after translation, is delivered.
//!
//! Ours bear a protocol number of their own (FRA_PROTOCOL, since Linux 4.17), so
//! they are found again by any later agent; Istio remembers them in memory only.

use super::HostError;
use crate::netlink::{Buffer, NetlinkError, Protocol, Socket};
use crate::routing::interface_names;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use nix::errno::Errno;
use redirect::net::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Marks our rules. iproute2 names nothing so (rt_protos ends at 192).
pub const PROTOCOL: u8 = 215;
/// Where `to POD` rules stand: after AWS' rules for interfaces (10), beside its
/// rules for addresses of pods (512).
pub const PRIORITY: u32 = 511;
const LOCAL: u32 = 255;
const MAIN: u32 = 254;
const NEW: u16 = 0x200 | 0x400;

/// A policy rule, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Policy {
    To { address: IpAddr, table: u32 },
    In { v6: bool, interface: String, priority: u32 },
}

impl Policy {
    fn family(&self) -> Family {
        match self {
            Self::To { address, .. } => Family::of(*address),
            Self::In { v6: true, .. } => Family::V6,
            Self::In { v6: false, .. } => Family::V4,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::To { address, table } => format!("ip rule to {address} lookup {table}"),
            Self::In { interface, priority, .. } => {
                format!("ip rule iif {interface} lookup local priority {priority}")
            }
        }
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family_number(self.family());
        message.header.action = RuleAction::ToTable;
        let table = match self {
            Self::To { address, table } => {
                message.header.dst_len = if address.is_ipv4() { 32 } else { 128 };
                message.attributes.push(RuleAttribute::Destination(*address));
                message.attributes.push(RuleAttribute::Priority(PRIORITY));
                *table
            }
            Self::In { interface, priority, .. } => {
                message.attributes.push(RuleAttribute::Iifname(interface.clone()));
                message.attributes.push(RuleAttribute::Priority(*priority));
                LOCAL
            }
        };
        message.header.table = u8::try_from(table).unwrap_or(libc::RT_TABLE_COMPAT);
        message.attributes.push(RuleAttribute::Table(table));
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
        message
    }
}

fn family_number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn write(b: &mut Buffer, message: &impl Emitable) {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    b.raw(&bytes);
}

/// All policy rules of the host.
#[derive(Debug, Default)]
struct Rules {
    ours: BTreeSet<Policy>,
    /// Of others: interface, its table and the rule's priority.
    interfaces: Vec<(Family, String, u32, u32)>,
}

impl Rules {
    fn read(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let mut rules = Self::default();
        for family in [Family::V4, Family::V6] {
            let mut request = RuleMessage::default();
            request.header.family = family_number(family);
            let listed = socket.dump("list ip rules", libc::RTM_GETRULE, |b| write(b, &request));
            let replies = match listed {
                // A kernel without IPv6, or without its policy rules.
                Err(error) if family == Family::V6 && error.errno().is_some() => continue,
                other => other?,
            };
            for (kind, body) in replies.iter() {
                if kind == libc::RTM_NEWRULE
                    && let Ok(message) = RuleMessage::parse(body)
                {
                    rules.take(family, &message);
                }
            }
        }
        Ok(rules)
    }

    fn take(&mut self, family: Family, message: &RuleMessage) {
        let header = &message.header;
        if header.action != RuleAction::ToTable || header.flags.contains(RuleFlags::Invert) {
            return;
        }
        let (mut table, mut priority) = (u32::from(header.table), 0);
        let (mut to, mut interface, mut protocol) = (None, None, RouteProtocol::from(0));
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Table(found) => table = *found,
                RuleAttribute::Priority(found) => priority = *found,
                RuleAttribute::Destination(found) => to = Some(*found),
                RuleAttribute::Iifname(found) => interface = Some(found.clone()),
                RuleAttribute::Protocol(found) => protocol = *found,
                _ => (),
            }
        }
        let ours = protocol == RouteProtocol::from(PROTOCOL);
        match (to, interface) {
            (Some(address), None) if ours => {
                self.ours.insert(Policy::To { address, table });
            }
            (None, Some(interface)) if ours => {
                let v6 = family == Family::V6;
                self.ours.insert(Policy::In { v6, interface, priority });
            }
            (_, Some(interface)) if !ours && table > 0 && table != MAIN && table != LOCAL => {
                self.interfaces.push((family, interface, table, priority));
            }
            _ => (),
        }
    }

    /// The rules that a pod behind a branch interface needs: one of the tables that
    /// belong to an interface has a route to just the pod, through that interface.
    fn wanted(
        &self,
        routes: &BTreeMap<(u32, IpAddr), BTreeSet<String>>,
        address: IpAddr,
    ) -> Vec<Policy> {
        let family = Family::of(address);
        for (of, interface, table, priority) in &self.interfaces {
            let device = routes.get(&(*table, address));
            if *of == family && device.is_some_and(|device| device.contains(interface)) {
                let (v6, interface) = (family == Family::V6, interface.clone());
                let priority = priority.saturating_sub(1);
                return vec![
                    Policy::In { v6, interface, priority },
                    Policy::To { address, table: *table },
                ];
            }
        }
        Vec::new()
    }
}

/// Routes to single addresses: table and address, with their interfaces.
fn host_routes(
    socket: &mut Socket,
) -> Result<BTreeMap<(u32, IpAddr), BTreeSet<String>>, HostError> {
    let names: BTreeMap<u32, String> = interface_names()
        .map_err(|error| match error {
            crate::backend::BackendError::Netlink(error) => HostError::Netlink(error),
            other => HostError::Keeper { what: other.to_string() },
        })?
        .into_iter()
        .collect();
    let mut routes: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family_number(family);
        let listed = socket.dump("list routes", libc::RTM_GETROUTE, |b| write(b, &request));
        let replies = match listed {
            Err(error) if family == Family::V6 && error.errno().is_some() => continue,
            other => other?,
        };
        for (kind, body) in replies.iter() {
            let Ok(message) = RouteMessage::parse(body) else { continue };
            let len = message.header.destination_prefix_length;
            let mut table = u32::from(message.header.table);
            let (mut to, mut device) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Table(found) => table = *found,
                    RouteAttribute::Destination(RouteAddress::Inet(found)) if len == 32 => {
                        to = Some(IpAddr::V4(*found));
                    }
                    RouteAttribute::Destination(RouteAddress::Inet6(found)) if len == 128 => {
                        to = Some(IpAddr::V6(*found));
                    }
                    RouteAttribute::Oif(index) => device = names.get(index).cloned(),
                    _ => (),
                }
            }
            if kind == libc::RTM_NEWROUTE
                && let (Some(to), Some(device)) = (to, device)
            {
                routes.entry((table, to)).or_default().insert(device);
            }
        }
    }
    Ok(routes)
}

/// True where the rules are needed at all: AWS' strict mode switches early demux
/// off.
#[must_use]
pub fn is_strict() -> bool {
    let knob = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_early_demux");
    knob.is_ok_and(|value| value.starts_with('0'))
}

/// Adds what these addresses need and have not. An address behind no branch
/// interface needs nothing.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn ensure(addresses: &BTreeSet<IpAddr>) -> Result<(), HostError> {
    if addresses.is_empty() || !is_strict() {
        return Ok(());
    }
    let mut socket = Socket::open(Protocol::Route)?;
    let rules = Rules::read(&mut socket)?;
    add(&mut socket, &rules, addresses)?;
    Ok(())
}

/// Adds, and says all that is wanted.
fn add(
    socket: &mut Socket,
    rules: &Rules,
    addresses: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<Policy>, HostError> {
    if rules.interfaces.is_empty() {
        return Ok(BTreeSet::new());
    }
    let routes = host_routes(socket)?;
    let wanted = addresses.iter().flat_map(|address| rules.wanted(&routes, *address));
    let wanted: BTreeSet<Policy> = wanted.collect();
    for policy in wanted.difference(&rules.ours) {
        let object = || format!("add {}", policy.name());
        let added = socket.request(object, libc::RTM_NEWRULE, NEW, |b| write(b, &policy.message()));
        match added {
            Err(error) if error.errno() == Some(Errno::EEXIST) => (),
            other => other?,
        }
    }
    Ok(wanted)
}

/// Removes what these addresses had; the rule of an interface only when no other
/// address is behind it.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn release(addresses: &BTreeSet<IpAddr>) -> Result<(), HostError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open(Protocol::Route)?;
    let rules = Rules::read(&mut socket)?;
    let left: BTreeSet<IpAddr> = rules
        .ours
        .iter()
        .filter_map(|policy| match policy {
            Policy::To { address, .. } => Some(*address),
            Policy::In { .. } => None,
        })
        .filter(|address| !addresses.contains(address))
        .collect();
    if rules.ours.is_empty() {
        return Ok(());
    }
    keep_only(&mut socket, &rules, &left)
}

/// Makes our rules just those that these addresses need, of all that any agent
/// made.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn reconcile(addresses: &BTreeSet<IpAddr>) -> Result<(), HostError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let rules = Rules::read(&mut socket)?;
    let none = BTreeSet::new();
    let addresses = if is_strict() { addresses } else { &none };
    keep_only(&mut socket, &rules, addresses)
}

fn keep_only(
    socket: &mut Socket,
    rules: &Rules,
    addresses: &BTreeSet<IpAddr>,
) -> Result<(), HostError> {
    let wanted = add(socket, rules, addresses)?;
    for policy in rules.ours.difference(&wanted) {
        let object = || format!("delete {}", policy.name());
        let deleted = socket.request(object, libc::RTM_DELRULE, 0, |b| write(b, &policy.message()));
        match deleted {
            Err(error) if error.errno() == Some(Errno::ENOENT) => (),
            other => other?,
        }
    }
    Ok(())
}
