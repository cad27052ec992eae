//! The nftables dialect: names, the rules lowered to statements, and the text
//! that `nft -f` loads. The netlink encoder of `sys` writes the same statements,
//! so text and kernel cannot differ.

mod text;

use crate::desired::{
    Action, ChainKind, CtState, Desired, Is, Mark, Match, Proto, Rule as DesiredRule, RuleFamily,
    RuleSet, TableKind,
};
use crate::net::{Cidr, Family, Interface, Owner};

/// All tables are of the `inet` family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// Tables that have rules.
    pub tables: Vec<Table>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name, of [`TABLES`].
    pub name: &'static str,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// The hook that calls it; none for a chain that is jumped to.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, then the counter, then what is done.
    pub statements: Vec<Statement>,
    /// Why it is there; not written to the kernel, since old nft binaries crash on
    /// userdata they do not know.
    pub why: &'static str,
}

/// Where and when the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Type of the chain.
    pub kind: HookType,
    /// The hook.
    pub point: HookPoint,
    /// Priority; lower runs earlier.
    pub priority: i32,
}

/// Type of a chain with a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookType {
    /// Address translation: asked for the first packet of a connection only.
    Nat,
    /// Filter.
    Filter,
    /// Filter whose changes of the mark make the packet be routed again.
    Route,
}

/// Hook of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// Packets that arrive, before routing.
    Prerouting,
    /// Packets of local processes.
    Output,
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// Packets of a family.
    Nfproto(Family),
    /// Transport protocol.
    L4proto(Proto),
    /// Name, or prefix of the name, of the interface it arrives on.
    InName(Interface),
    /// The same of the interface it leaves by.
    OutName(Is<Interface>),
    /// Source address.
    Source(Cidr),
    /// Destination address.
    Destination(Is<Cidr>),
    /// Source port of the protocol matched before.
    SourcePort(u16),
    /// Destination port of the protocol matched before.
    DestinationPort(Is<u16>),
    /// Destination port is none of these.
    DestinationPortNotIn(Vec<u16>),
    /// User of the socket.
    SkUid(Is<Owner>),
    /// Group of the socket.
    SkGid(Is<Owner>),
    /// State of the connection.
    State(CtState),
    /// Mark of the packet.
    Mark(Is<Mark>),
    /// Mark of the connection.
    CtMark(Mark),
    /// Of FIN, SYN, RST and ACK just SYN is set.
    Syn,
    /// Count packets and bytes.
    Counter,
    /// Back to the calling chain.
    Return,
    /// Accept.
    Accept,
    /// Drop.
    Drop,
    /// Go on in another chain.
    Jump(&'static str),
    /// NAT to a local port.
    Redirect(u16),
    /// To the transparent listener on a port.
    Tproxy {
        /// Family of the packet.
        family: Family,
        /// Port of the listener.
        port: u16,
    },
    /// Mark the packet.
    SetMark(u32),
    /// Set bits of the connection's mark.
    SetCtMark(Mark),
    /// Mark of the packet to the connection.
    SaveMark,
    /// Mark of the connection to the packet.
    RestoreMark,
    /// Conntrack zone.
    SetZone(u16),
}

/// Every table that Istio or Sluice makes in a pod, for a sidecar (reference 3.6)
/// or for ztunnel (4.6).
pub const TABLES: [&str; 6] = [
    "istio-proxy-nat",
    "istio-proxy-mangle",
    "istio-proxy-raw",
    "istio-ambient-nat",
    "istio-ambient-mangle",
    "istio-ambient-raw",
];

/// Name of a table: Istio's (reference 3.6, 4.6).
#[must_use]
pub fn table_name(set: RuleSet, table: TableKind) -> &'static str {
    match (set, table) {
        (RuleSet::Sidecar, TableKind::Nat) => TABLES[0],
        (RuleSet::Sidecar, TableKind::Mangle) => TABLES[1],
        (RuleSet::Sidecar, TableKind::Raw) => TABLES[2],
        (RuleSet::Ambient, TableKind::Nat) => TABLES[3],
        (RuleSet::Ambient, TableKind::Mangle) => TABLES[4],
        (RuleSet::Ambient, TableKind::Raw) => TABLES[5],
    }
}

/// Name of a chain: Istio's (reference 3.6, 4.6).
#[must_use]
pub fn chain_name(chain: ChainKind) -> &'static str {
    match chain {
        ChainKind::Prerouting => "prerouting",
        ChainKind::OutputHook => "output",
        ChainKind::Inbound => "istio-inbound",
        ChainKind::Redirect => "istio-redirect",
        ChainKind::InRedirect => "istio-in-redirect",
        ChainKind::Output => "istio-output",
        ChainKind::OutputDns => "istio-output-dns",
        ChainKind::Divert => "istio-divert",
        ChainKind::Tproxy => "istio-tproxy",
        ChainKind::Drop => "istio-drop",
        ChainKind::Arrival => "istio-prerouting",
    }
}

/// Hook of a chain in a table (reference 3.6), if the kernel calls it.
#[must_use]
pub fn hook(table: TableKind, chain: ChainKind) -> Option<Hook> {
    let point = match chain {
        ChainKind::Prerouting => HookPoint::Prerouting,
        ChainKind::OutputHook => HookPoint::Output,
        _ => return None,
    };
    let (kind, priority) = match (table, point) {
        (TableKind::Nat, _) => (HookType::Nat, -100),
        (TableKind::Mangle, HookPoint::Prerouting) => (HookType::Filter, -150),
        (TableKind::Mangle, HookPoint::Output) => (HookType::Route, -150),
        (TableKind::Raw, _) => (HookType::Filter, -300),
    };
    Some(Hook { kind, point, priority })
}

/// Lowers rules to nftables' statements.
#[must_use]
pub fn lower(desired: &Desired) -> Ruleset {
    let tables = desired.tables.iter().map(|table| Table {
        name: table_name(desired.set, table.kind),
        chains: table
            .chains
            .iter()
            .map(|chain| Chain {
                name: chain_name(chain.kind),
                hook: hook(table.kind, chain.kind),
                rules: chain
                    .rules
                    .iter()
                    .map(|rule| Rule {
                        statements: statements(rule, desired.ipv6 || chain.kind.is_hook()),
                        why: rule.why,
                    })
                    .collect(),
            })
            .collect(),
    });
    Ruleset { tables: tables.collect() }
}

/// `mixed`: packets of both families reach this chain, so a rule for one of them
/// that matches no address must say which.
fn statements(rule: &DesiredRule, mixed: bool) -> Vec<Statement> {
    let has_address =
        rule.matches.iter().any(|m| matches!(m, Match::Source(_) | Match::Destination(_)));
    let family = match rule.family {
        RuleFamily::V4 => Some(Family::V4),
        RuleFamily::V6 => Some(Family::V6),
        RuleFamily::Any => None,
    };
    let mut out = Vec::with_capacity(rule.matches.len() + 4);
    if let Some(family) = family
        && mixed
        && !has_address
    {
        out.push(Statement::Nfproto(family));
    }
    out.extend(rule.matches.iter().map(condition));
    match &rule.action {
        // Both a statement and an end; the mark makes the route to the listener.
        Action::Tproxy { port, mark } => {
            let family = family.unwrap_or(Family::V4);
            out.push(Statement::Tproxy { family, port: *port });
            out.push(Statement::SetMark(*mark));
            out.push(Statement::Counter);
            out.push(Statement::Accept);
        }
        action => {
            out.push(Statement::Counter);
            out.push(effect(action));
        }
    }
    out
}

fn condition(m: &Match) -> Statement {
    match m.clone() {
        Match::Proto(proto) => Statement::L4proto(proto),
        Match::InInterface(nic) => Statement::InName(nic),
        Match::OutInterface(is) => Statement::OutName(is),
        Match::Source(cidr) => Statement::Source(cidr),
        Match::Destination(is) => Statement::Destination(is),
        Match::SourcePort(port) => Statement::SourcePort(port),
        Match::DestinationPort(is) => Statement::DestinationPort(is),
        Match::DestinationPortNotIn(ports) => Statement::DestinationPortNotIn(ports),
        Match::Uid(is) => Statement::SkUid(is),
        Match::Gid(is) => Statement::SkGid(is),
        Match::State(state) => Statement::State(state),
        Match::Mark(is) => Statement::Mark(is),
        Match::ConnMark(mark) => Statement::CtMark(mark),
        Match::Syn => Statement::Syn,
    }
}

fn effect(action: &Action) -> Statement {
    match *action {
        Action::Return => Statement::Return,
        // Tproxy is lowered by the caller; its end is an accept.
        Action::Accept | Action::Tproxy { .. } => Statement::Accept,
        Action::Drop => Statement::Drop,
        Action::Jump(chain) => Statement::Jump(chain_name(chain)),
        Action::Redirect(port) => Statement::Redirect(port),
        Action::SetMark(mark) => Statement::SetMark(mark),
        Action::SetConnMark(mark) => Statement::SetCtMark(mark),
        Action::SaveMark => Statement::SaveMark,
        Action::RestoreMark => Statement::RestoreMark,
        Action::SetZone(zone) => Statement::SetZone(zone),
    }
}

/// Script for `nft -f` that creates the tables, or replaces what is in them, in
/// one transaction.
#[must_use]
pub fn render(desired: &Desired) -> String {
    lower(desired).to_string()
}
