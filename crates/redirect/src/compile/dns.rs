//! DNS queries: step 12.

use super::Compiler;
use crate::desired::ChainKind as C;
use crate::desired::TableKind::{Nat, Raw};
use crate::desired::{Action, Dialect, Form, Is, Match, Proto, RuleFamily};
use crate::net::Cidr;
use crate::plan::{DNS_PORT, Dns};

/// Port of DNS.
pub(super) const DOMAIN: u16 = 53;
/// Zone of queries the proxy itself sends (3.2 step 12).
const ZONE_PROXY: u16 = 1;
/// Zone of queries an app sends to the proxy (3.2 step 12).
const ZONE_APP: u16 = 2;

impl Compiler<'_> {
    /// Step 12.
    pub(super) fn dns(&mut self) {
        let plan = self.plan;
        let any = self.any();
        if !plan.dns.captures() {
            return;
        }
        let why = "DNS queries";
        self.add((Raw, C::OutputHook), any, vec![], Action::Jump(C::OutputDns), why);
        // One entry a server; none when every server is meant.
        let servers: Vec<(RuleFamily, Option<Cidr>)> = match &plan.dns {
            Dns::Servers(servers) => {
                let cidrs: Vec<Cidr> = servers.iter().copied().map(Cidr::host).collect();
                self.by_family(&cidrs).into_iter().map(|(f, c)| (f, Some(*c))).collect()
            }
            _ => vec![(any, None)],
        };
        let families = self.dns_families(&servers);
        for &family in &families {
            self.add((Nat, C::Output), family, vec![], Action::Jump(C::OutputDns), why);
        }
        for proto in [Proto::Tcp, Proto::Udp] {
            for (family, server) in &servers {
                let mut matches = vec![Match::Proto(proto), Match::DestinationPort(Is::Eq(DOMAIN))];
                if proto == Proto::Tcp {
                    matches.extend(self.syn());
                }
                matches.extend(server.map(|c| Match::Destination(Is::Eq(c))));
                let why = "DNS queries go to the proxy's resolver";
                self.add((Nat, C::OutputDns), *family, matches, Action::Redirect(DNS_PORT), why);
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
        let uids = plan.proxy.uids.iter().map(|u| Match::Uid(Is::Eq(u.clone())));
        let gids = plan.proxy.gids.iter().map(|g| Match::Gid(Is::Eq(g.clone())));
        for owner in uids.chain(gids) {
            let query = vec![udp(), Match::DestinationPort(Is::Eq(DOMAIN)), owner.clone()];
            let why = "queries of the proxy to the real server";
            self.add((Raw, C::OutputDns), any, query, Action::SetZone(ZONE_PROXY), why);
            let answer = vec![udp(), Match::SourcePort(DNS_PORT), owner];
            let why = "answers of the proxy to the app";
            self.add((Raw, C::OutputDns), any, answer, Action::SetZone(ZONE_APP), why);
        }
        for &family in families {
            let why = "answers of DNS servers";
            self.add((Raw, C::Prerouting), family, vec![], Action::Jump(C::Inbound), why);
        }
        for (family, server) in servers {
            let mut query = vec![udp(), Match::DestinationPort(Is::Eq(DOMAIN))];
            query.extend(server.map(|c| Match::Destination(Is::Eq(c))));
            let why = "queries of the app";
            self.add((Raw, C::OutputDns), *family, query, Action::SetZone(ZONE_APP), why);
            let mut answer = vec![udp(), Match::SourcePort(DOMAIN)];
            answer.extend(server.map(Match::Source));
            let why = "answers to the proxy";
            self.add((Raw, C::Inbound), *family, answer, Action::SetZone(ZONE_PROXY), why);
        }
    }
}
