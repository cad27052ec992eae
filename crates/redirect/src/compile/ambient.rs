//! Rules of an ambient pod: reference 4.3 (iptables), 4.6 (nftables) and 4.4
//! (routing). A step's number is the reference's.

use super::chains::{Chains, Place};
use super::{out_lo, tcp};
use crate::ambient::{
    AmbientPlan, Ipv6, ProbePorts, REPLY_MARK, REPLY_PRIORITY, REPLY_TABLE, ZTUNNEL_MARK,
};
use crate::desired::ChainKind as C;
use crate::desired::TableKind::{Mangle, Nat, Raw};
use crate::desired::{
    Action, Desired, Dialect, Form, Is, MarkRoute, Match, Proto, Routing, RuleFamily, RuleSet,
};
use crate::net::{Cidr, Family, Interface};
use crate::plan::{DNS_PORT, INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::dns::DOMAIN;

/// Zone of ztunnel's own queries, so that they do not meet those of the app.
const ZONE_ZTUNNEL: u16 = 1;

/// Compiles an ambient plan into the rules of a form.
///
/// Both dialects of Istio's form differ in one point only: its nftables rules are of
/// no family, so they capture IPv6 also where it is off.
#[must_use]
pub fn ambient(plan: &AmbientPlan, form: Form) -> Desired {
    let mut c = Compiler::new(plan, form);
    c.nat_jumps();
    c.virtual_interfaces();
    c.replies();
    c.inbound();
    c.outbound();
    c.finish()
}

struct Compiler<'a> {
    plan: &'a AmbientPlan,
    form: Form,
    chains: Chains,
    /// Family of a rule that is the same for both.
    any: RuleFamily,
    /// Each family with the loopback address and the source of probes.
    families: Vec<(RuleFamily, Cidr, Cidr)>,
}

fn udp() -> Match {
    Match::Proto(Proto::Udp)
}

fn to_port(port: u16) -> Match {
    Match::DestinationPort(Is::Eq(port))
}

fn of_ztunnel() -> Match {
    Match::Mark(Is::Eq(ZTUNNEL_MARK))
}

fn not_of_ztunnel() -> Match {
    Match::Mark(Is::Not(ZTUNNEL_MARK))
}

fn not_to(address: Cidr) -> Match {
    Match::Destination(Is::Not(address))
}

impl<'a> Compiler<'a> {
    fn new(plan: &'a AmbientPlan, form: Form) -> Self {
        let both = plan.captures_ipv6() || form == Form::Istio(Dialect::Nftables);
        let host = Cidr::host;
        let v4 = (RuleFamily::V4, host(Ipv4Addr::LOCALHOST.into()), host(plan.probe_v4.into()));
        let v6 = (RuleFamily::V6, host(Ipv6Addr::LOCALHOST.into()), host(plan.probe_v6.into()));
        let families = if plan.captures_ipv6() { vec![v4, v6] } else { vec![v4] };
        let any = if both { RuleFamily::Any } else { RuleFamily::V4 };
        Self { plan, form, chains: Chains::default(), any, families }
    }

    fn add(
        &mut self,
        place: Place,
        family: RuleFamily,
        matches: impl IntoIterator<Item = Match>,
        action: Action,
        why: &'static str,
    ) {
        let matches = matches.into_iter().collect();
        self.chains.insert(usize::MAX, place, family, matches, action, why);
    }

    /// TCP, and in our form new connections only: a packet in the middle of one that
    /// conntrack does not know counts as new, and the connection would be reset.
    fn new_tcp(&self) -> impl Iterator<Item = Match> + use<> {
        let syn = (self.form == Form::Sluice).then_some(Match::Syn);
        std::iter::once(tcp()).chain(syn)
    }

    fn nat_jumps(&mut self) {
        let any = self.any;
        let why = "outbound traffic";
        self.add((Nat, C::OutputHook), any, [], Action::Jump(C::Output), why);
        let why = "inbound traffic";
        self.add((Nat, C::Prerouting), any, [], Action::Jump(C::Arrival), why);
    }

    /// Step 6.
    fn virtual_interfaces(&mut self) {
        let arrival = (Nat, C::Arrival);
        for nic in &self.plan.virtual_interfaces {
            let arrive = || std::iter::once(Match::InInterface(nic.clone()));
            let why = "outbound connections of a guest";
            let matches = arrive().chain(self.new_tcp());
            self.add(arrival, self.any, matches, Action::Redirect(OUTBOUND_PORT), why);
            let why = "a guest's connections are no inbound ones";
            self.add(arrival, self.any, arrive().chain([tcp()]), Action::Return, why);
        }
    }

    /// Steps 1, 2, 7 and 11: how the app's replies to ztunnel, which speaks with the
    /// client's address, find back to it.
    fn replies(&mut self) {
        let any = self.any;
        let why = "replies to ztunnel find back to it";
        self.add((Mangle, C::Prerouting), any, [], Action::Jump(C::Arrival), why);
        self.add((Mangle, C::OutputHook), any, [], Action::Jump(C::Output), why);
        let why = "a connection that ztunnel opened to the app";
        let mark = Action::SetConnMark(REPLY_MARK);
        self.add((Mangle, C::Arrival), any, [of_ztunnel()], mark, why);
        let why = "the app's reply is routed to ztunnel, not to the client";
        let replies = [Match::ConnMark(REPLY_MARK)];
        self.add((Mangle, C::Output), any, replies, Action::RestoreMark, why);
    }

    /// Steps 8 and 10.
    fn inbound(&mut self) {
        if !self.plan.inbound {
            return;
        }
        let arrival = (Nat, C::Arrival);
        let ports: Vec<Option<u16>> = match (&self.plan.probe_ports, self.form) {
            (ProbePorts::Only(ports), Form::Sluice) => ports.iter().copied().map(Some).collect(),
            _ => vec![None],
        };
        for (family, _, probe) in self.families.clone() {
            for port in &ports {
                let matches = [Some(tcp()), Some(Match::Source(probe)), port.map(to_port)];
                let why = "kubelet's probes, by the address that the host gives them";
                let matches = matches.into_iter().flatten();
                self.add(arrival, family, matches, Action::Accept, why);
            }
        }
        for (family, loopback, _) in self.families.clone() {
            let matches = std::iter::once(not_to(loopback))
                .chain(self.new_tcp())
                .chain([Match::DestinationPort(Is::Not(TUNNEL_PORT)), not_of_ztunnel()]);
            let why = "new inbound connections go to ztunnel, which listens for HBONE itself";
            self.add(arrival, family, matches, Action::Redirect(INBOUND_PORT), why);
        }
    }

    /// Steps 9 and 12 to 15.
    fn outbound(&mut self) {
        let output = (Nat, C::Output);
        let any = self.any;
        for (family, _, probe) in self.families.clone() {
            let matches = [tcp(), Match::Destination(Is::Eq(probe))];
            let why = "answers to kubelet's probes";
            self.add(output, family, matches, Action::Accept, why);
        }
        if self.plan.dns {
            self.dns();
        }
        let why = "replies to ztunnel";
        let matches = [tcp(), Match::Mark(Is::Eq(REPLY_MARK))];
        self.add(output, any, matches, Action::Accept, why);
        for (family, loopback, _) in self.families.clone() {
            let why = "the app talks to itself by one of the pod's addresses";
            self.add(output, family, [not_to(loopback), out_lo()], Action::Accept, why);
        }
        for (family, loopback, _) in self.families.clone() {
            let matches =
                std::iter::once(not_to(loopback)).chain(self.new_tcp()).chain([not_of_ztunnel()]);
            let why = "new outbound connections go to ztunnel";
            self.add(output, family, matches, Action::Redirect(OUTBOUND_PORT), why);
        }
    }

    /// Steps 4 and 12.
    fn dns(&mut self) {
        let (any, to_dns) = (self.any, Action::Redirect(DNS_PORT));
        let why = "DNS queries go to ztunnel's resolver";
        let lo = Match::OutInterface(Is::Not(Interface::loopback()));
        let matches = [lo, udp(), to_port(DOMAIN), not_of_ztunnel()];
        self.add((Nat, C::Output), any, matches, to_dns.clone(), why);
        for (family, loopback, _) in self.families.clone() {
            let matches = std::iter::once(not_to(loopback))
                .chain(self.new_tcp())
                .chain([to_port(DOMAIN), not_of_ztunnel()]);
            self.add((Nat, C::Output), family, matches, to_dns.clone(), why);
        }
        let why = "ztunnel's own queries";
        self.add((Raw, C::Prerouting), any, [], Action::Jump(C::Arrival), why);
        self.add((Raw, C::OutputHook), any, [], Action::Jump(C::Output), why);
        let zone = Action::SetZone(ZONE_ZTUNNEL);
        let query = [udp(), to_port(DOMAIN), of_ztunnel()];
        self.add((Raw, C::Output), any, query, zone.clone(), why);
        let answer = [udp(), Match::SourcePort(DOMAIN), not_of_ztunnel()];
        let why = "answers to ztunnel's own queries";
        self.add((Raw, C::Arrival), any, answer, zone, why);
    }

    fn finish(self) -> Desired {
        Desired {
            set: RuleSet::Ambient,
            ipv6: self.plan.captures_ipv6(),
            tables: self.chains.into_tables(),
            routing: routing(self.plan),
        }
    }
}

/// Reference 4.4, the same in every form.
fn routing(plan: &AmbientPlan) -> Routing {
    let route = |family| MarkRoute {
        family,
        mark: REPLY_MARK.value,
        mask: REPLY_MARK.mask,
        table: REPLY_TABLE,
        priority: Some(REPLY_PRIORITY),
    };
    let mut marks = vec![route(Family::V4)];
    if plan.ipv6 == Ipv6::Present {
        marks.push(route(Family::V6));
    }
    Routing { loopback: Vec::new(), marks }
}
