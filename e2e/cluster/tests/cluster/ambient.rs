//! Ambient mode, as far as the API server is concerned: what the agent writes about pods
//! arrives on a real one, with the rights that the chart gives and no others.

use crate::outage::{put_static, remove_static};
use crate::removal::uninstalled;
use crate::rights::wait_equal;
use anyhow::{Result, ensure};
use e2e_cluster::cluster::{Cluster, SYSTEM, condition};
use e2e_cluster::images::FIRST;
use e2e_cluster::pods::{injected, plain};
use e2e_cluster::wait::{PATIENCE, until_ok};
use e2e_node::ztunnel::{Config, Faults, Ztunnel};
use serde_json::Value;

const REDIRECTION: &str = "ambient.istio.io/redirection";
const CAPTURED: &str = "sluice.dev/captured";
const LABEL: &str = "istio.io/dataplane-mode";

fn redirection(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"][REDIRECTION].as_str()
}

fn kinds(pod: &Value) -> Vec<&str> {
    let all = pod["status"]["conditions"].as_array();
    all.into_iter().flatten().filter_map(|one| one["type"].as_str()).collect()
}

fn wait_event(cluster: &Cluster, space: &str, pod: &str, wanted: &str) -> Result<()> {
    until_ok(wanted, PATIENCE, || {
        let events = cluster.events(space, pod)?;
        ensure!(events.iter().any(|event| event.starts_with(wanted)), "{events:?}");
        Ok(())
    })
}

/// A pod that ztunnel refuses gets an Event and a condition, with which it stays ready to
/// the kubelet; one that it takes gets the annotation. All of it is taken back.
pub(crate) fn spoken_of(cluster: &mut Cluster) -> Result<()> {
    uninstalled(cluster)?;
    let from = cluster.plane.audit()?.len();
    cluster.install_with(FIRST, &["ambient.enabled=true"])?;
    let space = "ambient";
    cluster.namespace(space)?;
    cluster.client.apply(&plain(space, "server", "node1"))?;
    let before = cluster.wait_ready(space, "server")?;

    // Not by /var/run: that is an absolute link, which would lead to this machine's own.
    let socket = cluster.nodes[0].inside("/run/ztunnel/ztunnel.sock")?;
    let config = Config {
        faults: Faults { refuse: [("*".to_owned(), 1_000_000)].into(), ..Faults::default() },
        ..Config::new(cluster.scratch(), "ztunnel-node1", socket)
    };
    let ztunnel = Ztunnel::start(&config, None)?;
    ztunnel.wait("its snapshot", |status| status.snapshot)?;
    let mode = format!("{LABEL}=ambient");
    cluster.client.run(&["label", "namespace", space, &mode])?;
    wait_event(cluster, space, "server", "Warning ZtunnelRefused: ")?;
    let stuck = cluster
        .wait_pod(space, "server", "stuck", |pod| condition(pod, CAPTURED) == Some("False"))?;
    ensure!(redirection(&stuck) != Some("enabled"), "{stuck}");
    // The kubelet's own are as they were.
    let mut kinds_before = kinds(&before);
    kinds_before.push(CAPTURED);
    kinds_before.sort_unstable();
    let mut kinds_after = kinds(&stuck);
    kinds_after.sort_unstable();
    ensure!(kinds_after == kinds_before, "{kinds_after:?}, before {kinds_before:?}");

    ztunnel.fail(Faults::default())?;
    cluster.wait_pod(space, "server", "in the mesh", |pod| redirection(pod) == Some("enabled"))?;
    wait_event(cluster, space, "server", "Normal Captured: ")?;
    // Its readiness probe passes by ztunnel, and the kubelet keeps what is not its own.
    cluster.wait_pod(space, "server", "captured and ready", |pod| {
        condition(pod, CAPTURED) == Some("True") && condition(pod, "Ready") == Some("True")
    })?;

    // One that is known by its name alone: the right to read single pods is used as well.
    put_static(&cluster.nodes[0], injected(plain(space, "unknown", "")), 18086)?;
    put_static(&cluster.nodes[1], injected(plain("nowhere", "unknown", "")), 18086)?;
    // The sidecars' role is there too, and has one right of ambient's.
    wait_equal(cluster, from, &["istio-cni", "istio-cni-ambient", "istio-cni-repair-role"])?;
    for node in &cluster.nodes {
        remove_static(node, "unknown")?;
    }

    cluster.client.run(&["label", "namespace", space, &format!("{LABEL}-")])?;
    cluster.wait_pod(space, "server", "out of the mesh", |pod| {
        redirection(pod).is_none() && condition(pod, CAPTURED).is_none()
    })?;
    cluster.wait_ready(space, "server")?;
    let logs = ["logs", "-n", SYSTEM, "-l", "k8s-app=istio-cni-node", "--tail=-1"];
    let said = cluster.client.run(&logs)?;
    ensure!(!said.contains("cannot be said in the cluster"), "{said}");
    cluster.client.delete(&["namespace", space])?;
    drop(ztunnel);
    uninstalled(cluster)
}
