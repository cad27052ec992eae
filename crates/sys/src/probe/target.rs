//! Which connections a plan captures, so that one of them can be tried. Pure.

use redirect::net::{Cidr, Family, Interface, Owner};
use redirect::plan::{Destinations, Groups, Inbound, Plan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port that istio-validation dials (reference 8.9), tried first because
/// nothing of Istio listens there.
const PORT: u16 = 15002;
const DNS: u16 = 53;

/// Addresses for documentation (RFC 5737, 3849, 9637): routed nowhere, so whoever
/// answers there is not the one that was dialled.
const DOCUMENTATION: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)),
];

/// Users and groups that are tried for an application: nobody, then the first of
/// ordinary users.
const APPLICATIONS: [u32; 4] = [65534, 1000, 1001, 1002];

/// Who opens a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// True when nobody can really be behind `address`.
pub(super) fn is_documentation(address: IpAddr) -> bool {
    DOCUMENTATION.contains(&address)
}

/// An application whose outbound connections are captured; `None` when every group
/// that is captured is the proxy's.
pub(super) fn application(plan: &Plan) -> Option<Identity> {
    let proxy = &plan.proxy;
    let free = |owners: &[Owner], id: u32| !owners.contains(&Owner::Id(id));
    let uid = APPLICATIONS.into_iter().find(|id| free(&proxy.uids, *id))?;
    let gid = match &plan.outbound.groups {
        Groups::AllExcept(except) => {
            APPLICATIONS.into_iter().find(|id| free(&proxy.gids, *id) && free(except, *id))
        }
        Groups::Only(only) => only.iter().find_map(|owner| match owner {
            Owner::Id(id) if free(&proxy.gids, *id) => Some(*id),
            _ => None,
        }),
    }?;
    Some(Identity { uid, gid })
}

/// True for an application whose outbound connections are captured.
pub(super) fn is_application(plan: &Plan, Identity { uid, gid }: Identity) -> bool {
    let listed = |owners: &[Owner], id: u32| owners.contains(&Owner::Id(id));
    let group = match &plan.outbound.groups {
        Groups::AllExcept(except) => !listed(except, gid),
        Groups::Only(only) => listed(only, gid),
    };
    group && !listed(&plan.proxy.uids, uid) && !listed(&plan.proxy.gids, gid)
}

/// The proxy itself; `None` when only names of it are known.
pub(super) fn proxy(plan: &Plan) -> Option<Identity> {
    let first = |owners: &[Owner]| {
        owners.iter().find_map(|owner| match owner {
            Owner::Id(id) => Some(*id),
            Owner::Name(_) => None,
        })
    };
    let uid = first(&plan.proxy.uids)?;
    Some(Identity { uid, gid: first(&plan.proxy.gids).unwrap_or(uid) })
}

/// Connections of an application that the plan captures, the best first. Empty
/// when it captures none of this family.
pub(super) fn outbound(plan: &Plan, family: Family, own: &[IpAddr]) -> Vec<SocketAddr> {
    let outbound = &plan.outbound;
    let free = |port: u16| port != 0 && port != DNS && !outbound.exclude_ports.contains(&port);
    let any = ports().find(|port| free(*port));
    let included = outbound.include_ports.iter().copied().find(|port| free(*port));
    let covers = |address: IpAddr| match &outbound.include {
        Destinations::All => true,
        Destinations::Only(prefixes) => prefixes.iter().any(|p| p.contains(address)),
    };
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in addresses(plan, own) {
        let usable = Family::of(address) == family
            && is_unicast(address)
            && !plan.loopback_v4.contains(address)
            && !own.contains(&address)
            && !outbound.exclude.iter().any(|p| p.contains(address));
        let port = if covers(address) { any } else { included };
        if let Some(port) = port.filter(|_| usable) {
            let target = SocketAddr::new(address, port);
            if !found.contains(&target) {
                found.push(target);
            }
        }
    }
    found
}

/// Addresses that may be captured. Complete: if any address is included and not
/// excluded, then so is the first of an included prefix or the one after an
/// excluded prefix.
fn addresses(plan: &Plan, own: &[IpAddr]) -> Vec<IpAddr> {
    let mut all = DOCUMENTATION.to_vec();
    if let Destinations::Only(prefixes) = &plan.outbound.include {
        for prefix in prefixes {
            all.extend(plus(prefix.addr(), 1));
            all.push(prefix.addr());
        }
    }
    all.extend(plan.outbound.exclude.iter().filter_map(|p| plus(last(p), 1)));
    // A namespace may have no default route, but it knows its neighbours.
    for address in own {
        all.extend((1..=3).map(|bits| flip(*address, bits)));
    }
    all
}

/// A connection of the proxy to the pod's own server, as istio-validation makes it.
/// `Err` says why the plan does not capture it.
pub(super) fn loopback(
    plan: &Plan,
    family: Family,
) -> Result<(SocketAddr, SocketAddr), &'static str> {
    let (from, to): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 6).into()),
        Family::V6 => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into()),
    };
    if plan.loopback_v4.contains(to) {
        return Err("the configured loopback range holds 127.0.0.6");
    }
    if is_listed(&plan.exclude_interfaces, "lo") {
        return Err("interface lo is excluded");
    }
    let taken = |port: u16| {
        port == DNS || port == plan.proxy.tunnel_port || plan.outbound.exclude_ports.contains(&port)
    };
    let port = ports().find(|port| !taken(*port)).ok_or("every outbound port is excluded")?;
    Ok((SocketAddr::new(from, 0), SocketAddr::new(to, port)))
}

/// A port on which connections from outside are captured, and whether it stands for
/// all ports; `Err` says why there is none.
pub(super) fn inbound_port(plan: &Plan) -> Result<(u16, bool), &'static str> {
    let proxy = &plan.proxy;
    let ours = [0, proxy.tunnel_port, proxy.inbound_port, proxy.outbound_port];
    match &plan.inbound {
        Inbound::Nothing => Err("no inbound port is captured"),
        Inbound::AllExcept(except) => ports()
            .find(|port| !ours.contains(port) && !except.contains(port))
            .map(|port| (port, true))
            .ok_or("every inbound port is excluded"),
        Inbound::Only(only) => only
            .iter()
            .copied()
            .find(|port| !ours.contains(port))
            .map(|port| (port, false))
            .ok_or("the only inbound ports captured are the proxy's own"),
    }
}

/// True when a name is in a list of interface patterns.
pub(super) fn is_listed(patterns: &[Interface], name: &str) -> bool {
    patterns.iter().any(|pattern| {
        if pattern.is_wildcard() {
            name.starts_with(pattern.stem())
        } else {
            name == pattern.stem()
        }
    })
}

fn ports() -> impl Iterator<Item = u16> {
    (PORT..=u16::MAX).chain(1..PORT)
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !a.is_unspecified() && !a.is_loopback() && !a.is_link_local() && a.octets()[0] < 224
        }
        IpAddr::V6(a) => {
            !a.is_unspecified()
                && !a.is_loopback()
                && !a.is_multicast()
                && !a.is_unicast_link_local()
                && a.to_ipv4_mapped().is_none()
        }
    }
}

fn plus(address: IpAddr, n: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_add(n.into()).map(|b| Ipv4Addr::from_bits(b).into()),
        IpAddr::V6(a) => a.to_bits().checked_add(n.into()).map(|b| Ipv6Addr::from_bits(b).into()),
    }
}

fn flip(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() ^ u32::from(bits)).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() ^ u128::from(bits)).into(),
    }
}

fn last(prefix: &Cidr) -> IpAddr {
    let length = u32::from(prefix.prefix_len());
    match prefix.addr() {
        IpAddr::V4(a) => {
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            Ipv4Addr::from_bits(a.to_bits() | host).into()
        }
        IpAddr::V6(a) => {
            let host = u128::MAX.checked_shr(length).unwrap_or(0);
            Ipv6Addr::from_bits(a.to_bits() | host).into()
        }
    }
}

#[cfg(test)]
#[path = "target/tests.rs"]
mod tests;
