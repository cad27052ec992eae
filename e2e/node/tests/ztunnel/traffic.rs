//! Traffic of pods through the fake, by Istio's own rules: it arrives, with original
//! source and destination and the right identities.

use crate::mesh::{FORWARDED, Mesh, PORT, data, resolve, script};
use crate::scripted::info;
use e2e_node::lab::node::{OUTSIDE_V4, OUTSIDE_V6, RESOLVER_V4, RESOLVER_V6};
use e2e_node::packet::Fate;
use e2e_node::packet::Transport::{Tcp, Udp};
use e2e_node::rules::Tool;
use e2e_node::ztunnel::{Direction, Record, Via, Workload, identity};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use sys::netns::within;
use zds::Response;

const FAMILIES: [bool; 2] = [false, true];

/// What counts of a record: ports of clients are anybody's.
fn gist(record: &Record) -> (Direction, &str, Option<&str>, IpAddr, SocketAddr, Via) {
    let peer = record.peer_identity.as_deref();
    let Record { direction, identity, source, destination, via, .. } = record;
    (*direction, identity, peer, source.ip(), *destination, *via)
}

fn all(tool: Tool) {
    let Some(mesh) = Mesh::create(tool, |_| {}) else {
        return;
    };
    mesh.enrol();
    let (one, two) = (identity("shop", "one"), identity("shop", "two"));
    let (a, b) = (&mesh.a, &mesh.b);
    let mut seen = 0;
    for v6 in FAMILIES {
        // From pod to pod: from ztunnel to ztunnel.
        let answer = mesh.answer(&a.namespace, b.app(v6));
        assert_eq!((answer.by.as_str(), answer.port, answer.peer), ("b", PORT, a.ip(v6)));
        let records = mesh.records(&mut seen);
        let mut gists: Vec<_> = records.iter().map(gist).collect();
        gists.sort_by_key(|gist| gist.0 == Direction::Inbound);
        let want = [
            (
                Direction::Outbound,
                one.as_str(),
                Some(two.as_str()),
                a.ip(v6),
                b.app(v6),
                Via::Hbone,
            ),
            (
                Direction::Inbound,
                two.as_str(),
                Some(one.as_str()),
                a.ip(v6),
                b.app(v6),
                Via::Application,
            ),
        ];
        assert_eq!(gists, want);

        // Out of the mesh, from the pod's own address.
        let outside = IpAddr::from(OUTSIDE_V4);
        let outside = SocketAddr::new(if v6 { OUTSIDE_V6.into() } else { outside }, 80);
        let answer = mesh.answer(&a.namespace, outside);
        assert_eq!((answer.by.as_str(), answer.peer), ("world", a.ip(v6)));
        assert_eq!(answer.original, Some(outside));
        let records = mesh.records(&mut seen);
        let gists: Vec<_> = records.iter().map(gist).collect();
        let want = (Direction::Outbound, one.as_str(), None, a.ip(v6), outside, Via::Passthrough);
        assert_eq!(gists, [want]);

        // Into the mesh: the application sees the client.
        let client = mesh.node.world_address(v6);
        let answer = mesh.answer(&mesh.node.world, a.app(v6));
        assert_eq!((answer.by.as_str(), answer.peer), ("a", client));
        let records = mesh.records(&mut seen);
        let gists: Vec<_> = records.iter().map(gist).collect();
        let want =
            (Direction::InboundPlaintext, one.as_str(), None, client, a.app(v6), Via::Application);
        assert_eq!(gists, [want]);

        // To itself, by whatever address: not captured.
        for own in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap(), a.ip(v6)] {
            let answer = mesh.answer(&a.namespace, SocketAddr::new(own, PORT));
            assert_eq!(answer.by, "a");
        }
        assert_eq!(mesh.records(&mut seen), []);
    }
    is_resolved(&mesh, &mut seen);
}

/// Whichever server the application asks, ztunnel answers in its name.
fn is_resolved(mesh: &Mesh, seen: &mut usize) {
    let known = "api.shop.svc.cluster.local";
    let pod = &mesh.a.namespace;
    let unknown = IpAddr::from([192, 0, 2, 53]);
    for transport in [Udp, Tcp] {
        for server in [IpAddr::from(RESOLVER_V4), RESOLVER_V6.into(), unknown] {
            let found = resolve(pod, server, transport, known, false);
            assert_eq!(found, (0, vec![IpAddr::from([240, 240, 0, 1])]));
            let found = resolve(pod, server, transport, "Known.Elsewhere", false);
            assert_eq!(found, (0, vec![IpAddr::from(FORWARDED)]));
        }
        let found = resolve(pod, RESOLVER_V4.into(), transport, known, true);
        assert_eq!(found, (0, vec!["2001:2::1".parse::<IpAddr>().unwrap()]));
    }
    let records = mesh.records(seen);
    let of = |via| records.iter().filter(|r| r.direction == Direction::Dns && r.via == via).count();
    assert_eq!((of(Via::Itself), of(Via::Forwarded), records.len()), (8, 6, 14));
    assert!(records.iter().any(|record| record.note == "known.elsewhere 1"), "{records:#?}");
}

#[test]
fn arrives_by_nftables() {
    all(Tool::Nft);
}

#[test]
fn arrives_by_iptables() {
    all(Tool::Iptables);
}

/// Istio's rules on the host give kubelet's probes an address that the rules of the
/// pod let pass; other connections of the host go through ztunnel.
fn probes(tool: Tool) {
    let (Some(mesh), Some(host)) = (Mesh::create(tool, |_| {}), data("hostprobe_ipv6")) else {
        return;
    };
    mesh.enrol();
    let mut seen = 0;
    let node = &mesh.node.host;
    let answer = mesh.answer(node, mesh.a.app(false));
    assert_eq!((answer.by.as_str(), answer.peer), ("a", IpAddr::from([10, 244, 1, 1])));
    let [record] = &mesh.records(&mut seen)[..] else {
        panic!("not one connection");
    };
    assert_eq!(record.direction, Direction::InboundPlaintext);
    match tool {
        Tool::Nft => {
            let sets = "add table inet istio-ambient-nat\n\
                 add set inet istio-ambient-nat istio-inpod-probes-v4 { type ipv4_addr; }\n\
                 add set inet istio-ambient-nat istio-inpod-probes-v6 { type ipv6_addr; }\n";
            node.load(&["nft", "-f", "-"], sets).unwrap();
            script(&host, tool).load(node, tool).unwrap();
            let elements = format!(
                "add element inet istio-ambient-nat istio-inpod-probes-v4 {{ {} }}\n\
                 add element inet istio-ambient-nat istio-inpod-probes-v6 {{ {} }}\n",
                mesh.a.v4, mesh.a.v6
            );
            node.load(&["nft", "-f", "-"], &elements).unwrap();
        }
        Tool::Iptables | Tool::Legacy => {
            let sets = format!(
                "create istio-inpod-probes-v4 hash:ip family inet\n\
                 create istio-inpod-probes-v6 hash:ip family inet6\n\
                 add istio-inpod-probes-v4 {}\n\
                 add istio-inpod-probes-v6 {}\n",
                mesh.a.v4, mesh.a.v6
            );
            node.load(&["ipset", "restore"], &sets).unwrap();
            script(&host, tool).load(node, tool).unwrap();
        }
    }
    let answer = mesh.answer(node, mesh.a.app(false));
    assert_eq!((answer.by.as_str(), answer.peer), ("a", IpAddr::from([169, 254, 7, 127])));
    if tool == Tool::Nft {
        // The data's two sets of iptables rules disagree about the address of IPv6.
        let answer = mesh.answer(node, mesh.a.app(true));
        let probe: IpAddr = "e9ac:1e77:90ca:399f:4d6d:ece2:2f9b:3164".parse().unwrap();
        assert_eq!((answer.by.as_str(), answer.peer), ("a", probe));
    }
    assert_eq!(mesh.records(&mut seen), [], "past ztunnel");
    // The set has one pod of the two, and the world is no kubelet.
    mesh.answer(node, mesh.b.app(false));
    mesh.answer(&mesh.node.world, mesh.a.app(false));
    assert_eq!(mesh.records(&mut seen).len(), 2);
}

#[test]
fn probes_pass_by_nftables() {
    probes(Tool::Nft);
}

#[test]
fn probes_pass_by_iptables() {
    probes(Tool::Iptables);
}

#[test]
fn rules_without_a_proxy_refuse_and_a_del_cuts() {
    let Some(mesh) = Mesh::create(Tool::Nft, |_| {}) else {
        return;
    };
    assert_eq!(mesh.fate(&mesh.a.namespace, mesh.b.app(false)), Fate::Refused);
    assert_eq!(mesh.fate(&mesh.node.world, mesh.a.app(false)), Fate::Refused);
    mesh.enrol();
    mesh.answer(&mesh.a.namespace, mesh.b.app(false));
    // A connection between the two ends with either: here with its destination.
    let to = mesh.b.app(false);
    let stream = within(mesh.a.namespace.netns(), || TcpStream::connect(to)).unwrap().unwrap();
    stream.set_read_timeout(Some(crate::scripted::LONG)).unwrap();
    let mut lines = BufReader::new(&stream);
    lines.read_line(&mut String::new()).unwrap();
    (&stream).write_all(b"x").unwrap();
    lines.read_exact(&mut [0]).unwrap();
    assert_eq!(mesh.stage.agent.del("u2"), Response::Ack);
    assert!(matches!(lines.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(mesh.fate(&mesh.node.world, mesh.b.app(false)), Fate::Refused);
}

/// What the rules are there for: without its routing the spoofed connection's answer
/// leaves the pod, and nothing ever comes back.
#[test]
fn without_the_ip_rule_inbound_hangs() {
    let Some(mesh) = Mesh::create(Tool::Nft, |_| {}) else {
        return;
    };
    mesh.enrol();
    let own = &mesh.a.namespace;
    own.ip("rule del fwmark 0x111/0xfff pref 32764 lookup 100").unwrap();
    assert_eq!(mesh.fate(&mesh.node.world, mesh.a.app(false)), Fate::Silence);
    // Outbound needs none of it.
    mesh.answer(own, SocketAddr::new(OUTSIDE_V4.into(), 80));
}

/// Silent bypass: without the rule the bytes arrive, and the server sees no identity.
#[test]
fn without_nat_output_it_goes_out_unseen() {
    let Some(mesh) = Mesh::create(Tool::Nft, |_| {}) else {
        return;
    };
    mesh.enrol();
    let flush = "flush chain inet istio-ambient-nat output";
    mesh.a.namespace.load(&["nft", "-f", "-"], flush).unwrap();
    assert_eq!(mesh.answer(&mesh.a.namespace, mesh.b.app(false)).by, "b");
    let [record] = &mesh.records(&mut 0)[..] else {
        panic!("not one connection");
    };
    assert_eq!((record.direction, &record.peer_identity), (Direction::InboundPlaintext, &None));
}

#[test]
fn a_wrong_identity_is_seen() {
    let Some(mesh) = Mesh::create(Tool::Nft, |_| {}) else {
        return;
    };
    for (uid, pod, account) in [("u1", &mesh.a, "mallory"), ("u2", &mesh.b, "two")] {
        let fd = pod.namespace.netns().as_fd();
        assert_eq!(mesh.stage.agent.add_as(uid, &info(uid, account), fd), Response::Ack);
    }
    mesh.answer(&mesh.a.namespace, mesh.b.app(false));
    let records = mesh.records(&mut 0);
    let inbound = records.iter().find(|r| r.direction == Direction::Inbound).unwrap();
    assert_eq!(inbound.peer_identity, Some(identity("shop", "mallory")));
}

#[test]
fn a_pod_that_the_control_plane_does_not_know_is_reset() {
    let Some(mut mesh) = Mesh::create(Tool::Nft, |_| {}) else {
        return;
    };
    mesh.enrol();
    let known = |pod: &crate::mesh::Pod, name: &str, account: &str, hbone| Workload {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        service_account: account.to_owned(),
        addresses: vec![pod.v4, pod.v6],
        hbone,
    };
    // u1 under another account than it was added with.
    let told = vec![known(&mesh.a, "u1", "other", true), known(&mesh.b, "u2", "two", false)];
    mesh.stage.ztunnel.know(told).unwrap();
    let mut seen = 0;
    let asked = resolve(&mesh.a.namespace, RESOLVER_V4.into(), Udp, "api.shop", false);
    assert_eq!(asked, (2, Vec::new()), "SERVFAIL");
    let stream = within(mesh.a.namespace.netns(), || TcpStream::connect(mesh.b.app(false)));
    let mut stream = stream.unwrap().unwrap();
    stream.set_read_timeout(Some(crate::scripted::LONG)).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "a reset");
    let records = mesh.records(&mut seen);
    let why = "failed to fetch information about local workload";
    assert!(records.len() == 2 && records.iter().all(|r| r.note.ends_with(why)), "{records:#?}");
    // It is known, and its peer is not to be reached by HBONE.
    let told = vec![known(&mesh.a, "u1", "one", true), known(&mesh.b, "u2", "two", false)];
    mesh.stage.ztunnel.know(told).unwrap();
    assert_eq!(mesh.answer(&mesh.a.namespace, mesh.b.app(false)).peer, mesh.a.v4);
    let records = mesh.records(&mut seen);
    let ways: Vec<_> = records.iter().map(|r| (r.direction, r.via)).collect();
    assert!(ways.contains(&(Direction::Outbound, Via::Passthrough)), "{ways:?}");
    assert!(ways.contains(&(Direction::InboundPlaintext, Via::Application)), "{ways:?}");
    // With no name server to ask, a name that is not known fails.
    mesh.stop_resolver();
    let asked = resolve(&mesh.a.namespace, RESOLVER_V4.into(), Udp, "else.where", false);
    assert_eq!(asked, (2, Vec::new()));
}

#[test]
fn its_own_ports_are_no_destinations() {
    let Some(mesh) = Mesh::create(Tool::Nft, |_| {}) else {
        return;
    };
    mesh.enrol();
    for port in [15001, 15006] {
        let to = SocketAddr::new(mesh.a.v4, port);
        assert_eq!(mesh.fate(&mesh.node.world, to), Fate::Refused);
    }
    let records = mesh.records(&mut 0);
    assert!(
        records.iter().all(|r| r.note == "attempted recursive call to ourselves"),
        "{records:#?}"
    );
    assert_eq!(records.len(), 2);
    // The DNS proxy is the pod's own.
    let to = SocketAddr::new(mesh.a.v4, 15053);
    assert_eq!(mesh.fate(&mesh.node.world, to), Fate::Refused);
}
