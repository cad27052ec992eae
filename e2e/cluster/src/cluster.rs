//! The whole cluster, and our chart on it.

use crate::client::Client;
use crate::control_plane::ControlPlane;
use crate::daemon::Logs;
use crate::images::{self, HUB};
use crate::node::{self, Node};
use crate::packages::{Packages, helm};
use crate::pki::Pki;
use crate::wait::{PATIENCE, until, until_ok};
use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e_node::lab::Scratch;
use e2e_node::programs::{Programs, workspace};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Where our chart is installed.
pub const SYSTEM: &str = "istio-system";
/// The release.
pub const RELEASE: &str = "istio-cni";

/// Files of a node's CNI directories, with their content.
pub type CniFiles = BTreeMap<String, Vec<u8>>;

/// A cluster; dropped in this order.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// What they are led by.
    pub plane: ControlPlane,
    /// An administrator.
    pub client: Client,
    helm: PathBuf,
    logs: Logs,
    /// The CNI directories of each node before there was anything of ours.
    untouched: Vec<CniFiles>,
    scratch: Arc<Scratch>,
}

impl Cluster {
    /// Brings it up: no mesh yet.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(packages: &Packages) -> Result<Self> {
        let helm = helm()?;
        let programs = Programs::find()?;
        let scratch = Scratch::create()?;
        let identities: Vec<_> = (1..=node::COUNT).map(node::identity).collect();
        let pki = Pki::create(scratch.dir("pki")?, &identities)?;
        let logs = Logs::new(scratch.dir("logs")?);
        // The images are made while the control plane comes up.
        let (plane, images) = std::thread::scope(|scope| {
            let images = scope.spawn(|| images::build(&scratch, packages, &programs));
            let plane = ControlPlane::start(&scratch, packages, &pki, &logs);
            (plane, images.join())
        });
        let explain = |err: anyhow::Error| anyhow!("{err:#}\n{}", logs.complaints(10));
        images.ok().context("making images panicked")??;
        let plane = plane.map_err(explain)?;
        let nodes = (1..=node::COUNT).map(|number| Node::create(&scratch, packages, &pki, number));
        let nodes: Vec<_> = nodes.collect::<Result<_>>()?;
        let client = plane.client();
        let untouched = Vec::new();
        let mut cluster = Self { nodes, plane, client, helm, logs, untouched, scratch };
        cluster.boot().map_err(|err| anyhow!("{err:#}\n{}", cluster.logs.complaints(10)))?;
        cluster.untouched = cluster.nodes.iter().map(cni_files).collect::<Result<_>>()?;
        Ok(cluster)
    }

    /// The run's directory.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    fn boot(&mut self) -> Result<()> {
        let plane = &self.plane;
        let booted: Vec<Result<()>> = std::thread::scope(|scope| {
            let start = |node| scope.spawn(move || Node::boot(node, plane));
            let threads: Vec<_> = self.nodes.iter_mut().map(start).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().ok().context("a thread panicked")?
            };
            threads.into_iter().map(join).collect()
        });
        booted.into_iter().collect::<Result<()>>()?;
        self.wait_nodes()
    }

    /// Waits until all nodes are ready.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn wait_nodes(&self) -> Result<()> {
        until_ok("all nodes ready", PATIENCE, || {
            let nodes = self.client.list(&["nodes"])?;
            let ready = nodes.iter().filter(|node| condition(node, "Ready") == Some("True"));
            let ready = ready.count();
            ensure!(ready == self.nodes.len(), "{ready} of {} nodes", self.nodes.len());
            Ok(())
        })
    }

    /// Switches a node off and on: processes, network and /run are gone, the disk is not.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_node(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such node")?;
        node.power_off();
        node.boot(&self.plane)
    }

    /// Waits until each node's CNI directories are as they were before there was
    /// anything of ours, byte for byte. The plugin's binary stays: sandboxes that were
    /// made with it are taken down with it.
    ///
    /// # Errors
    /// When something is there, gone or changed.
    pub fn wait_untouched(&self) -> Result<()> {
        until_ok("CNI directories as they were", PATIENCE, || {
            for (node, before) in self.nodes.iter().zip(&self.untouched) {
                let now = cni_files(node)?;
                let names = (now.keys(), before.keys());
                ensure!(now.keys().eq(before.keys()), "{}: now and before {names:?}", node.name);
                let changed = now.iter().find(|(name, content)| before.get(*name) != Some(content));
                ensure!(changed.is_none(), "{}: {:?} changed", node.name, changed.map(|one| one.0));
            }
            Ok(())
        })
    }

    /// Runs Helm.
    ///
    /// # Errors
    /// When it fails.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.client.helm(&self.helm, arguments)
    }

    /// `helm upgrade --install` of our chart, as README.md has it, in one of the images'
    /// versions.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn install(&self, tag: &str) -> Result<()> {
        self.install_with(tag, &[])
    }

    /// [`Self::install`] with values, each `KEY=VALUE`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn install_with(&self, tag: &str, values: &[&str]) -> Result<()> {
        let chart = workspace().join("manifests/chart").display().to_string();
        let (hub, tag) = (format!("global.hub={HUB}"), format!("global.tag={tag}"));
        let release = ["upgrade", "--install", RELEASE, &chart, "-n", SYSTEM, "--create-namespace"];
        let mut arguments = release.to_vec();
        let own = [hub.as_str(), &tag];
        arguments.extend(own.iter().chain(values).flat_map(|value| ["--set", value]));
        arguments.extend(["--wait", "--timeout", "240s"]);
        self.helm(&arguments)?;
        self.wait_agents()
    }

    /// Waits until each node has an agent that is ready, and no other.
    ///
    /// # Errors
    /// When one is not.
    pub fn wait_agents(&self) -> Result<()> {
        until_ok("an agent ready on each node", PATIENCE, || {
            let agents = self.agents()?;
            let ready = agents.iter().filter(|pod| condition(pod, "Ready") == Some("True"));
            let ready = ready.count();
            let all = (agents.len(), ready);
            let want = self.nodes.len();
            ensure!(all == (want, want), "{all:?} pods of agents and ready, want {want}");
            Ok(())
        })
    }

    /// The agents' pods.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn agents(&self) -> Result<Vec<Value>> {
        self.client.list(&["pods", "-n", SYSTEM, "-l", "k8s-app=istio-cni-node"])
    }

    /// The agent's pod of a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent(&self, node: &str) -> Result<String> {
        let agents = self.agents()?;
        let mut own = agents.iter().filter(|pod| {
            pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
        });
        let own = own.next().with_context(|| format!("no agent on {node}"))?;
        Ok(name(own).to_owned())
    }

    /// Waits until a pod is ready; the pod.
    ///
    /// # Errors
    /// When it does not become ready; the message has its events.
    pub fn wait_ready(&self, namespace: &str, pod: &str) -> Result<Value> {
        self.wait_pod(namespace, pod, "ready", |pod| condition(pod, "Ready") == Some("True"))
    }

    /// Waits until a pod is as wanted; the pod.
    ///
    /// # Errors
    /// When it does not become so; the message has its events.
    pub fn wait_pod(
        &self,
        namespace: &str,
        pod: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let reached = until(&format!("pod {pod} {what}"), PATIENCE, || {
            let found = self.client.get(&["pod", pod, "-n", namespace])?;
            Ok(wanted(&found).then_some(found))
        });
        reached.map_err(|err| {
            let events = self.events(namespace, pod).unwrap_or_default();
            err.context(format!("events of {pod}:\n{}", events.join("\n")))
        })
    }

    /// What was said about a pod.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn events(&self, namespace: &str, pod: &str) -> Result<Vec<String>> {
        let selector = format!("--field-selector=involvedObject.name={pod}");
        let events = self.client.list(&["events", "-n", namespace, &selector])?;
        let text = |event: &Value| {
            let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}: {}", word("type"), word("reason"), word("message"))
        };
        Ok(events.iter().map(text).collect())
    }

    /// A new namespace for one scenario's pods.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.client.run(&["create", "namespace", name])?;
        // Pods are refused without it.
        until("its service account", PATIENCE, || {
            self.client.run(&["get", "serviceaccount", "default", "-n", name]).map(Some)
        })?;
        Ok(())
    }

    /// What is to be seen after a failure; all logs go to `target/e2e-logs`.
    #[must_use]
    pub fn report(&self) -> String {
        let kept = workspace().join(format!("target/e2e-logs/cluster-{}", std::process::id()));
        let mut text = match self.logs.keep(&kept) {
            Ok(()) => format!("all logs are in {}\n", kept.display()),
            Err(err) => format!("the logs could not be kept: {err:#}\n"),
        };
        for question in [
            &["get", "pods", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--field-selector=type=Warning"],
            &["logs", "-n", SYSTEM, "-l", "k8s-app=istio-cni-node", "--tail=30", "--prefix"],
        ] {
            let said = self.client.attempt(question);
            let said = said.map(|output| format!("{}{}", output.stdout, output.stderr));
            let said = said.unwrap_or_else(|err| format!("{err:#}"));
            let lines: Vec<_> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            text.push_str(&format!("-- kubectl {}\n{last}\n", question.join(" ")));
        }
        text + &self.logs.complaints(5)
    }
}

fn cni_files(node: &Node) -> Result<CniFiles> {
    let mut files = node.files("/etc/cni")?;
    files.extend(node.files("/opt/cni/bin")?);
    files.remove("istio-cni");
    Ok(files)
}

/// The status of a condition.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|one| one["type"] == kind)?;
    found["status"].as_str()
}

/// The name of an object.
#[must_use]
pub fn name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// The address of a pod that has one.
///
/// # Errors
/// When it has none.
pub fn address(pod: &Value) -> Result<String> {
    match pod.pointer("/status/podIP").and_then(Value::as_str) {
        Some(address) => Ok(address.to_owned()),
        None => bail!("pod {} has no address", name(pod)),
    }
}
