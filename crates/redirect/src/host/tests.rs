use super::declared::targets;
use super::rules::PRIORITY;
use super::*;
use crate::net::Family;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn target(text: &str) -> Target {
    let at: std::net::SocketAddr = text.parse().unwrap();
    Target { address: at.ip(), port: at.port() }
}

fn all(of: &[&str]) -> BTreeSet<Target> {
    of.iter().map(|text| target(text)).collect()
}

fn owner(pod: &str, sandbox: &str) -> Owner {
    Owner { pod: pod.to_owned(), sandbox: sandbox.to_owned() }
}

fn http(host: Option<&str>, port: Port) -> Check {
    Check::Http { host: host.map(str::to_owned), port }
}

#[test]
fn declared_checks_become_targets() {
    let name = |name: &str| Port::Name(name.to_owned());
    let app = Declared {
        container: "app".to_owned(),
        ports: vec![("web".to_owned(), 8080), ("80".to_owned(), 81)],
        checks: vec![
            http(None, name("web")),
            http(Some(""), Port::Number(8081)),
            Check::Tcp { host: None, port: name("9000") },
            Check::Grpc { port: 9001 },
            // A name goes before its digits.
            http(None, name("80")),
            // The pod's address in other words.
            http(Some("[fd00::5]"), Port::Number(8082)),
            http(Some("::ffff:10.0.0.5"), Port::Number(8083)),
            // Goes elsewhere.
            http(Some("localhost"), Port::Number(1)),
            http(Some("127.0.0.1"), Port::Number(2)),
            Check::Tcp { host: Some("10.0.0.6".to_owned()), port: Port::Number(3) },
        ],
    };
    let other = Declared {
        container: "other".to_owned(),
        ports: Vec::new(),
        // The other container's name, and what is no port.
        checks: vec![
            http(None, name("web")),
            Check::Grpc { port: 0 },
            Check::Grpc { port: 65536 },
            Check::Grpc { port: -1 },
        ],
    };
    let addresses: Vec<IpAddr> =
        ["::ffff:10.0.0.5", "fd00::5"].map(|a| a.parse().unwrap()).to_vec();
    let (found, refused) = targets(&[app, other], &addresses);
    let both = [8080, 8081, 9000, 9001, 81];
    let mut want: BTreeSet<Target> = both
        .into_iter()
        .flat_map(|port| {
            [target(&format!("10.0.0.5:{port}")), target(&format!("[fd00::5]:{port}"))]
        })
        .collect();
    want.extend(all(&["[fd00::5]:8082", "10.0.0.5:8083"]));
    assert_eq!(found, want);
    let refused: Vec<String> = refused.iter().map(|r| r.port.clone()).collect();
    assert_eq!(refused, ["web", "0", "65536", "-1"]);
    assert_eq!(targets(&[], &addresses), (BTreeSet::new(), Vec::new()));
}

#[test]
fn an_element_lives_as_long_as_somebody_wants_it() {
    let mut set = ProbeSet::default();
    set.complete();
    let (a, b) = (all(&["10.0.0.5:80", "10.0.0.5:81"]), all(&["10.0.0.5:80"]));
    assert_eq!(set.upsert(owner("a", "1"), a.clone()).add, a);
    // The address is the next pod's before the first is gone.
    assert_eq!(set.upsert(owner("b", "1"), b.clone()).add, b);
    assert_eq!(set.release(&owner("a", "1")).remove, all(&["10.0.0.5:81"]));
    // A late DEL of another sandbox of b, and of one that is gone.
    assert!(set.release(&owner("b", "0")).is_empty());
    assert!(set.release(&owner("a", "1")).is_empty());
    assert_eq!(set.wanted().collect::<BTreeSet<_>>(), b);
    // Probes that change.
    let change = set.upsert(owner("b", "1"), all(&["10.0.0.5:82"]));
    assert_eq!((change.add, change.remove), (all(&["10.0.0.5:82"]), b));
    assert_eq!(set.release_pod("b").remove, all(&["10.0.0.5:82"]));
    assert_eq!(set.owners(), 0);
}

#[test]
fn an_incomplete_view_takes_nothing_out() {
    let mut set = ProbeSet::default();
    let kernel = all(&["10.0.0.5:80", "10.0.0.6:80"]);
    set.upsert(owner("a", "1"), all(&["10.0.0.5:80"]));
    assert!(set.reconcile(&kernel).is_empty());
    assert!(set.release(&owner("a", "1")).is_empty(), "the element may be another's too");
    set.upsert(owner("b", "1"), all(&["10.0.0.6:80"]));
    set.complete();
    assert_eq!(set.reconcile(&kernel).remove, all(&["10.0.0.5:80"]));
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(u8, u8, BTreeSet<u8>),
    Release(u8, u8),
    ReleasePod(u8),
    Complete,
    Flush,
    Audit,
}

fn step() -> impl Strategy<Value = Step> {
    let ports = proptest::collection::btree_set(0..4u8, 0..4);
    prop_oneof![
        4 => (0..4u8, 0..2u8, ports).prop_map(|(p, s, t)| Step::Upsert(p, s, t)),
        3 => (0..4u8, 0..2u8).prop_map(|(p, s)| Step::Release(p, s)),
        1 => (0..4u8).prop_map(Step::ReleasePod),
        1 => Just(Step::Complete),
        1 => Just(Step::Flush),
        2 => Just(Step::Audit),
    ]
}

proptest! {
    /// Whatever happens in whatever order: what a known owner wants is in the set
    /// (a flush apart, until the next audit), and once the view is complete and
    /// audited nothing else is.
    #[test]
    fn a_live_owner_has_its_elements(steps in proptest::collection::vec(step(), 0..60)) {
        let name = |n: u8| n.to_string();
        let element = |port: u8| Target { address: "10.0.0.5".parse().unwrap(), port: port.into() };
        let mut set = ProbeSet::default();
        let mut model: BTreeMap<(u8, u8), BTreeSet<Target>> = BTreeMap::new();
        // What an agent before this one left.
        let mut kernel: BTreeSet<Target> = [element(2), element(3)].into();
        let mut flushed = false;
        for step in steps {
            let change = match step {
                Step::Upsert(pod, sandbox, ports) => {
                    let ports: BTreeSet<Target> = ports.into_iter().map(element).collect();
                    model.insert((pod, sandbox), ports.clone());
                    set.upsert(owner(&name(pod), &name(sandbox)), ports)
                }
                Step::Release(pod, sandbox) => {
                    model.remove(&(pod, sandbox));
                    set.release(&owner(&name(pod), &name(sandbox)))
                }
                Step::ReleasePod(pod) => {
                    model.retain(|(other, _), _| *other != pod);
                    set.release_pod(&name(pod))
                }
                Step::Complete => {
                    set.complete();
                    Change::default()
                }
                Step::Flush => {
                    kernel.clear();
                    flushed = true;
                    Change::default()
                }
                Step::Audit => {
                    flushed = false;
                    set.reconcile(&kernel)
                }
            };
            prop_assert!(change.add.is_disjoint(&change.remove));
            kernel.extend(&change.add);
            kernel.retain(|element| !change.remove.contains(element));
            let live: BTreeSet<Target> = model.values().flatten().copied().collect();
            prop_assert_eq!(&set.wanted().collect::<BTreeSet<_>>(), &live);
            prop_assert!(flushed || live.is_subset(&kernel), "{:?} in {:?}", live, kernel);
        }
        set.complete();
        let change = set.reconcile(&kernel);
        kernel.extend(&change.add);
        kernel.retain(|element| !change.remove.contains(element));
        prop_assert_eq!(kernel, model.values().flatten().copied().collect::<BTreeSet<_>>());
    }
}

fn process(cgroup: &str) -> Process {
    Process {
        pid: 700,
        name: "kubelet".to_owned(),
        uid: 0,
        cgroup: Some(cgroup.to_owned()),
        neighbours: Vec::new(),
    }
}

fn facts(process: Process) -> Facts {
    Facts { process: Some(process), cgroup_id: Ok(77), holds_pods: false, level_offset: Ok(0) }
}

#[test]
fn kubelet_is_known_by_its_cgroup_where_that_says_something() {
    let good = facts(process("/system.slice/kubelet.service"));
    let kubelet = Kubelet::choose(good.clone());
    let path = "system.slice/kubelet.service".to_owned();
    assert_eq!(kubelet.caller, Caller::Cgroup { path: path.clone(), level: 2, id: 77 });
    assert_eq!(kubelet.word(), "cgroup");
    let shifted = Kubelet::choose(Facts { level_offset: Ok(3), ..good.clone() });
    assert_eq!(shifted.caller, Caller::Cgroup { path, level: 5, id: 77 });

    let mut k3s = process("/system.slice/k3s.service");
    k3s.neighbours = vec!["containerd".to_owned()];
    let k3s = Kubelet::choose(facts(k3s));
    assert_eq!(k3s.word(), "cgroup-shared");
    assert!(k3s.to_string().ends_with("together with containerd"), "{k3s}");

    let mut other_user = process("/");
    other_user.uid = 1000;
    let no_cgroup = Process { cgroup: None, ..process("") };
    let unknown = Facts { process: None, ..good.clone() };
    for (facts, uid, why) in [
        (facts(other_user), 1000, "root cgroup"),
        (facts(no_cgroup), 0, "no cgroup of cgroup2"),
        (facts(process("/../../kubelet")), 0, "outside"),
        (facts(process("/a\"b")), 0, "cannot be written"),
        (Facts { holds_pods: true, ..good.clone() }, 0, "pods are in its cgroup"),
        (Facts { cgroup_id: Err("stat".to_owned()), ..good.clone() }, 0, "stat"),
        (Facts { level_offset: Err("old".to_owned()), ..good }, 0, "old"),
        (unknown, 0, "no process is called"),
    ] {
        let kubelet = Kubelet::choose(facts);
        assert_eq!((kubelet.caller.clone(), kubelet.word()), (Caller::Uid(uid), "uid"));
        assert!(kubelet.to_string().contains(why), "{kubelet}");
    }
}

fn by_cgroup() -> HostRules {
    let path = "system.slice/kubelet.service".to_owned();
    let caller = Caller::Cgroup { path, level: 2, id: 77 };
    HostRules { caller, sources: Sources::default() }
}

#[test]
fn rules_in_the_words_of_nft() {
    let targets = all(&["10.0.0.5:80", "[fd00::5]:80"]);
    let v4 = HostRules { sources: Sources { v6: None, ..Sources::default() }, ..by_cgroup() };
    let want = format!(
        "table inet sluice-probe {{
\tset sluice-probe-v4 {{
\t\ttype ipv4_addr . inet_service
\t\telements = {{ 10.0.0.5 . 80 }}
\t}}
\tset sluice-flow-v4 {{
\t\ttype ipv4_addr . inet_service . ipv4_addr . inet_service
\t\tsize 65535
\t\tflags dynamic,timeout
\t\ttimeout 1000ms
\t\tgc-interval 1s
\t}}
\tchain output {{
\t\ttype nat hook output priority {PRIORITY}; policy accept;
\t\tmeta nfproto ipv4 meta l4proto tcp ip daddr . tcp dport @sluice-probe-v4 socket cgroupv2 level 2 \"system.slice/kubelet.service\" counter add @sluice-flow-v4 {{ ip saddr . tcp sport . ip daddr . tcp dport }}
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority {PRIORITY}; policy accept;
\t\tmeta nfproto ipv4 meta l4proto tcp ip saddr . tcp sport . ip daddr . tcp dport @sluice-flow-v4 delete @sluice-flow-v4 {{ ip saddr . tcp sport . ip daddr . tcp dport }} counter snat ip to 169.254.7.127
\t}}
}}
"
    );
    assert_eq!(text::nft(&v4, &targets, ""), want);

    let by_uid = HostRules { caller: Caller::Uid(0), ..by_cgroup() };
    let text = text::nft(&by_uid, &targets, "");
    assert!(!text.contains("flow") && !text.contains("chain output"), "{text}");
    let rule = "meta nfproto ipv6 meta l4proto tcp ip6 daddr . tcp dport @sluice-probe-v6 meta skuid 0 counter snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff";
    assert!(text.contains(rule), "{text}");
    assert!(text.contains("elements = { fd00::5 . 80 }"), "{text}");
}

#[test]
fn rules_in_the_words_of_iptables() {
    let want = "*nat
:SLUICE_PROBE - [0:0]
-A SLUICE_PROBE -p tcp -m cgroup --path \"system.slice/kubelet.service\" -m comment --comment cgroup-77 -m set --match-set sluice-probe-v4 dst,dst -j SNAT --to-source 169.254.7.127
-D POSTROUTING -p tcp -j SLUICE_PROBE
-I POSTROUTING 1 -p tcp -j SLUICE_PROBE
COMMIT
";
    assert_eq!(text::iptables(&by_cgroup(), Family::V4, 1), want);
    let none = HostRules { sources: Sources { v6: None, ..Sources::default() }, ..by_cgroup() };
    assert_eq!(text::iptables(&none, Family::V6, 0), "");
    let by_uid = HostRules { caller: Caller::Uid(42), ..by_cgroup() };
    let text = text::iptables(&by_uid, Family::V6, 0);
    assert!(text.contains("-m owner --uid-owner 42 -m set --match-set sluice-probe-v6"), "{text}");
    assert_eq!(
        text::ipset(Family::V6, &all(&["10.0.0.5:80", "[fd00::5]:80"])),
        "create sluice-probe-v6 hash:ip,port family inet6\nadd sluice-probe-v6 fd00::5,tcp:80\n"
    );
}
