use super::*;
use crate::backend::Backend;
use crate::lab::{self, World, addresses, ip, nft};
use crate::netns::within;
use crate::nftables::Nftables;
use redirect::compile::compile;
use redirect::desired::{ChainKind, Desired, Form, RuleFamily, TableKind};
use redirect::net::{Cidr, Owner};
use redirect::plan::{Destinations, Dns, Groups, Inbound};

/// Programs and proves.
fn prove(world: &World, rules: &Desired, plan: &Plan) -> Result<Report, ProbeError> {
    let inside = within(&world.pod, || {
        Nftables::new().apply(rules, None).unwrap();
        inside(plan, &addresses())
    })
    .unwrap()?;
    within(&world.node, || inside.finish(&world.pod, Instant::now())).unwrap()
}

fn plan(mode: Mode) -> Plan {
    Plan {
        mode,
        inbound: Inbound::AllExcept(vec![15020]),
        dns: Dns::All,
        drop_invalid: true,
        ..lab::plan(true)
    }
}

const TPROXY: Mode = Mode::Tproxy { mark: 1337, table: 133 };

fn rules(plan: &Plan) -> Desired {
    compile(plan, Form::Sluice)
}

/// The rules with those of one chain left out that a family of packets needs.
fn without(plan: &Plan, table: TableKind, chain: ChainKind, family: Option<Family>) -> Desired {
    let mut desired = rules(plan);
    let chains = desired.tables.iter_mut().filter(|t| t.kind == table).flat_map(|t| &mut t.chains);
    for chain in chains.filter(|c| c.kind == chain) {
        let other = family.map(|f| if f == Family::V4 { RuleFamily::V6 } else { RuleFamily::V4 });
        chain.rules.retain_mut(|rule| match (rule.family, other) {
            (_, None) => false,
            (RuleFamily::Any, Some(other)) => {
                rule.family = other;
                true
            }
            (family, Some(other)) => family == other,
        });
    }
    desired
}

fn proved(report: &Report) -> usize {
    report.findings.iter().filter(|f| matches!(f.outcome, Outcome::Proved(_))).count()
}

#[test]
fn everything_is_proved_when_the_rules_are_whole() {
    for mode in [Mode::Redirect, TPROXY] {
        let world = World::new();
        let plan = plan(mode);
        for _ in 0..3 {
            wait_until_closed(&world.pod);
            let begun = Instant::now();
            let report = prove(&world, &rules(&plan), &plan).unwrap();
            println!("{mode:?} {:?}: {report}", begun.elapsed());
            assert_eq!(proved(&report), 6, "{report}");
            assert!(report.is_complete());
        }
    }
}

/// The kernel asks for a neighbour once a second, and a busy machine's fresh link loses
/// the question. Who has time waits for the next; who has none is told.
#[test]
fn a_pod_that_is_still_looked_for_is_waited_for() {
    let world = World::new();
    let plan = Plan { ipv6: false, ..plan(Mode::Redirect) };
    let hear = |value: &str| {
        let knob = "/proc/sys/net/ipv4/conf/eth0/arp_ignore";
        within(&world.pod, || std::fs::write(knob, value).unwrap()).unwrap();
    };
    // Else the kernel gives up after three questions, which a busy machine may need.
    let asks = "/proc/sys/net/ipv4/neigh/veth0/mcast_solicit";
    within(&world.node, || std::fs::write(asks, "60").unwrap()).unwrap();
    for (patience, is_proved) in [(Duration::ZERO, false), (Duration::from_secs(60), true)] {
        wait_until_closed(&world.pod);
        let inside = within(&world.pod, || {
            Nftables::new().apply(&rules(&plan), None).unwrap();
            inside(&plan, &addresses())
        });
        let inside = inside.unwrap().unwrap();
        hear("8");
        within(&world.node, || ip("neigh flush dev veth0")).unwrap();
        let report = std::thread::scope(|scope| {
            // Who has no patience is not heard at all: the one attempt may be a long one.
            if is_proved {
                scope.spawn(|| {
                    std::thread::sleep(3 * ATTEMPT);
                    hear("0");
                });
            }
            let until = Instant::now() + patience;
            within(&world.node, || inside.finish(&world.pod, until)).unwrap().unwrap()
        });
        let arrived = report.findings.iter().find(|found| found.way == Way::Arrival).unwrap();
        assert_eq!(matches!(arrived.outcome, Outcome::Proved(_)), is_proved, "{report}");
    }
    // Nobody is waited for who can be reached and does not answer.
    wait_until_closed(&world.pod);
    let inside = within(&world.pod, || inside(&plan, &addresses())).unwrap().unwrap();
    let drop = "table inet other { chain c { type filter hook prerouting priority -400; ip daddr 10.8.0.2 tcp dport != 22 drop; }\n }";
    within(&world.pod, || {
        nft(drop);
    })
    .unwrap();
    let begun = Instant::now();
    let until = begun + Duration::from_secs(120);
    let report = within(&world.node, || inside.finish(&world.pod, until)).unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(proved(&report), 2, "{report}");
}

#[test]
fn what_is_missing_is_found_by_way_and_family() {
    use ChainKind::{InRedirect, Output, Prerouting, Redirect, Tproxy};
    use TableKind::{Mangle, Nat};
    let both = [Family::V4, Family::V6];
    let mut cases = vec![
        (Mode::Redirect, Nat, Output, None, Way::Outbound, Family::V4),
        (TPROXY, Nat, Output, None, Way::Outbound, Family::V4),
    ];
    for family in both {
        cases.extend([
            (Mode::Redirect, Nat, Redirect, Some(family), Way::Outbound, family),
            (Mode::Redirect, Nat, InRedirect, Some(family), Way::Loopback, family),
            (Mode::Redirect, Nat, Prerouting, Some(family), Way::Arrival, family),
            (TPROXY, Nat, Redirect, Some(family), Way::Outbound, family),
            (TPROXY, Nat, InRedirect, Some(family), Way::Loopback, family),
            (TPROXY, Mangle, Tproxy, Some(family), Way::Arrival, family),
            (TPROXY, Mangle, Prerouting, Some(family), Way::Arrival, family),
        ]);
    }
    for (mode, table, chain, broken, way, family) in cases {
        let world = World::new();
        let plan = plan(mode);
        let partly = without(&plan, table, chain, broken);
        match prove(&world, &partly, &plan) {
            Err(ProbeError::Escaped { way: w, family: f, .. }) if (w, f) == (way, family) => {}
            other => panic!("{mode:?} without {table:?} {chain:?} {broken:?}: {other:?}"),
        }
        wait_until_closed(&world.pod);
        let report = prove(&world, &rules(&plan), &plan).unwrap();
        assert_eq!(proved(&report), 6, "put right: {report}");
    }
}

#[test]
fn nothing_is_captured_without_rules() {
    let world = World::new();
    let plan = plan(Mode::Redirect);
    assert!(prove(&world, &Desired::default(), &plan).is_err());
    // Each way by itself, as the first that fails hides the others.
    within(&world.pod, || {
        for family in [Family::V4, Family::V6] {
            assert!(outbound(&plan, family, &addresses(), None).is_err());
            let listener = listen(family, plan.proxy.inbound_port).unwrap();
            assert!(loopback(&plan, family, listener.as_ref(), None).is_err());
        }
    })
    .unwrap();
}

#[test]
fn another_listener_on_the_dialled_port_is_no_proof() {
    let world = World::new();
    let plan = plan(Mode::Redirect);
    let partly = without(&plan, TableKind::Nat, ChainKind::Prerouting, None);
    let app = within(&world.pod, || std::net::TcpListener::bind("[::]:15002").unwrap()).unwrap();
    match prove(&world, &partly, &plan) {
        Err(ProbeError::Escaped { way: Way::Arrival, what, .. }) => {
            assert!(what.contains("somebody else accepted it"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    drop(app);
}

#[test]
fn a_proxy_that_runs_is_the_one_that_must_accept() {
    let world = World::new();
    let plan = plan(Mode::Redirect);
    let proxy = within(&world.pod, || {
        [plan.proxy.outbound_port, plan.proxy.inbound_port]
            .map(|port| std::net::TcpListener::bind(("::", port)).unwrap())
    })
    .unwrap();
    let report = prove(&world, &rules(&plan), &plan).unwrap();
    let accepted = |f: &Finding| matches!(f.outcome, Outcome::Accepted(_));
    assert!(report.findings.iter().all(accepted), "{report}");

    let mut one_port = plan.clone();
    one_port.inbound = Inbound::Only(vec![8080]);
    let report = prove(&world, &rules(&one_port), &one_port).unwrap();
    assert!(!report.is_complete(), "{report}");

    let broken = without(&plan, TableKind::Nat, ChainKind::Redirect, None);
    assert!(prove(&world, &broken, &plan).is_err());
    drop(proxy);
}

/// A process that holds a user namespace, mapped as kubelet maps one, and the
/// network namespace that belongs to it.
struct Guest(std::process::Child);

impl Guest {
    fn new() -> (Self, Netns) {
        #[expect(clippy::disallowed_methods, reason = "lives while the test does")]
        let child = std::process::Command::new("unshare")
            .args(["--user", "--net", "sleep", "600"])
            .spawn()
            .unwrap();
        let path = format!("/proc/{}", child.id());
        let guest = Self(child);
        let link = |of: &str, name: &str| std::fs::read_link(format!("{of}/ns/{name}")).unwrap();
        for _ in 0..6000 {
            let apart = |name| link(&path, name) != link("/proc/self", name);
            if apart("user") && apart("net") {
                for map in ["uid_map", "gid_map"] {
                    std::fs::write(format!("{path}/{map}"), "0 100000 65536").unwrap();
                }
                let netns = Netns::open(std::path::Path::new(&format!("{path}/ns/net"))).unwrap();
                return (guest, netns);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no user namespace");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_pod_with_its_own_users_is_proved_as_those_users() {
    let (_guest, pod) = Guest::new();
    let world = World::around(pod);
    for mode in [Mode::Redirect, TPROXY] {
        let mut plan = plan(mode);
        plan.outbound.groups = Groups::Only(vec![Owner::Id(202)]);
        wait_until_closed(&world.pod);
        let report = prove(&world, &rules(&plan), &plan).unwrap();
        assert_eq!(proved(&report), 6, "{report}");
        let partly = without(&plan, TableKind::Nat, ChainKind::InRedirect, Some(Family::V4));
        assert!(prove(&world, &partly, &plan).is_err());
    }
}

#[test]
fn owners_and_lists_are_respected() {
    let world = World::new();
    let mut plan = plan(Mode::Redirect);
    plan.proxy.uids = vec![Owner::Id(65534), Owner::Id(7)];
    plan.proxy.gids = vec![Owner::Id(65534)];
    plan.outbound.groups = Groups::Only(vec![Owner::Id(202)]);
    plan.outbound.include = Destinations::Only(vec!["10.96.0.0/12".parse::<Cidr>().unwrap()]);
    plan.outbound.include_ports = vec![53, 443];
    plan.outbound.exclude = vec!["192.0.2.0/24".parse().unwrap()];
    plan.inbound = Inbound::Only(vec![9090]);
    let report = prove(&world, &rules(&plan), &plan).unwrap();
    assert_eq!(proved(&report), 6, "{report}");
    let text = report.to_string();
    assert!(text.contains("198.51.100.1:443") && text.contains(":9090"), "{text}");
}

#[test]
fn excluded_interfaces_are_not_proved() {
    let world = World::new();
    let mut plan = plan(Mode::Redirect);
    plan.exclude_interfaces = vec!["eth*".parse().unwrap()];
    let report = prove(&world, &rules(&plan), &plan).unwrap();
    assert_eq!(proved(&report), 2, "the loopback connections only: {report}");
    assert!(report.to_string().contains("interfaces are excluded"), "{report}");
}

#[test]
fn a_namespace_without_routes_is_said_to_be_unproved() {
    let world = World::new();
    let plan = plan(Mode::Redirect);
    within(&world.pod, || ip("address flush dev eth0\nlink set eth0 down")).unwrap();
    let report = prove(&world, &rules(&plan), &plan).unwrap();
    assert!(!report.is_complete(), "{report}");
    assert!(report.to_string().contains("Network is unreachable"), "{report}");
}

#[test]
fn a_lo_that_is_down_is_found() {
    let world = World::new();
    let mut plan = plan(Mode::Redirect);
    plan.ipv6 = false;
    within(&world.pod, || ip("link set lo down")).unwrap();
    let error = prove(&world, &rules(&plan), &plan).unwrap_err();
    assert!(matches!(error, ProbeError::Escaped { .. }), "{error}");
}

#[test]
fn leaves_no_listener_and_no_time_wait() {
    let world = World::new();
    let plan = plan(Mode::Redirect);
    prove(&world, &rules(&plan), &plan).unwrap();
    wait_until_closed(&world.pod);
    wait_until_closed(&world.node);
}

/// Waits until the sockets of a proof are gone: a program that another test starts has our
/// descriptors from fork to exec. TIME_WAIT would last for a minute.
#[track_caller]
pub(super) fn wait_until_closed(ns: &Netns) {
    let sockets = || {
        ["tcp", "tcp6"]
            .map(|f| std::fs::read_to_string(format!("/proc/thread-self/net/{f}")).unwrap())
            .concat()
    };
    // ESTABLISHED, TIME_WAIT, LISTEN. A half-open one is nobody's and soon gone.
    let stays = |line: &&str| matches!(line.split_whitespace().nth(3), Some("01" | "06" | "0A"));
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let sockets = within(ns, sockets).unwrap();
        if sockets.lines().filter(stays).count() == 0 {
            return;
        }
        assert!(Instant::now() < end, "{sockets}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_backend_is_tried_in_a_scratch_namespace() {
    scratch(&Nftables::new()).unwrap();

    /// Writes nothing, and says that it did.
    #[derive(Debug)]
    struct Liar;
    impl Backend for Liar {
        fn kind(&self) -> crate::backend::BackendKind {
            crate::backend::BackendKind::Nftables
        }
        fn apply(
            &self,
            _: &Desired,
            _: Option<&Desired>,
        ) -> Result<crate::backend::Applied, crate::backend::BackendError> {
            Ok(crate::backend::Applied::Created)
        }
        fn observe(
            &self,
            _: &Desired,
        ) -> Result<crate::backend::Diff, crate::backend::BackendError> {
            Ok(crate::backend::Diff::default())
        }
        fn remove_rules(&self) -> Result<(), Vec<crate::backend::BackendError>> {
            Ok(())
        }
    }
    assert!(matches!(scratch(&Liar), Err(ScratchError::Probe(_))));
}

/// Takes CAP_SETUID and CAP_SETGID from the calling thread and those that it starts.
fn give_up_other_ids() {
    const VERSION_3: u32 = 0x2008_0522;
    const IDS: u32 = 1 << 6 | 1 << 7;
    let header = [VERSION_3, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: both calls take the header of version 3 and two sets of three words
    // each, which live until after them.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()), 0);
        sets[0] &= !IDS;
        sets[1] &= !IDS;
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
    }
}

/// Istio's chart gives neither capability, and the agent must start there.
#[test]
fn without_the_right_to_other_ids_less_is_proved_and_nothing_fails() {
    let world = World::new();
    let plan = plan(Mode::Redirect);
    let found = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            give_up_other_ids();
            scratch(&Nftables::new()).unwrap();
            // As ourselves, whose traffic is captured like any application's.
            let partly = without(&plan, TableKind::Nat, ChainKind::Output, None);
            let escaped = prove(&world, &partly, &plan);
            assert!(matches!(escaped, Err(ProbeError::Escaped { way: Way::Outbound, .. })));
            wait_until_closed(&world.pod);
            prove(&world, &rules(&plan), &plan).unwrap()
        });
        thread.join().unwrap()
    });
    for finding in &found.findings {
        let proved = matches!(finding.outcome, Outcome::Proved(_));
        match finding.way {
            Way::Outbound => assert!(proved, "{finding}"),
            Way::Loopback => {
                assert_eq!(finding.outcome, Outcome::NotProved(FORBIDDEN.to_owned()));
            }
            // Another matter: the connection comes from the node.
            _ => {}
        }
    }
    assert!(!found.is_complete());
}
