//! The expressions of one rule, as `nft` itself would make them of the text form,
//! so that `nft list ruleset` shows the same for both.

use super::abi::*;
use crate::netlink::Buffer;
use redirect::desired::{CtState, Is, Mark, Proto};
use redirect::net::{Cidr, Family, Interface, Owner};
use redirect::nft::{Rule, Statement};
use std::net::IpAddr;

/// The kernel puts a number for `%d`; within the batch a set is known by its id.
pub(super) const SET_TEMPLATE: &str = "__set%d";

/// Ports that need a set; a single one is compared.
pub(super) fn set_of(statement: &Statement) -> Option<Vec<u16>> {
    let Statement::DestinationPortNotIn(ports) = statement else {
        return None;
    };
    let mut ports = ports.clone();
    ports.sort_unstable();
    ports.dedup();
    (ports.len() > 1).then_some(ports)
}

/// Data of an expression or of a set's element.
pub(super) fn value(b: &mut Buffer, kind: u16, bytes: &[u8]) {
    b.nested(kind, |b| b.attribute(DATA_VALUE, bytes));
}

/// The expressions of one rule. Everything goes through register 1, as with nft.
pub(super) struct Expressions<'b> {
    b: &'b mut Buffer,
    /// What the rule has tested already and need not test again.
    nfproto: Option<Family>,
    l4proto: Option<Proto>,
}

impl<'b> Expressions<'b> {
    /// `sets`: ids of the sets that the rule looks up, in its order.
    pub(super) fn write(b: &'b mut Buffer, rule: &Rule, sets: &[u32]) {
        let mut sets = sets.iter();
        let mut expressions = Self { b, nfproto: None, l4proto: None };
        for statement in &rule.statements {
            if set_of(statement).is_some() {
                expressions.port(DESTINATION_PORT);
                expressions.not_in(sets.next().copied().unwrap_or_default());
            } else {
                expressions.statement(statement);
            }
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Nfproto(family) => self.family(*family),
            Statement::L4proto(proto) => self.protocol(*proto),
            Statement::InName(nic) => self.name(KEY_IIFNAME, nic, EQ),
            Statement::OutName(is) => {
                let (nic, op) = operator(is);
                self.name(KEY_OIFNAME, nic, op);
            }
            Statement::Source(cidr) => self.address(cidr, EQ, IP_SOURCE, IP6_SOURCE),
            Statement::Destination(is) => {
                let (cidr, op) = operator(is);
                self.address(cidr, op, IP_DESTINATION, IP6_DESTINATION);
            }
            Statement::SourcePort(port) => {
                self.port(SOURCE_PORT);
                self.compare(EQ, &port.to_be_bytes());
            }
            Statement::DestinationPort(is) => {
                let (port, op) = operator(is);
                self.port(DESTINATION_PORT);
                self.compare(op, &port.to_be_bytes());
            }
            Statement::DestinationPortNotIn(ports) => {
                // One port: more are a set; none is no condition.
                if let Some(port) = ports.first() {
                    self.port(DESTINATION_PORT);
                    self.compare(NEQ, &port.to_be_bytes());
                }
            }
            Statement::SkUid(is) => self.owner(KEY_SKUID, is),
            Statement::SkGid(is) => self.owner(KEY_SKGID, is),
            Statement::State(state) => {
                let mask = match state {
                    CtState::RelatedOrEstablished => STATE_KNOWN,
                    CtState::Invalid => STATE_INVALID,
                };
                self.ct(CT_DREG, CT_STATE);
                self.mask(&mask.to_ne_bytes());
                self.compare(NEQ, &[0; 4]);
            }
            Statement::Mark(is) => {
                let (mark, op) = operator(is);
                self.meta(META_DREG, KEY_MARK);
                self.mark(*mark, op);
            }
            Statement::CtMark(mark) => {
                self.ct(CT_DREG, CT_MARK);
                self.mark(*mark, EQ);
            }
            Statement::Syn => {
                self.protocol(Proto::Tcp);
                self.payload(TRANSPORT, TCP_FLAGS, 1);
                self.mask(&[SYN_MASK]);
                self.compare(EQ, &[SYN]);
            }
            action => self.action(action),
        }
    }

    fn action(&mut self, action: &Statement) {
        match action {
            Statement::Return => self.verdict(RETURN, None),
            Statement::Accept => self.verdict(ACCEPT, None),
            Statement::Drop => self.verdict(DROP, None),
            Statement::Jump(chain) => self.verdict(JUMP, Some(chain)),
            Statement::Redirect(port) => {
                self.immediate(&port.to_be_bytes());
                self.expression("redir", |b| {
                    b.be32(REDIR_PROTO_MIN, REG_1);
                    b.be32(REDIR_FLAGS, REDIR_PORT_GIVEN);
                });
            }
            Statement::Tproxy { family, port } => {
                let family = match family {
                    Family::V4 => NFPROTO_IPV4,
                    Family::V6 => NFPROTO_IPV6,
                };
                self.immediate(&port.to_be_bytes());
                self.expression("tproxy", |b| {
                    b.be32(TPROXY_FAMILY, family.into());
                    b.be32(TPROXY_PORT, REG_1);
                });
            }
            Statement::SetMark(mark) => {
                self.immediate(&mark.to_ne_bytes());
                self.meta(META_SREG, KEY_MARK);
            }
            Statement::SetCtMark(Mark { value, mask }) => {
                self.ct(CT_DREG, CT_MARK);
                self.change(&(!mask).to_ne_bytes(), &value.to_ne_bytes());
                self.ct(CT_SREG, CT_MARK);
            }
            Statement::SaveMark => {
                self.meta(META_DREG, KEY_MARK);
                self.ct(CT_SREG, CT_MARK);
            }
            Statement::RestoreMark => {
                self.ct(CT_DREG, CT_MARK);
                self.meta(META_SREG, KEY_MARK);
            }
            Statement::SetZone(zone) => {
                self.immediate(&zone.to_ne_bytes());
                self.ct(CT_SREG, CT_ZONE);
            }
            // Conditions are written by `statement`.
            _ => self.expression("counter", |_| ()),
        }
    }

    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Buffer)) {
        self.b.nested(LIST_ELEM, |b| {
            b.text(EXPR_NAME, name);
            b.nested(EXPR_DATA, body);
        });
    }

    fn meta(&mut self, register: u16, key: u32) {
        self.expression("meta", |b| {
            b.be32(META_KEY, key);
            b.be32(register, REG_1);
        });
    }

    fn ct(&mut self, register: u16, key: u32) {
        self.expression("ct", |b| {
            b.be32(CT_KEY, key);
            b.be32(register, REG_1);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32) {
        self.expression("payload", |b| {
            b.be32(PAYLOAD_DREG, REG_1);
            b.be32(PAYLOAD_BASE, base);
            b.be32(PAYLOAD_OFFSET, offset);
            b.be32(PAYLOAD_LEN, len);
        });
    }

    fn compare(&mut self, op: u32, bytes: &[u8]) {
        self.expression("cmp", |b| {
            b.be32(CMP_SREG, REG_1);
            b.be32(CMP_OP, op);
            value(b, CMP_DATA, bytes);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        let zero = [0; 16];
        self.change(mask, &zero[..mask.len()]);
    }

    /// Keeps the bits of a mask, then inverts those of `xor`.
    fn change(&mut self, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |b| {
            b.be32(BITWISE_SREG, REG_1);
            b.be32(BITWISE_DREG, REG_1);
            b.be32(BITWISE_LEN, u32::try_from(mask.len()).unwrap_or_default());
            value(b, BITWISE_MASK, mask);
            value(b, BITWISE_XOR, xor);
        });
    }

    fn immediate(&mut self, bytes: &[u8]) {
        self.expression("immediate", |b| {
            b.be32(IMMEDIATE_DREG, REG_1);
            value(b, IMMEDIATE_DATA, bytes);
        });
    }

    fn verdict(&mut self, code: u32, chain: Option<&str>) {
        self.expression("immediate", |b| {
            b.be32(IMMEDIATE_DREG, REG_VERDICT);
            b.nested(IMMEDIATE_DATA, |b| {
                b.nested(DATA_VERDICT, |b| {
                    b.be32(VERDICT_CODE, code);
                    if let Some(chain) = chain {
                        b.text(VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }

    fn not_in(&mut self, set: u32) {
        self.expression("lookup", |b| {
            b.text(LOOKUP_SET, SET_TEMPLATE);
            b.be32(LOOKUP_SREG, REG_1);
            b.be32(LOOKUP_SET_ID, set);
            b.be32(LOOKUP_FLAGS, LOOKUP_F_INV);
        });
    }

    fn family(&mut self, family: Family) {
        if self.nfproto == Some(family) {
            return;
        }
        self.nfproto = Some(family);
        let number = match family {
            Family::V4 => NFPROTO_IPV4,
            Family::V6 => NFPROTO_IPV6,
        };
        self.meta(META_DREG, KEY_NFPROTO);
        self.compare(EQ, &[number]);
    }

    fn protocol(&mut self, proto: Proto) {
        if self.l4proto == Some(proto) {
            return;
        }
        self.l4proto = Some(proto);
        let number = match proto {
            Proto::Tcp => 6,
            Proto::Udp => 17,
        };
        self.meta(META_DREG, KEY_L4PROTO);
        self.compare(EQ, &[number]);
    }

    fn port(&mut self, offset: u32) {
        self.payload(TRANSPORT, offset, 2);
    }

    /// A name is compared with its padding, a prefix of names without.
    fn name(&mut self, key: u32, nic: &Interface, op: u32) {
        let mut bytes = nic.stem().as_bytes().to_vec();
        if !nic.is_wildcard() {
            bytes.resize(NAME_LEN, 0);
        }
        self.meta(META_DREG, key);
        self.compare(op, &bytes);
    }

    /// Compares the bits of the mark in the register that count.
    fn mark(&mut self, mark: Mark, op: u32) {
        if !mark.is_exact() {
            self.mask(&mark.mask.to_ne_bytes());
        }
        self.compare(op, &mark.value.to_ne_bytes());
    }

    /// A name got no further than `encode::refuse_names`.
    fn owner(&mut self, key: u32, is: &Is<Owner>) {
        if let (Owner::Id(id), op) = operator(is) {
            self.meta(META_DREG, key);
            self.compare(op, &id.to_ne_bytes());
        }
    }

    /// A prefix of whole bytes is compared as that many bytes, any other through a
    /// mask; what nft does.
    fn address(&mut self, cidr: &Cidr, op: u32, offset4: u32, offset6: u32) {
        let (offset, bytes) = match cidr.addr() {
            IpAddr::V4(addr) => (offset4, addr.octets().to_vec()),
            IpAddr::V6(addr) => (offset6, addr.octets().to_vec()),
        };
        self.family(cidr.family());
        let len = usize::from(cidr.prefix_len());
        if len > 0 && len.is_multiple_of(8) {
            let whole = &bytes[..len / 8];
            let count = u32::try_from(whole.len()).unwrap_or_default();
            self.payload(NETWORK, offset, count);
            self.compare(op, whole);
        } else {
            let count = u32::try_from(bytes.len()).unwrap_or_default();
            self.payload(NETWORK, offset, count);
            self.mask(&netmask(len, bytes.len()));
            self.compare(op, &bytes);
        }
    }
}

fn operator<T>(is: &Is<T>) -> (&T, u32) {
    let (value, negated) = is.parts();
    (value, if negated { NEQ } else { EQ })
}

/// The mask of a prefix length, `bytes` long.
fn netmask(len: usize, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| match len.saturating_sub(i * 8) {
            0 => 0,
            bits @ 1..8 => !(0xff >> bits),
            _ => 0xff,
        })
        .collect()
}
