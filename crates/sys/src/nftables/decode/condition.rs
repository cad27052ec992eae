//! A comparison of what a register holds, as the condition that it is.

use super::super::abi::*;
use crate::netlink::{ne32, text};
use redirect::desired::{CtState, Is, Mark, Proto};
use redirect::net::{Cidr, Family, Interface, Owner};
use redirect::nft::Statement;
use std::net::IpAddr;

/// What a register holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Meta(u32),
    Ct(u32),
    Payload {
        base: u32,
        offset: u32,
        len: usize,
    },
    /// Some bits of another value.
    Masked(Box<Value>, Vec<u8>),
    /// The connection's mark with some bits cleared and some set.
    Changed {
        keep: u32,
        set: u32,
    },
    Constant(Vec<u8>),
}

fn is<T>(value: T, negated: bool) -> Is<T> {
    if negated { Is::Not(value) } else { Is::Eq(value) }
}

pub(super) fn family_of(number: u8) -> Option<Family> {
    match number {
        NFPROTO_IPV4 => Some(Family::V4),
        NFPROTO_IPV6 => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn compared_meta(key: u32, bytes: &[u8], negated: bool) -> Option<Statement> {
    match key {
        KEY_MARK => Some(Statement::Mark(is(Mark::exact(ne32(bytes)?), negated))),
        KEY_SKUID => Some(Statement::SkUid(is(Owner::Id(ne32(bytes)?), negated))),
        KEY_SKGID => Some(Statement::SkGid(is(Owner::Id(ne32(bytes)?), negated))),
        KEY_OIFNAME => Some(Statement::OutName(is(interface(bytes)?, negated))),
        _ if negated => None,
        KEY_IIFNAME => Some(Statement::InName(interface(bytes)?)),
        KEY_NFPROTO => Some(Statement::Nfproto(family_of(*bytes.first()?)?)),
        KEY_L4PROTO => match bytes {
            [6] => Some(Statement::L4proto(Proto::Tcp)),
            [17] => Some(Statement::L4proto(Proto::Udp)),
            _ => None,
        },
        _ => None,
    }
}

/// With its terminating zero it is a name, without a prefix of names.
fn interface(bytes: &[u8]) -> Option<Interface> {
    let wildcard = if bytes.contains(&0) { "" } else { "*" };
    format!("{}{wildcard}", text(bytes)).parse().ok()
}

pub(super) fn compared_address(
    offset: u32,
    bytes: &[u8],
    len: u8,
    negated: bool,
) -> Option<Statement> {
    let v4 = || {
        let mut octets = [0; 4];
        octets.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Cidr::new(IpAddr::from(octets), len)
    };
    let v6 = || {
        let mut octets = [0; 16];
        octets.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Cidr::new(IpAddr::from(octets), len)
    };
    match offset {
        IP_SOURCE if !negated => Some(Statement::Source(v4()?)),
        IP6_SOURCE if !negated => Some(Statement::Source(v6()?)),
        IP_DESTINATION => Some(Statement::Destination(is(v4()?, negated))),
        IP6_DESTINATION => Some(Statement::Destination(is(v6()?, negated))),
        _ => None,
    }
}

pub(super) fn compared_port(offset: u32, port: u16, negated: bool) -> Option<Statement> {
    match offset {
        SOURCE_PORT if !negated => Some(Statement::SourcePort(port)),
        DESTINATION_PORT => Some(Statement::DestinationPort(is(port, negated))),
        _ => None,
    }
}

pub(super) fn compared_bits(
    value: &Value,
    mask: &[u8],
    bytes: &[u8],
    negated: bool,
) -> Option<Statement> {
    match value {
        Value::Ct(CT_STATE) if negated && bytes.iter().all(|byte| *byte == 0) => {
            match ne32(mask)? {
                STATE_INVALID => Some(Statement::State(CtState::Invalid)),
                STATE_KNOWN => Some(Statement::State(CtState::RelatedOrEstablished)),
                _ => None,
            }
        }
        // A mask of all bits is one nobody writes; bits outside of it never match.
        Value::Meta(KEY_MARK) | Value::Ct(CT_MARK) => {
            let mark = Mark { value: ne32(bytes)?, mask: ne32(mask)? };
            if mark.is_exact() || mark.value & !mark.mask != 0 {
                return None;
            }
            match value {
                Value::Meta(_) => Some(Statement::Mark(is(mark, negated))),
                _ if negated => None,
                _ => Some(Statement::CtMark(mark)),
            }
        }
        Value::Payload { len, .. } if *len != mask.len() || *len != bytes.len() => None,
        Value::Payload { base: TRANSPORT, offset: TCP_FLAGS, .. } => {
            let syn = mask == [SYN_MASK] && bytes == [SYN] && !negated;
            syn.then_some(Statement::Syn)
        }
        Value::Payload { base: NETWORK, offset, .. } => {
            let len = prefix_len(mask)?;
            compared_address(*offset, bytes, len, negated)
        }
        _ => None,
    }
}

/// Ones at the front of a mask; `None` when there are more behind a zero.
fn prefix_len(mask: &[u8]) -> Option<u8> {
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let mut leading = 0;
    for byte in mask {
        leading += byte.leading_ones();
        if *byte != 0xff {
            break;
        }
    }
    (ones == leading).then(|| u8::try_from(ones).ok())?
}
