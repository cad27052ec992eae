//! `istio-validation`, the init container that refuses to let a pod start that
//! is not captured, must be content with our rules.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use e2e_node::agent::{plain_pod, sidecar_pod};
use e2e_node::cluster::{Cluster, NAMESPACE, Network, Pod};
use e2e_node::process::Identity;
use serde_json::json;

/// Exit status of the probe in a pod, run as the injector has it run.
fn validate(cluster: &Cluster, pod: &Pod, ipv6: bool, timeout: &str) -> i32 {
    let program = cluster.programs.stand_in.with_file_name("validation");
    let args = if ipv6 { vec!["--ipv6"] } else { Vec::new() };
    let program = pod.sandbox.program(program).args(args).as_user(Identity::PROXY);
    let output = program.env("PROBE_TIMEOUT", timeout).run().unwrap();
    let status = output.status.code().unwrap();
    println!("ipv6 {ipv6}: exit {status} {}", output.stderr.trim());
    status
}

fn is_content(backend: &str, mode: &str) {
    let cluster = Cluster::create("valid", backend, &Network::default()).unwrap();
    let annotations = json!({"sidecar.istio.io/interceptionMode": mode});
    let env = [("ISTIO_DUAL_STACK", "true")];
    let dual = cluster.run_pod(&sidecar_pod(NAMESPACE, "dual", &annotations, &env)).unwrap();
    assert_eq!(validate(&cluster, &dual, false, "60s"), 0);
    assert_eq!(validate(&cluster, &dual, true, "60s"), 0);
    let four = cluster.run_pod(&sidecar_pod(NAMESPACE, "four", &annotations, &[])).unwrap();
    assert_eq!(validate(&cluster, &four, false, "60s"), 0);
}

#[test]
fn redirect_nftables() {
    is_content("nftables", "REDIRECT");
}

#[test]
fn redirect_iptables() {
    is_content("iptables", "REDIRECT");
}

#[test]
fn tproxy_nftables() {
    is_content("nftables", "TPROXY");
}

#[test]
fn tproxy_iptables() {
    is_content("iptables", "TPROXY");
}

/// What the other tests rely on: without rules it does fail.
#[test]
fn without_rules_it_exits_with_126() {
    let cluster = Cluster::create("invalid", "nftables", &Network::default()).unwrap();
    let pod = cluster.run_pod(&plain_pod(NAMESPACE, "plain")).unwrap();
    let (v4, v6) = std::thread::scope(|scope| {
        let v4 = scope.spawn(|| validate(&cluster, &pod, false, "2s"));
        let v6 = scope.spawn(|| validate(&cluster, &pod, true, "2s"));
        (v4.join().unwrap(), v6.join().unwrap())
    });
    assert_eq!((v4, v6), (126, 126));
}
