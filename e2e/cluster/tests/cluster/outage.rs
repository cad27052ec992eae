//! What happens to the cluster around an agent: the API server is away, a node is
//! switched off.

use crate::serve::{PASSTHROUGH, ask};
use anyhow::{Context, Result, bail, ensure};
use e2e_cluster::cluster::{Cluster, address, condition, name};
use e2e_cluster::images::FIRST;
use e2e_cluster::node::{Node, identity};
use e2e_cluster::pods::{PORT, deployment, injected, plain, service};
use e2e_cluster::wait::{PATIENCE, until, until_ok};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Where kubelet looks for pods that no API server told it of.
const STATIC: &str = "/etc/kubernetes-manifests";
/// How long something that must not happen is waited for.
const WATCHED: Duration = Duration::from_secs(15);

/// Who an address serves a node as; None when nobody answers.
fn ask_from(node: &Node, host: &str, port: u16) -> Result<Option<String>> {
    let script = "exec 3<>\"/dev/tcp/$0/$1\" && printf 'GET /cgi-bin/peer HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let program = node.program(&["timeout", "5", "bash", "-c", script, host, &port.to_string()])?;
    let output = program.run()?;
    if !output.status.success() || output.stdout.is_empty() {
        return Ok(None);
    }
    Ok(output.stdout.lines().next_back().map(str::to_owned))
}

/// A pod that kubelet starts by itself, reached through a port of its node.
pub(crate) fn put_static(node: &Node, mut pod: Value, port: u16) -> Result<()> {
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": PORT, "hostPort": port}]);
    let file = node.inside(STATIC)?.join(format!("{}.json", name(&pod)));
    std::fs::write(&file, pod.to_string()).with_context(|| format!("write {}", file.display()))
}

/// Ends what [`put_static`] started.
pub(crate) fn remove_static(node: &Node, pod: &str) -> Result<()> {
    let file = node.inside(STATIC)?.join(format!("{pod}.json"));
    std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))
}

/// With the API server away, what is captured stays so, an agent that starts serves, pods
/// outside of the mesh start, and no mesh pod starts uncaptured.
pub(crate) fn api_is_away(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "away";
    cluster.namespace(space)?;
    cluster.client.apply(&injected(plain(space, "server", "node1")))?;
    let server = address(&cluster.wait_ready(space, "server")?)?;
    let still_captured = |cluster: &Cluster| {
        until_ok("the server serves through its sidecar", PATIENCE, || {
            let peer = ask_from(&cluster.nodes[1], &server, PORT)?;
            ensure!(peer.as_deref() == Some(PASSTHROUGH), "served as {peer:?}");
            Ok(())
        })
    };
    still_captured(cluster)?;

    cluster.plane.stop_api();
    still_captured(cluster)?;
    let (node, (_, node_address)) = (&cluster.nodes[0], identity(1));
    put_static(node, plain(space, "outside", ""), 18081)?;
    put_static(node, injected(plain(space, "meshed", "")), 18082)?;
    let started = |port: u16| ask_from(&cluster.nodes[1], &node_address, port);
    until_ok("a pod outside of the mesh starts", PATIENCE, || {
        ensure!(started(18081)?.is_some(), "nobody answers");
        Ok(())
    })?;
    node.program(&["pkill", "-9", "-x", "install-cni"])?.check()?;
    put_static(node, plain(space, "later", ""), 18083)?;
    until_ok("another one while the agent is restarted", PATIENCE, || {
        ensure!(started(18083)?.is_some(), "nobody answers");
        Ok(())
    })?;
    still_captured(cluster)?;
    let end = Instant::now() + WATCHED;
    while Instant::now() < end {
        match started(18082)?.as_deref() {
            None | Some(PASSTHROUGH) => std::thread::sleep(Duration::from_secs(1)),
            Some(peer) => bail!("a mesh pod was served to {peer} without its sidecar"),
        }
    }

    cluster.plane.start_api()?;
    cluster.wait_nodes()?;
    cluster.wait_agents()?;
    until_ok("the mesh pod is started and captured", PATIENCE, || {
        let peer = ask_from(&cluster.nodes[1], &node_address, 18082)?;
        ensure!(peer.as_deref() == Some(PASSTHROUGH), "served as {peer:?}");
        Ok(())
    })?;
    for pod in ["outside", "meshed", "later"] {
        remove_static(&cluster.nodes[0], pod)?;
    }
    cluster.client.delete(&["namespace", space])
}

/// A node is switched off and on: /run is empty, sandboxes and rules are gone, the disk is
/// as it was. All pods come back, and those of the mesh captured.
pub(crate) fn node_restarts(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "reboot";
    cluster.namespace(space)?;
    let client = cluster.client.clone();
    let mut server = injected(plain(space, "server", "node1"));
    server["spec"]["terminationGracePeriodSeconds"] = json!(1);
    client.apply(&deployment(&server))?;
    client.apply(&service(space, "server"))?;
    client.apply(&plain(space, "outside", "node1"))?;
    client.apply(&plain(space, "client", "node2"))?;
    until_ok("the server is there", PATIENCE, || {
        let wait = ["rollout", "status", "deployment/server", "-n", space, "--timeout=25s"];
        client.run(&wait).map(drop)
    })?;
    cluster.wait_ready(space, "outside")?;
    cluster.wait_ready(space, "client")?;
    let agent = cluster.agent("node1")?;
    let started = |cluster: &Cluster, space: &str, pod: &str| -> Result<Vec<Value>> {
        let pod = cluster.client.get(&["pod", pod, "-n", space])?;
        let statuses = pod["status"]["containerStatuses"].as_array().cloned();
        let statuses = statuses.context("no containers")?;
        Ok(statuses.iter().map(|one| one["containerID"].clone()).collect())
    };
    let before = started(cluster, e2e_cluster::cluster::SYSTEM, &agent)?;

    cluster.restart_node(0)?;
    until_ok("the agent's container is a new one", PATIENCE, || {
        let now = started(cluster, e2e_cluster::cluster::SYSTEM, &agent)?;
        ensure!(now != before && !now.is_empty(), "{now:?}");
        Ok(())
    })?;
    cluster.wait_nodes()?;
    cluster.wait_agents()?;
    // The address tells a pod of before from one of after: ready by old news is not ready.
    let pod = until("the server is back", PATIENCE, || {
        let pods = client.list(&["pods", "-n", space, "-l", "app=server"])?;
        let ready = |pod: &&Value| {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
            condition(pod, "Ready") == Some("True") && restarts > Some(0)
        };
        Ok(pods.iter().find(ready).cloned())
    })?;
    let service = client.get(&["service", "server", "-n", space])?;
    let service = service["spec"]["clusterIP"].as_str().context("no cluster address")?.to_owned();
    for to in [format!("{}:{PORT}", address(&pod)?), service] {
        until_ok("traffic through the sidecar", PATIENCE, || {
            let peer = ask(cluster, space, "client", &to)?;
            ensure!(peer == PASSTHROUGH, "{to} was asked by {peer}");
            Ok(())
        })?;
    }
    let outside = until("the pod outside is back", PATIENCE, || {
        let pod = client.get(&["pod", "outside", "-n", space])?;
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
        let ready = condition(&pod, "Ready") == Some("True") && restarts > Some(0);
        Ok(ready.then_some(pod))
    })?;
    let own = client.get(&["pod", "client", "-n", space])?;
    let peer = ask(cluster, space, "client", &format!("{}:{PORT}", address(&outside)?))?;
    ensure!(peer == address(&own)?, "the pod outside was asked by {peer}");
    client.delete(&["namespace", space])
}
