//! What the agent holds in memory: at rest, and with a full node.

use super::figure::{Figure, Samples};
use super::node::{self, Agent, MESH, PLAIN, Pod, Sandbox, programs};
use anyhow::{Context, Result};
use e2e_node::agent::namespace;
use e2e_node::lab::Scratch;
use std::path::Path;
use std::sync::Arc;

/// Pods of a full node (the kubelet's default), all in the mesh.
const PODS: usize = 110;
/// Namespaces of the cluster.
const NAMESPACES: usize = 1000;

/// Resident memory in KiB, all of it and the part that no file backs.
pub(crate) fn figures(dist: &Path, scratch: &Arc<Scratch>) -> Result<Vec<Figure>> {
    let node = node::create(scratch, "memory-node")?;
    let agent = Agent::start(&programs(dist), &node, "memory", "nftables")?;
    let mut figures = resident(agent.pid(), "idle")?;

    let pods: Vec<_> = (0..PODS).map(|number| Pod { namespace: MESH, number }).collect();
    let mut objects = vec![namespace(MESH), namespace(PLAIN)];
    objects.extend((2..NAMESPACES).map(|number| namespace(&format!("other-{number}"))));
    objects.extend(pods.iter().map(|pod| pod.manifest()));
    let last = pods.last().copied().context("no pods")?;
    agent.learn(&node, &objects, last)?;
    // Held until the end: a node's pods are there while it is looked at.
    let mut sandboxes = Vec::new();
    for pod in pods {
        let sandbox = Sandbox::create(&node)?;
        agent.add(&sandbox, pod)?;
        sandboxes.push(sandbox);
    }
    figures.extend(resident(agent.pid(), "110-pods")?);
    Ok(figures)
}

/// Resident memory of an agent, by its process.
pub(crate) fn resident(pid: u32, when: &str) -> Result<Vec<Figure>> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
        number.map(Samples::single).with_context(|| format!("{file} has no {key}"))
    };
    let figure = |name: String, key| Figure::new(&name, "KiB", &value(key)?, None);
    Ok(vec![
        figure(format!("agent/memory/{when}"), "Rss:")?,
        figure(format!("agent/memory/{when}/anonymous"), "Anonymous:")?,
    ])
}
