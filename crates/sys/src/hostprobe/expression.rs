//! Expressions of a rule as data: the same value is written to the kernel and
//! compared with what the kernel has.

use crate::netlink::{Buffer, attributes, text};
use crate::nftables::abi::*;
use redirect::host::rules::{Term, flows_set, targets_set};
use redirect::net::Family;
use std::net::IpAddr;

const SOCKET_KEY: u16 = 1;
const SOCKET_DREG: u16 = 2;
const SOCKET_LEVEL: u16 = 3;
const SOCKET_CGROUPV2: u32 = 3;
const DYNSET_NAME: u16 = 1;
const DYNSET_OP: u16 = 3;
const DYNSET_KEY: u16 = 4;
const DYNSET_ADD: u32 = 0;
const DYNSET_DELETE: u32 = 2;
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDR_MIN: u16 = 3;
const NAT_SOURCE: u32 = 0;
const COUNTER_PACKETS: u16 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Text(&'static str),
    /// Data of a register, nested once.
    Data(Vec<u8>),
}

/// One expression: its name and every attribute that has a meaning, also where the
/// kernel has a default, since what is compared is what stands here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    name: &'static str,
    attributes: Vec<(u16, Value)>,
}

fn number(value: u32) -> Value {
    Value::Bytes(value.to_be_bytes().to_vec())
}

/// Four-byte registers; `first` is the number of the first one that is free.
struct Registers {
    first: u32,
}

impl Registers {
    /// Name of the next register, which takes `bytes`. The kernel says registers
    /// back by the old names (1 to 4, 16 bytes each) where one begins there.
    fn take(&mut self, bytes: u32) -> u32 {
        let index = self.first;
        self.first += bytes.div_ceil(4);
        if index.is_multiple_of(4) { REG_1 + index / 4 } else { REG32_00 + index }
    }
}

/// A rule's expressions.
pub(super) fn expressions(rule: &[Term]) -> Vec<Expression> {
    let mut list = Vec::new();
    for term in rule {
        write_term(&mut list, *term);
    }
    list
}

fn write_term(list: &mut Vec<Expression>, term: Term) {
    match term {
        Term::Tcp(family) => {
            list.push(meta(KEY_NFPROTO));
            list.push(compare(&[nfproto(family)]));
            list.push(meta(KEY_L4PROTO));
            list.push(compare(&[6]));
        }
        Term::ToTarget(family) => {
            let mut registers = Registers { first: 0 };
            end(list, &mut registers, family, false);
            list.push(lookup(targets_set(family)));
        }
        Term::Cgroup { level, id } => {
            list.push(Expression {
                name: "socket",
                attributes: vec![
                    (SOCKET_KEY, number(SOCKET_CGROUPV2)),
                    (SOCKET_DREG, number(REG_1)),
                    (SOCKET_LEVEL, number(level.into())),
                ],
            });
            list.push(compare(&id.to_ne_bytes()));
        }
        Term::Uid(uid) => {
            list.push(meta(KEY_SKUID));
            list.push(compare(&uid.to_ne_bytes()));
        }
        Term::Counter => list.push(Expression { name: "counter", attributes: Vec::new() }),
        Term::Remember(family) => {
            flow(list, family);
            list.push(dynamic(flows_set(family), DYNSET_ADD));
        }
        Term::Known(family) => {
            flow(list, family);
            list.push(lookup(flows_set(family)));
        }
        Term::Forget(family) => {
            flow(list, family);
            list.push(dynamic(flows_set(family), DYNSET_DELETE));
        }
        Term::Snat(source) => translate(list, source),
    }
}

fn translate(list: &mut Vec<Expression>, source: IpAddr) {
    let bytes = match source {
        IpAddr::V4(source) => source.octets().to_vec(),
        IpAddr::V6(source) => source.octets().to_vec(),
    };
    list.push(Expression {
        name: "immediate",
        attributes: vec![(IMMEDIATE_DREG, number(REG_1)), (IMMEDIATE_DATA, Value::Data(bytes))],
    });
    list.push(Expression {
        name: "nat",
        attributes: vec![
            (NAT_TYPE, number(NAT_SOURCE)),
            (NAT_FAMILY, number(nfproto(Family::of(source)).into())),
            (NAT_ADDR_MIN, number(REG_1)),
        ],
    });
}

pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

fn meta(key: u32) -> Expression {
    let attributes = vec![(META_KEY, number(key)), (META_DREG, number(REG_1))];
    Expression { name: "meta", attributes }
}

fn compare(bytes: &[u8]) -> Expression {
    Expression {
        name: "cmp",
        attributes: vec![
            (CMP_SREG, number(REG_1)),
            (CMP_OP, number(EQ)),
            (CMP_DATA, Value::Data(bytes.to_vec())),
        ],
    }
}

fn payload(registers: &mut Registers, base: u32, offset: u32, len: u32) -> Expression {
    Expression {
        name: "payload",
        attributes: vec![
            (PAYLOAD_DREG, number(registers.take(len))),
            (PAYLOAD_BASE, number(base)),
            (PAYLOAD_OFFSET, number(offset)),
            (PAYLOAD_LEN, number(len)),
        ],
    }
}

/// Address and port of one end.
fn end(list: &mut Vec<Expression>, registers: &mut Registers, family: Family, source: bool) {
    let (offset, len) = match (family, source) {
        (Family::V4, true) => (IP_SOURCE, 4),
        (Family::V4, false) => (IP_DESTINATION, 4),
        (Family::V6, true) => (IP6_SOURCE, 16),
        (Family::V6, false) => (IP6_DESTINATION, 16),
    };
    list.push(payload(registers, NETWORK, offset, len));
    let port = if source { SOURCE_PORT } else { DESTINATION_PORT };
    list.push(payload(registers, TRANSPORT, port, 2));
}

fn flow(list: &mut Vec<Expression>, family: Family) {
    let mut registers = Registers { first: 0 };
    end(list, &mut registers, family, true);
    end(list, &mut registers, family, false);
}

fn lookup(set: &'static str) -> Expression {
    Expression {
        name: "lookup",
        attributes: vec![
            (LOOKUP_SET, Value::Text(set)),
            (LOOKUP_SREG, number(REG_1)),
            (LOOKUP_FLAGS, number(0)),
        ],
    }
}

fn dynamic(set: &'static str, op: u32) -> Expression {
    Expression {
        name: "dynset",
        attributes: vec![
            (DYNSET_NAME, Value::Text(set)),
            (DYNSET_OP, number(op)),
            (DYNSET_KEY, number(REG_1)),
        ],
    }
}

impl Expression {
    pub(super) fn write(&self, b: &mut Buffer) {
        b.nested(LIST_ELEM, |b| {
            b.text(EXPR_NAME, self.name);
            b.nested(EXPR_DATA, |b| {
                for (kind, value) in &self.attributes {
                    match value {
                        Value::Bytes(bytes) => b.attribute(*kind, bytes),
                        Value::Text(value) => b.text(*kind, value),
                        Value::Data(bytes) => {
                            b.nested(*kind, |b| b.attribute(DATA_VALUE, bytes));
                        }
                    }
                }
            });
        });
    }

    /// True when an element of a rule's list is this expression.
    fn is(&self, element: &[u8]) -> bool {
        let of = |bytes, kind| attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value);
        let name = of(element, EXPR_NAME).map(text);
        let data = of(element, EXPR_DATA).unwrap_or_default();
        name.as_deref() == Some(self.name)
            && self.attributes.iter().all(|(kind, want)| {
                let Some(found) = of(data, *kind) else { return false };
                match want {
                    Value::Bytes(bytes) => found == bytes,
                    Value::Text(want) => text(found) == *want,
                    Value::Data(bytes) => of(found, DATA_VALUE) == Some(bytes),
                }
            })
    }
}

/// True when the expressions of a rule of the kernel are just these.
pub(super) fn same(want: &[Expression], found: &[u8]) -> bool {
    let mut elements = attributes(found).map(|(_, value)| value);
    want.iter().all(|expression| elements.next().is_some_and(|e| expression.is(e)))
        && elements.next().is_none()
}

/// Packets that a rule's counter has seen.
pub(super) fn packets(found: &[u8]) -> u64 {
    let of = |bytes, kind| attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value);
    let counters = attributes(found).filter_map(|(_, element)| {
        let name = of(element, EXPR_NAME).map(text);
        (name.as_deref() == Some("counter")).then(|| of(element, EXPR_DATA)).flatten()
    });
    let counts = counters.filter_map(|data| of(data, COUNTER_PACKETS)?.try_into().ok());
    counts.map(u64::from_be_bytes).sum()
}
