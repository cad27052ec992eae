//! The iptables dialect: names, and the text that `iptables-restore --noflush`
//! and `ip6tables-restore --noflush` load.

use crate::desired::{
    Action, Chain, ChainKind, CtState, Desired, Is, Mark, Match, Proto, Rule, TableKind,
};
use crate::net::{Family, Interface};
use std::fmt::Write as _;

/// Name of a table.
#[must_use]
pub fn table_name(table: TableKind) -> &'static str {
    match table {
        TableKind::Nat => "nat",
        TableKind::Mangle => "mangle",
        TableKind::Raw => "raw",
    }
}

/// Name of a chain: Istio's, so that either agent can clean up after the other
/// (reference 10.7).
#[must_use]
pub fn chain_name(chain: ChainKind) -> &'static str {
    match chain {
        ChainKind::Prerouting => "PREROUTING",
        ChainKind::OutputHook => "OUTPUT",
        ChainKind::Inbound => "ISTIO_INBOUND",
        ChainKind::Redirect => "ISTIO_REDIRECT",
        ChainKind::InRedirect => "ISTIO_IN_REDIRECT",
        ChainKind::Output => "ISTIO_OUTPUT",
        ChainKind::OutputDns => "ISTIO_OUTPUT_DNS",
        ChainKind::Divert => "ISTIO_DIVERT",
        ChainKind::Tproxy => "ISTIO_TPROXY",
        ChainKind::Drop => "ISTIO_DROP",
        ChainKind::Arrival => "ISTIO_PRERT",
    }
}

/// Chains of a table that a family needs: those with a rule for it, and those
/// such a rule jumps to.
#[must_use]
pub fn chains(table: &crate::desired::Table, family: Family) -> Vec<&Chain> {
    let rules = |c: &Chain| c.rules.iter().any(|r| r.family.covers(family));
    let target =
        |kind: ChainKind| {
            table.chains.iter().flat_map(|c| &c.rules).any(|r| {
                r.family.covers(family) && matches!(r.action, Action::Jump(to) if to == kind)
            })
        };
    table.chains.iter().filter(|c| rules(c) || target(c.kind)).collect()
}

/// Input of `iptables-restore --noflush` (or `ip6tables-restore`) that creates the
/// rules of one family in a namespace without them; empty when there are none.
#[must_use]
pub fn render(desired: &Desired, family: Family) -> String {
    let mut text = String::new();
    if family == Family::V6 && !desired.ipv6 {
        return text;
    }
    for table in &desired.tables {
        let chains = chains(table, family);
        if chains.is_empty() {
            continue;
        }
        let _ = writeln!(text, "*{}", table_name(table.kind));
        for chain in chains.iter().filter(|c| !c.kind.is_hook()) {
            let _ = writeln!(text, "-N {}", chain_name(chain.kind));
        }
        for chain in &chains {
            for rule in chain.rules.iter().filter(|r| r.family.covers(family)) {
                let _ = writeln!(text, "-A {} {}", chain_name(chain.kind), rule_spec(rule));
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// What follows `-A CHAIN` in a rule.
#[must_use]
pub fn rule_spec(rule: &Rule) -> String {
    let mut words: Vec<String> = Vec::new();
    for m in &rule.matches {
        words.push(match_spec(m));
    }
    words.push(action_spec(&rule.action));
    words.join(" ")
}

fn not(negated: bool) -> &'static str {
    if negated { "! " } else { "" }
}

fn proto_name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

/// iptables writes the prefix of a name with `+`.
fn interface(nic: &Interface) -> String {
    format!("{}{}", nic.stem(), if nic.is_wildcard() { "+" } else { "" })
}

fn owner(flag: &str, is: &Is<crate::net::Owner>) -> String {
    let (id, negated) = is.parts();
    format!("-m owner {}--{flag} {id}", not(negated))
}

fn mark_text(mark: Mark) -> String {
    let Mark { value, mask } = mark;
    if mark.is_exact() { value.to_string() } else { format!("{value:#x}/{mask:#x}") }
}

fn match_spec(m: &Match) -> String {
    match m {
        Match::Proto(proto) => format!("-p {}", proto_name(*proto)),
        Match::InInterface(nic) => format!("-i {}", interface(nic)),
        Match::OutInterface(is) => {
            let (nic, negated) = is.parts();
            format!("{}-o {}", not(negated), interface(nic))
        }
        Match::Source(cidr) => format!("-s {cidr}"),
        Match::Destination(is) => {
            let (cidr, negated) = is.parts();
            format!("{}-d {cidr}", not(negated))
        }
        Match::SourcePort(port) => format!("--sport {port}"),
        Match::DestinationPort(is) => {
            let (port, negated) = is.parts();
            format!("{}--dport {port}", not(negated))
        }
        Match::DestinationPortNotIn(ports) => {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!("-m multiport ! --dports {}", ports.join(","))
        }
        Match::Uid(is) => owner("uid-owner", is),
        Match::Gid(is) => owner("gid-owner", is),
        Match::State(CtState::RelatedOrEstablished) => {
            "-m conntrack --ctstate RELATED,ESTABLISHED".to_owned()
        }
        Match::State(CtState::Invalid) => "-m conntrack --ctstate INVALID".to_owned(),
        Match::Mark(is) => {
            let (mark, negated) = is.parts();
            format!("-m mark {}--mark {}", not(negated), mark_text(*mark))
        }
        Match::ConnMark(mark) => format!("-m connmark --mark {}", mark_text(*mark)),
        Match::Syn => "--syn".to_owned(),
    }
}

fn action_spec(action: &Action) -> String {
    match action {
        Action::Return => "-j RETURN".to_owned(),
        Action::Accept => "-j ACCEPT".to_owned(),
        Action::Drop => "-j DROP".to_owned(),
        Action::Jump(chain) => format!("-j {}", chain_name(*chain)),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Action::Tproxy { port, mark } => {
            format!("-j TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}")
        }
        Action::SetMark(mark) => format!("-j MARK --set-mark {mark}"),
        Action::SetConnMark(Mark { value, mask }) => {
            format!("-j CONNMARK --set-xmark {value:#x}/{mask:#x}")
        }
        Action::SaveMark => "-j CONNMARK --save-mark".to_owned(),
        Action::RestoreMark => "-j CONNMARK --restore-mark".to_owned(),
        Action::SetZone(zone) => format!("-j CT --zone {zone}"),
    }
}
