//! Rules as `nft` reads and prints them.

use super::{Hook, HookPoint, HookType, Rule, Ruleset, Statement};
use crate::desired::{CtState, Mark, Proto};
use crate::net::Family;
use std::fmt;

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "add table inet {}", table.name)?;
            writeln!(f, "flush table inet {}", table.name)?;
            for chain in &table.chains {
                write!(f, "add chain inet {} {}", table.name, chain.name)?;
                if let Some(hook) = chain.hook {
                    write!(f, " {{ {hook} ; }}")?;
                }
                writeln!(f)?;
            }
            for chain in &table.chains {
                for rule in &chain.rules {
                    writeln!(f, "add rule inet {} {} {rule}", table.name, chain.name)?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HookType::Nat => "nat",
            HookType::Filter => "filter",
            HookType::Route => "route",
        };
        let point = match self.point {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Output => "output",
        };
        write!(f, "type {kind} hook {point} priority {}", self.priority)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut proto = Proto::Tcp;
        for (i, statement) in self.statements.iter().enumerate() {
            if let Statement::L4proto(p) = statement {
                proto = *p;
            }
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{}", Shown { statement, proto })?;
        }
        Ok(())
    }
}

/// A statement with the protocol that its ports are of.
struct Shown<'a> {
    statement: &'a Statement,
    proto: Proto,
}

fn not(negated: bool) -> &'static str {
    if negated { "!= " } else { "" }
}

fn write_mark(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    Mark { value, mask }: Mark,
    negated: bool,
) -> fmt::Result {
    if mask == u32::MAX {
        return write!(f, "{key} {}{value}", not(negated));
    }
    let op = if negated { "!=" } else { "==" };
    write!(f, "{key} & {mask:#x} {op} {value:#x}")
}

fn proto_name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = proto_name(self.proto);
        match self.statement {
            Statement::Nfproto(Family::V4) => f.write_str("meta nfproto ipv4"),
            Statement::Nfproto(Family::V6) => f.write_str("meta nfproto ipv6"),
            Statement::L4proto(p) => write!(f, "meta l4proto {}", proto_name(*p)),
            Statement::InName(nic) => write!(f, "iifname \"{nic}\""),
            Statement::OutName(is) => {
                let (nic, negated) = is.parts();
                write!(f, "oifname {}\"{nic}\"", not(negated))
            }
            Statement::Source(c) => write!(f, "{} saddr {c}", ip(c.family())),
            Statement::Destination(is) => {
                let (c, negated) = is.parts();
                write!(f, "{} daddr {}{c}", ip(c.family()), not(negated))
            }
            Statement::SourcePort(port) => write!(f, "{proto} sport {port}"),
            Statement::DestinationPort(is) => {
                let (port, negated) = is.parts();
                write!(f, "{proto} dport {}{port}", not(negated))
            }
            Statement::DestinationPortNotIn(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(f, "{proto} dport != {{ {} }}", ports.join(", "))
            }
            Statement::SkUid(is) => {
                let (id, negated) = is.parts();
                write!(f, "meta skuid {}{id}", not(negated))
            }
            Statement::SkGid(is) => {
                let (id, negated) = is.parts();
                write!(f, "meta skgid {}{id}", not(negated))
            }
            Statement::State(CtState::RelatedOrEstablished) => {
                f.write_str("ct state related,established")
            }
            Statement::State(CtState::Invalid) => f.write_str("ct state invalid"),
            Statement::Mark(is) => {
                let (mark, negated) = is.parts();
                write_mark(f, "meta mark", *mark, negated)
            }
            Statement::CtMark(mark) => write_mark(f, "ct mark", *mark, false),
            Statement::Syn => f.write_str("tcp flags & (fin | syn | rst | ack) == syn"),
            Statement::Counter => f.write_str("counter"),
            Statement::Return => f.write_str("return"),
            Statement::Accept => f.write_str("accept"),
            Statement::Drop => f.write_str("drop"),
            Statement::Jump(chain) => write!(f, "jump {chain}"),
            Statement::Redirect(port) => write!(f, "redirect to :{port}"),
            Statement::Tproxy { family, port } => write!(f, "tproxy {} to :{port}", ip(*family)),
            Statement::SetMark(mark) => write!(f, "meta mark set {mark}"),
            Statement::SetCtMark(Mark { value, mask }) => {
                write!(f, "ct mark set ct mark & {:#x} | {value:#x}", !mask)
            }
            Statement::SaveMark => f.write_str("ct mark set meta mark"),
            Statement::RestoreMark => f.write_str("meta mark set ct mark"),
            Statement::SetZone(zone) => write!(f, "ct zone set {zone}"),
        }
    }
}
