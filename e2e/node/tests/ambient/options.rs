//! A pod's own options, as its annotations have them: at its start and while it runs.

use crate::stage::{MODE, Stage, Started, records};
use e2e_node::lab::node::Node;
use e2e_node::ztunnel::{Direction, Via, Ztunnel};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use sys::netns::within;

const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const BYPASS: &str = "ambient.istio.io/bypass-inbound-capture";

/// `q.invalid`, an address.
const QUERY: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01q\x07invalid\x00\x00\x01\x00\x01";

/// Times that a query is sent, until somebody answers: a neighbour may have to be found.
const TRIES: u32 = 4;

/// A socket of the pod's that asks the same server all the time.
fn socket(pod: &Started, v6: bool) -> UdpSocket {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = within(pod.pod.sandbox.netns(), || UdpSocket::bind((any, 0)).unwrap()).unwrap();
    let server = Node::outside().into_iter().find(|ip| ip.is_ipv6() == v6).unwrap();
    socket.connect(SocketAddr::new(server, 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Asks, and says whether ztunnel was who heard it.
fn is_captured(socket: &UdpSocket, ztunnel: &Ztunnel) -> bool {
    let mut seen = ztunnel.status().unwrap().records.len();
    let answered = (0..TRIES).any(|_| {
        socket.send(QUERY).unwrap();
        socket.recv(&mut [0; 512]).is_ok()
    });
    assert!(answered, "nobody answers");
    let found = records(ztunnel, &mut seen);
    assert!(found.iter().all(|record| record.direction == Direction::Dns), "{found:#?}");
    !found.is_empty()
}

fn label(stage: &Stage, pod: &Started, mode: &str) {
    let mut now = stage.seen(pod);
    now["metadata"]["labels"] = json!({MODE: mode});
    stage.publish(&now);
}

/// The kernel goes on sending a socket's queries where it sent the first: each time that
/// the pod joins and leaves, it must forget.
fn dns(backend: &'static str) {
    let stage = Stage::with_api(&format!("dns-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let _world = stage.cluster.serve_world(&[53]).unwrap();
    let mut manifest = stage.manifest("a");
    manifest["metadata"]["annotations"] = json!({DNS_CAPTURE: "true"});
    let pod = stage.start(manifest).unwrap();
    let sockets = [false, true].map(|v6| socket(&pod, v6));
    let captured = || sockets.iter().map(|s| is_captured(s, &ztunnel)).collect::<Vec<_>>();
    assert_eq!(captured(), [false, false], "before it joins");
    for _ in 0..2 {
        label(&stage, &pod, "ambient");
        stage.eventually("in", |stage| stage.redirection(&pod).as_deref() == Some("enabled"));
        assert_eq!(captured(), [true, true], "in the mesh");
        label(&stage, &pod, "none");
        ztunnel.wait("its end", |s| !s.workloads.contains_key(pod.uid())).unwrap();
        stage.eventually("out", |stage| stage.redirection(&pod).is_none());
        assert_eq!(captured(), [false, false], "out of it");
    }
}

#[test]
fn queries_of_open_sockets_follow_the_pod_with_nftables() {
    dns("nftables");
}

#[test]
fn queries_of_open_sockets_follow_the_pod_with_iptables() {
    dns("iptables");
}

fn bypassing(manifest: &Value, value: &str) -> Value {
    let mut manifest = manifest.clone();
    manifest["metadata"]["annotations"] = json!({BYPASS: value});
    manifest
}

/// Inbound connections of a gateway are its own; all else is as with any pod.
fn gateway(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("gateway-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let pod = stage.start(stage.manifest("b")).unwrap();
    let gateway = stage.start(bypassing(&stage.manifest("gw"), "true")).unwrap();
    let _servers = [stage.serve(&gateway), stage.serve(&pod)];
    let world = &stage.cluster.node.world;
    let mut seen = 0;
    for v6 in [false, true] {
        let answer = stage.answer(world, gateway.app(v6));
        assert_eq!(answer.peer, stage.cluster.node.world_address(v6));
        assert!(records(&ztunnel, &mut seen).is_empty(), "its own");
        assert_eq!(stage.answer(&gateway.pod.sandbox, pod.app(v6)).peer, gateway.ip(v6));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "out of it");
        assert_eq!(stage.answer(&pod.pod.sandbox, gateway.app(v6)).peer, pod.ip(v6));
        let found = records(&ztunnel, &mut seen);
        let by_hbone = |r: &e2e_node::ztunnel::Record| {
            (r.direction, r.via) == (Direction::Inbound, Via::Application)
        };
        assert!(found.len() == 2 && found.iter().any(by_hbone), "from the mesh: {found:#?}");
    }
    for (value, count) in [("false", 1), ("true", 0)] {
        stage.publish(&bypassing(&gateway.manifest, value));
        stage.eventually(value, |stage| {
            let mut seen = ztunnel.status().unwrap().records.len();
            stage.answer(world, gateway.app(false));
            records(&ztunnel, &mut seen).len() == count
        });
    }
}

#[test]
fn an_ingress_gateway_takes_connections_itself_with_nftables() {
    gateway("nftables");
}

#[test]
fn an_ingress_gateway_takes_connections_itself_with_iptables() {
    gateway("iptables");
}
