//! Netfilter as types: the rules, routes and addresses that a plan needs.
//!
//! Both dialects render this one value: iptables' rules are those of each family
//! that apply to it, nftables' are all of them in `inet` tables. Names of tables
//! and chains are the renderers' ([`crate::iptables`], [`crate::nft`]).

use crate::net::{Cidr, Family, Interface, Owner};

/// In which words a plan is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Ours: REDIRECT takes new connections only, and nothing of IPv6 is captured
    /// when IPv6 is off. The same in both dialects.
    Sluice,
    /// Istio's exact rules as its tool of this dialect writes them, for comparison
    /// and to recognise a pod that Istio programmed.
    Istio(Dialect),
}

/// A netfilter dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// iptables and ip6tables.
    Iptables,
    /// nftables, `inet` tables.
    Nftables,
}

/// Whose rules: the names of tables and chains differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RuleSet {
    /// For the pod's own Envoy.
    #[default]
    Sidecar,
    /// For the node's ztunnel.
    Ambient,
}

/// Everything that must hold in a pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Whose rules these are. A namespace has those of one set: applying one
    /// removes the other.
    pub set: RuleSet,
    /// Rules of both families are wanted; without it every rule is IPv4's (or,
    /// in Istio's nftables form, bound to no family).
    pub ipv6: bool,
    /// Tables that have at least one rule, each with its chains; a chain's rules
    /// stand in their final order.
    pub tables: Vec<Table>,
    /// What must hold beside the rules.
    pub routing: Routing,
}

/// Addresses, policy rules and routes (reference 3.5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routing {
    /// Addresses on `lo`.
    pub loopback: Vec<Cidr>,
    /// `ip rule`: packets with this mark use this table, per family.
    pub marks: Vec<MarkRoute>,
}

/// `ip rule add fwmark MARK/MASK lookup TABLE` and `ip route add local default dev
/// lo table TABLE` of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MarkRoute {
    /// Family of the rule and of the route.
    pub family: Family,
    /// The firewall mark.
    pub mark: u32,
    /// Bits of the mark that are compared.
    pub mask: u32,
    /// Number of the routing table.
    pub table: u32,
    /// Priority of the rule; any will do when there is none.
    pub priority: Option<u32>,
}

/// A firewall mark, of which some bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits; none outside of the mask.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

impl Mark {
    /// Some bits of a mark; bits of `value` outside of `mask` are cleared.
    #[must_use]
    pub const fn masked(value: u32, mask: u32) -> Self {
        Self { value: value & mask, mask }
    }

    /// All bits of a mark.
    #[must_use]
    pub const fn exact(value: u32) -> Self {
        Self { value, mask: u32::MAX }
    }

    /// True when all bits count.
    #[must_use]
    pub const fn is_exact(self) -> bool {
        self.mask == u32::MAX
    }

    /// True when a mark has these bits.
    #[must_use]
    pub const fn is_in(self, mark: u32) -> bool {
        mark & self.mask == self.value
    }

    /// A mark with these bits set, the others as they were.
    #[must_use]
    pub const fn set_in(self, mark: u32) -> u32 {
        (mark & !self.mask) | self.value
    }
}

/// Which netfilter table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableKind {
    /// Address translation.
    Nat,
    /// Marks, TPROXY, drop.
    Mangle,
    /// Conntrack zones.
    Raw,
}

/// A table with the chains that have rules or are jumped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which table.
    pub kind: TableKind,
    /// Chains, in order of first appearance.
    pub chains: Vec<Chain>,
}

/// A chain and its rules in final order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Which chain.
    pub kind: ChainKind,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Which chain. The first two hang at the kernel's hook of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainKind {
    /// The hook for packets that arrive.
    Prerouting,
    /// The hook for packets that are sent by a local process.
    OutputHook,
    /// Inbound policy.
    Inbound,
    /// To the outbound listener.
    Redirect,
    /// To the inbound listener.
    InRedirect,
    /// Outbound policy.
    Output,
    /// DNS policy.
    OutputDns,
    /// Packets of a connection that a transparent socket owns.
    Divert,
    /// TPROXY.
    Tproxy,
    /// Drop.
    Drop,
    /// What arrives, for ztunnel.
    Arrival,
}

impl ChainKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Prerouting,
        Self::OutputHook,
        Self::Inbound,
        Self::Redirect,
        Self::InRedirect,
        Self::Output,
        Self::OutputDns,
        Self::Divert,
        Self::Tproxy,
        Self::Drop,
        Self::Arrival,
    ];

    /// True for a chain that the kernel calls by itself.
    #[must_use]
    pub fn is_hook(self) -> bool {
        matches!(self, Self::Prerouting | Self::OutputHook)
    }
}

/// A rule: all matches hold, then the action is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Family the rule is for.
    pub family: RuleFamily,
    /// Conditions, all of which must hold; empty matches every packet.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
    /// Why the rule is there, for people.
    pub why: &'static str,
}

/// Family of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleFamily {
    /// Only IPv4 packets. In an `inet` chain that a hook calls, a rule without an
    /// address match must test for it; deeper chains are reached by such rules only.
    V4,
    /// Only IPv6 packets.
    V6,
    /// Both.
    Any,
}

impl RuleFamily {
    /// True when packets of this family can match.
    #[must_use]
    pub fn covers(self, family: Family) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => family == Family::V4,
            Self::V6 => family == Family::V6,
        }
    }
}

/// A value that must, or must not, be had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Is<T> {
    /// It must.
    Eq(T),
    /// It must not.
    Not(T),
}

impl<T> Is<T> {
    /// The value, with true when it must not be had.
    pub fn parts(&self) -> (&T, bool) {
        match self {
            Self::Eq(value) => (value, false),
            Self::Not(value) => (value, true),
        }
    }
}

/// A condition on a packet. A port condition without a [`Match::Proto`] beside it
/// does not occur.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// Transport protocol.
    Proto(Proto),
    /// Interface it arrives on.
    InInterface(Interface),
    /// Interface it leaves by.
    OutInterface(Is<Interface>),
    /// Source address.
    Source(Cidr),
    /// Destination address.
    Destination(Is<Cidr>),
    /// Source port.
    SourcePort(u16),
    /// Destination port.
    DestinationPort(Is<u16>),
    /// Destination port is none of these.
    DestinationPortNotIn(Vec<u16>),
    /// User of the sending socket.
    Uid(Is<Owner>),
    /// Group of the sending socket.
    Gid(Is<Owner>),
    /// State of the connection.
    State(CtState),
    /// Firewall mark of the packet.
    Mark(Is<Mark>),
    /// Mark of the connection.
    ConnMark(Mark),
    /// The first packet of a TCP connection: of SYN, ACK, FIN and RST just SYN.
    Syn,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtState {
    /// RELATED or ESTABLISHED.
    RelatedOrEstablished,
    /// INVALID.
    Invalid,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Back to the calling chain.
    Return,
    /// Let the packet pass this table.
    Accept,
    /// Drop the packet.
    Drop,
    /// Go on in another chain of the same table.
    Jump(ChainKind),
    /// NAT to this port of the local host.
    Redirect(u16),
    /// Give the packet to the transparent listener on `port` and mark it.
    Tproxy {
        /// Port of the listener.
        port: u16,
        /// Mark that routes the packet to the local host.
        mark: u32,
    },
    /// Mark the packet.
    SetMark(u32),
    /// Set bits of the connection's mark.
    SetConnMark(Mark),
    /// Copy the packet's mark to its connection.
    SaveMark,
    /// Copy the connection's mark to the packet.
    RestoreMark,
    /// Conntrack zone of the packet.
    SetZone(u16),
}
