//! Walks a packet through [`Desired`] rules as netfilter would, without a kernel:
//! for tests that compare forms, and to ask whether a connection would be captured.

use crate::desired::{
    Action, ChainKind, CtState, Desired, Is, Match, Proto, Rule, Table, TableKind,
};
use crate::net::{Family, Interface, Owner};
use std::net::{IpAddr, Ipv4Addr};

/// Where a packet meets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A local process sends it.
    Out,
    /// It arrives.
    In,
}

/// State of the connection that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The packet opens the connection.
    New,
    /// Conntrack sees the connection for the first time in its middle and counts the
    /// packet as new, as it does for what ran before there was any conntrack.
    PickedUp,
    /// Conntrack knows it.
    Established,
    /// Conntrack can make nothing of it.
    Invalid,
}

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it meets the rules.
    pub direction: Direction,
    /// Transport protocol.
    pub proto: Proto,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Interface it arrives on or leaves by.
    pub interface: String,
    /// User of the sending socket; ignored for what arrives.
    pub uid: u32,
    /// Group of the sending socket; ignored for what arrives.
    pub gid: u32,
    /// State of its connection.
    pub flow: Flow,
    /// Mark of the packet.
    pub mark: u32,
    /// Mark of its connection.
    pub conn_mark: u32,
}

impl Packet {
    /// The first packet of an app's TCP connection out of `eth0`.
    #[must_use]
    pub fn outbound(destination: IpAddr, port: u16) -> Self {
        Self {
            direction: Direction::Out,
            proto: Proto::Tcp,
            source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            destination,
            source_port: 40000,
            destination_port: port,
            interface: "eth0".to_owned(),
            uid: 1000,
            gid: 1000,
            flow: Flow::New,
            mark: 0,
            conn_mark: 0,
        }
    }

    /// The first packet of a TCP connection that arrives on `eth0`.
    #[must_use]
    pub fn inbound(destination: IpAddr, port: u16) -> Self {
        Self { direction: Direction::In, ..Self::outbound(destination, port) }
    }

    fn family(&self) -> Family {
        Family::of(self.destination)
    }
}

/// What the rules do to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fate {
    /// It is dropped.
    pub dropped: bool,
    /// Local port it is sent to instead, by NAT.
    pub redirected: Option<u16>,
    /// Transparent listener it is given to.
    pub tproxied: Option<u16>,
    /// Conntrack zone.
    pub zone: Option<u16>,
    /// Mark of the packet afterwards.
    pub mark: u32,
    /// Mark of its connection afterwards.
    pub conn_mark: u32,
}

impl Fate {
    /// The proxy's port the packet arrives at, if it is captured.
    #[must_use]
    pub fn captured(&self) -> Option<u16> {
        self.redirected.or(self.tproxied)
    }
}

/// The fate of a packet.
#[must_use]
pub fn fate(desired: &Desired, packet: &Packet) -> Fate {
    let mut walk = Walk {
        packet,
        fate: Fate { mark: packet.mark, conn_mark: packet.conn_mark, ..Fate::default() },
    };
    if packet.family() == Family::V6 && !desired.ipv6 {
        // Iptables has no rules then; nftables' are bound to IPv4.
        let v4_only = |t: &Table| t.chains.iter().flat_map(|c| &c.rules).all(v4_rule);
        if desired.tables.iter().all(v4_only) {
            return walk.fate;
        }
    }
    let hook = match packet.direction {
        Direction::Out => ChainKind::OutputHook,
        Direction::In => ChainKind::Prerouting,
    };
    for kind in [TableKind::Raw, TableKind::Mangle, TableKind::Nat] {
        // The kernel asks the nat table once, for what it takes for a connection's
        // first packet.
        let asks = kind != TableKind::Nat || matches!(packet.flow, Flow::New | Flow::PickedUp);
        if let Some(table) = desired.tables.iter().find(|t| t.kind == kind)
            && asks
        {
            walk.chain(table, hook);
            if walk.fate.dropped {
                break;
            }
        }
    }
    walk.fate
}

fn v4_rule(rule: &Rule) -> bool {
    !rule.family.covers(Family::V6)
}

/// Whether a chain came to an end for the whole table.
#[derive(PartialEq, Eq)]
enum End {
    Fell,
    Table,
}

struct Walk<'a> {
    packet: &'a Packet,
    fate: Fate,
}

impl Walk<'_> {
    fn chain(&mut self, table: &Table, kind: ChainKind) -> End {
        let Some(chain) = table.chains.iter().find(|c| c.kind == kind) else {
            return End::Fell;
        };
        for rule in &chain.rules {
            if !rule.family.covers(self.packet.family()) || !self.matches(rule) {
                continue;
            }
            match rule.action {
                Action::Return => return End::Fell,
                Action::Accept => return End::Table,
                Action::Drop => {
                    self.fate.dropped = true;
                    return End::Table;
                }
                Action::Jump(to) => {
                    if self.chain(table, to) == End::Table {
                        return End::Table;
                    }
                }
                Action::Redirect(port) => {
                    self.fate.redirected = Some(port);
                    return End::Table;
                }
                Action::Tproxy { port, mark } => {
                    self.fate.tproxied = Some(port);
                    self.fate.mark = mark;
                    return End::Table;
                }
                Action::SetMark(mark) => self.fate.mark = mark,
                Action::SetConnMark(mark) => self.fate.conn_mark = mark.set_in(self.fate.conn_mark),
                Action::SaveMark => self.fate.conn_mark = self.fate.mark,
                Action::RestoreMark => self.fate.mark = self.fate.conn_mark,
                Action::SetZone(zone) => self.fate.zone = Some(zone),
            }
        }
        End::Fell
    }

    fn matches(&self, rule: &Rule) -> bool {
        rule.matches.iter().all(|m| self.holds(m))
    }

    fn holds(&self, m: &Match) -> bool {
        let p = self.packet;
        let out = p.direction == Direction::Out;
        match m {
            Match::Proto(proto) => p.proto == *proto,
            Match::InInterface(nic) => !out && is_named(nic, &p.interface),
            Match::OutInterface(is) => out && test(is, |nic| is_named(nic, &p.interface)),
            Match::Source(cidr) => cidr.contains(p.source),
            Match::Destination(is) => test(is, |c| c.contains(p.destination)),
            Match::SourcePort(port) => p.source_port == *port,
            Match::DestinationPort(is) => test(is, |port| p.destination_port == *port),
            Match::DestinationPortNotIn(ports) => !ports.contains(&p.destination_port),
            // What arrives has no socket yet: such a match fails, negated or not.
            Match::Uid(is) => out && test(is, |id| *id == Owner::Id(p.uid)),
            Match::Gid(is) => out && test(is, |id| *id == Owner::Id(p.gid)),
            Match::State(CtState::RelatedOrEstablished) => p.flow == Flow::Established,
            Match::State(CtState::Invalid) => p.flow == Flow::Invalid,
            Match::Mark(is) => test(is, |mark| mark.is_in(self.fate.mark)),
            Match::ConnMark(mark) => mark.is_in(self.fate.conn_mark),
            Match::Syn => p.proto == Proto::Tcp && p.flow == Flow::New,
        }
    }
}

fn test<T>(is: &Is<T>, holds: impl Fn(&T) -> bool) -> bool {
    let (value, negated) = is.parts();
    holds(value) != negated
}

fn is_named(nic: &Interface, name: &str) -> bool {
    if nic.is_wildcard() { name.starts_with(nic.stem()) } else { name == nic.stem() }
}
