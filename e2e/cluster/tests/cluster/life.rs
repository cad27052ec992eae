//! What happens to an agent: it is killed, replaced, and not let in.

use crate::churn::Churn;
use crate::serve::{PASSTHROUGH, ask};
use anyhow::{Context, Result, ensure};
use e2e_cluster::cluster::{Cluster, SYSTEM, address, name};
use e2e_cluster::images::{FIRST, HUB, SECOND};
use e2e_cluster::pods::{PORT, injected, plain};
use e2e_cluster::wait::{PATIENCE, until_ok};
use serde_json::Value;
use std::collections::BTreeSet;

/// Agents are killed and their pods deleted while mesh pods start. None of these escapes
/// or is stuck, and one that serves goes on.
pub(crate) fn restarts(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "restart";
    cluster.namespace(space)?;
    cluster.client.apply(&injected(plain(space, "server", "node1")))?;
    cluster.client.apply(&plain(space, "outside", "node2"))?;
    let server = cluster.wait_ready(space, "server")?;
    cluster.wait_ready(space, "outside")?;

    let churn = Churn::start(cluster, "restart-churn")?;
    for node in &cluster.nodes {
        node.program(&["pkill", "-9", "-x", "install-cni"])?.check()?;
    }
    wait_restarted(cluster)?;
    let before = uids(&cluster.agents()?);
    cluster.client.run(&["delete", "pod", "-n", SYSTEM, "-l", "k8s-app=istio-cni-node"])?;
    cluster.wait_agents()?;
    let after = uids(&cluster.agents()?);
    ensure!(before.is_disjoint(&after), "the same pods: {before:?}, {after:?}");
    churn.finish(cluster)?;

    let again = cluster.wait_ready(space, "server")?;
    ensure!(restarts_of(&again) == 0, "the server was restarted");
    let peer = ask(cluster, space, "outside", &format!("{}:{PORT}", address(&server)?))?;
    ensure!(peer == PASSTHROUGH, "served as {peer}");
    cluster.client.delete(&["namespace", space])
}

fn wait_restarted(cluster: &Cluster) -> Result<()> {
    until_ok("agents restarted", PATIENCE, || {
        let agents = cluster.agents()?;
        let calm = agents.iter().find(|pod| restarts_of(pod) == 0);
        ensure!(calm.is_none(), "{:?} was not restarted", calm.map(name));
        Ok(())
    })?;
    cluster.wait_agents()
}

fn restarts_of(pod: &Value) -> i64 {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses.into_iter().flatten().filter_map(|one| one["restartCount"].as_i64()).sum()
}

fn uids(pods: &[Value]) -> BTreeSet<String> {
    pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)).collect()
}

/// `helm upgrade` to another version while mesh pods start: each node has the other
/// plugin in the end.
pub(crate) fn upgrades(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let plugins = |cluster: &Cluster| -> Result<Vec<Vec<u8>>> {
        let files = cluster.nodes.iter().map(|node| node.files("/opt/cni/bin"));
        let own = |files: Result<std::collections::BTreeMap<_, Vec<u8>>>| {
            files?.remove("istio-cni").context("no plugin")
        };
        files.map(own).collect()
    };
    let before = plugins(cluster)?;
    let churn = Churn::start(cluster, "upgrade-churn")?;
    cluster.install(SECOND)?;
    churn.finish(cluster)?;
    let image = format!("{HUB}/install-cni:{SECOND}");
    for agent in cluster.agents()? {
        let runs = &agent["spec"]["containers"][0]["image"];
        ensure!(runs == image.as_str(), "{} runs {runs}", name(&agent));
    }
    let after = plugins(cluster)?;
    let same = before.iter().zip(&after).any(|(before, after)| before == after);
    ensure!(!same, "a plugin was not replaced");
    cluster.install(FIRST)
}

/// Without its ClusterRole a new agent knows nothing: mesh pods are refused, or captured
/// by what the runtime says of them; others start. With it all is well again.
pub(crate) fn rights_are_lost(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "rights";
    cluster.namespace(space)?;
    let client = &cluster.client;
    let mut role = client.get(&["clusterrole", "istio-cni"])?;
    if let Some(metadata) = role["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    }
    client.run(&["delete", "clusterrole", "istio-cni"])?;
    let before = uids(&cluster.agents()?);
    client.run(&["delete", "pod", "-n", SYSTEM, "-l", "k8s-app=istio-cni-node"])?;
    until_ok("new agents that are refused", PATIENCE, || {
        let agents = cluster.agents()?;
        ensure!(agents.len() == cluster.nodes.len() && uids(&agents).is_disjoint(&before));
        for agent in &agents {
            let log = client.run(&["logs", "-n", SYSTEM, name(agent)])?;
            ensure!(log.contains("403"), "{} logs no 403:\n{log}", name(agent));
        }
        Ok(())
    })?;
    for node in ["node1", "node2"] {
        client.apply(&injected(plain(space, &format!("meshed-{node}"), node)))?;
        client.apply(&plain(space, &format!("outside-{node}"), node))?;
    }
    for node in ["node1", "node2"] {
        cluster.wait_ready(space, &format!("outside-{node}"))?;
        let meshed = format!("meshed-{node}");
        until_ok("a mesh pod refused or captured", PATIENCE, || {
            let pod = client.get(&["pod", &meshed, "-n", space])?;
            // Ready, it has proved that it is captured: its init container looks.
            let ready = e2e_cluster::cluster::condition(&pod, "Ready") == Some("True");
            let refused = cluster.events(space, &meshed)?;
            let refused = refused.iter().any(|event| event.contains("FailedCreatePodSandBox"));
            ensure!(ready || refused, "{meshed} is neither");
            Ok(())
        })?;
    }
    client.apply(&role)?;
    cluster.wait_agents()?;
    for node in ["node1", "node2"] {
        let pod = cluster.wait_ready(space, &format!("meshed-{node}"))?;
        let peer = ask(cluster, space, "outside-node1", &format!("{}:{PORT}", address(&pod)?))?;
        ensure!(peer == PASSTHROUGH, "meshed-{node} was asked by {peer}");
    }
    client.delete(&["namespace", space])
}

/// The API server takes no token any more that it gave out. No mesh pod starts
/// uncaptured meanwhile; with the token that the kubelet writes next the same agent goes on.
pub(crate) fn tokens_end(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "tokens";
    cluster.namespace(space)?;
    let before = cluster.agents()?;
    cluster.plane.stop_api();
    cluster.plane.change_token_keys();
    cluster.plane.start_api()?;
    let client = &cluster.client;
    until_ok("agents without a good token", PATIENCE, || {
        for agent in &before {
            let log = client.run(&["logs", "-n", SYSTEM, name(agent)])?;
            ensure!(log.contains("401"), "{} logs no 401:\n{log}", name(agent));
        }
        Ok(())
    })?;
    for node in ["node1", "node2"] {
        client.apply(&injected(plain(space, &format!("meshed-{node}"), node)))?;
    }
    // A kubelet that starts asks for new tokens.
    for node in &cluster.nodes {
        node.kill_kubelet()?;
    }
    for (node, other) in [("node1", "node2"), ("node2", "node1")] {
        let (pod, from) = (format!("meshed-{node}"), format!("meshed-{other}"));
        let ready = cluster.wait_ready(space, &pod)?;
        cluster.wait_ready(space, &from)?;
        let peer = ask(cluster, space, &from, &format!("{}:{PORT}", address(&ready)?))?;
        ensure!(peer == PASSTHROUGH, "{pod} was asked by {peer}");
    }
    until_ok("the same agents ready", PATIENCE, || {
        cluster.wait_agents()?;
        let after = cluster.agents()?;
        ensure!(uids(&before) == uids(&after), "other agents");
        let restarted = after.iter().find(|pod| restarts_of(pod) > 0);
        ensure!(restarted.is_none(), "{:?} was restarted", restarted.map(name));
        Ok(())
    })?;
    client.delete(&["namespace", space])
}
