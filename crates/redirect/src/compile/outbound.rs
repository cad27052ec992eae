//! Outbound connections: steps 6 to 11 and 13 to 16.

use super::dns::DOMAIN;
use super::{Compiler, PASSTHROUGH_V4, PASSTHROUGH_V6, out_lo, tcp};
use crate::desired::ChainKind as C;
use crate::desired::TableKind::Nat;
use crate::desired::{Action, Is, Match, Proto, RuleFamily};
use crate::net::{Cidr, Owner};
use crate::plan::{Destinations, Groups};

impl Compiler<'_> {
    /// Steps 6 to 8.
    pub(super) fn outbound_head(&mut self) {
        let any = self.any();
        let why = "outbound traffic";
        self.add((Nat, C::OutputHook), any, vec![], Action::Jump(C::Output), why);
        for &port in &self.plan.outbound.exclude_ports {
            for proto in [Proto::Tcp, Proto::Udp] {
                let matches = vec![Match::Proto(proto), Match::DestinationPort(Is::Eq(port))];
                let why = "the pod excludes this outbound port";
                self.add((Nat, C::Output), any, matches, Action::Return, why);
            }
        }
        let mut sources = vec![(RuleFamily::V4, PASSTHROUGH_V4)];
        if self.plan.ipv6 {
            sources.push((RuleFamily::V6, PASSTHROUGH_V6));
        }
        for (family, source) in sources {
            let matches = vec![out_lo(), Match::Source(Cidr::host(source))];
            let why = "what the proxy passes on to the app from its inbound listener";
            self.add((Nat, C::Output), family, matches, Action::Return, why);
        }
    }

    /// Steps 9 and 10: traffic of the proxy itself, by user or by group.
    pub(super) fn proxy_owner(
        &mut self,
        owner: &dyn Fn(Is<Owner>) -> Match,
        id: &Owner,
        user: bool,
    ) {
        let (any, plan) = (self.any(), self.plan);
        let dns = plan.dns.captures();
        let tunnel = plan.proxy.tunnel_port;
        for (family, loopback) in self.loopbacks() {
            let port = if dns && user {
                Match::DestinationPortNotIn(vec![DOMAIN, tunnel])
            } else {
                Match::DestinationPort(Is::Not(tunnel))
            };
            let matches = vec![
                out_lo(),
                Match::Destination(Is::Not(loopback)),
                tcp(),
                port,
                owner(Is::Eq(id.clone())),
            ];
            let why = "the proxy calls a service that is this pod: inbound policy applies";
            self.add((Nat, C::Output), family, matches, Action::Jump(C::InRedirect), why);
        }
        let loopback_included = matches!(
            &plan.outbound.include,
            Destinations::Only(cidrs) if cidrs.iter().any(Cidr::is_loopback)
        );
        if !loopback_included {
            let mut matches = vec![out_lo()];
            if dns {
                matches.push(tcp());
                matches.push(Match::DestinationPort(Is::Not(DOMAIN)));
            }
            matches.push(owner(Is::Not(id.clone())));
            let why = "the app talks to itself: not captured";
            self.add((Nat, C::Output), any, matches, Action::Return, why);
        }
        let why = "the proxy's own traffic is not captured again";
        self.add((Nat, C::Output), any, vec![owner(Is::Eq(id.clone()))], Action::Return, why);
    }

    /// Step 11.
    pub(super) fn groups(&mut self) {
        let any = self.any();
        let why = "processes of this group are not captured";
        match &self.plan.outbound.groups {
            Groups::AllExcept(except) => {
                for gid in except {
                    let matches = vec![Match::Gid(Is::Eq(gid.clone()))];
                    self.add((Nat, C::Output), any, matches, Action::Return, why);
                }
            }
            Groups::Only(only) => {
                let matches = only.iter().map(|g| Match::Gid(Is::Not(g.clone()))).collect();
                self.add((Nat, C::Output), any, matches, Action::Return, why);
            }
        }
    }

    /// Steps 13 to 16.
    pub(super) fn outbound_tail(&mut self) {
        let (any, plan) = (self.any(), self.plan);
        for (family, loopback) in self.loopbacks() {
            let matches = vec![Match::Destination(Is::Eq(loopback))];
            let why = "the loopback address is the pod's own";
            self.add((Nat, C::Output), family, matches, Action::Return, why);
        }
        for (family, cidr) in self.by_family(&plan.outbound.exclude) {
            let matches = vec![Match::Destination(Is::Eq(*cidr))];
            let why = "the pod excludes these destinations";
            self.add((Nat, C::Output), family, matches, Action::Return, why);
        }
        for &port in &plan.outbound.include_ports {
            let matches = vec![tcp(), Match::DestinationPort(Is::Eq(port))];
            let why = "the pod includes this outbound port";
            self.add((Nat, C::Output), any, matches, Action::Jump(C::Redirect), why);
        }
        let guest = "outbound connections of a guest";
        match &plan.outbound.include {
            Destinations::All => {
                let jump = Action::Jump(C::Redirect);
                let why = "all other destinations are captured";
                self.add((Nat, C::Output), any, vec![], jump.clone(), why);
                for nic in &plan.virtual_interfaces {
                    let arrive = vec![Match::InInterface(nic.clone())];
                    self.insert(0, (Nat, C::Prerouting), any, arrive, jump.clone(), guest);
                }
            }
            Destinations::Only(cidrs) => {
                for (family, cidr) in self.by_family(cidrs) {
                    let to = Match::Destination(Is::Eq(*cidr));
                    for nic in &plan.virtual_interfaces {
                        let arrive = vec![Match::InInterface(nic.clone()), to.clone()];
                        let jump = Action::Jump(C::Redirect);
                        self.insert(0, (Nat, C::Prerouting), family, arrive, jump, guest);
                    }
                    let why = "the pod includes these destinations";
                    self.add((Nat, C::Output), family, vec![to], Action::Jump(C::Redirect), why);
                }
            }
        }
    }
}
