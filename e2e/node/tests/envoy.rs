//! Real Envoy behind our rules: connections of both directions and families
//! arrive where they were meant to go, through it, from the right address.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::agent::sidecar_pod;
use e2e_node::cluster::{Cluster, NAMESPACE, Network, attempt};
use e2e_node::envoy::{Envoy, Mode, find};
use e2e_node::lab::node::{OUTSIDE_V4, OUTSIDE_V6};
use e2e_node::packet::Fate;
use e2e_node::packet::Transport::Tcp;
use e2e_node::process::Identity;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

fn is_proxied(backend: &str, mode: Mode) {
    let Some(binary) = find().unwrap() else {
        println!("Envoy cannot be had: left out");
        return;
    };
    let cluster = Cluster::create("envoy", backend, &Network::default()).unwrap();
    let _world = cluster.serve_world(&[80]).unwrap();
    let name = if mode == Mode::Tproxy { "TPROXY" } else { "REDIRECT" };
    let annotations = json!({"sidecar.istio.io/interceptionMode": name});
    let env = [("ISTIO_DUAL_STACK", "true")];
    let pod = cluster.run_pod(&sidecar_pod(NAMESPACE, "real", &annotations, &env)).unwrap();
    let _app = pod.serve_app(&cluster.programs, &[8080]).unwrap();
    let envoy = Envoy::start(&binary, &pod.sandbox, mode).unwrap();

    for (ipv6, outside) in [(false, IpAddr::from(OUTSIDE_V4)), (true, OUTSIDE_V6.into())] {
        let own = pod.address(ipv6).unwrap();
        let family = if ipv6 { "6" } else { "4" };
        let through = |from, to, counter: &str, by: &str, peer: IpAddr| {
            let counter = format!("tcp.{counter}{family}.downstream_cx_total");
            let before = envoy.counter(&counter).unwrap();
            let attempt = attempt(Tcp, Identity::APP, to);
            let fates = cluster.send(from, std::slice::from_ref(&attempt)).unwrap();
            let fate = &fates[&attempt.label];
            println!("{backend} {mode:?} {}: {fate}", attempt.label);
            let Fate::Answered(answer) = fate else {
                panic!("{}: {fate}", attempt.label);
            };
            assert_eq!((answer.by.as_str(), answer.port), (by, to.port()));
            assert_eq!(answer.peer, peer, "{}: source address", attempt.label);
            assert_eq!(envoy.counter(&counter).unwrap(), before + 1, "{counter}");
        };
        // Out: the application's connection, made again by Envoy from the pod.
        through(&pod.sandbox, SocketAddr::new(outside, 80), "out", "world", own);
        // In: the application sees Envoy's own address, or the client itself.
        let client = cluster.node.world_address(ipv6);
        let seen = match (mode, ipv6) {
            (Mode::Redirect, false) => IpAddr::from([127, 0, 0, 6]),
            (Mode::Redirect, true) => "::6".parse().unwrap(),
            (Mode::Tproxy, _) => client,
        };
        through(&cluster.node.world, SocketAddr::new(own, 8080), "in", "app", seen);
    }
}

#[test]
fn redirect_nftables() {
    is_proxied("nftables", Mode::Redirect);
}

#[test]
fn redirect_iptables() {
    is_proxied("iptables", Mode::Redirect);
}

#[test]
fn tproxy_nftables() {
    is_proxied("nftables", Mode::Tproxy);
}

#[test]
fn tproxy_iptables() {
    is_proxied("iptables", Mode::Tproxy);
}
