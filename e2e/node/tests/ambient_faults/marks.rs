//! Who tries to get past ztunnel: with its mark, or as kubelet.

use crate::kubelet::{Kubelet, SOURCES};
use crate::stage::{MODE, PORT, Stage, records};
use e2e_node::cluster::attempt;
use e2e_node::packet::{Fate, Transport, send};
use e2e_node::process::Identity;
use e2e_node::ztunnel::{Direction, MARK, Via};
use serde_json::json;

/// Linux lets a process with CAP_NET_RAW mark its packets, and the rules know ztunnel by
/// nothing else: such an application gets past its own ztunnel, as with Istio. Whom it
/// reaches in the mesh does not take it for anybody: the mark does not leave the
/// namespace. Without the capability there is no mark.
fn with_ztunnels_mark(backend: &'static str) {
    let stage = Stage::with_manifests(&format!("mark-{backend}"), backend);
    let ztunnel = stage.ztunnel("zt");
    let [a, b] = ["a", "b"].map(|name| stage.start(stage.manifest(name)).unwrap());
    let mut outside = stage.manifest("outside");
    outside["metadata"]["labels"] = json!({MODE: "none"});
    let outside = stage.start(outside).unwrap();
    let _servers = [stage.serve(&a), stage.serve(&b), stage.serve(&outside)];
    let program = || a.pod.sandbox.program(&stage.cluster.programs.packet);
    let marked = |to| {
        let mut attempt = attempt(Transport::Tcp, Identity::APP, to);
        attempt.mark = Some(MARK);
        attempt
    };
    let mut seen = 0;
    for v6 in [false, true] {
        // Without the capability.
        let attempt = marked(b.app(v6));
        let fates = send(program().as_user(Identity::APP), std::slice::from_ref(&attempt)).unwrap();
        let Fate::Failed(why) = &fates[&attempt.label] else { panic!("{fates:?}") };
        assert!(why.contains("EPERM"), "{why}");
        assert!(records(&ztunnel, &mut seen).is_empty());

        // With it, to the mesh: nobody's connection, seen by the other's ztunnel.
        let fates = send(program(), std::slice::from_ref(&attempt)).unwrap();
        assert!(fates[&attempt.label].is_by("app", PORT), "{fates:?}");
        let [record] = &records(&ztunnel, &mut seen)[..] else { panic!("not one connection") };
        assert_eq!((record.uid.as_str(), record.direction), (b.uid(), Direction::InboundPlaintext));
        assert_eq!((record.peer_identity.as_deref(), record.via), (None, Via::Application));

        // And out of it: past ztunnel, which is the limit that the README has.
        let attempt = marked(outside.app(v6));
        let fates = send(program(), std::slice::from_ref(&attempt)).unwrap();
        assert!(fates[&attempt.label].is_by("app", PORT), "{fates:?}");
        assert!(records(&ztunnel, &mut seen).is_empty());

        // Its next connection without the mark is captured as ever.
        assert_eq!(stage.answer(&a.pod.sandbox, b.app(v6)).peer, a.ip(v6));
        assert_eq!(records(&ztunnel, &mut seen).len(), 2);
    }
}

#[test]
fn an_application_with_ztunnels_mark_with_nftables() {
    with_ztunnels_mark("nftables");
}

#[test]
fn an_application_with_ztunnels_mark_with_iptables() {
    with_ztunnels_mark("iptables");
}

fn as_kubelet(backend: &'static str) {
    let mut stage = Stage::with_manifests(&format!("probe-{backend}"), backend);
    let mut kubelet = Kubelet::start(&stage);
    // So that it looks for kubelet at once.
    stage.cluster.agent.take().unwrap().kill().unwrap();
    stage.start_agent();
    let ztunnel = stage.ztunnel("zt");
    kubelet.await_known(&stage);
    let a = stage.start(stage.probed("a")).unwrap();
    let _server = stage.serve(&a);
    let mut seen = 0;
    for (v6, source) in [false, true].into_iter().zip(SOURCES) {
        let line = kubelet.probe(a.app(v6));
        assert!(line.contains(&source.to_string()), "kubelet's probe: {line}");
        assert!(records(&ztunnel, &mut seen).is_empty(), "past ztunnel");
        // Another root process of the host, to the very same port, and one that asks for
        // the exemption's own address.
        let root = Identity { uid: 0, gid: 0, net_admin: true };
        let mut plain = attempt(Transport::Tcp, root, a.app(v6));
        let mut claims = plain.clone();
        plain.label = "plain".to_owned();
        claims.label = "with kubelet's address".to_owned();
        claims.from = Some((source, 0).into());
        claims.spoofed = true;
        let node = &stage.cluster.node.host;
        let fates = stage.cluster.send(node, &[plain, claims]).unwrap();
        assert!(fates["plain"].is_by("app", PORT), "{fates:?}");
        let claimed = matches!(&fates["with kubelet's address"], Fate::Answered(_));
        let found = records(&ztunnel, &mut seen);
        println!(
            "{backend}, IPv6 {v6}: with kubelet's address: {:?}",
            fates["with kubelet's address"]
        );
        assert!(
            found
                .iter()
                .any(|r| r.direction == Direction::InboundPlaintext && r.source.ip() != source),
            "captured: {found:#?}"
        );
        assert!(!claimed, "refused: {fates:?}");
    }
}

#[test]
fn a_root_process_of_the_host_is_not_kubelet_with_nftables() {
    as_kubelet("nftables");
}

#[test]
fn a_root_process_of_the_host_is_not_kubelet_with_iptables() {
    as_kubelet("iptables");
}
