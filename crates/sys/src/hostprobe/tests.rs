//! Against the real kernel, in namespaces that nothing keeps.

use super::*;
use crate::lab::{fresh, run};
use redirect::host::text;
use std::path::Path;

fn programmers() -> Vec<Programmer> {
    vec![Programmer::Nftables, Programmer::Iptables(Arc::new(Iptables::detect().unwrap()))]
}

fn targets(of: &[&str]) -> BTreeSet<Target> {
    let target = |text: &&str| {
        let at: std::net::SocketAddr = text.parse().unwrap();
        Target { address: at.ip(), port: at.port() }
    };
    of.iter().map(target).collect()
}

/// A cgroup that is there on every machine: the root of all.
fn rules_by_cgroup() -> HostRules {
    let mounts = kubelet::mounts(Path::new("/proc"));
    let id = kubelet::look(&mounts, "").unwrap().id;
    let caller = Caller::Cgroup { path: String::new(), level: 0, id };
    HostRules { caller, sources: Sources::default() }
}

fn rules_by_uid() -> HostRules {
    HostRules { caller: Caller::Uid(0), sources: Sources::default() }
}

#[test]
fn each_dialect_is_proved_and_knows_cgroups() {
    let mounts = kubelet::mounts(Path::new("/proc"));
    for programmer in programmers() {
        trial::dialect(&programmer).unwrap_or_else(|error| panic!("{}", trial::said(&error)));
        assert_eq!(trial::cgroups(&programmer, &mounts), Ok(0), "{programmer:?}");
    }
}

#[test]
fn a_cgroup_that_is_not_seen_is_said() {
    let why = trial::cgroups(&Programmer::Nftables, &[]).unwrap_err();
    assert!(why.contains("mount the host's /sys/fs/cgroup"), "{why}");
}

#[test]
fn writes_looks_changes_and_removes() {
    let first = targets(&["10.0.0.5:80", "10.0.0.5:81", "[fd00::5]:80"]);
    for programmer in programmers() {
        for rules in [rules_by_uid(), rules_by_cgroup()] {
            fresh(|| {
                let before = programmer.observe(&rules).unwrap();
                assert!(!before.present && !before.diff.is_empty(), "{before:?}");
                let change = Change { add: first.clone(), ..Change::default() };
                assert!(!programmer.update(&rules, &change).unwrap(), "there is nothing yet");
                for _ in 0..2 {
                    programmer.install(&rules, &first).unwrap();
                    let found = programmer.observe(&rules).unwrap();
                    assert_eq!(found.diff.to_string(), "");
                    assert_eq!((found.present, &found.elements), (true, &first));
                    assert_eq!(found.ahead, Vec::<String>::new());
                }
                let change = Change {
                    add: targets(&["10.0.0.5:80", "10.0.0.6:80", "[fd00::6]:80"]),
                    remove: targets(&["10.0.0.5:81", "[fd00::5]:80"]),
                };
                assert!(programmer.update(&rules, &change).unwrap());
                let found = programmer.observe(&rules).unwrap();
                assert_eq!(found.elements, change.add);
                // Other rules, the elements stay as told.
                programmer.install(&rules_by_uid(), &found.elements).unwrap();
                assert_eq!(programmer.observe(&rules_by_uid()).unwrap().elements, change.add);
                for _ in 0..2 {
                    programmer.remove().unwrap();
                    assert!(!programmer.observe(&rules).unwrap().present);
                }
            });
        }
    }
}

#[test]
fn the_text_says_what_netlink_writes() {
    let elements = targets(&["10.0.0.5:80", "[fd00::5]:80"]);
    // Where cgroup2 is mounted, below the directory that nft takes for its mount.
    let mounts = kubelet::mounts(Path::new("/proc"));
    let mount = mounts[0].strip_prefix("/sys/fs/cgroup").unwrap().to_str().unwrap();
    for rules in [rules_by_uid(), rules_by_cgroup()] {
        let written = fresh(|| {
            nft::install(&rules, &elements).unwrap();
            // Neither form may break the tool (istio/istio#61224).
            run("nft -j list ruleset", "");
            run("nft list ruleset", "")
        });
        fresh(|| {
            // The tool takes no path for the root of all.
            let text = text::nft(&rules, &elements, mount);
            run("nft -f -", &text);
            let found = picture::observe(&rules).unwrap();
            assert_eq!(found.diff.to_string(), "", "{text}");
            assert_eq!(found.elements, elements);
            assert_eq!(run("nft list ruleset", ""), written);
        });
        if rules == rules_by_uid() {
            // What the tool lists, it loads.
            fresh(|| {
                run("nft -f -", &written);
                assert_eq!(picture::observe(&rules).unwrap().diff.to_string(), "");
            });
        }
        let tools = Iptables::detect().unwrap();
        fresh(|| {
            let programmer = Programmer::Iptables(Arc::new(tools));
            for (family, tool) in
                [(redirect::net::Family::V4, "iptables"), (redirect::net::Family::V6, "ip6tables")]
            {
                run("ipset restore", &text::ipset(family, &elements));
                let input = text::iptables(&rules, family, 0);
                run(&format!("{tool}-restore --noflush"), &input);
            }
            let found = programmer.observe(&rules).unwrap();
            assert_eq!(found.diff.to_string(), "");
            assert_eq!(found.elements, elements);
        });
    }
}

#[test]
fn drift_is_seen_and_repaired() {
    let elements = targets(&["10.0.0.5:80"]);
    let rules = rules_by_cgroup();
    for harm in [
        "flush ruleset",
        "flush chain inet sluice-probe output",
        "delete table inet sluice-probe",
        "add rule inet sluice-probe postrouting counter accept",
        "insert rule inet sluice-probe output return",
        "add chain inet sluice-probe other",
        "add table inet sluice-probe { flags dormant; }",
    ] {
        fresh(|| {
            nft::install(&rules, &elements).unwrap();
            run("nft -f -", harm);
            assert!(!picture::observe(&rules).unwrap().diff.is_empty(), "{harm}");
            nft::install(&rules, &elements).unwrap();
            assert_eq!(picture::observe(&rules).unwrap().diff.to_string(), "", "{harm}");
        });
    }
    // Another cgroup of the same name is another one.
    fresh(|| {
        nft::install(&rules, &elements).unwrap();
        let Caller::Cgroup { path, level, id } = rules.caller.clone() else { panic!() };
        let again = Caller::Cgroup { path, level, id: id + 1 };
        let rules = HostRules { caller: again, ..rules.clone() };
        assert!(!picture::observe(&rules).unwrap().diff.is_empty());
    });
    let tools = Arc::new(Iptables::detect().unwrap());
    let programmer = Programmer::Iptables(tools);
    for harm in [
        "iptables -t nat -F",
        "iptables -t nat -F SLUICE_PROBE",
        "iptables -t nat -I POSTROUTING 1 -j MASQUERADE",
        "iptables -t nat -D POSTROUTING 1",
        "iptables -t nat -A POSTROUTING -p tcp -j SLUICE_PROBE",
        "iptables -t nat -A SLUICE_PROBE -j RETURN",
        "ip6tables -t nat -F",
    ] {
        fresh(|| {
            programmer.install(&rules, &elements).unwrap();
            run("iptables -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE", "");
            assert_eq!(programmer.observe(&rules).unwrap().diff.to_string(), "");
            run(harm, "");
            assert!(!programmer.observe(&rules).unwrap().diff.is_empty(), "{harm}");
            programmer.install(&rules, &elements).unwrap();
            assert_eq!(programmer.observe(&rules).unwrap().diff.to_string(), "", "{harm}");
        });
    }
    fresh(|| {
        programmer.install(&rules, &elements).unwrap();
        run("ipset flush", "");
        let found = programmer.observe(&rules).unwrap();
        assert!(found.diff.is_empty() && found.elements.is_empty(), "{found:?}");
    });
}

#[test]
fn who_comes_first_is_said() {
    fresh(|| {
        let rules = rules_by_uid();
        nft::install(&rules, &BTreeSet::new()).unwrap();
        run(
            "nft -f -",
            "table ip later {\nchain post {\ntype nat hook postrouting priority srcnat;\n}\n}\n\
             table inet first {\nchain post {\ntype nat hook postrouting priority -195;\n}\n}\n",
        );
        let found = picture::observe(&rules).unwrap();
        assert!(found.diff.is_empty());
        assert_eq!(found.ahead, ["chain inet first post priority -195"]);
    });
}

#[test]
fn istios_rules_are_found_and_removed() {
    let tools = Iptables::detect().unwrap();
    fresh(|| {
        assert_eq!(upstream::find(Some(&tools)).unwrap(), Vec::<String>::new());
        upstream::remove(Some(&tools)).unwrap();
        run("ipset create istio-inpod-probes-v4 hash:ip comment", "");
        run("ipset create istio-inpod-probes-v6 hash:ip family inet6 comment", "");
        run("ipset add istio-inpod-probes-v4 10.0.0.5 comment some-uid", "");
        run("iptables -t nat -N ISTIO_POSTRT", "");
        run("iptables -t nat -I POSTROUTING 1 -j ISTIO_POSTRT", "");
        run(
            "iptables -t nat -A ISTIO_POSTRT -m owner --socket-exists -p tcp -m set --match-set \
             istio-inpod-probes-v4 dst -j SNAT --to-source 169.254.7.127"
                .replace("             ", "")
                .as_str(),
            "",
        );
        run("iptables -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE", "");
        run("nft add table inet istio-ambient-nat", "");
        let found = upstream::find(Some(&tools)).unwrap();
        assert_eq!(found.len(), 4, "{found:?}");
        upstream::remove(Some(&tools)).unwrap();
        assert_eq!(upstream::find(Some(&tools)).unwrap(), Vec::<String>::new());
        let left = run("iptables -t nat -S", "");
        assert!(left.contains("MASQUERADE") && !left.contains("ISTIO"), "{left}");
    });
}

/// A host of AWS in strict mode: `vlan` and `veth` have a table with the pod's route.
fn strict_host() {
    run(
        "ip -batch -",
        "link set lo up\nlink add veth type veth peer name pod\nlink set veth up\nlink set pod up\nlink add vlan type veth peer name trunk\nlink set vlan up\nroute add 10.0.0.5 dev veth table 101\nroute add default dev vlan table 101\nrule add iif vlan lookup 101 priority 10\nrule add iif veth lookup 101 priority 10",
    );
    run(
        "ip -6 -batch -",
        "route add fd00::5 dev veth table 101\nrule add iif veth lookup 101 priority 10",
    );
    std::fs::write("/proc/sys/net/ipv4/tcp_early_demux", "0").unwrap();
}

#[test]
fn branch_interfaces_get_their_policy_rules_and_lose_them() {
    let pod: BTreeSet<std::net::IpAddr> =
        ["10.0.0.5", "fd00::5", "10.0.0.9"].map(|a| a.parse().unwrap()).into();
    let ours = || {
        let both = run("ip -4 rule", "") + &run("ip -6 rule", "");
        let lines = both.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.filter(|line| line.contains("proto 215")).collect::<Vec<_>>()
    };
    fresh(|| {
        strict_host();
        let foreign = run("ip rule", "");
        std::fs::write("/proc/sys/net/ipv4/tcp_early_demux", "1").unwrap();
        branch::ensure(&pod).unwrap();
        assert_eq!(ours(), Vec::<String>::new(), "not the strict mode");
        std::fs::write("/proc/sys/net/ipv4/tcp_early_demux", "0").unwrap();
        let want = [
            "9: from all iif veth lookup local proto 215",
            "511: from all to 10.0.0.5 lookup 101 proto 215",
            "9: from all iif veth lookup local proto 215",
            "511: from all to fd00::5 lookup 101 proto 215",
        ];
        for _ in 0..2 {
            branch::ensure(&pod).unwrap();
            assert_eq!(ours(), want);
        }
        // The interface is not there any more when the pod is told to be gone, and
        // whoever made the rules is another process.
        run("ip link del veth", "");
        branch::release(&["10.0.0.5".parse().unwrap()].into()).unwrap();
        assert_eq!(ours().len(), 0, "{:?}", ours());
        assert_eq!(run("ip rule", "").lines().count(), foreign.lines().count());
    });
    fresh(|| {
        strict_host();
        branch::ensure(&pod).unwrap();
        branch::release(&["10.0.0.5".parse().unwrap()].into()).unwrap();
        assert_eq!(
            ours(),
            [
                "9: from all iif veth lookup local proto 215",
                "511: from all to fd00::5 lookup 101 proto 215"
            ]
        );
        branch::reconcile(&pod).unwrap();
        assert_eq!(ours().len(), 4);
        branch::reconcile(&BTreeSet::new()).unwrap();
        assert_eq!(ours().len(), 0);
    });
}

#[test]
fn hears_of_others_and_not_of_itself() {
    fresh(|| {
        let rules = rules_by_uid();
        nft::install(&rules, &BTreeSet::new()).unwrap();
        let mut line = nft::Line::default();
        let mut heard = watch::Notifications::subscribe().unwrap();
        assert!(!heard.concern_us(0), "what was before is not heard");
        let add = |of: &str| Change { add: targets(&[of]), ..Change::default() };
        nft::update(&mut line, &rules, &add("10.0.0.5:80")).unwrap();
        assert!(!heard.concern_us(line.port()));
        nft::update(&mut line, &rules, &add("10.0.0.6:80")).unwrap();
        assert!(heard.concern_us(0), "our own writing is one, but for whose it is");
        nft::update(&mut nft::Line::default(), &rules, &add("10.0.0.7:80")).unwrap();
        assert!(heard.concern_us(line.port()), "another socket");
        for (script, concerns) in [
            ("add table ip other", false),
            ("add chain ip other plain", false),
            ("add rule ip other plain counter", false),
            ("add chain ip other hooked { type nat hook postrouting priority 0; }", true),
            ("delete table ip other", false),
            ("add rule inet sluice-probe postrouting counter", true),
            (
                "add table ip nat; add chain ip nat POSTROUTING; add rule ip nat POSTROUTING counter",
                true,
            ),
            ("add chain ip nat OTHER; add rule ip nat OTHER counter", false),
            ("flush ruleset", true),
        ] {
            run("nft -f -", &script.replace("; add", "\nadd"));
            assert_eq!(heard.concern_us(line.port()), concerns, "{script}");
        }
    });
}
