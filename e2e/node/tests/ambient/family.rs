//! IPv6 that comes to a captured pod later (a second network, somebody's switch) is
//! captured too, although no rule was touched: heard of, or seen in the next period.

use crate::stage::{PORT, Stage, Started, records};
use e2e_node::process::Identity;
use e2e_node::runtime::Conflist;
use e2e_node::stand_in::StandIn;
use e2e_node::ztunnel::Direction;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

fn later(name: &str, backend: &'static str, audit: &'static [&'static str]) {
    let mut stage = Stage::with_audit(name, backend, audit);
    let ipam = stage.cluster.node.host.scratch().dir("ipam-4").unwrap();
    // A chain that knows IPv4 alone.
    let chain = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": ipam,
                "ranges": [[{"subnet": "10.77.77.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {
            "type": "istio-cni",
            "cni_agent_run_dir": stage.cluster.directories.run,
            "ambient_enabled": true,
            "agent_timeout_ms": 10_000,
        },
    ]});
    stage.cluster.list = Conflist::parse(&chain.to_string()).unwrap();
    let ztunnel = stage.ztunnel("zt");
    let server = stage.start(stage.manifest("server")).unwrap();
    let manifest = stage.manifest("client");
    stage.publish(&manifest);
    let mut pod = stage.cluster.sandbox(&manifest).unwrap();
    for of in ["all", "default"] {
        pod.sandbox.sysctl(&format!("ipv6/conf/{of}/disable_ipv6"), "1").unwrap();
    }
    stage.cluster.attach(&mut pod).unwrap();
    let pause = pod.sandbox.program("sh").args(["-c", "echo ready; exec cat >/dev/null"]);
    let mut pause = pause.timeout(Duration::from_secs(300)).start().unwrap();
    pause.wait_ready().unwrap();
    let client = Started { pod, manifest, _pause: pause };
    // Each of the two: what is changed after that is a change.
    stage.eventually("both are looked at", |stage| {
        let of = |why| stage.metric(&format!("sluice_audit_looks_total{{reason=\"{why}\"}}"));
        of("heard").unwrap_or_default() + of("period").unwrap_or_default() / 2.0 >= 2.0
    });

    client.pod.sandbox.sysctl("ipv6/conf/all/disable_ipv6", "0").unwrap();
    client.pod.sandbox.ip("addr add fd00:99::2/64 dev eth0 nodad").unwrap();
    server.pod.sandbox.ip("addr add fd00:99::3/64 dev eth0 nodad").unwrap();
    let app = StandIn::direct("app", &[PORT], vec![]);
    let programs = &stage.cluster.programs;
    let _app = app.start(&programs.stand_in, &server.pod.sandbox, Identity::APP).unwrap();
    let to: SocketAddr = format!("[fd00:99::3]:{PORT}").parse().unwrap();
    stage.eventually("what leaves by IPv6 comes to ztunnel", |stage| {
        let mut seen = ztunnel.status().unwrap().records.len();
        stage.fate(&client.pod.sandbox, to);
        let found = records(&ztunnel, &mut seen);
        found.iter().any(|r| r.uid == client.uid() && r.direction == Direction::Outbound)
    });
    stage.eventually("it is counted", |stage| {
        let repaired = stage.metric("sluice_drift_repaired_total{reason=\"rules\"}");
        repaired.is_some_and(|repaired| repaired >= 1.0)
    });
}

#[test]
fn ipv6_that_comes_later_is_heard_of() {
    later("family-heard", "nftables", &["--audit-seconds=3600"]);
}

#[test]
fn ipv6_that_comes_later_is_seen_by_the_period() {
    // Ten periods, after which all is compared anyway, would be too late here.
    later("family-period", "iptables", &["--audit-on-change=false", "--audit-seconds=20"]);
}
