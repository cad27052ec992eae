//! Packets of an ambient pod pushed through policy without a kernel.

use proptest::prelude::*;
use redirect::ambient::{AmbientPlan, Ipv6, PROBE_V4, PROBE_V6, ProbePorts};
use redirect::compile::ambient;
use redirect::desired::{Desired, Dialect, Form, Proto};
use redirect::iptables;
use redirect::net::{Family, Interface};
use redirect::packet::{Direction, Fate, Flow, Packet, fate};
use std::net::IpAddr;

const ZTUNNEL: u32 = 0x539;
const REPLY: u32 = 0x111;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn base() -> AmbientPlan {
    AmbientPlan {
        ipv6: Ipv6::Present,
        inbound: true,
        dns: true,
        virtual_interfaces: vec![],
        probe_v4: PROBE_V4,
        probe_v6: PROBE_V6,
        probe_ports: ProbePorts::Any,
    }
}

fn ours(plan: &AmbientPlan) -> Desired {
    ambient(plan, Form::Sluice)
}

fn captured(plan: &AmbientPlan, packet: &Packet) -> Option<u16> {
    fate(&ours(plan), packet).captured()
}

#[test]
fn an_apps_connection_goes_to_ztunnel_and_ztunnels_does_not() {
    for to in ["192.0.2.1", "2001:db8::1"] {
        let app = Packet::outbound(ip(to), 443);
        assert_eq!(captured(&base(), &app), Some(15001), "{to}");
        for mark in [ZTUNNEL, ZTUNNEL | 0x7000] {
            assert_eq!(captured(&base(), &Packet { mark, ..app.clone() }), None);
        }
        let root = Packet { uid: 0, gid: 1337, ..app };
        assert_eq!(captured(&base(), &root), Some(15001), "no user is exempt");
    }
    let own = Packet { interface: "lo".into(), ..Packet::outbound(ip("127.0.0.1"), 80) };
    assert_eq!(captured(&base(), &own), None);
    let own = Packet { interface: "lo".into(), ..Packet::outbound(ip("10.0.0.5"), 80) };
    assert_eq!(captured(&base(), &own), None, "the pod's own address");
}

#[test]
fn what_arrives_goes_to_ztunnel_but_hbone_and_probes() {
    let plan = base();
    assert_eq!(captured(&plan, &Packet::inbound(ip("10.0.0.5"), 80)), Some(15006));
    assert_eq!(captured(&plan, &Packet::inbound(ip("fd00::5"), 80)), Some(15006));
    assert_eq!(captured(&plan, &Packet::inbound(ip("10.0.0.5"), 15008)), None);
    let probe = |port| Packet { source: PROBE_V4.into(), ..Packet::inbound(ip("10.0.0.5"), port) };
    assert_eq!(captured(&plan, &probe(80)), None);
    let v6 = Packet { source: PROBE_V6.into(), ..Packet::inbound(ip("fd00::5"), 80) };
    assert_eq!(captured(&plan, &v6), None);
    let marked = Packet { mark: ZTUNNEL, ..Packet::inbound(ip("10.0.0.5"), 80) };
    assert_eq!(captured(&plan, &marked), None);

    let narrow = AmbientPlan { probe_ports: ProbePorts::Only(vec![8080, 9090]), ..plan.clone() };
    assert_eq!(captured(&narrow, &probe(9090)), None);
    assert_eq!(captured(&narrow, &probe(80)), Some(15006), "no probe is declared there");
    let none = AmbientPlan { probe_ports: ProbePorts::Only(vec![]), ..plan.clone() };
    assert_eq!(captured(&none, &probe(9090)), Some(15006));

    let ingress = AmbientPlan { inbound: false, ..plan };
    assert_eq!(captured(&ingress, &Packet::inbound(ip("10.0.0.5"), 80)), None);
    assert_eq!(captured(&ingress, &Packet::outbound(ip("192.0.2.1"), 80)), Some(15001));
}

#[test]
fn replies_to_ztunnel_are_found_by_their_mark() {
    let rules = ours(&base());
    let opened = Packet {
        mark: ZTUNNEL,
        conn_mark: 0xa000,
        interface: "lo".into(),
        ..Packet::inbound(ip("10.0.0.5"), 80)
    };
    let after = fate(&rules, &opened);
    assert_eq!((after.conn_mark, after.captured()), (0xa000 | REPLY, None));
    let reply = Packet {
        conn_mark: after.conn_mark,
        flow: Flow::Established,
        ..Packet::outbound(ip("192.0.2.7"), 40000)
    };
    assert_eq!(fate(&rules, &reply).mark, 0xa000 | REPLY, "the ip rule compares 12 bits");
    let routes = ours(&base()).routing.marks;
    assert_eq!(routes.len(), 2);
    assert!(routes.iter().all(|r| (r.mark, r.mask, r.table) == (0x111, 0xfff, 100)));
    assert!(routes.iter().all(|r| r.priority == Some(32764)));
}

#[test]
fn dns_goes_to_the_resolver_and_the_resolvers_own_does_not() {
    let udp = |p: Packet| Packet { proto: Proto::Udp, ..p };
    for to in ["10.96.0.10", "2001:db8::53"] {
        for query in [Packet::outbound(ip(to), 53), udp(Packet::outbound(ip(to), 53))] {
            assert_eq!(captured(&base(), &query), Some(15053), "{query:?}");
            let off = AmbientPlan { dns: false, ..base() };
            let tcp = query.proto == Proto::Tcp;
            assert_eq!(captured(&off, &query), tcp.then_some(15001));
            let own = fate(&ours(&base()), &Packet { mark: ZTUNNEL, ..query.clone() });
            let zone = (query.proto == Proto::Udp).then_some(1);
            assert_eq!((own.captured(), own.zone), (None, zone));
        }
    }
    let local = udp(Packet { interface: "lo".into(), ..Packet::outbound(ip("127.0.0.53"), 53) });
    assert_eq!(captured(&base(), &local), None, "a resolver in the pod");
}

#[test]
fn guests_connect_outbound() {
    let nics: Vec<Interface> = ["tap0", "br-*"].iter().filter_map(|n| n.parse().ok()).collect();
    for inbound in [true, false] {
        let plan = AmbientPlan { virtual_interfaces: nics.clone(), inbound, ..base() };
        for nic in ["tap0", "br-1f"] {
            let guest = Packet { interface: nic.into(), ..Packet::inbound(ip("192.0.2.1"), 80) };
            assert_eq!(captured(&plan, &guest), Some(15001));
            let midway = Packet { flow: Flow::PickedUp, ..guest };
            assert_eq!(captured(&plan, &midway), None);
        }
        let other = Packet { interface: "eth0".into(), ..Packet::inbound(ip("10.0.0.5"), 80) };
        assert_eq!(captured(&plan, &other), inbound.then_some(15006));
    }
}

#[test]
fn a_running_connection_is_left_alone_and_istios_form_resets_it() {
    let istio = ambient(&base(), Form::Istio(Dialect::Iptables));
    for (packet, port) in [
        (Packet::outbound(ip("192.0.2.1"), 443), 15001),
        (Packet::inbound(ip("10.0.0.5"), 80), 15006),
    ] {
        let running = Packet { flow: Flow::PickedUp, ..packet };
        assert_eq!(captured(&base(), &running), None);
        assert_eq!(fate(&istio, &running).captured(), Some(port), "the test can see it");
    }
}

#[test]
fn without_ipv6_nothing_of_it_is_touched() {
    let plan = AmbientPlan { ipv6: Ipv6::Absent, ..base() };
    let v6 = Packet::outbound(ip("2001:db8::1"), 443);
    assert_eq!(fate(&ours(&plan), &v6), Fate::default());
    assert_eq!(iptables::render(&ours(&plan), Family::V6), "");
    assert!(ours(&plan).routing.marks.iter().all(|m| m.family == Family::V4));
    let istio = ambient(&plan, Form::Istio(Dialect::Nftables));
    let dns = Packet { proto: Proto::Udp, ..Packet::outbound(ip("2001:db8::53"), 53) };
    assert_eq!(fate(&istio, &dns).captured(), Some(15053), "upstream's defect, in its form alone");
    let no_route = AmbientPlan { ipv6: Ipv6::NoLoopback, ..base() };
    assert_eq!(captured(&no_route, &v6), Some(15001));
    assert_eq!(ours(&no_route).routing.marks.len(), 1);
}

fn plans() -> impl Strategy<Value = AmbientPlan> {
    let nics: Vec<Interface> =
        ["eth0", "net1", "br-*"].iter().filter_map(|n| n.parse().ok()).collect();
    let nics = proptest::sample::subsequence(nics, 0..=2);
    let ipv6 = prop::sample::select(vec![Ipv6::Absent, Ipv6::NoLoopback, Ipv6::Present]);
    (ipv6, any::<bool>(), any::<bool>(), nics).prop_map(|(ipv6, inbound, dns, nics)| AmbientPlan {
        ipv6,
        inbound,
        dns,
        virtual_interfaces: nics,
        ..base()
    })
}

const ADDRESSES: [&str; 10] = [
    "127.0.0.1",
    "127.0.0.53",
    "10.0.0.5",
    "192.0.2.1",
    "169.254.7.127",
    "::1",
    "fd00::5",
    "2001:db8::1",
    "fe80::1",
    "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
];

fn packets() -> impl Strategy<Value = Packet> {
    let address = || prop::sample::select(&ADDRESSES[..]).prop_map(ip);
    let ends =
        (address(), address()).prop_filter("of one family", |(a, b)| a.is_ipv4() == b.is_ipv4());
    let port = || prop::sample::select(vec![53u16, 80, 15001, 15006, 15008, 15053]);
    let mark = || prop::sample::select(vec![0u32, 0x539, 0x111, 0x1539, 0xf111, 0x538]);
    let flow =
        prop::sample::select(vec![Flow::New, Flow::PickedUp, Flow::Established, Flow::Invalid]);
    let nic = prop::sample::select(vec!["lo", "eth0", "net1", "br-1"]);
    (any::<bool>(), any::<bool>(), ends, (port(), port()), nic, flow, (mark(), mark())).prop_map(
        |(out, tcp, (source, destination), (source_port, destination_port), nic, flow, marks)| {
            Packet {
                direction: if out { Direction::Out } else { Direction::In },
                proto: if tcp { Proto::Tcp } else { Proto::Udp },
                source,
                source_port,
                destination_port,
                interface: nic.into(),
                flow,
                mark: marks.0,
                conn_mark: marks.1,
                ..Packet::outbound(destination, 80)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Every packet but those that begin no connection has the fate that Istio's
    /// iptables rules give it; those are not redirected.
    #[test]
    fn our_form_differs_on_running_connections_only(plan in plans(), packet in packets()) {
        let got = fate(&ours(&plan), &packet);
        let istio = fate(&ambient(&plan, Form::Istio(Dialect::Iptables)), &packet);
        let midway = matches!(packet.flow, Flow::PickedUp | Flow::Invalid);
        if packet.proto == Proto::Tcp && midway {
            prop_assert_eq!(Fate { redirected: None, ..istio }, got);
        } else {
            prop_assert_eq!(istio, got);
        }
    }

    /// Istio's two dialects agree where there is IPv6.
    #[test]
    fn istios_dialects_agree(plan in plans(), packet in packets()) {
        let plan = AmbientPlan { ipv6: Ipv6::Present, ..plan };
        prop_assert_eq!(
            fate(&ambient(&plan, Form::Istio(Dialect::Iptables)), &packet),
            fate(&ambient(&plan, Form::Istio(Dialect::Nftables)), &packet)
        );
    }

    /// Nothing that ztunnel sends is ever captured, and nothing of it is dropped. (A
    /// connection gets its mark when its first packet arrives, so not before.)
    #[test]
    fn ztunnels_packets_are_never_captured(plan in plans(), packet in packets()) {
        let nics = Vec::new();
        let plan = AmbientPlan { virtual_interfaces: nics, ..plan };
        let after = fate(&ours(&plan), &Packet { mark: ZTUNNEL, conn_mark: 0, ..packet });
        prop_assert_eq!((after.captured(), after.dropped), (None, false));
    }

    /// Where there is no IPv6, no packet of it is touched.
    #[test]
    fn off_means_off(plan in plans(), packet in packets()) {
        if packet.destination.is_ipv6() {
            let untouched = Fate { mark: packet.mark, conn_mark: packet.conn_mark, ..Fate::default() };
            let plan = AmbientPlan { ipv6: Ipv6::Absent, ..plan };
            prop_assert_eq!(fate(&ours(&plan), &packet), untouched);
        }
    }
}
