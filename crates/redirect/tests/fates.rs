//! Packets pushed through policy without a kernel: our form does to new
//! connections what Istio's does, and nothing to running ones.

use proptest::prelude::*;
use redirect::compile::compile;
use redirect::desired::{Desired, Dialect, Form, Proto};
use redirect::net::{Cidr, Interface, Owner};
use redirect::packet::{Direction, Fate, Flow, Packet, fate};
use redirect::plan::{
    Destinations, Dns, Groups, Inbound, Mode, Outbound, Plan, Proxy, TPROXY_MARK, TPROXY_TABLE,
};
use std::net::IpAddr;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn base() -> Plan {
    Plan {
        proxy: Proxy::default(),
        mode: Mode::Redirect,
        ipv6: true,
        loopback_v4: Plan::default_loopback_v4(),
        inbound: Inbound::AllExcept(vec![15020]),
        outbound: Outbound {
            include: Destinations::All,
            exclude: vec![],
            include_ports: vec![],
            exclude_ports: vec![],
            groups: Groups::AllExcept(vec![]),
        },
        dns: Dns::Off,
        exclude_interfaces: vec![],
        virtual_interfaces: vec![],
        drop_invalid: false,
    }
}

fn ours(plan: &Plan) -> Desired {
    compile(plan, Form::Sluice)
}

#[test]
fn an_apps_connection_goes_to_the_proxy_and_the_proxys_does_not() {
    let rules = ours(&base());
    let app = Packet::outbound(ip("192.0.2.1"), 443);
    assert_eq!(fate(&rules, &app).captured(), Some(15001));
    for proxy in [Packet { uid: 1337, ..app.clone() }, Packet { gid: 1337, ..app.clone() }] {
        assert_eq!(fate(&rules, &proxy).captured(), None);
    }
    let own = Packet { interface: "lo".into(), ..Packet::outbound(ip("127.0.0.1"), 80) };
    assert_eq!(fate(&rules, &own).captured(), None);
    assert_eq!(fate(&rules, &Packet::inbound(ip("10.0.0.5"), 80)).captured(), Some(15006));
    assert_eq!(fate(&rules, &Packet::inbound(ip("10.0.0.5"), 15008)).captured(), None);
    assert_eq!(fate(&rules, &Packet::inbound(ip("10.0.0.5"), 15020)).captured(), None);
}

#[test]
fn the_probe_of_istio_validation_arrives_inbound() {
    let probe = Packet {
        uid: 1337,
        gid: 1337,
        interface: "lo".into(),
        source: ip("127.0.0.1"),
        ..Packet::outbound(ip("127.0.0.6"), 15002)
    };
    let tproxy = Plan { mode: Mode::Tproxy { mark: TPROXY_MARK, table: TPROXY_TABLE }, ..base() };
    for plan in [base(), tproxy] {
        assert_eq!(fate(&ours(&plan), &probe).captured(), Some(15006));
        let v6 = Packet { source: ip("::1"), destination: ip("::6"), ..probe.clone() };
        assert_eq!(fate(&ours(&plan), &v6).captured(), Some(15006));
    }
}

#[test]
fn a_running_connection_is_left_alone_and_istios_form_resets_it() {
    let running = Packet { flow: Flow::PickedUp, ..Packet::outbound(ip("192.0.2.1"), 443) };
    assert_eq!(fate(&ours(&base()), &running).captured(), None);
    let istio = compile(&base(), Form::Istio(Dialect::Iptables));
    assert_eq!(fate(&istio, &running).captured(), Some(15001), "the test can see the difference");
}

#[test]
fn without_ipv6_nothing_of_it_is_touched() {
    let plan = Plan {
        ipv6: false,
        dns: Dns::All,
        drop_invalid: true,
        exclude_interfaces: vec!["net1".parse().unwrap()],
        ..base()
    };
    let v6 = Packet::outbound(ip("2001:db8::1"), 443);
    assert_eq!(fate(&ours(&plan), &v6), Fate::default());
    let istio = compile(&plan, Form::Istio(Dialect::Nftables));
    assert_eq!(fate(&istio, &v6).captured(), Some(15001), "upstream's defect, in its form alone");
}

const ADDRESSES: [&str; 12] = [
    "127.0.0.1",
    "127.0.0.6",
    "10.0.0.5",
    "10.1.0.1",
    "9.9.0.1",
    "1.1.0.1",
    "192.0.2.1",
    "::1",
    "::6",
    "fd00::5",
    "2001:db8::1",
    "2001:db8:1::1",
];
const PORTS: [u16; 9] = [53, 80, 443, 8080, 15001, 15006, 15008, 15020, 15053];
const IDS: [u32; 5] = [0, 3, 202, 1000, 1337];

fn ports() -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(prop::sample::select(&PORTS[..]), 0..3)
}

fn owners(min: usize) -> impl Strategy<Value = Vec<Owner>> {
    proptest::collection::vec(prop::sample::select(&IDS[..]).prop_map(Owner::Id), min..3)
}

fn cidrs() -> impl Strategy<Value = Vec<Cidr>> {
    let all: Vec<Cidr> = [
        "9.9.0.0/16",
        "1.1.0.0/16",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "2001:db8::/32",
        "::1/128",
        "0.0.0.0/0",
    ]
    .iter()
    .filter_map(|c| c.parse().ok())
    .collect();
    proptest::collection::vec(prop::sample::select(all), 0..3)
}

fn interfaces() -> impl Strategy<Value = Vec<Interface>> {
    let all: Vec<Interface> =
        ["eth0", "net1", "br-*"].iter().filter_map(|i| i.parse().ok()).collect();
    proptest::collection::vec(prop::sample::select(all), 0..2)
}

fn plans() -> impl Strategy<Value = Plan> {
    let inbound = prop_oneof![
        Just(Inbound::Nothing),
        ports().prop_map(Inbound::AllExcept),
        ports().prop_map(|p| if p.is_empty() { Inbound::Nothing } else { Inbound::Only(p) }),
    ];
    let include = prop_oneof![Just(Destinations::All), cidrs().prop_map(Destinations::Only)];
    let groups =
        prop_oneof![owners(0).prop_map(Groups::AllExcept), owners(1).prop_map(Groups::Only)];
    let dns = prop_oneof![
        Just(Dns::Off),
        Just(Dns::All),
        Just(Dns::Servers(vec![ip("10.1.0.1"), ip("2001:db8::1")])),
        Just(Dns::Servers(vec![ip("10.1.0.1")])),
    ];
    let outbound = (include, cidrs(), ports(), ports(), groups).prop_map(
        |(include, exclude, include_ports, exclude_ports, groups)| Outbound {
            include,
            exclude,
            include_ports,
            exclude_ports,
            groups,
        },
    );
    let proxy =
        (owners(1), owners(1)).prop_map(|(uids, gids)| Proxy { uids, gids, ..Proxy::default() });
    let mode = prop_oneof![Just(Mode::Redirect), Just(Mode::Tproxy { mark: 1337, table: 133 })];
    (
        proxy,
        mode,
        any::<bool>(),
        inbound,
        outbound,
        dns,
        (interfaces(), interfaces()),
        any::<bool>(),
    )
        .prop_map(
            |(
                proxy,
                mode,
                ipv6,
                inbound,
                outbound,
                dns,
                (exclude_interfaces, virtual_interfaces),
                drop_invalid,
            )| Plan {
                proxy,
                mode,
                ipv6,
                inbound,
                outbound,
                dns,
                exclude_interfaces,
                virtual_interfaces,
                drop_invalid,
                loopback_v4: Plan::default_loopback_v4(),
            },
        )
}

fn packets() -> impl Strategy<Value = Packet> {
    let address = || prop::sample::select(&ADDRESSES[..]);
    let flow =
        prop::sample::select(vec![Flow::New, Flow::PickedUp, Flow::Established, Flow::Invalid]);
    let mark = || prop::sample::select(vec![0u32, 1337, 1338]);
    (
        any::<bool>(),
        any::<bool>(),
        address(),
        address(),
        prop::sample::select(&PORTS[..]),
        prop::sample::select(vec!["lo", "eth0", "net1", "br-1"]),
        (prop::sample::select(&IDS[..]), prop::sample::select(&IDS[..])),
        flow,
        (mark(), mark()),
    )
        .prop_map(
            |(
                out,
                tcp,
                source,
                destination,
                port,
                interface,
                (uid, gid),
                flow,
                (mark, conn_mark),
            )| Packet {
                direction: if out { Direction::Out } else { Direction::In },
                proto: if tcp { Proto::Tcp } else { Proto::Udp },
                source: ip(source),
                destination: ip(destination),
                source_port: port,
                destination_port: port,
                interface: interface.into(),
                uid,
                gid,
                flow,
                mark,
                conn_mark,
            },
        )
        .prop_filter("both ends of one family", |p| p.source.is_ipv4() == p.destination.is_ipv4())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Every packet but those that begin no connection has the fate that Istio's
    /// iptables rules give it; those are neither redirected nor tproxied.
    #[test]
    fn our_form_differs_from_istios_on_running_connections_only(plan in plans(), packet in packets()) {
        let got = fate(&ours(&plan), &packet);
        let istio = fate(&compile(&plan, Form::Istio(Dialect::Iptables)), &packet);
        let midway = matches!(packet.flow, Flow::PickedUp | Flow::Invalid);
        if packet.proto == Proto::Tcp && midway {
            let mark = if istio.tproxied.is_some() { packet.mark } else { istio.mark };
            prop_assert_eq!(Fate { redirected: None, tproxied: None, mark, ..istio }, got);
        } else if packet.proto == Proto::Udp && packet.flow == Flow::Invalid {
            prop_assert!(!got.dropped);
        } else {
            prop_assert_eq!(istio, got);
        }
    }

    /// Istio's two dialects agree where IPv6 is on and the packet is valid.
    #[test]
    fn istios_dialects_agree(plan in plans(), packet in packets()) {
        let plan = Plan { ipv6: true, drop_invalid: false, ..plan };
        prop_assert_eq!(
            fate(&compile(&plan, Form::Istio(Dialect::Iptables)), &packet),
            fate(&compile(&plan, Form::Istio(Dialect::Nftables)), &packet)
        );
    }

    /// With IPv6 off, no packet of it is touched.
    #[test]
    fn ipv6_off_means_off(plan in plans(), packet in packets()) {
        let (source, destination) = (ip("fd00::9"), ip("2001:db8::1"));
        let packet = if packet.destination.is_ipv6() { packet } else { Packet { source, destination, ..packet } };
        let untouched = Fate { mark: packet.mark, conn_mark: packet.conn_mark, ..Fate::default() };
        prop_assert_eq!(fate(&ours(&Plan { ipv6: false, ..plan }), &packet), untouched);
    }
}
