//! What kubelet may reach past ztunnel: what the pod declares for it, as it is declared
//! now, and no more.

use crate::kubelet::{Kubelet, SOURCES};
use crate::stage::{KUBELET, PORT, Stage, Started, records};
use e2e_node::cluster::attempt;
use e2e_node::packet::Transport;
use e2e_node::ztunnel::{Direction, Ztunnel};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Every way in which a pod declares a port for kubelet: each kind of probe, by number
/// and by name, of an ordinary container and of a native sidecar, and both hooks.
const DECLARED: [u16; 7] = [8080, 8081, 8082, 8083, 8084, 8085, 8086];

/// Of a container, and for no probe of its own.
const UNDECLARED: u16 = 8090;

/// Declared later, in the place of the first.
const LATER: u16 = 8091;

/// Until a probe that has moved is followed.
const PATIENCE: Duration = Duration::from_secs(60);

fn declare(manifest: &mut Value) {
    manifest["spec"]["initContainers"] = json!([{
        "name": "native-sidecar",
        "restartPolicy": "Always",
        "ports": [{"name": "health", "containerPort": 8086}],
        "startupProbe": {"httpGet": {"path": "/", "port": "health"}},
    }]);
    manifest["spec"]["containers"] = json!([
        {
            "name": "app",
            "ports": [
                {"name": "web", "containerPort": 8080},
                {"name": "other", "containerPort": UNDECLARED},
            ],
            "readinessProbe": {"httpGet": {"path": "/", "port": "web"}},
            "startupProbe": {"tcpSocket": {"port": 8081}},
            "livenessProbe": {"grpc": {"port": 8082}},
            "lifecycle": {
                "postStart": {"httpGet": {"path": "/", "port": 8083}},
                "preStop": {"httpGet": {"path": "/", "port": 8084}},
            },
        },
        {
            // A name is a port of its own container only.
            "name": "second",
            "ports": [{"name": "web", "containerPort": 8085}],
            "livenessProbe": {"tcpSocket": {"port": "web"}},
        },
    ]);
}

/// Somebody connects to the pod with the very address that kubelet gets: captured or not
/// is the pod's own rules' decision.
fn is_captured(
    stage: &Stage,
    pod: &Started,
    v6: bool,
    port: u16,
    zt: (&Ztunnel, &mut usize),
) -> bool {
    let mut attempt = attempt(Transport::Tcp, KUBELET, SocketAddr::new(pod.ip(v6), port));
    attempt.from = Some((SOURCES[usize::from(v6)], 0).into());
    let host = &stage.cluster.node.host;
    let fates = stage.cluster.send(host, std::slice::from_ref(&attempt)).unwrap();
    let found = records(zt.0, zt.1);
    assert!(found.iter().all(|record| record.direction == Direction::InboundPlaintext));
    match &found[..] {
        [] => assert!(fates[&attempt.label].is_by("app", port), "{fates:?}"),
        [_] => {}
        more => panic!("{more:?}"),
    }
    !found.is_empty()
}

fn only_what_is_declared(backend: &'static str, api: bool) {
    let name = format!("exempt-{backend}");
    let mut stage = match api {
        true => Stage::with_api(&name, backend),
        false => Stage::with_manifests(&name, backend),
    };
    stage.label(Some("ambient"));
    let mut kubelet = Kubelet::start(&stage);
    // So that it looks for kubelet at once.
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.start_agent();
    let ztunnel = stage.ztunnel("zt");
    kubelet.await_known(&stage);
    let mut manifest = stage.manifest("a");
    declare(&mut manifest);
    let mut pod = stage.start(manifest).unwrap();
    let mut all = DECLARED.to_vec();
    all.extend([UNDECLARED, LATER]);
    let _server = pod.pod.serve_app(&stage.cluster.programs, &all).unwrap();
    let host = &stage.cluster.node.host;
    let to = |v6, port| SocketAddr::new(pod.ip(v6), port);
    let mut seen = 0;
    for port in DECLARED {
        for v6 in [false, true] {
            assert!(kubelet.passes(to(v6, port)), "kubelet's check of {port}, IPv6 {v6}");
        }
    }
    assert!(records(&ztunnel, &mut seen).is_empty(), "past ztunnel");
    for v6 in [false, true] {
        assert!(!kubelet.passes(to(v6, UNDECLARED)), "kubelet has no business there");
        assert_eq!(records(&ztunnel, &mut seen).len(), 1);
        // Not kubelet, but root.
        for port in [PORT, 8086, UNDECLARED] {
            stage.fate_as(KUBELET, host, to(v6, port));
            let [record] = &records(&ztunnel, &mut seen)[..] else { panic!("{port} not captured") };
            assert_ne!(record.source.ip(), SOURCES[usize::from(v6)], "{port}");
        }
    }
    let own = SOURCES.map(|source| match source.is_ipv4() {
        true => format!("addr add {source}/32 dev lo\n"),
        false => format!("addr add {source}/128 dev lo nodad\n"),
    });
    host.ip(&own.concat()).unwrap();
    for v6 in [false, true] {
        for port in &all {
            let captured = is_captured(&stage, &pod, v6, *port, (&ztunnel, &mut seen));
            assert_eq!(captured, !DECLARED.contains(port), "{port}, IPv6 {v6}");
        }
    }
    // The probe moves: a manifest is written anew.
    let readiness = json!({"httpGet": {"path": "/", "port": LATER}});
    pod.manifest["spec"]["containers"][0]["readinessProbe"] = readiness;
    if api {
        let mut now = stage.seen(&pod);
        now["spec"] = pod.manifest["spec"].clone();
        stage.publish(&now);
    } else {
        stage.publish(&pod.manifest);
    }
    let pod = &pod;
    let end = Instant::now() + PATIENCE;
    for v6 in [false, true] {
        let to = |port| SocketAddr::new(pod.ip(v6), port);
        // The host's part, by who it is.
        while !kubelet.passes(to(LATER)) || kubelet.passes(to(PORT)) {
            assert!(Instant::now() < end, "not followed: {}", stage.cluster.agent_log());
        }
        records(&ztunnel, &mut seen);
        // The pod's, by its address.
        let mut is_captured = |port| is_captured(&stage, pod, v6, port, (&ztunnel, &mut seen));
        while is_captured(LATER) || !is_captured(PORT) {
            assert!(Instant::now() < end, "not followed inside: {}", stage.cluster.agent_log());
        }
        assert!(!is_captured(8081), "still declared");
    }
}

#[test]
fn kubelet_reaches_what_a_manifest_declares_with_nftables() {
    only_what_is_declared("nftables", false);
}

#[test]
fn kubelet_reaches_what_a_manifest_declares_with_iptables() {
    only_what_is_declared("iptables", false);
}

#[test]
fn kubelet_reaches_what_the_api_declares() {
    only_what_is_declared("nftables", true);
}
