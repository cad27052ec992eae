//! ADD of ambient pods: captured, or not started.

use crate::stage::{Stage, records};
use e2e_node::cluster::NAMESPACE;
use e2e_node::runtime::cni_error;
use e2e_node::ztunnel::{Direction, Faults, Via, identity};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn talk(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("talk-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let (a, b) =
        (stage.start(stage.manifest("a")).unwrap(), stage.start(stage.manifest("b")).unwrap());
    let _servers = [stage.serve(&a), stage.serve(&b)];
    let (one, two) = (identity("shop", "a"), identity("shop", "b"));
    let mut seen = 0;
    for v6 in [false, true] {
        // Both ends are proved to each other, and the application sees the client.
        let answer = stage.answer(&a.pod.sandbox, b.app(v6));
        assert_eq!((answer.by.as_str(), answer.peer), ("app", a.ip(v6)));
        let mut found: Vec<_> = records(&ztunnel, &mut seen)
            .into_iter()
            .map(|r| {
                (r.direction, r.identity, r.peer_identity, r.source.ip(), r.destination, r.via)
            })
            .collect();
        found.sort_by_key(|record| record.0 == Direction::Inbound);
        let (ip, to) = (a.ip(v6), b.app(v6));
        let want = [
            (Direction::Outbound, one.clone(), Some(two.clone()), ip, to, Via::Hbone),
            (Direction::Inbound, two.clone(), Some(one.clone()), ip, to, Via::Application),
        ];
        assert_eq!(found, want);
        // Who is not in the mesh is seen as such.
        let answer = stage.answer(&stage.cluster.node.world, a.app(v6));
        assert_eq!(answer.by, "app");
        let [record] = &records(&ztunnel, &mut seen)[..] else { panic!("one connection") };
        assert_eq!(record.direction, Direction::InboundPlaintext);
        assert_eq!(record.source.ip(), stage.cluster.node.world_address(v6));
    }
    let runtime = stage.cluster.runtime();
    runtime.check(&stage.cluster.list, &a.pod.attachment).unwrap();
    runtime.delete(&stage.cluster.list, &a.pod.attachment).unwrap();
    std::fs::remove_file(stage.cluster.directories.pods.join("Pod-shop-a.json")).unwrap();
    ztunnel.wait("the end of a pod", |s| !s.workloads.contains_key(a.uid())).unwrap();
    let status = ztunnel.status().unwrap();
    assert!(status.workloads[b.uid()].up, "the other goes on: {status:#?}");
}

#[test]
fn pods_talk_through_ztunnel_by_nftables() {
    talk("nftables");
}

#[test]
fn pods_talk_through_ztunnel_by_iptables() {
    talk("iptables");
}

/// A runtime that mixes two sandboxes up would give one pod's traffic the other's
/// identity.
#[test]
fn another_pods_namespace_is_refused() {
    let stage = Stage::with_manifests("mixed-up", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let a = stage.start(stage.manifest("a")).unwrap();
    let _server = stage.serve(&a);
    let manifest = stage.manifest("b");
    stage.publish(&manifest);
    // With Istio's plugin the namespace comes by its path.
    let request = json!({
        "Netns": a.pod.sandbox.path(),
        "PodName": "b",
        "PodNamespace": NAMESPACE,
        "IPs": [{"Address": {"IP": "10.9.9.9", "Mask": "/////w=="}}],
    });
    let socket = stage.cluster.directories.run.join("pluginevent.sock");
    let body = request.to_string();
    let head = format!(
        "POST /cmdadd HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let is_refused = answer.contains("10.9.9.9") && answer.contains("not the pod's");
    assert!(is_refused && !answer.starts_with("HTTP/1.1 200"), "{answer}");
    let status = ztunnel.status().unwrap();
    assert_eq!(status.workloads.keys().collect::<Vec<_>>(), [a.uid()]);
    assert!(status.workloads[a.uid()].up, "{status:#?}");
}

/// Never started, and told why. The agent has a tenth of a second less than the plugin,
/// which a busy machine may need to bring the answer: then it is asked again.
#[track_caller]
fn is_refused(stage: &Stage, manifest: &Value, code: u32) {
    for _ in 0..8 {
        let error = stage.start(manifest.clone()).err().unwrap();
        let refused = cni_error(&error).unwrap_or_else(|| panic!("{error:#}"));
        if refused.code == code {
            return;
        }
        assert_eq!(refused.code, 101, "{refused}");
    }
    panic!("never code {code}");
}

#[test]
fn a_pod_does_not_start_without_a_ztunnel() {
    let stage = Stage::with_manifests("without", "nftables");
    let manifest = stage.manifest("a");
    is_refused(&stage, &manifest, 113);
    // A pod outside the mesh does not wait.
    let mut outside = stage.manifest("outside");
    outside["metadata"]["labels"] = serde_json::json!({crate::stage::MODE: "none"});
    stage.start(outside).unwrap();

    let ztunnel = stage.ztunnel("zt");
    let a = stage.start(manifest).unwrap();
    assert!(ztunnel.status().unwrap().workloads[a.uid()].up);
}

#[test]
fn a_pod_does_not_start_that_ztunnel_refuses() {
    let stage = Stage::with_manifests("refused", "nftables");
    let ztunnel = stage.ztunnel("zt");
    let (bad, good) = (stage.manifest("bad"), stage.manifest("good"));
    let uid = bad["metadata"]["uid"].as_str().unwrap().to_owned();
    ztunnel.fail(Faults { refuse: [(uid, 100_000)].into(), ..Faults::default() }).unwrap();
    is_refused(&stage, &bad, 114);
    // Nobody else is the worse for it.
    stage.start(good).unwrap();
    ztunnel.fail(Faults::default()).unwrap();
    stage.start(bad).unwrap();
}
