//! Installing, and what pods see of it.

use anyhow::{Context, Result, ensure};
use e2e_cluster::cluster::{Cluster, address};
use e2e_cluster::images::FIRST;
use e2e_cluster::pods::{APP, PORT, deployment, injected, plain, service};
use e2e_cluster::wait::{PATIENCE, until_ok};
use serde_json::Value;

/// Whom an inbound connection through the sidecar comes from.
pub(crate) const PASSTHROUGH: &str = "127.0.0.6";

/// What `app` of a pod gets from an address: who it was served as.
pub(crate) fn ask(cluster: &Cluster, namespace: &str, pod: &str, to: &str) -> Result<String> {
    let url = format!("http://{to}/cgi-bin/peer");
    cluster.client.exec(namespace, pod, APP, &["timeout", "10", "wget", "-q", "-O", "-", &url])
}

/// How many connections Envoy of a pod has accepted on a listener.
pub(crate) fn accepted(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    listener: &str,
) -> Result<u64> {
    let counter = format!("tcp.{listener}.downstream_cx_total");
    let url = format!("http://127.0.0.1:15000/stats?filter=^{counter}$");
    let argv = ["timeout", "10", "wget", "-q", "-O", "-", &url];
    let said = cluster.client.exec(namespace, pod, APP, &argv)?;
    let value = said.trim().rsplit(' ').next().unwrap_or_default();
    value.parse().with_context(|| format!("Envoy said {said:?}"))
}

/// The DaemonSet is ready, and every node's chain has the plugin.
pub(crate) fn installs(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    for node in &cluster.nodes {
        let files = node.files("/etc/cni/net.d")?;
        let names: Vec<_> = files.keys().collect();
        let first = files.first_key_value().context("no configuration")?;
        let list: Value = serde_json::from_slice(first.1)?;
        let kinds = list["plugins"].as_array().context("no plugins")?;
        let kinds: Vec<_> = kinds.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
        ensure!(kinds == ["bridge", "portmap", "istio-cni"], "{names:?}: {kinds:?}");
        ensure!(!names.iter().any(|name| name.contains("kubeconfig")), "{names:?}");
        let plugin = node.files("/opt/cni/bin")?;
        ensure!(plugin.contains_key("istio-cni"), "no plugin on {}", node.name);
    }
    Ok(())
}

/// A server and a client with sidecars on different nodes, and one of each without.
pub(crate) fn captures(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "serve";
    cluster.namespace(space)?;
    let client = &cluster.client;
    client.apply(&deployment(&injected(plain(space, "server", "node1"))))?;
    client.apply(&service(space, "server"))?;
    client.apply(&plain(space, "open", "node1"))?;
    client.apply(&injected(plain(space, "meshed", "node2")))?;
    client.apply(&plain(space, "outside", "node2"))?;

    until_ok("the server is there", PATIENCE, || {
        let wait = ["rollout", "status", "deployment/server", "-n", space, "--timeout=25s"];
        client.run(&wait).map(drop)
    })?;
    let servers = client.list(&["pods", "-n", space, "-l", "app=server"])?;
    let server = servers.first().context("no pod of the deployment")?;
    let server_name = e2e_cluster::cluster::name(server);
    let open = cluster.wait_ready(space, "open")?;
    cluster.wait_ready(space, "meshed")?;
    let outside = cluster.wait_ready(space, "outside")?;
    let service = client.get(&["service", "server", "-n", space])?;
    let service = service["spec"]["clusterIP"].as_str().context("no cluster address")?.to_owned();

    let before = accepted(cluster, space, server_name, "in4")?;
    let to_pod = format!("{}:{PORT}", address(server)?);
    for to in [&to_pod, &service] {
        for from in ["outside", "meshed"] {
            // kube-proxy may be behind by a moment.
            until_ok(&format!("{from} asks {to}"), PATIENCE, || {
                let peer = ask(cluster, space, from, to)?;
                ensure!(peer == PASSTHROUGH, "{from} was served as {peer:?} at {to}");
                Ok(())
            })?;
        }
    }
    let after = accepted(cluster, space, server_name, "in4")?;
    ensure!(after >= before + 4, "Envoy accepted {before}, then {after} connections");

    // Outbound: what the mesh's client asked went through its Envoy too.
    let before = accepted(cluster, space, "meshed", "out4")?;
    let peer = ask(cluster, space, "meshed", &to_pod)?;
    ensure!(peer == PASSTHROUGH, "{peer}");
    let after = accepted(cluster, space, "meshed", "out4")?;
    ensure!(after > before, "Envoy of the client accepted {before}, then {after}");

    // Nobody stands between two pods outside of the mesh.
    let peer = ask(cluster, space, "outside", &format!("{}:{PORT}", address(&open)?))?;
    ensure!(peer == address(&outside)?, "the pod outside was served as {peer}");
    client.delete(&["namespace", space])
}

/// The pod's own event has the code, the annotation, its value and what would be right.
pub(crate) fn says_what_is_wrong(cluster: &mut Cluster) -> Result<()> {
    cluster.install(FIRST)?;
    let space = "wrong";
    cluster.namespace(space)?;
    let mut pod = injected(plain(space, "wrong", "node1"));
    let key = "traffic.sidecar.istio.io/includeInboundPorts";
    pod["metadata"]["annotations"][key] = "8080,http".into();
    cluster.client.apply(&pod)?;
    until_ok("an event with code 104", PATIENCE, || {
        let events = cluster.events(space, "wrong")?;
        let wanted = |event: &&String| {
            let words = ["FailedCreatePodSandBox", "104", key, "http"];
            words.iter().all(|word| event.contains(word))
        };
        ensure!(events.iter().any(|event| wanted(&event)), "events:\n{}", events.join("\n"));
        Ok(())
    })?;
    // Put right, it starts: annotations of a pod can be changed.
    let right = format!("{key}=8080");
    cluster.client.run(&["annotate", "--overwrite", "pod", "wrong", "-n", space, &right])?;
    cluster.wait_ready(space, "wrong")?;
    cluster.client.delete(&["namespace", space])
}
