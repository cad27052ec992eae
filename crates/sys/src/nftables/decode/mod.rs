//! Reads a rule of the kernel back as statements. Follows what each register
//! holds, so that other expressions for the same condition are recognised too:
//! those of other versions of `nft`.

mod condition;

use super::abi::*;
use crate::netlink::{attributes, be16, be32, ne32, text};
use condition::{Value, compared_address, compared_bits, compared_meta, compared_port, family_of};
use redirect::desired::{ChainKind, Is, Mark};
use redirect::nft::{Statement, chain_name};
use std::collections::HashMap;

/// Why a rule is not one of those that we or Istio write: the expression that
/// does not fit, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Foreign(pub(super) String);

/// Elements of an anonymous set, by its name; `None` when it cannot be read as a
/// set of ports.
pub(super) type Ports<'a> = &'a mut dyn FnMut(&str) -> Option<Vec<u16>>;

/// Statements of a rule from the value of its NFTA_RULE_EXPRESSIONS. Dependencies
/// (`meta nfproto`, `meta l4proto`) are there as the kernel has them; counters are
/// left out.
pub(super) fn rule(expressions: &[u8], ports: Ports<'_>) -> Result<Vec<Statement>, Foreign> {
    let mut rule = Rule { registers: HashMap::new(), statements: Vec::new(), acted: false, ports };
    for (_, element) in attributes(expressions) {
        let expression = Fields(element);
        let name = text(expression.bytes(EXPR_NAME).unwrap_or_default());
        let data = Fields(expression.bytes(EXPR_DATA).unwrap_or_default());
        rule.expression(&name, data)
            .ok_or_else(|| Foreign(format!("{name} that Sluice and Istio do not write")))?;
    }
    Ok(rule.statements)
}

/// Nested attributes, looked up by number.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(self, kind: u16) -> Option<&'a [u8]> {
        attributes(self.0).find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    fn be32(self, kind: u16) -> Option<u32> {
        be32(self.bytes(kind)?)
    }

    /// A register, by one name: NFT_REG_1 is NFT_REG32_00 and so on.
    fn register(self, kind: u16) -> Option<u32> {
        let number = self.be32(kind)?;
        match number {
            REG_1..REG32_00 => Some(REG32_00 + (number - REG_1) * 4),
            _ => Some(number),
        }
    }

    fn value(self, kind: u16) -> Option<&'a [u8]> {
        Fields(self.bytes(kind)?).bytes(DATA_VALUE)
    }
}

struct Rule<'a> {
    registers: HashMap<u32, Value>,
    statements: Vec<Statement>,
    /// An action has been seen; a condition after it would mean something else
    /// than one before.
    acted: bool,
    ports: Ports<'a>,
}

impl Rule<'_> {
    /// `None` when the expression is not understood.
    fn expression(&mut self, name: &str, data: Fields<'_>) -> Option<()> {
        match name {
            "counter" => Some(()),
            "meta" => self.meta(data),
            "ct" => self.ct(data),
            "payload" => self.payload(data),
            "bitwise" => self.bitwise(data),
            "cmp" => self.cmp(data),
            "lookup" => self.lookup(data),
            "immediate" => self.immediate(data),
            "redir" => self.redir(data),
            "tproxy" => self.tproxy(data),
            _ => None,
        }
    }

    fn condition(&mut self, statement: Statement) -> Option<()> {
        (!self.acted).then(|| self.statements.push(statement))
    }

    fn act(&mut self, statement: Statement) -> Option<()> {
        self.acted = true;
        self.statements.push(statement);
        Some(())
    }

    fn load(&mut self, register: u32, value: Value) -> Option<()> {
        self.registers.insert(register, value);
        Some(())
    }

    /// A port or mark that was loaded as a constant.
    fn constant<const N: usize>(&self, register: u32) -> Option<[u8; N]> {
        match self.registers.get(&register)? {
            Value::Constant(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        }
    }

    fn meta(&mut self, data: Fields<'_>) -> Option<()> {
        let key = data.be32(META_KEY)?;
        if let Some(register) = data.register(META_DREG) {
            return self.load(register, Value::Meta(key));
        }
        let register = data.register(META_SREG)?;
        if key != KEY_MARK {
            return None;
        }
        if self.registers.get(&register)? == &Value::Ct(CT_MARK) {
            return self.act(Statement::RestoreMark);
        }
        let mark = u32::from_ne_bytes(self.constant(register)?);
        self.act(Statement::SetMark(mark))
    }

    fn ct(&mut self, data: Fields<'_>) -> Option<()> {
        let key = data.be32(CT_KEY)?;
        if data.bytes(CT_DIRECTION).is_some() {
            return None;
        }
        if let Some(register) = data.register(CT_DREG) {
            return self.load(register, Value::Ct(key));
        }
        let register = data.register(CT_SREG)?;
        match key {
            CT_MARK => {
                let statement = match self.registers.get(&register)? {
                    Value::Meta(KEY_MARK) => Statement::SaveMark,
                    // What is set must be among what is cleared, else it is inverted.
                    &Value::Changed { keep, set } if keep & set == 0 => {
                        Statement::SetCtMark(Mark { value: set, mask: !keep })
                    }
                    Value::Masked(value, keep) if **value == Value::Ct(CT_MARK) => {
                        Statement::SetCtMark(Mark { value: 0, mask: !ne32(keep)? })
                    }
                    _ => return None,
                };
                self.act(statement)
            }
            CT_ZONE => {
                let zone = u16::from_ne_bytes(self.constant(register)?);
                self.act(Statement::SetZone(zone))
            }
            _ => None,
        }
    }

    fn payload(&mut self, data: Fields<'_>) -> Option<()> {
        let value = Value::Payload {
            base: data.be32(PAYLOAD_BASE)?,
            offset: data.be32(PAYLOAD_OFFSET)?,
            len: usize::try_from(data.be32(PAYLOAD_LEN)?).ok()?,
        };
        self.load(data.register(PAYLOAD_DREG)?, value)
    }

    fn bitwise(&mut self, data: Fields<'_>) -> Option<()> {
        let mask = data.value(BITWISE_MASK)?;
        let xor = data.value(BITWISE_XOR)?;
        // 0 is the mask and xor that old kernels know only.
        if data.be32(BITWISE_OP).unwrap_or(0) != 0 {
            return None;
        }
        let value = self.registers.get(&data.register(BITWISE_SREG)?)?.clone();
        if xor.iter().any(|byte| *byte != 0) {
            if value != Value::Ct(CT_MARK) {
                return None;
            }
            let changed = Value::Changed { keep: ne32(mask)?, set: ne32(xor)? };
            return self.load(data.register(BITWISE_DREG)?, changed);
        }
        let value = Value::Masked(Box::new(value), mask.to_vec());
        self.load(data.register(BITWISE_DREG)?, value)
    }

    fn cmp(&mut self, data: Fields<'_>) -> Option<()> {
        let value = self.registers.get(&data.register(CMP_SREG)?)?.clone();
        let bytes = data.value(CMP_DATA)?;
        let negated = match data.be32(CMP_OP)? {
            EQ => false,
            NEQ => true,
            _ => return None,
        };
        let statement = match &value {
            Value::Meta(key) => compared_meta(*key, bytes, negated),
            Value::Ct(CT_MARK) if !negated => Some(Statement::CtMark(Mark::exact(ne32(bytes)?))),
            Value::Payload { len, .. } if *len != bytes.len() => None,
            Value::Payload { base: NETWORK, offset, len } => {
                let bits = u8::try_from(len.checked_mul(8)?).ok()?;
                compared_address(*offset, bytes, bits, negated)
            }
            Value::Payload { base: TRANSPORT, offset, .. } => {
                compared_port(*offset, be16(bytes)?, negated)
            }
            Value::Masked(value, mask) => compared_bits(value, mask, bytes, negated),
            _ => None,
        };
        let statement = statement?;
        if let Statement::Source(cidr) | Statement::Destination(Is::Eq(cidr) | Is::Not(cidr)) =
            &statement
            && !self.statements.contains(&Statement::Nfproto(cidr.family()))
        {
            // The same bytes are something else in the other family's header.
            return None;
        }
        self.condition(statement)
    }

    fn lookup(&mut self, data: Fields<'_>) -> Option<()> {
        let value = self.registers.get(&data.register(LOOKUP_SREG)?)?;
        let port = Value::Payload { base: TRANSPORT, offset: DESTINATION_PORT, len: 2 };
        let inverse = data.be32(LOOKUP_FLAGS).unwrap_or(0) == LOOKUP_F_INV;
        if *value != port || !inverse || data.bytes(LOOKUP_DREG).is_some() {
            return None;
        }
        let ports = (self.ports)(&text(data.bytes(LOOKUP_SET)?))?;
        self.condition(Statement::DestinationPortNotIn(ports))
    }

    fn immediate(&mut self, data: Fields<'_>) -> Option<()> {
        let register = data.register(IMMEDIATE_DREG)?;
        if register != REG_VERDICT {
            let constant = data.value(IMMEDIATE_DATA)?.to_vec();
            return self.load(register, Value::Constant(constant));
        }
        let verdict = Fields(Fields(data.bytes(IMMEDIATE_DATA)?).bytes(DATA_VERDICT)?);
        let statement = match verdict.be32(VERDICT_CODE)? {
            RETURN => Statement::Return,
            ACCEPT => Statement::Accept,
            DROP => Statement::Drop,
            JUMP => Statement::Jump(known_chain(&text(verdict.bytes(VERDICT_CHAIN)?))?),
            _ => return None,
        };
        self.act(statement)
    }

    fn redir(&mut self, data: Fields<'_>) -> Option<()> {
        let register = data.register(REDIR_PROTO_MIN)?;
        let range = data.register(REDIR_PROTO_MAX).is_some_and(|r| r != register);
        let flags = data.be32(REDIR_FLAGS).unwrap_or(REDIR_PORT_GIVEN);
        if range || flags & !REDIR_PORT_GIVEN != 0 {
            return None;
        }
        let port = u16::from_be_bytes(self.constant(register)?);
        self.act(Statement::Redirect(port))
    }

    fn tproxy(&mut self, data: Fields<'_>) -> Option<()> {
        let family = family_of(u8::try_from(data.be32(TPROXY_FAMILY)?).ok()?)?;
        if data.bytes(TPROXY_ADDR).is_some() {
            return None;
        }
        let port = u16::from_be_bytes(self.constant(data.register(TPROXY_PORT)?)?);
        self.act(Statement::Tproxy { family, port })
    }
}

fn known_chain(name: &str) -> Option<&'static str> {
    ChainKind::ALL.into_iter().map(chain_name).find(|known| *known == name)
}
