//! From a plan to rules: what section 3.2 (iptables) and 3.6 (nftables) of the
//! reference fix, written once for both dialects. A step's number is the
//! reference's.

mod ambient;
mod chains;
mod dns;
mod inbound;
mod outbound;

pub use ambient::ambient;

use crate::desired::{
    Action, ChainKind, CtState, Desired, Dialect, Form, Is, MarkRoute, Match, Proto, Routing,
    RuleFamily, RuleSet, TableKind,
};
use crate::net::{Cidr, Family, Interface};
use crate::plan::{Inbound, Mode, Plan};
use chains::Chains;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ChainKind as C;
use TableKind::{Mangle, Nat};

/// Source address of what Envoy sends to the app, exempt from capture (8.9).
const PASSTHROUGH_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// The same for IPv6; programming puts it on `lo` (3.5).
const PASSTHROUGH_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Compiles a plan into the rules of a form.
#[must_use]
pub fn compile(plan: &Plan, form: Form) -> Desired {
    let mut c = Compiler { plan, form, chains: Chains::default() };
    c.interfaces();
    c.drop_invalid();
    c.targets();
    c.inbound();
    c.outbound_head();
    for uid in &plan.proxy.uids {
        c.proxy_owner(&|is| Match::Uid(is), uid, true);
    }
    for gid in &plan.proxy.gids {
        c.proxy_owner(&|is| Match::Gid(is), gid, false);
    }
    c.groups();
    c.dns();
    c.outbound_tail();
    c.tproxy_marks();
    Desired {
        set: RuleSet::Sidecar,
        ipv6: plan.ipv6,
        tables: c.chains.into_tables(),
        routing: routing(plan),
    }
}

/// Addresses and routes (3.5), the same in every form.
fn routing(plan: &Plan) -> Routing {
    let mut routing = Routing::default();
    if plan.ipv6 {
        routing.loopback.push(Cidr::host(PASSTHROUGH_V6));
    }
    if let Mode::Tproxy { mark, table } = plan.mode
        && plan.inbound != Inbound::Nothing
    {
        let route = |family| MarkRoute { family, mark, mask: u32::MAX, table, priority: None };
        routing.marks.push(route(Family::V4));
        if plan.ipv6 {
            routing.marks.push(route(Family::V6));
        }
    }
    routing
}

struct Compiler<'a> {
    plan: &'a Plan,
    form: Form,
    chains: Chains,
}

/// Conditions every rule of the proxy's transparent path begins with.
fn tcp() -> Match {
    Match::Proto(Proto::Tcp)
}

fn out_lo() -> Match {
    Match::OutInterface(Is::Eq(Interface::loopback()))
}

fn in_lo() -> Match {
    Match::InInterface(Interface::loopback())
}

impl Compiler<'_> {
    /// Family of a rule that is the same for both.
    fn any(&self) -> RuleFamily {
        // Istio's nftables tables are `inet` and say nothing of the family, so they
        // capture IPv6 also where it is off (10.1): reproduced in its form alone.
        if self.plan.ipv6 || self.form == Form::Istio(Dialect::Nftables) {
            RuleFamily::Any
        } else {
            RuleFamily::V4
        }
    }

    fn add(
        &mut self,
        (table, chain): (TableKind, ChainKind),
        family: RuleFamily,
        matches: Vec<Match>,
        action: Action,
        why: &'static str,
    ) {
        self.insert(usize::MAX, (table, chain), family, matches, action, why);
    }

    /// Inserts before the rule at `index`; appends when there is none.
    fn insert(
        &mut self,
        index: usize,
        (table, chain): (TableKind, ChainKind),
        family: RuleFamily,
        matches: Vec<Match>,
        action: Action,
        why: &'static str,
    ) {
        self.chains.insert(index, (table, chain), family, matches, action, why);
    }

    /// Families with the loopback prefix of each.
    fn loopbacks(&self) -> Vec<(RuleFamily, Cidr)> {
        let mut all = vec![(RuleFamily::V4, self.plan.loopback_v4)];
        if self.plan.ipv6 {
            all.push((RuleFamily::V6, Cidr::host(Ipv6Addr::LOCALHOST.into())));
        }
        all
    }

    /// Prefixes of the families that are captured, IPv4 first.
    fn by_family<'c>(&self, cidrs: &'c [Cidr]) -> Vec<(RuleFamily, &'c Cidr)> {
        let of = |family, rule: RuleFamily| {
            cidrs.iter().filter(move |c| c.family() == family).map(move |c| (rule, c))
        };
        let mut all: Vec<_> = of(Family::V4, RuleFamily::V4).collect();
        if self.plan.ipv6 {
            all.extend(of(Family::V6, RuleFamily::V6));
        }
        all
    }

    /// New connections only, in our form: with no conntrack entry of before, a
    /// packet in the middle of a running connection counts as new and would be
    /// redirected, and the connection reset.
    fn syn(&self) -> Option<Match> {
        (self.form == Form::Sluice).then_some(Match::Syn)
    }

    /// Steps 1 and 2: interfaces that are left alone, interfaces of guests.
    fn interfaces(&mut self) {
        let any = self.any();
        let tables: &[TableKind] = match self.plan.mode {
            Mode::Redirect => &[Nat],
            Mode::Tproxy { .. } => &[Nat, Mangle],
        };
        for &table in tables {
            for nic in &self.plan.exclude_interfaces {
                let why = "the pod excludes this interface";
                let arrive = vec![Match::InInterface(nic.clone())];
                self.add((table, C::Prerouting), any, arrive, Action::Return, why);
                let leave = vec![Match::OutInterface(Is::Eq(nic.clone()))];
                self.add((table, C::OutputHook), any, leave, Action::Return, why);
            }
        }
        for nic in &self.plan.virtual_interfaces {
            let why = "what a guest sends is outbound traffic, not inbound";
            let arrive = vec![Match::InInterface(nic.clone())];
            self.insert(0, (Nat, C::Prerouting), any, arrive, Action::Return, why);
        }
    }

    /// Step 3.
    fn drop_invalid(&mut self) {
        if !self.plan.drop_invalid {
            return;
        }
        let any = self.any();
        let mut matches = vec![Match::State(CtState::Invalid)];
        // Istio's two dialects differ here; ours takes TCP, which the option is for,
        // in both: an ICMP error of an unknown flow is invalid too, and carries path
        // MTU discovery.
        if self.form != Form::Istio(Dialect::Iptables) {
            matches.insert(0, tcp());
        }
        let why = "packets that conntrack finds invalid would make the pod reset connections";
        self.add((Mangle, C::Prerouting), any, matches, Action::Jump(C::Drop), why);
        self.add((Mangle, C::Drop), any, vec![], Action::Drop, why);
    }
}
