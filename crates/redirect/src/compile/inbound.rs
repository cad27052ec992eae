//! Inbound connections and the marks of transparent proxying: steps 4, 5 and 17.

use super::{Compiler, PASSTHROUGH_V4, PASSTHROUGH_V6, in_lo, out_lo, tcp};
use crate::desired::ChainKind as C;
use crate::desired::TableKind::{Mangle, Nat};
use crate::desired::{Action, CtState, Dialect, Form, Is, Mark, Match, RuleFamily};
use crate::net::Cidr;
use crate::plan::{Inbound, Mode};

impl Compiler<'_> {
    /// Step 4: the chains that redirect.
    pub(super) fn targets(&mut self) {
        let any = self.any();
        let proxy = &self.plan.proxy;
        let (outbound, inbound) = (proxy.outbound_port, proxy.inbound_port);
        let tunnel = vec![tcp(), Match::DestinationPort(Is::Eq(proxy.tunnel_port))];
        self.add((Nat, C::Inbound), any, tunnel, Action::Return, "HBONE is never redirected");
        let new_tcp: Vec<Match> = [Some(tcp()), self.syn()].into_iter().flatten().collect();
        let why = "new outbound connections go to the proxy's outbound listener";
        self.add((Nat, C::Redirect), any, new_tcp.clone(), Action::Redirect(outbound), why);
        let why = "new inbound connections go to the proxy's inbound listener";
        self.add((Nat, C::InRedirect), any, new_tcp, Action::Redirect(inbound), why);
    }

    /// Step 5.
    pub(super) fn inbound(&mut self) {
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
        self.add((table, C::Prerouting), any, vec![tcp()], Action::Jump(C::Inbound), why);
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
                self.add((Nat, C::Inbound), any, matches, Action::Jump(C::InRedirect), why);
                continue;
            }
            let mut running = matches.clone();
            running.push(Match::State(CtState::RelatedOrEstablished));
            let why = "running connections already have their socket";
            self.add((Mangle, C::Inbound), any, running, Action::Jump(C::Divert), why);
            let why = "captured inbound connections";
            self.add((Mangle, C::Inbound), any, matches, Action::Jump(C::Tproxy), why);
        }
    }

    fn tproxy_targets(&mut self, mark: u32) {
        let (any, port) = (self.any(), self.plan.proxy.inbound_port);
        let why = "deliver to the local socket, whatever the destination address";
        self.add((Mangle, C::Divert), any, vec![], Action::SetMark(mark), why);
        self.add((Mangle, C::Divert), any, vec![], Action::Accept, why);
        for (family, loopback) in self.loopbacks() {
            let mut matches = vec![Match::Destination(Is::Not(loopback)), tcp()];
            // Also for iptables' sake: a packet of a connection from before the rules
            // finds the application's own socket, which is not transparent, and
            // xt_TPROXY drops it (nft goes on).
            matches.extend(self.syn());
            let action = Action::Tproxy { port, mark };
            let why = "new inbound connections go to the transparent listener";
            self.add((Mangle, C::Tproxy), family, matches, action, why);
        }
    }

    /// Step 17.
    pub(super) fn tproxy_marks(&mut self) {
        let plan = self.plan;
        let Mode::Tproxy { mark, .. } = plan.mode else {
            return;
        };
        let any = self.any();
        let marked = || Match::Mark(Is::Eq(Mark::exact(mark)));
        let self_call = mark + 1;
        let why = "replies of the app find the proxy's connection again by its mark";
        let pre = (Mangle, C::Prerouting);
        self.add(pre, any, vec![tcp(), marked()], Action::SaveMark, why);
        let out = (Mangle, C::OutputHook);
        self.add(out, any, vec![tcp(), out_lo(), marked()], Action::Return, why);
        let uids = plan.proxy.uids.iter().map(|u| Match::Uid(Is::Eq(u.clone())));
        let gids = plan.proxy.gids.iter().map(|g| Match::Gid(Is::Eq(g.clone())));
        for owner in uids.chain(gids) {
            for (family, loopback) in self.loopbacks() {
                let matches =
                    vec![Match::Destination(Is::Not(loopback)), tcp(), out_lo(), owner.clone()];
                let why = "the proxy calls a service that is this pod: inbound policy applies";
                self.add(out, family, matches, Action::SetMark(self_call), why);
            }
        }
        self.add(
            out,
            any,
            vec![tcp(), Match::ConnMark(Mark::exact(mark))],
            Action::RestoreMark,
            why,
        );

        let inbound = (Mangle, C::Inbound);
        let why = "what the proxy itself sends to the app is not captured again";
        self.insert(0, inbound, any, vec![tcp(), marked()], Action::Return, why);
        let from = |source| vec![tcp(), Match::Source(Cidr::host(source)), in_lo()];
        let istio_nft = self.form == Form::Istio(Dialect::Nftables);
        self.insert(1, inbound, RuleFamily::V4, from(PASSTHROUGH_V4), Action::Return, why);
        let mut last = 2;
        if plan.ipv6 {
            // Istio's nftables form inserts both at 1 and the next at 2, which puts it
            // between them; all three return, so the fate of a packet is the same.
            let at = if istio_nft { 1 } else { 2 };
            self.insert(at, inbound, RuleFamily::V6, from(PASSTHROUGH_V6), Action::Return, why);
            last = if istio_nft { 2 } else { 3 };
        }
        let matches = vec![tcp(), in_lo(), Match::Mark(Is::Not(Mark::exact(self_call)))];
        let why = "the app talks to itself: not captured";
        self.insert(last, inbound, any, matches, Action::Return, why);
    }
}
