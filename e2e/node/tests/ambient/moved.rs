//! A pod's network namespace is another one than it was, and nobody asked the plugin.

use crate::stage::{Stage, records};
use e2e_node::lab::Namespace;
use std::net::IpAddr;
use std::time::Duration;

/// The bridge's own address: the first of the pod's subnet.
fn gateway(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            format!("{a}.{b}.{c}.1")
        }
        IpAddr::V6(ip) => {
            let mut parts = ip.segments();
            parts[7] = 1;
            std::net::Ipv6Addr::from(parts).to_string()
        }
    }
}

#[test]
fn a_namespace_that_is_made_anew_is_captured_again() {
    let stage = Stage::with_api("moved", "nftables");
    stage.label(Some("ambient"));
    let ztunnel = stage.ztunnel("zt");
    let mut a = stage.start(stage.manifest("a")).unwrap();
    let b = stage.start(stage.manifest("b")).unwrap();
    let _server = stage.serve(&b);
    stage.eventually("enabled", |stage| stage.redirection(&a).as_deref() == Some("enabled"));

    let anew = Namespace::create(stage.cluster.node.host.scratch(), "anew").unwrap();
    let (v4, v6) = (a.ip(false), a.ip(true));
    a.pod.sandbox.ip(&format!("link set eth0 netns {}", anew.path().display())).unwrap();
    anew.ip(&format!(
        "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\nroute add default via {}\n-6 route add default via {}\n",
        gateway(v4),
        gateway(v6)
    ))
    .unwrap();
    let mut pause = anew.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
    pause = pause.timeout(Duration::from_secs(900));
    let mut pause = pause.start().unwrap();
    pause.wait_ready().unwrap();
    // The one before ends.
    a._pause = pause;

    let id = anew.netns().id();
    ztunnel
        .wait("the pod in its new namespace", |status| {
            status.workloads.get(a.uid()).is_some_and(|w| w.up && w.netns == Some((id.dev, id.ino)))
        })
        .unwrap_or_else(|error| panic!("{error:#}; {}", stage.cluster.agent_log()));
    let mut seen = ztunnel.status().unwrap().records.len();
    for v6 in [false, true] {
        assert_eq!(stage.answer(&anew, b.app(v6)).peer, a.ip(v6));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2, "by ztunnel");
    }
    stage.eventually("enabled", |stage| stage.redirection(&a).as_deref() == Some("enabled"));
}
