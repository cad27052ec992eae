//! The agent in a cluster: memory, requests and time until it knows everything, by
//! the size of the cluster and by how the API server lists.

use super::figure::{Figure, Samples};
use super::memory::resident;
use super::node::{self, Agent, MESH, Pod, Sandbox, programs};
use anyhow::{Context, Result, bail};
use e2e_node::agent::{NODE_NAME, namespace};
use e2e_node::api::{Server, WatchList};
use e2e_node::lab::Scratch;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pods of the node and namespaces of the cluster: a full node by default, and the
/// largest that is recommended.
const SIZES: [(usize, usize); 2] = [(110, 1000), (500, 5000)];
/// Pods that are added once everything is known.
const ADDS: usize = 20;
/// Until everything is known.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until memory is looked at: what was needed for a moment only is given back.
const SETTLE: Duration = Duration::from_secs(1);

/// Memory in KiB, requests, and milliseconds until both lists are complete. A name
/// as `110+1000-streamed` says pods of the node, namespaces, and how they are listed.
pub(crate) fn figures(dist: &Path, scratch: &Arc<Scratch>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (pods, namespaces) in SIZES {
        for (how, watch_list) in [("streamed", WatchList::Served), ("listed", WatchList::Refused)] {
            let name = format!("{pods}+{namespaces}-{how}");
            let of = measure(dist, scratch, &name, (pods, namespaces), watch_list);
            figures.extend(of.with_context(|| name)?);
        }
    }
    Ok(figures)
}

fn measure(
    dist: &Path,
    scratch: &Arc<Scratch>,
    name: &str,
    (pods, namespaces): (usize, usize),
    watch_list: WatchList,
) -> Result<Vec<Figure>> {
    let node = node::create(scratch, name)?;
    let server = Server::start_in(node.netns())?;
    server.set(|options| options.watch_list = watch_list);
    server.fill(NODE_NAME, pods - ADDS, namespaces - 1)?;
    server.put(namespace(MESH))?;
    for number in 0..ADDS {
        let mut manifest = Pod { namespace: MESH, number }.manifest();
        manifest["spec"]["nodeName"] = json!(NODE_NAME);
        server.put(manifest)?;
    }
    let begun = Instant::now();
    let agent = Agent::follow(&programs(dist), &node, name, &server.url())?;
    while !is_synced(&agent.log()) {
        if begun.elapsed() > PATIENCE {
            bail!("not synced after {PATIENCE:?}: {}", agent.log());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut sync = Samples::default();
    sync.add(begun.elapsed());
    // The watches begin a moment after the lists.
    std::thread::sleep(SETTLE);
    let start = server.asked().len();
    let mut figures = resident(agent.pid(), name)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.trim().split(' ').next()?.parse().ok());
    let peak = Samples::single(peak.context("no VmHWM")?);

    server.forget();
    let mut sandboxes = Vec::new();
    for number in 0..ADDS {
        let sandbox = Sandbox::create(&node)?;
        agent.add(&sandbox, Pod { namespace: MESH, number })?;
        sandboxes.push(sandbox);
    }
    let adds = server.asked().len();
    let mut figure = |what: &str, unit: &'static str, samples: &Samples| {
        figures.push(Figure::new(&format!("agent/{what}/{name}"), unit, samples, None)?);
        anyhow::Ok(())
    };
    figure("memory-peak", "KiB", &peak)?;
    figure("sync", "ms", &sync)?;
    figure("requests-to-start", "requests", &Samples::single(small(start)))?;
    figure("requests-for-20-adds", "requests", &Samples::single(small(adds)))?;
    Ok(figures)
}

/// Both lists are complete, as the agent's log says.
fn is_synced(log: &str) -> bool {
    let has = |resource: &str| {
        log.contains(&format!("list streamed resource=\"{resource}\""))
            || log.contains(&format!("listed resource=\"{resource}\""))
    };
    has("pods") && has("namespaces")
}

fn small(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
