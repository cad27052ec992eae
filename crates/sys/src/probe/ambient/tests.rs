use super::*;
use crate::backend::Backend;
use crate::iptables::Iptables;
use crate::lab::{World, addresses, ambient_plan as plan, ip};
use crate::netns::within;
use crate::nftables::Nftables;
use redirect::ambient::ProbePorts;
use redirect::compile::ambient;
use redirect::desired::{Action, ChainKind, Desired, Form, Match, TableKind};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

fn apply(world: &World, backend: &dyn Backend, want: &Desired) {
    within(&world.pod, || backend.apply(want, None).unwrap()).unwrap();
}

fn prove(world: &World, plan: &AmbientPlan, ports: Ports) -> Result<Report, ProbeError> {
    let inside = within(&world.pod, || ambient_inside(plan, &addresses(), ports)).unwrap()?;
    within(&world.node, || inside.finish(Instant::now() + Duration::from_secs(60))).unwrap()
}

fn ours(plan: &AmbientPlan) -> Desired {
    ambient(plan, Form::Sluice)
}

const WAYS: [Way; 7] =
    [Way::Outbound, Way::Dns, Way::Query, Way::Ztunnel, Way::Reply, Way::Arrival, Way::Kubelet];

fn outcome(report: &Report, way: Way, family: Family) -> &Outcome {
    let found = report.findings.iter().find(|f| f.way == way && f.family == family);
    &found.unwrap_or_else(|| panic!("{way} {family:?}: not in {report}")).outcome
}

fn assert_all_proved(report: &Report) {
    for way in WAYS {
        for family in [Family::V4, Family::V6] {
            let outcome = outcome(report, way, family);
            assert!(matches!(outcome, Outcome::Proved(_)), "{way} {family:?}: {report}");
        }
    }
}

#[test]
fn every_way_is_proved_before_ztunnel_is_there() {
    let iptables = Iptables::detect().unwrap();
    for backend in [&Nftables::new() as &dyn Backend, &iptables] {
        for ports in [ProbePorts::Any, ProbePorts::Only(vec![8080])] {
            let plan = AmbientPlan { probe_ports: ports, ..plan() };
            let world = World::new();
            apply(&world, backend, &ours(&plan));
            let start = Instant::now();
            let report = prove(&world, &plan, Ports::Ours).unwrap();
            println!("{}: {:?}", backend.kind(), start.elapsed());
            assert_all_proved(&report);
            let left = within(&world.pod, || crate::conntrack::entries().unwrap()).unwrap();
            let half: Vec<_> = left.iter().filter(|e| e.is_half()).collect();
            assert!(half.is_empty(), "{half:?}");
        }
    }
}

/// A pod may have a family without a way out of its network (a second network's IPv6), or
/// an address without any: it starts all the same.
#[test]
fn a_pod_without_a_default_route_is_proved_as_far_as_it_goes() {
    let iptables = Iptables::detect().unwrap();
    for backend in [&Nftables::new() as &dyn Backend, &iptables] {
        let world = World::new();
        apply(&world, backend, &ours(&plan()));
        let remove = |lines: &str| within(&world.pod, || ip(lines)).unwrap();
        remove("route del default via 10.8.0.1\nroute del default via fd08::1\n");
        assert_all_proved(&prove(&world, &plan(), Ports::Ours).unwrap());
        remove("route del fd08::/64 dev eth0\n");
        let report = prove(&world, &plan(), Ports::Ours).unwrap();
        for way in [Way::Outbound, Way::Reply] {
            let v6 = outcome(&report, way, Family::V6);
            assert!(matches!(v6, Outcome::NotProved(_)), "{way}: {report}");
            let v4 = outcome(&report, way, Family::V4);
            assert!(matches!(v4, Outcome::Proved(_)), "{way}: {report}");
        }
    }
}

/// Listeners of ztunnel that count what they accept.
fn ztunnel(world: &World) -> Vec<TcpListener> {
    within(&world.pod, || {
        let mut all = Vec::new();
        for port in [15001, 15006, 15053] {
            // One listener of both families, as ztunnel has it.
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            all.push(listener);
        }
        all
    })
    .unwrap()
}

#[test]
fn a_ztunnel_that_listens_hears_nothing_of_it() {
    let world = World::new();
    apply(&world, &Nftables::new(), &ours(&plan()));
    let listeners = ztunnel(&world);
    for ports in [Ports::Ztunnels, Ports::Ours] {
        let report = prove(&world, &plan(), ports).unwrap();
        for way in [Way::Outbound, Way::Dns, Way::Arrival] {
            for family in [Family::V4, Family::V6] {
                let outcome = outcome(&report, way, family);
                assert!(matches!(outcome, Outcome::Accepted(_)), "{way} {family:?}: {report}");
            }
        }
    }
    for listener in &listeners {
        let heard = listener.accept().map_err(|error| error.kind());
        assert_eq!(heard.unwrap_err(), std::io::ErrorKind::WouldBlock);
    }
    // And without it.
    drop(listeners);
    within(&world.pod, || {
        // A program that another test starts has them until it runs.
        let end = Instant::now() + Duration::from_secs(60);
        for port in [15001, 15006, 15053] {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                assert!(Instant::now() < end, "port {port} is still open");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    })
    .unwrap();
    let report = prove(&world, &plan(), Ports::Ztunnels).unwrap();
    for way in [Way::Outbound, Way::Dns, Way::Arrival] {
        let outcome = outcome(&report, way, Family::V4);
        assert!(matches!(outcome, Outcome::NotProved(_)), "{way}: {report}");
    }
    assert!(!report.is_complete());
}

#[test]
fn a_real_connection_waits_for_ztunnel_and_is_not_lost() {
    let world = World::new();
    apply(&world, &Nftables::new(), &ours(&plan()));
    within(&world.pod, || {
        let ours = Listener::open(Family::V4, OUTBOUND_PORT).unwrap();
        ours.admit(1).unwrap();
        let client = std::thread::spawn(|| TcpStream::connect("192.0.2.1:443").map(drop));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!client.is_finished(), "neither accepted nor refused");
        drop(ours);
        let ztunnel = TcpListener::bind((Ipv4Addr::UNSPECIFIED, OUTBOUND_PORT)).unwrap();
        // By the retransmission.
        ztunnel.accept().unwrap();
        client.join().unwrap().unwrap();
    })
    .unwrap();
}

/// `want` without what an edit takes away.
fn edited(edit: impl Fn(TableKind, ChainKind, &redirect::desired::Rule) -> bool) -> Desired {
    let mut want = ours(&plan());
    for table in &mut want.tables {
        for chain in &mut table.chains {
            let (table, kind) = (table.kind, chain.kind);
            chain.rules.retain(|rule| !edit(table, kind, rule));
        }
    }
    want
}

#[test]
fn what_is_missing_is_named() {
    use ChainKind::{Arrival, Output, OutputHook, Prerouting};
    use TableKind::{Mangle, Nat};
    let to = |rule: &redirect::desired::Rule, port| rule.action == Action::Redirect(port);
    let udp = Match::Proto(redirect::desired::Proto::Udp);
    let is_udp = |rule: &redirect::desired::Rule| rule.matches.contains(&udp);
    type Edit<'a> = Box<dyn Fn(TableKind, ChainKind, &redirect::desired::Rule) -> bool + 'a>;
    let cases: [(Way, Edit<'_>); 7] = [
        (Way::Outbound, Box::new(|t, c, _| (t, c) == (Nat, OutputHook))),
        (Way::Outbound, Box::new(|_, _, rule| to(rule, 15001))),
        (Way::Dns, Box::new(|_, c, rule| c == Output && to(rule, 15053) && !is_udp(rule))),
        (Way::Query, Box::new(|_, c, rule| c == Output && to(rule, 15053) && is_udp(rule))),
        (Way::Arrival, Box::new(|t, c, _| (t, c) == (Nat, Prerouting))),
        (Way::Reply, Box::new(|t, c, _| (t, c) == (Mangle, OutputHook))),
        (Way::Kubelet, Box::new(|_, c, rule| c == Arrival && rule.action == Action::Accept)),
    ];
    for (way, edit) in cases {
        let world = World::new();
        apply(&world, &Nftables::new(), &edited(edit));
        let error = prove(&world, &plan(), Ports::Ours).unwrap_err();
        match &error {
            ProbeError::Escaped { way: found, .. } | ProbeError::Caught { way: found, .. } => {
                assert_eq!(*found, way, "{error}");
            }
            other => panic!("{way}: {other}"),
        }
        println!("{error}");
    }
    // ztunnel's own traffic in a circle: the rule without its condition.
    let mut circle = ours(&plan());
    for chain in circle.tables.iter_mut().flat_map(|t| &mut t.chains).filter(|c| c.kind == Output) {
        for rule in chain.rules.iter_mut().filter(|rule| to(rule, 15001)) {
            rule.matches.retain(|m| !matches!(m, Match::Mark(_)));
        }
    }
    let world = World::new();
    apply(&world, &Nftables::new(), &circle);
    let error = prove(&world, &plan(), Ports::Ours).unwrap_err();
    assert!(matches!(error, ProbeError::Caught { way: Way::Ztunnel, port: 15001, .. }), "{error}");
}

#[test]
fn replies_without_their_route_are_missed() {
    let world = World::new();
    apply(&world, &Nftables::new(), &ours(&plan()));
    within(&world.pod, || crate::routing::remove(&crate::routing::everything()).unwrap()).unwrap();
    let error = prove(&world, &plan(), Ports::Ours).unwrap_err();
    assert!(matches!(error, ProbeError::Escaped { way: Way::Reply, .. }), "{error}");
}

#[test]
fn ipv6_without_loopback_is_captured_and_lost() {
    let world = World::new();
    within(&world.pod, || {
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
        assert_eq!(crate::routing::ipv6().unwrap(), Ipv6::NoLoopback);
    })
    .unwrap();
    let plan = AmbientPlan { ipv6: Ipv6::NoLoopback, ..plan() };
    apply(&world, &Nftables::new(), &ours(&plan));
    let report = prove(&world, &plan, Ports::Ours).unwrap();
    assert!(matches!(outcome(&report, Way::Outbound, Family::V4), Outcome::Proved(_)));
    assert!(matches!(outcome(&report, Way::Outbound, Family::V6), Outcome::NotProved(_)));
    assert!(!report.is_complete(), "{report}");
    let to: SocketAddr = "[fd08::1]:80".parse().unwrap();
    let _server = within(&world.node, || TcpListener::bind(to).unwrap()).unwrap();
    let dial = |ms| TcpStream::connect_timeout(&to, Duration::from_millis(ms)).is_ok();
    assert!(!within(&world.pod, || dial(300)).unwrap(), "nothing goes round ztunnel");
    within(&world.pod, || Nftables::new().remove().unwrap()).unwrap();
    assert!(within(&world.pod, || dial(60_000)).unwrap(), "the test can see it");
}

/// See the sidecar's: the node asks for the pod once a second.
#[test]
fn a_pod_that_is_still_looked_for_is_waited_for() {
    let world = World::new();
    let plan = AmbientPlan { ipv6: Ipv6::Absent, ..plan() };
    apply(&world, &Nftables::new(), &ours(&plan));
    let hear = |value: &str| {
        let knob = "/proc/sys/net/ipv4/conf/eth0/arp_ignore";
        within(&world.pod, || std::fs::write(knob, value).unwrap()).unwrap();
    };
    // See the sidecar's.
    let asks = "/proc/sys/net/ipv4/neigh/veth0/mcast_solicit";
    within(&world.node, || std::fs::write(asks, "60").unwrap()).unwrap();
    for (patience, is_proved) in [(Duration::ZERO, false), (Duration::from_secs(60), true)] {
        crate::probe::tests::wait_until_closed(&world.pod);
        let inside = within(&world.pod, || ambient_inside(&plan, &addresses(), Ports::Ours));
        let inside = inside.unwrap().unwrap();
        hear("8");
        within(&world.node, || ip("neigh flush dev veth0\n")).unwrap();
        let report = std::thread::scope(|scope| {
            if is_proved {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(1500));
                    hear("0");
                });
            }
            let until = Instant::now() + patience;
            within(&world.node, || inside.finish(until)).unwrap().unwrap()
        });
        for way in [Way::Arrival, Way::Kubelet] {
            let outcome = outcome(&report, way, Family::V4);
            assert_eq!(matches!(outcome, Outcome::Proved(_)), is_proved, "{report}");
        }
    }
}

#[test]
fn what_the_plan_leaves_is_not_proved() {
    let plan = AmbientPlan { dns: false, inbound: false, ipv6: Ipv6::Absent, ..plan() };
    let world = World::new();
    apply(&world, &Nftables::new(), &ours(&plan));
    let report = prove(&world, &plan, Ports::Ours).unwrap();
    assert!(report.is_complete(), "{report}");
    assert!(matches!(outcome(&report, Way::Arrival, Family::V4), Outcome::NotCaptured(_)));
    assert!(report.findings.iter().all(|f| f.family == Family::V4), "{report}");
    assert!(matches!(outcome(&report, Way::Outbound, Family::V4), Outcome::Proved(_)));
}
