//! A pod with `hostUsers: false`: its network namespace belongs to a user
//! namespace of its own, where the proxy is 1337 and outside 101337. Owner rules
//! of the host's iptables are refused there (istio/istio#58750), ours must hold.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::agent::sidecar_pod;
use e2e_node::cluster::{Cluster, NAMESPACE, Network, attempt};
use e2e_node::lab::Namespace;
use e2e_node::lab::node::{OUTSIDE_V4, OUTSIDE_V6};
use e2e_node::packet::Transport::Tcp;
use e2e_node::process::Identity;
use serde_json::json;
use std::net::SocketAddr;

fn is_captured(backend: &str, mode: &str) {
    let cluster = Cluster::create("users", backend, &Network::default()).unwrap();
    let _world = cluster.serve_world(&[80]).unwrap();
    let annotations = json!({"sidecar.istio.io/interceptionMode": mode});
    let env = [("ISTIO_DUAL_STACK", "true")];
    let manifest = sidecar_pod(NAMESPACE, "users", &annotations, &env);
    cluster.directories.publish(&manifest).unwrap();
    let scratch = cluster.node.host.scratch();
    let sandbox = Namespace::create_with_users(scratch, "users").unwrap();
    let id = sandbox.program("sh").args(["-c", "id -u; cat /proc/self/uid_map"]).check().unwrap();
    println!("root of the pod: {id}");
    let mut pod = cluster.pod_in(&manifest, sandbox).unwrap();
    cluster.attach(&mut pod).unwrap();
    for args in [&[][..], &["--ipv6"]] {
        let validation = cluster.programs.stand_in.with_file_name("validation");
        let program = pod.sandbox.program(validation).args(args.iter().copied());
        program.as_user(Identity::PROXY).check().unwrap();
    }
    let _proxy = pod.serve_proxy(&cluster.programs, mode == "TPROXY").unwrap();
    let _app = pod.serve_app(&cluster.programs, &[8080]).unwrap();

    let own = [pod.address(false).unwrap(), pod.address(true).unwrap()];
    let mut inside = Vec::new();
    for to in [OUTSIDE_V4.into(), OUTSIDE_V6.into()] {
        let to = SocketAddr::new(to, 80);
        inside.push((attempt(Tcp, Identity::APP, to), "proxy", 15001));
        inside.push((attempt(Tcp, Identity::PROXY, to), "world", 80));
    }
    let mut outside = Vec::new();
    for to in own {
        let to = SocketAddr::new(to, 8080);
        inside.push((attempt(Tcp, Identity::APP, to), "app", 8080));
        inside.push((attempt(Tcp, Identity::PROXY, to), "proxy", 15006));
        outside.push((attempt(Tcp, Identity::APP, to), "proxy", 15006));
    }
    for (from, expected) in [(&pod.sandbox, inside), (&cluster.node.world, outside)] {
        let attempts: Vec<_> = expected.iter().map(|(attempt, ..)| attempt.clone()).collect();
        let fates = cluster.send(from, &attempts).unwrap();
        for (attempt, by, port) in expected {
            let fate = &fates[&attempt.label];
            assert!(fate.is_by(by, port), "{}: {fate}, want {by}:{port}", attempt.label);
        }
    }
    cluster.runtime().check(&cluster.list, &pod.attachment).unwrap();
    cluster.runtime().delete(&cluster.list, &pod.attachment).unwrap();
}

#[test]
fn redirect_nftables() {
    is_captured("nftables", "REDIRECT");
}

#[test]
fn redirect_iptables() {
    is_captured("iptables", "REDIRECT");
}

#[test]
fn tproxy_nftables() {
    is_captured("nftables", "TPROXY");
}

#[test]
fn tproxy_iptables() {
    is_captured("iptables", "TPROXY");
}
