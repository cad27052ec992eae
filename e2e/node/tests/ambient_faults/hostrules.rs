//! Istio's own rules on the host give kubelet's address to any root process, or to any
//! socket of the host. They go once ours exempt every pod, and kubelet's probes pass at
//! every moment of that.

use crate::kubelet::{Kubelet, SOURCES};
use crate::stage::{KUBELET, PORT, Stage, Started, records};
use crate::takeover::{forget_records, istios, leave_to_istio};
use e2e_node::lab::Namespace;
use e2e_node::packet::Fate;
use e2e_node::rules::Tool;
use e2e_node::ztunnel::Direction;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Not probed by anybody.
const OTHER: u16 = PORT + 1;

/// What is of nobody whom the agent knows.
const FOREIGN: [&str; 3] = ["table inet istio-ambient-nat-of-somebody", "SOMEBODY", "somebody-v4"];

/// Loads what Istio's agent has on a host (reference 4.7, 4.8), beside somebody else's.
fn load_istios(host: &Namespace, pod: &Started, tool: Tool) {
    let (v4, v6) = (pod.ip(false), pod.ip(true));
    let [snat4, snat6] = SOURCES;
    let table = format!("{} {{\nset s {{ type ipv4_addr; }}\n}}\n", FOREIGN[0]);
    host.load(&["nft", "-f", "-"], &table).unwrap();
    let sets = format!("create {} hash:ip\n", FOREIGN[2]);
    host.load(&["ipset", "restore"], &sets).unwrap();
    if tool == Tool::Nft {
        let table = format!(
            "table inet istio-ambient-nat {{\n\
             set istio-inpod-probes-v4 {{ type ipv4_addr; elements = {{ {v4} }}; }}\n\
             set istio-inpod-probes-v6 {{ type ipv6_addr; elements = {{ {v6} }}; }}\n\
             chain postrouting {{ type nat hook postrouting priority 100;\n\
             meta l4proto tcp skuid 0 ip daddr @istio-inpod-probes-v4 counter snat to {snat4}\n\
             meta l4proto tcp skuid 0 ip6 daddr @istio-inpod-probes-v6 counter snat to {snat6}\n\
             }}\n}}\n"
        );
        host.load(&["nft", "-f", "-"], &table).unwrap();
        return;
    }
    let sets = format!(
        "create istio-inpod-probes-v4 hash:ip family inet comment\n\
         add istio-inpod-probes-v4 {v4} comment \"uid\"\n\
         create istio-inpod-probes-v6 hash:ip family inet6 comment\n\
         add istio-inpod-probes-v6 {v6} comment \"uid\"\n"
    );
    host.load(&["ipset", "restore"], &sets).unwrap();
    for (program, family, snat) in [("iptables", "v4", snat4), ("ip6tables", "v6", snat6)] {
        let rules = format!(
            "*nat\n-N ISTIO_POSTRT\n-N SOMEBODY\n-A POSTROUTING -j SOMEBODY\n\
             -I POSTROUTING 1 -j ISTIO_POSTRT\n\
             -A ISTIO_POSTRT -m owner --socket-exists -p tcp -m set \
             --match-set istio-inpod-probes-{family} dst -j SNAT --to-source {snat}\nCOMMIT\n"
        );
        let restore = format!("{program}-{}-restore", tool.suffix());
        let lock = host.scratch().path().join("xtables.lock");
        let program = host.program(restore).arg("--noflush").env("XTABLES_LOCKFILE", lock);
        program.input(rules).check().unwrap();
    }
}

/// Everything that may be Istio's, or somebody's, on the host. `None` while it changes:
/// a tool that lists a rule whose set goes just then fails.
fn listing(host: &Namespace) -> Option<String> {
    let lists: [&[&str]; 4] = [
        &["nft", "list", "ruleset"],
        &["iptables-legacy-save"],
        &["ip6tables-legacy-save"],
        &["ipset", "list", "-n"],
    ];
    lists.iter().map(|argv| host.load(argv, "").ok()).collect()
}

fn is_rid(host: &Namespace) -> bool {
    listing(host).is_some_and(|all| {
        !all.contains("table inet istio-ambient-nat {")
            && !all.contains("ISTIO_")
            && !all.contains("istio-inpod-probes")
    })
}

fn taken_over(name: &str, backend: &'static str, tool: Tool) {
    let mut stage = Stage::with_api(name, "nftables");
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let mut kubelet = Kubelet::start(&stage);
    let pod = stage.start(stage.probed("a")).unwrap();
    let _servers =
        [&[PORT], &[OTHER]].map(|ports| pod.pod.serve_app(&stage.cluster.programs, ports).unwrap());
    stage.cluster.agent.take().unwrap().kill().unwrap();
    leave_to_istio(&pod, &istios(&stage, Tool::Iptables, false), Tool::Iptables);
    forget_records(&stage);
    let host = || &stage.cluster.node.host;
    host().load(&["nft", "delete", "table", "inet", "sluice-probe"], "").unwrap();
    load_istios(host(), &pod, tool);

    // As Istio has it: any root process, to any port, past ztunnel.
    let mut seen = 0;
    for (v6, source) in [false, true].into_iter().zip(SOURCES) {
        for port in [PORT, OTHER] {
            let fate = stage.fate_as(KUBELET, host(), SocketAddr::new(pod.ip(v6), port));
            let Fate::Answered(answer) = fate else { panic!("{fate}") };
            assert_eq!((answer.by.as_str(), answer.peer), ("app", source), "{port}");
        }
        assert!(kubelet.passes(pod.app(v6)));
    }
    assert!(records(&ztunnel, &mut seen).is_empty(), "past ztunnel");

    let (stop, probes) = (AtomicBool::new(false), AtomicU32::new(0));
    stage.backend = backend;
    let refused = std::thread::scope(|scope| {
        let apps = [false, true].map(|v6| pod.app(v6));
        let (kubelet, stop, probes) = (&mut kubelet, &stop, &probes);
        let prober = scope.spawn(move || {
            let mut refused = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                for app in apps {
                    let line = kubelet.probe(app);
                    let source = SOURCES[usize::from(app.is_ipv6())].to_string();
                    if !line.contains(&source) || !line.contains("\"app\"") {
                        refused.push(line);
                    }
                    probes.fetch_add(1, Ordering::Relaxed);
                }
            }
            refused
        });
        // Whatever fails in here, the prober is to end.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            stage.start_agent();
            stage.eventually("Istio's own rules are gone", |s| is_rid(&s.cluster.node.host));
            let more = probes.load(Ordering::Relaxed) + 10;
            stage.eventually("kubelet goes on", |_| probes.load(Ordering::Relaxed) >= more);
        }));
        stop.store(true, Ordering::Relaxed);
        let refused = prober.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        refused
    });
    assert_eq!(refused, Vec::<String>::new(), "of {} probes", probes.load(Ordering::Relaxed));
    kubelet.await_known(&stage);
    let all = listing(&stage.cluster.node.host).unwrap();
    for foreign in &FOREIGN[..] {
        let is_there = all.contains(foreign) || (tool == Tool::Nft && *foreign == "SOMEBODY");
        assert!(is_there, "{foreign} is not Istio's: {all}");
    }

    // The same process is nobody special any more.
    records(&ztunnel, &mut seen);
    for (v6, source) in [false, true].into_iter().zip(SOURCES) {
        for port in [PORT, OTHER] {
            let to = SocketAddr::new(pod.ip(v6), port);
            let fate = stage.fate_as(KUBELET, &stage.cluster.node.host, to);
            let found = records(&ztunnel, &mut seen);
            let [record] = &found[..] else { panic!("{to}: {fate}: {found:#?}") };
            assert_eq!(record.direction, Direction::InboundPlaintext, "{to}");
            assert_ne!(record.source.ip(), source, "{to}");
        }
        assert!(kubelet.passes(pod.app(v6)));
    }
    println!("{name}: {} probes of kubelet passed meanwhile", probes.load(Ordering::Relaxed));
}

#[test]
fn istios_nftables_rules_of_the_host_go_when_ours_hold() {
    taken_over("hostrules-nft", "nftables", Tool::Nft);
}

#[test]
fn istios_iptables_rules_of_the_host_go_when_ours_hold() {
    taken_over("hostrules-iptables", "nftables", Tool::Iptables);
}

#[test]
fn istios_legacy_rules_of_the_host_go_when_ours_hold() {
    taken_over("hostrules-legacy", "iptables", Tool::Legacy);
}
