//! Uninstalling, in whichever order somebody does it: in the end pods start and stop on
//! every node.

use anyhow::{Context, Result, ensure};
use e2e_cluster::cluster::{Cluster, RELEASE, SYSTEM};
use e2e_cluster::images::FIRST;
use e2e_cluster::pods::{injected, plain};
use e2e_cluster::wait::{PATIENCE, until_ok};
use e2e_node::programs::workspace;
use serde_json::Value;
use std::time::Duration;

/// Objects in no namespace, which go with none.
const CLUSTER_WIDE: [&str; 2] = ["clusterrole/istio-cni", "clusterrolebinding/istio-cni"];

/// Each node has a pod that was started with us. What happens to it afterwards is that it
/// is stopped, whatever is left of us by then.
fn start_with_us(cluster: &Cluster, space: &str) -> Result<()> {
    cluster.namespace(space)?;
    for node in &cluster.nodes {
        let with = |kind: &str| format!("{kind}-before-{}", node.name);
        cluster.client.apply(&plain(space, &with("plain"), &node.name))?;
        cluster.client.apply(&injected(plain(space, &with("meshed"), &node.name)))?;
    }
    for node in &cluster.nodes {
        cluster.wait_ready(space, &format!("plain-before-{}", node.name))?;
        cluster.wait_ready(space, &format!("meshed-before-{}", node.name))?;
    }
    Ok(())
}

/// Pods start, and stop with those of before, on every node.
fn start_and_stop(cluster: &Cluster, space: &str) -> Result<()> {
    for node in &cluster.nodes {
        cluster.client.apply(&plain(space, &format!("after-{}", node.name), &node.name))?;
    }
    for node in &cluster.nodes {
        cluster.wait_ready(space, &format!("after-{}", node.name))?;
    }
    cluster.client.delete(&["pods", "--all", "-n", space])?;
    cluster.client.wait_gone(&["pods", "-n", space], PATIENCE)?;
    cluster.client.delete(&["namespace", space])
}

/// A mesh pod that is created now is refused, on every node.
fn mesh_is_refused(cluster: &Cluster, space: &str) -> Result<()> {
    for node in &cluster.nodes {
        let pod = format!("refused-{}", node.name);
        cluster.client.apply(&injected(plain(space, &pod, &node.name)))?;
    }
    for node in &cluster.nodes {
        let pod = format!("refused-{}", node.name);
        until_ok("a mesh pod is refused", PATIENCE, || {
            let events = cluster.events(space, &pod)?;
            let refused = |event: &String| event.contains("FailedCreatePodSandBox");
            ensure!(events.iter().any(refused), "events: {events:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn apply_plain(cluster: &Cluster, command: &str, file: &str) -> Result<()> {
    let file = workspace().join("manifests/plain").join(file).display().to_string();
    let arguments: &[&str] = match command {
        "delete" => &["delete", "--ignore-not-found", "-f", &file],
        // It names a field of Kubernetes 1.30, which an older one can only leave out.
        other => &[other, "--validate=false", "-f", &file],
    };
    cluster.client.run(arguments)?;
    Ok(())
}

/// As manifests/README.md has it.
fn clean_by_hand(cluster: &Cluster) -> Result<()> {
    apply_plain(cluster, "apply", "cleanup.yaml")?;
    let job = ["get", "job", "istio-cni-node-cleanup-wait", "-n", SYSTEM];
    until_ok("the cleanup's job", PATIENCE, || {
        let done = [&job[..], &["-o", "jsonpath={.status.succeeded}"]].concat();
        let done = cluster.client.run(&done)?;
        ensure!(done == "1", "succeeded: {done:?}");
        Ok(())
    })
}

/// Until its pods have ended they take out again what is installed.
fn end_cleaning(cluster: &Cluster) -> Result<()> {
    apply_plain(cluster, "delete", "cleanup.yaml")?;
    let pods = ["pods", "-n", SYSTEM, "-l", "k8s-app=istio-cni-node-cleanup"];
    cluster.client.wait_gone(&pods, PATIENCE)
}

fn delete_cluster_wide(cluster: &Cluster) -> Result<()> {
    cluster.client.delete(&CLUSTER_WIDE)
}

fn new_system_namespace(cluster: &Cluster) -> Result<()> {
    cluster.client.delete(&["namespace", SYSTEM])?;
    cluster.client.wait_gone(&["namespace", SYSTEM], Duration::from_secs(180))
}

/// `helm uninstall`, with the hook.
pub(crate) fn by_helm(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "gone-helm";
    start_with_us(cluster, space)?;
    cluster.helm(&["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "180s"])?;
    // Helm has waited for the hook: nothing is left to be done.
    cluster.wait_untouched()?;
    let kinds = "all,configmap,serviceaccount,role,rolebinding,secret";
    until_ok("no object of ours", PATIENCE, || {
        let left = cluster.client.run(&["get", kinds, "-n", SYSTEM, "-o", "name"])?;
        ensure!(!left.contains("istio-cni"), "left in {SYSTEM}:\n{left}");
        Ok(())
    })?;
    start_and_stop(cluster, space)
}

/// `helm uninstall`, and `helm install` at once: the pods that cleaned may still be there
/// when the new agents start.
pub(crate) fn install_again(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    cluster.helm(&["uninstall", RELEASE, "-n", SYSTEM, "--timeout", "180s"])?;
    cluster.install(FIRST)?;
    let space = "again";
    cluster.namespace(space)?;
    cluster.client.apply(&injected(plain(space, "meshed", "node1")))?;
    cluster.wait_ready(space, "meshed")?;
    cluster.client.delete(&["namespace", space])
}

/// `helm uninstall --no-hooks`: the chain stays, and lets those pass that are certain to
/// be outside of the mesh; cleanup by hand is still possible.
pub(crate) fn by_helm_without_hooks(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "gone-unhooked";
    start_with_us(cluster, space)?;
    cluster.helm(&["uninstall", RELEASE, "-n", SYSTEM, "--no-hooks", "--wait"])?;
    cluster.client.wait_gone(&["pods", "-n", SYSTEM], PATIENCE)?;
    for node in &cluster.nodes {
        let chain = node.files("/etc/cni/net.d")?;
        let ours = chain.values().any(|text| String::from_utf8_lossy(text).contains("istio-cni"));
        ensure!(ours, "{}: the chain has lost the plugin", node.name);
    }
    mesh_is_refused(cluster, space)?;
    start_and_stop(cluster, space)?;
    clean_by_hand(cluster)?;
    cluster.wait_untouched()?;
    end_cleaning(cluster)
}

/// The namespace is deleted, with agents, accounts and Helm's own record in it.
pub(crate) fn by_namespace(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "gone-namespace";
    start_with_us(cluster, space)?;
    new_system_namespace(cluster)?;
    mesh_is_refused(cluster, space)?;
    start_and_stop(cluster, space)?;
    cluster.client.run(&["create", "namespace", SYSTEM])?;
    clean_by_hand(cluster)?;
    cluster.wait_untouched()?;
    end_cleaning(cluster)?;
    delete_cluster_wide(cluster)
}

/// The DaemonSet goes first; then cleanup, then the rest.
pub(crate) fn by_daemonset(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "gone-daemonset";
    start_with_us(cluster, space)?;
    cluster.client.run(&["delete", "daemonset", "istio-cni-node", "-n", SYSTEM])?;
    mesh_is_refused(cluster, space)?;
    clean_by_hand(cluster)?;
    cluster.wait_untouched()?;
    cluster.helm(&["uninstall", RELEASE, "-n", SYSTEM, "--no-hooks", "--wait"])?;
    end_cleaning(cluster)?;
    start_and_stop(cluster, space)
}

/// Nothing of ours is installed, whatever there was before.
pub(crate) fn uninstalled(cluster: &Cluster) -> Result<()> {
    cluster.helm(&["uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait"])?;
    cluster.wait_untouched()
}

/// A mesh pod on the first node that saw that nobody captures it.
pub(crate) fn start_broken(cluster: &Cluster, space: &str, pod: &str) -> Result<()> {
    start_broken_as(cluster, space, pod, |_| {})
}

/// The same with something else about it.
pub(crate) fn start_broken_as(
    cluster: &Cluster,
    space: &str,
    pod: &str,
    change: impl Fn(&mut Value),
) -> Result<()> {
    let mut manifest = injected(plain(space, pod, "node1"));
    change(&mut manifest);
    cluster.client.apply(&manifest)?;
    until_ok("a mesh pod that sees that nobody captures it", PATIENCE, || {
        let pod = cluster.client.get(&["pod", pod, "-n", space])?;
        let state = &pod["status"]["initContainerStatuses"][0];
        let code = state.pointer("/lastState/terminated/exitCode");
        let code = code.or_else(|| state.pointer("/state/terminated/exitCode"));
        let code = code.and_then(Value::as_i64).context("not ended yet")?;
        ensure!(code == i64::from(e2e_node::validation::NOT_REDIRECTED), "ended with {code}");
        Ok(())
    })
}

/// Without Helm: the manifests of `manifests/plain`, as its README installs and
/// uninstalls. A mesh pod that was there before is repaired, as it was captured by nobody.
pub(crate) fn without_helm(cluster: &mut Cluster) -> Result<()> {
    uninstalled(cluster)?;
    let space = "plain-yaml";
    cluster.namespace(space)?;
    start_broken(cluster, space, "early")?;
    let exists = cluster.client.attempt(&["get", "namespace", SYSTEM])?.status.success();
    if !exists {
        cluster.client.run(&["create", "namespace", SYSTEM])?;
    }
    apply_plain(cluster, "apply", "install.yaml")?;
    cluster.wait_agents()?;
    cluster.wait_ready(space, "early")?;
    clean_by_hand(cluster)?;
    apply_plain(cluster, "delete", "install.yaml")?;
    end_cleaning(cluster)?;
    cluster.wait_untouched()?;
    start_and_stop(cluster, space)
}
