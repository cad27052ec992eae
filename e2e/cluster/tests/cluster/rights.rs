//! What the agents ask of the API server, next to what the chart lets them.

use crate::outage::{put_static, remove_static};
use crate::removal::{start_broken, start_broken_as, uninstalled};
use anyhow::{Context, Result, ensure};
use e2e_cluster::cluster::Cluster;
use e2e_cluster::images::FIRST;
use e2e_cluster::pods::{injected, plain};
use e2e_cluster::wait::{PATIENCE, until_ok};
use serde_json::Value;
use std::collections::BTreeSet;

const ACCOUNT: &str = "system:serviceaccount:istio-system:istio-cni";

/// A verb and a resource.
type Right = (String, String);

/// What the roles allow.
fn granted(cluster: &Cluster, roles: &[&str]) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for role in roles {
        let role = cluster.client.get(&["clusterrole", role])?;
        for rule in role["rules"].as_array().context("no rules")? {
            let words = |key: &str| {
                let words = rule[key].as_array().cloned().unwrap_or_default();
                words.into_iter().filter_map(|word| word.as_str().map(str::to_owned))
            };
            for resource in words("resources") {
                rights.extend(words("verbs").map(|verb| (verb, resource.clone())));
            }
        }
    }
    Ok(rights)
}

/// What the agents asked since the log had `from` entries; none may have been refused.
fn used(cluster: &Cluster, from: usize) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for entry in cluster.plane.audit()?.iter().skip(from) {
        let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str);
        if text("/user/username") != Some(ACCOUNT) {
            continue;
        }
        let code = entry.pointer("/responseStatus/code").and_then(Value::as_u64);
        ensure!(code != Some(403) && code != Some(401), "refused: {entry}");
        // What every account may, such as asking for the server's version, needs no rule.
        let Some(resource) = text("/objectRef/resource") else { continue };
        let resource = match text("/objectRef/subresource") {
            Some(sub) => format!("{resource}/{sub}"),
            None => resource.to_owned(),
        };
        rights.insert((text("/verb").unwrap_or_default().to_owned(), resource));
    }
    Ok(rights)
}

/// Waits until each right of the roles is used, and nothing else was.
pub(crate) fn wait_equal(cluster: &Cluster, from: usize, roles: &[&str]) -> Result<()> {
    let mut granted = granted(cluster, roles)?;
    // Of a namespace that is younger than what the agent has seen of namespaces, and only
    // where its labels decide: in ambient mode.
    let perhaps = ("get".to_owned(), "namespaces".to_owned());
    granted.remove(&perhaps);
    until_ok("each right is used", PATIENCE, || {
        let mut used = used(cluster, from)?;
        used.remove(&perhaps);
        ensure!(used == granted, "used {used:?}, granted {granted:?}");
        Ok(())
    })
}

/// No request is refused, and no rule is there for nothing: with the chart's defaults, and
/// where repairing means deleting. What the defaults may write is an Event about a pod
/// that cannot be captured.
pub(crate) fn fit(cluster: &mut Cluster) -> Result<()> {
    uninstalled(cluster)?;
    let space = "rights-fit";
    cluster.namespace(space)?;
    start_broken(cluster, space, "broken")?;
    let from = cluster.plane.audit()?.len();
    cluster.install_with(FIRST, &["repair.repairPods=false", "repair.deletePods=true"])?;
    cluster.client.wait_gone(&["pod", "broken", "-n", space], PATIENCE)?;
    until_ok("an event that says so", PATIENCE, || {
        let events = cluster.events(space, "broken")?;
        ensure!(events.iter().any(|event| event.contains("DeleteBrokenPod")), "{events:?}");
        Ok(())
    })?;
    // Mesh pods that the API server does not know (yet): the agent asks for them by name.
    put_static(&cluster.nodes[0], injected(plain(space, "unknown", "")), 18084)?;
    put_static(&cluster.nodes[1], injected(plain("nowhere", "unknown", "")), 18084)?;
    wait_equal(cluster, from, &["istio-cni", "istio-cni-repair-role"])?;

    for node in &cluster.nodes {
        remove_static(node, "unknown")?;
    }
    uninstalled(cluster)?;
    start_broken_as(cluster, space, "hopeless", |pod| {
        let key = "traffic.sidecar.istio.io/includeInboundPorts";
        pod["metadata"]["annotations"][key] = "8080,http".into();
    })?;
    let from = cluster.plane.audit()?.len();
    cluster.install(FIRST)?;
    until_ok("an event that says what is wrong", PATIENCE, || {
        let events = cluster.events(space, "hopeless")?;
        let said = |event: &String| {
            ["Warning CaptureRulesFailed: ", "includeInboundPorts", "http"]
                .iter()
                .all(|word| event.contains(word))
        };
        ensure!(events.iter().any(said), "{events:?}");
        Ok(())
    })?;
    for (node, space) in [(0, space), (1, "nowhere")] {
        put_static(&cluster.nodes[node], injected(plain(space, "unknown-2", "")), 18085)?;
    }
    wait_equal(cluster, from, &["istio-cni", "istio-cni-repair-role"])?;
    for node in &cluster.nodes {
        remove_static(node, "unknown-2")?;
    }
    cluster.client.delete(&["namespace", space])
}
