//! Kubelet's probes reach the application, on the ports that the pod declares.

use crate::stage::{KUBELET, PORT, Stage, records};
use e2e_node::packet::Fate;
use e2e_node::ztunnel::Direction;
use std::net::{IpAddr, SocketAddr};

fn probe(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("probe-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    stage.await_host_rules(1);
    let a = stage.start(stage.probed("a")).unwrap();
    let _servers =
        [stage.serve(&a), a.pod.serve_app(&stage.cluster.programs, &[PORT + 1]).unwrap()];
    let node = &stage.cluster.node.host;
    let mut seen = 0;
    let sources = [
        IpAddr::from([169, 254, 7, 127]),
        "fd16:9254:7127:1337:ffff:ffff:ffff:ffff".parse().unwrap(),
    ];
    for (v6, source) in [false, true].into_iter().zip(sources) {
        let fate = stage.fate_as(KUBELET, node, a.app(v6));
        let Fate::Answered(answer) = &fate else { panic!("{fate}; {}", stage.cluster.agent_log()) };
        assert_eq!((answer.by.as_str(), answer.peer), ("app", source), "{fate}");
        assert!(records(&ztunnel, &mut seen).is_empty(), "past ztunnel");
        // Another port is nobody's probe.
        let other = SocketAddr::new(a.ip(v6), PORT + 1);
        let fate = stage.fate_as(KUBELET, node, other);
        assert!(fate.is_by("app", PORT + 1), "{fate}");
        let [record] = &records(&ztunnel, &mut seen)[..] else { panic!("not one connection") };
        assert_eq!(record.direction, Direction::InboundPlaintext);
        // Nor is a connection of another user.
        let fate = stage.fate(node, a.app(v6));
        assert!(fate.is_by("app", PORT), "{fate}");
        assert_eq!(records(&ztunnel, &mut seen).len(), 1);
    }
}

#[test]
fn kubelets_probes_pass_with_nftables() {
    probe("nftables");
}

#[test]
fn kubelets_probes_pass_with_iptables() {
    probe("iptables");
}
