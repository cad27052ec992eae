//! ipsets over netlink (linux/netfilter/ipset/ip_set.h). Nothing is executed, so
//! the image needs no `ipset`.

use super::HostError;
use crate::netlink::{Buffer, NetlinkError, Protocol, Socket, attributes, be16, text};
use nix::errno::Errno;
use redirect::host::Target;
use redirect::net::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a set may be busy that no rule asks any more.
const BUSY: Duration = Duration::from_secs(2);

/// Numbers below are the kernel's; 6 is the protocol since 2.6.39, which every
/// later kernel takes.
const PROTOCOL: u8 = 6;
const CREATE: u16 = command(2);
const DESTROY: u16 = command(3);
const LIST: u16 = command(7);
const ADD: u16 = command(9);
const DEL: u16 = command(10);
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_IP: u16 = 1;
const ATTR_PORT: u16 = 4;
const ATTR_PROTO: u16 = 7;
const ATTR_IPADDR_V4: u16 = 1;
const ATTR_IPADDR_V6: u16 = 2;
/// NLA_F_NET_BYTEORDER
const NETWORK_ORDER: u16 = 0x4000;
const TYPE: &str = "hash:ip,port";
const TCP: u8 = 6;

const fn command(number: u16) -> u16 {
    // NFNL_SUBSYS_IPSET
    (6 << 8) | number
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn head(b: &mut Buffer, family: u8, set: &str) {
    b.raw(&[family, 0, 0, 0]);
    b.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
    b.text(ATTR_SETNAME, set);
}

/// What a set holds; `None` when there is no such set.
pub(super) fn list(set: &str) -> Result<Option<BTreeSet<Target>>, HostError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let object = format!("list ipset {set}");
    let replies = match socket.dump(&object, LIST, |b| head(b, 0, set)) {
        Ok(replies) => replies,
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeSet::new();
    for (_, body) in replies.iter() {
        let body = body.get(4..).unwrap_or_default();
        let kind = attribute(body, ATTR_TYPENAME).map(text);
        if kind.is_some_and(|kind| kind != TYPE) {
            let what = "a set of another type has our name";
            return Err(NetlinkError::Malformed { object, what }.into());
        }
        let elements = attribute(body, ATTR_ADT).unwrap_or_default();
        found.extend(attributes(elements).filter_map(|(_, element)| target(element)));
    }
    Ok(Some(found))
}

/// True when there is a set of that name, of any type.
pub(super) fn exists(set: &str) -> Result<bool, HostError> {
    match list(set) {
        Ok(found) => Ok(found.is_some()),
        Err(HostError::Netlink(NetlinkError::Malformed { .. })) => Ok(true),
        Err(error) => Err(error),
    }
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn target(element: &[u8]) -> Option<Target> {
    let (kind, address) = attributes(attribute(element, ATTR_IP)?).next()?;
    let address = match kind {
        ATTR_IPADDR_V4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    if attribute(element, ATTR_PROTO) != Some(&[TCP]) {
        return None;
    }
    Some(Target { address, port: be16(attribute(element, ATTR_PORT)?)? })
}

/// Makes a set; fine when it is there.
pub(super) fn create(set: &str, family: Family) -> Result<(), HostError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let number = family_number(family);
    // Without NLM_F_EXCL one of the same type is no error.
    socket.request(
        || format!("create ipset {set}"),
        CREATE,
        0,
        |b| {
            head(b, number, set);
            b.text(ATTR_TYPENAME, TYPE);
            b.attribute(ATTR_REVISION, &[1]);
            b.attribute(ATTR_FAMILY, &[number]);
            b.nested(ATTR_DATA, |_| ());
        },
    )?;
    Ok(())
}

/// Puts elements of a family in and takes others out. What is there, or is not,
/// already is fine.
pub(super) fn change(
    set: &str,
    family: Family,
    add: &BTreeSet<Target>,
    remove: &BTreeSet<Target>,
) -> Result<(), HostError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    for (kind, verb, targets) in [(DEL, "delete", remove), (ADD, "add", add)] {
        for target in targets.iter().filter(|target| Family::of(target.address) == family) {
            let object = || format!("{verb} {target} of ipset {set}");
            socket.request(object, kind, 0, |b| {
                head(b, family_number(family), set);
                b.nested(ATTR_DATA, |b| {
                    b.nested(ATTR_IP, |b| match target.address {
                        IpAddr::V4(address) => {
                            b.attribute(ATTR_IPADDR_V4 | NETWORK_ORDER, &address.octets());
                        }
                        IpAddr::V6(address) => {
                            b.attribute(ATTR_IPADDR_V6 | NETWORK_ORDER, &address.octets());
                        }
                    });
                    b.attribute(ATTR_PORT | NETWORK_ORDER, &target.port.to_be_bytes());
                    b.attribute(ATTR_PROTO, &[TCP]);
                });
            })?;
        }
    }
    Ok(())
}

/// Destroys a set; fine when there is none. The kernel frees rules of nf_tables a moment
/// after they are gone (a worker, after a grace period), and a set that one of them asked
/// is busy until then.
pub(super) fn destroy(set: &str) -> Result<(), HostError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let object = || format!("destroy ipset {set}");
    let end = Instant::now() + BUSY;
    loop {
        match socket.request(object, DESTROY, 0, |b| head(b, 0, set)) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
            Err(error) if error.errno() == Some(Errno::EBUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return Ok(other?),
        }
    }
}
