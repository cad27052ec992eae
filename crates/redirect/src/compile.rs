//! From a plan to rules: what section 3.2 (iptables) and 3.6 (nftables) of the
//! reference fix, written once for both dialects. A step's number is the
//! reference's.

use crate::desired::{
    Action, Chain, ChainKind, CtState, Desired, Dialect, Form, Is, MarkRoute, Match, Proto,
    Routing, Rule, RuleFamily, Table, TableKind,
};
use crate::net::{Cidr, Family, Interface, Owner};
use crate::plan::{DNS_PORT, Destinations, Dns, Groups, Inbound, Mode, Plan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ChainKind as C;
use TableKind::{Mangle, Nat, Raw};

/// Source address of what Envoy sends to the app, exempt from capture (8.9).
const PASSTHROUGH_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// The same for IPv6; programming puts it on `lo` (3.5).
const PASSTHROUGH_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
/// Port of DNS.
const DOMAIN: u16 = 53;
/// Zone of queries the proxy itself sends (3.2 step 12).
const ZONE_PROXY: u16 = 1;
/// Zone of queries an app sends to the proxy (3.2 step 12).
const ZONE_APP: u16 = 2;

/// Compiles a plan into the rules of a form.
#[must_use]
pub fn compile(plan: &Plan, form: Form) -> Desired {
    let mut c = Compiler {
        plan,
        form,
        chains: Vec::new(),
    };
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
        ipv6: plan.ipv6,
        tables: c.tables(),
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
        routing.marks.push(MarkRoute {
            family: Family::V4,
            mark,
            table,
        });
        if plan.ipv6 {
            routing.marks.push(MarkRoute {
                family: Family::V6,
                mark,
                table,
            });
        }
    }
    routing
}

struct Compiler<'a> {
    plan: &'a Plan,
    form: Form,
    chains: Vec<((TableKind, ChainKind), Vec<Rule>)>,
}

/// Conditions every rule of the proxy's transparent path begins with.
fn tcp() -> Match {
    Match::Proto(Proto::Tcp)
}

fn out_lo() -> Match {
    Match::OutInterface(Interface::loopback())
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

    fn chain(&mut self, table: TableKind, chain: ChainKind) -> &mut Vec<Rule> {
        let key = (table, chain);
        let at = self
            .chains
            .iter()
            .position(|(k, _)| *k == key)
            .unwrap_or_else(|| {
                self.chains.push((key, Vec::new()));
                self.chains.len() - 1
            });
        &mut self.chains[at].1
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
        let rules = self.chain(table, chain);
        let at = index.min(rules.len());
        rules.insert(
            at,
            Rule {
                family,
                matches,
                action,
                why,
            },
        );
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
            cidrs
                .iter()
                .filter(move |c| c.family() == family)
                .map(move |c| (rule, c))
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
                let leave = vec![Match::OutInterface(nic.clone())];
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
        self.add(
            (Mangle, C::Prerouting),
            any,
            matches,
            Action::Jump(C::Drop),
            why,
        );
        self.add((Mangle, C::Drop), any, vec![], Action::Drop, why);
    }

    /// Step 4: the chains that redirect.
    fn targets(&mut self) {
        let any = self.any();
        let proxy = &self.plan.proxy;
        let (outbound, inbound) = (proxy.outbound_port, proxy.inbound_port);
        let tunnel = vec![tcp(), Match::DestinationPort(Is::Eq(proxy.tunnel_port))];
        self.add(
            (Nat, C::Inbound),
            any,
            tunnel,
            Action::Return,
            "HBONE is never redirected",
        );
        let new_tcp: Vec<Match> = [Some(tcp()), self.syn()].into_iter().flatten().collect();
        let why = "new outbound connections go to the proxy's outbound listener";
        self.add(
            (Nat, C::Redirect),
            any,
            new_tcp.clone(),
            Action::Redirect(outbound),
            why,
        );
        let why = "new inbound connections go to the proxy's inbound listener";
        self.add(
            (Nat, C::InRedirect),
            any,
            new_tcp,
            Action::Redirect(inbound),
            why,
        );
    }

    /// Step 5.
    fn inbound(&mut self) {
        let (any, plan) = (self.any(), self.plan);
        let (ports, except): (Vec<Option<u16>>, &[u16]) = match &plan.inbound {
            Inbound::Nothing => return,
            Inbound::AllExcept(except) => (vec![None], except),
            Inbound::Only(ports) => (ports.iter().copied().map(Some).collect(), &[]),
        };
        let table = match plan.mode {
            Mode::Redirect => Nat,
            Mode::Tproxy { mark, .. } => {
                self.tproxy_targets(mark);
                Mangle
            }
        };
        let why = "inbound connections";
        self.add(
            (table, C::Prerouting),
            any,
            vec![tcp()],
            Action::Jump(C::Inbound),
            why,
        );
        for &port in except {
            let matches = vec![tcp(), Match::DestinationPort(Is::Eq(port))];
            let why = "the pod excludes this inbound port";
            self.add((table, C::Inbound), any, matches, Action::Return, why);
        }
        for port in ports {
            let mut matches = vec![tcp()];
            matches.extend(port.map(|p| Match::DestinationPort(Is::Eq(p))));
            if plan.mode == Mode::Redirect {
                let why = "captured inbound connections";
                self.add(
                    (Nat, C::Inbound),
                    any,
                    matches,
                    Action::Jump(C::InRedirect),
                    why,
                );
                continue;
            }
            let mut running = matches.clone();
            running.push(Match::State(CtState::RelatedOrEstablished));
            let why = "running connections already have their socket";
            self.add(
                (Mangle, C::Inbound),
                any,
                running,
                Action::Jump(C::Divert),
                why,
            );
            let why = "captured inbound connections";
            self.add(
                (Mangle, C::Inbound),
                any,
                matches,
                Action::Jump(C::Tproxy),
                why,
            );
        }
    }

    fn tproxy_targets(&mut self, mark: u32) {
        let (any, port) = (self.any(), self.plan.proxy.inbound_port);
        let why = "deliver to the local socket, whatever the destination address";
        self.add((Mangle, C::Divert), any, vec![], Action::SetMark(mark), why);
        self.add((Mangle, C::Divert), any, vec![], Action::Accept, why);
        for (family, loopback) in self.loopbacks() {
            let matches = vec![Match::Destination(Is::Not(loopback)), tcp()];
            let action = Action::Tproxy { port, mark };
            let why = "new inbound connections go to the transparent listener";
            self.add((Mangle, C::Tproxy), family, matches, action, why);
        }
    }

    /// Steps 6 to 8.
    fn outbound_head(&mut self) {
        let any = self.any();
        let why = "outbound traffic";
        self.add(
            (Nat, C::OutputHook),
            any,
            vec![],
            Action::Jump(C::Output),
            why,
        );
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
    fn proxy_owner(&mut self, owner: &dyn Fn(Is<Owner>) -> Match, id: &Owner, user: bool) {
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
            self.add(
                (Nat, C::Output),
                family,
                matches,
                Action::Jump(C::InRedirect),
                why,
            );
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
        self.add(
            (Nat, C::Output),
            any,
            vec![owner(Is::Eq(id.clone()))],
            Action::Return,
            why,
        );
    }

    /// Step 11.
    fn groups(&mut self) {
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
                let matches = only
                    .iter()
                    .map(|g| Match::Gid(Is::Not(g.clone())))
                    .collect();
                self.add((Nat, C::Output), any, matches, Action::Return, why);
            }
        }
    }

    /// Step 12.
    fn dns(&mut self) {
        let plan = self.plan;
        let any = self.any();
        if !plan.dns.captures() {
            return;
        }
        let why = "DNS queries";
        self.add(
            (Raw, C::OutputHook),
            any,
            vec![],
            Action::Jump(C::OutputDns),
            why,
        );
        // One entry a server; none when every server is meant.
        let servers: Vec<(RuleFamily, Option<Cidr>)> = match &plan.dns {
            Dns::Servers(servers) => {
                let cidrs: Vec<Cidr> = servers.iter().copied().map(Cidr::host).collect();
                self.by_family(&cidrs)
                    .into_iter()
                    .map(|(f, c)| (f, Some(*c)))
                    .collect()
            }
            _ => vec![(any, None)],
        };
        let families = self.dns_families(&servers);
        for &family in &families {
            self.add(
                (Nat, C::Output),
                family,
                vec![],
                Action::Jump(C::OutputDns),
                why,
            );
        }
        for proto in [Proto::Tcp, Proto::Udp] {
            for (family, server) in &servers {
                let mut matches = vec![Match::Proto(proto), Match::DestinationPort(Is::Eq(DOMAIN))];
                if proto == Proto::Tcp {
                    matches.extend(self.syn());
                }
                matches.extend(server.map(|c| Match::Destination(Is::Eq(c))));
                let why = "DNS queries go to the proxy's resolver";
                self.add(
                    (Nat, C::OutputDns),
                    *family,
                    matches,
                    Action::Redirect(DNS_PORT),
                    why,
                );
            }
        }
        self.dns_zones(&servers, &families);
    }

    /// Families whose traffic enters the DNS chain of the nat table.
    fn dns_families(&self, servers: &[(RuleFamily, Option<Cidr>)]) -> Vec<RuleFamily> {
        if self.form == Form::Istio(Dialect::Nftables) {
            return vec![RuleFamily::Any];
        }
        let mut families: Vec<RuleFamily> = Vec::new();
        for (family, _) in servers {
            if !families.contains(family) {
                families.push(*family);
            }
        }
        families
    }

    /// Conntrack zones keep the app's query to a server and the proxy's query to the
    /// same server apart, which may use the same ports.
    fn dns_zones(&mut self, servers: &[(RuleFamily, Option<Cidr>)], families: &[RuleFamily]) {
        let (any, plan) = (self.any(), self.plan);
        let udp = || Match::Proto(Proto::Udp);
        let uids = plan
            .proxy
            .uids
            .iter()
            .map(|u| Match::Uid(Is::Eq(u.clone())));
        let gids = plan
            .proxy
            .gids
            .iter()
            .map(|g| Match::Gid(Is::Eq(g.clone())));
        for owner in uids.chain(gids) {
            let query = vec![udp(), Match::DestinationPort(Is::Eq(DOMAIN)), owner.clone()];
            let why = "queries of the proxy to the real server";
            self.add(
                (Raw, C::OutputDns),
                any,
                query,
                Action::SetZone(ZONE_PROXY),
                why,
            );
            let answer = vec![udp(), Match::SourcePort(DNS_PORT), owner];
            let why = "answers of the proxy to the app";
            self.add(
                (Raw, C::OutputDns),
                any,
                answer,
                Action::SetZone(ZONE_APP),
                why,
            );
        }
        for &family in families {
            let why = "answers of DNS servers";
            self.add(
                (Raw, C::Prerouting),
                family,
                vec![],
                Action::Jump(C::Inbound),
                why,
            );
        }
        for (family, server) in servers {
            let mut query = vec![udp(), Match::DestinationPort(Is::Eq(DOMAIN))];
            query.extend(server.map(|c| Match::Destination(Is::Eq(c))));
            let why = "queries of the app";
            self.add(
                (Raw, C::OutputDns),
                *family,
                query,
                Action::SetZone(ZONE_APP),
                why,
            );
            let mut answer = vec![udp(), Match::SourcePort(DOMAIN)];
            answer.extend(server.map(Match::Source));
            let why = "answers to the proxy";
            self.add(
                (Raw, C::Inbound),
                *family,
                answer,
                Action::SetZone(ZONE_PROXY),
                why,
            );
        }
    }

    /// Steps 13 to 16.
    fn outbound_tail(&mut self) {
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
            self.add(
                (Nat, C::Output),
                any,
                matches,
                Action::Jump(C::Redirect),
                why,
            );
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
                    self.add(
                        (Nat, C::Output),
                        family,
                        vec![to],
                        Action::Jump(C::Redirect),
                        why,
                    );
                }
            }
        }
    }

    /// Step 17.
    fn tproxy_marks(&mut self) {
        let plan = self.plan;
        let Mode::Tproxy { mark, .. } = plan.mode else {
            return;
        };
        let any = self.any();
        let marked = || Match::Mark(Is::Eq(mark));
        let self_call = mark + 1;
        let why = "replies of the app find the proxy's connection again by its mark";
        let pre = (Mangle, C::Prerouting);
        self.add(pre, any, vec![tcp(), marked()], Action::SaveMark, why);
        let out = (Mangle, C::OutputHook);
        self.add(
            out,
            any,
            vec![tcp(), out_lo(), marked()],
            Action::Return,
            why,
        );
        let uids = plan
            .proxy
            .uids
            .iter()
            .map(|u| Match::Uid(Is::Eq(u.clone())));
        let gids = plan
            .proxy
            .gids
            .iter()
            .map(|g| Match::Gid(Is::Eq(g.clone())));
        for owner in uids.chain(gids) {
            for (family, loopback) in self.loopbacks() {
                let matches = vec![
                    Match::Destination(Is::Not(loopback)),
                    tcp(),
                    out_lo(),
                    owner.clone(),
                ];
                let why = "the proxy calls a service that is this pod: inbound policy applies";
                self.add(out, family, matches, Action::SetMark(self_call), why);
            }
        }
        self.add(
            out,
            any,
            vec![tcp(), Match::ConnMark(mark)],
            Action::RestoreMark,
            why,
        );

        let inbound = (Mangle, C::Inbound);
        let why = "what the proxy itself sends to the app is not captured again";
        self.insert(0, inbound, any, vec![tcp(), marked()], Action::Return, why);
        let from = |source| vec![tcp(), Match::Source(Cidr::host(source)), in_lo()];
        let istio_nft = self.form == Form::Istio(Dialect::Nftables);
        self.insert(
            1,
            inbound,
            RuleFamily::V4,
            from(PASSTHROUGH_V4),
            Action::Return,
            why,
        );
        let mut last = 2;
        if plan.ipv6 {
            // Istio's nftables form inserts both at 1 and the next at 2, which puts it
            // between them; all three return, so the fate of a packet is the same.
            let at = if istio_nft { 1 } else { 2 };
            self.insert(
                at,
                inbound,
                RuleFamily::V6,
                from(PASSTHROUGH_V6),
                Action::Return,
                why,
            );
            last = if istio_nft { 2 } else { 3 };
        }
        let matches = vec![tcp(), in_lo(), Match::Mark(Is::Not(self_call))];
        let why = "the app talks to itself: not captured";
        self.insert(last, inbound, any, matches, Action::Return, why);
    }

    /// Tables in the order nat, mangle, raw; a chain that is only jumped to exists
    /// too, without rules.
    fn tables(self) -> Vec<Table> {
        let mut tables = Vec::new();
        for kind in [Nat, Mangle, Raw] {
            let mut chains: Vec<Chain> = Vec::new();
            for ((table, chain), rules) in &self.chains {
                if *table == kind {
                    chains.push(Chain {
                        kind: *chain,
                        rules: rules.clone(),
                    });
                }
            }
            let targets: Vec<ChainKind> = chains
                .iter()
                .flat_map(|c| &c.rules)
                .filter_map(|r| match r.action {
                    Action::Jump(to) => Some(to),
                    _ => None,
                })
                .collect();
            for target in targets {
                if !chains.iter().any(|c| c.kind == target) {
                    chains.push(Chain {
                        kind: target,
                        rules: Vec::new(),
                    });
                }
            }
            if !chains.is_empty() {
                tables.push(Table { kind, chains });
            }
        }
        tables
    }
}
