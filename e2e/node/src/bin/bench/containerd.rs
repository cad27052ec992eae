//! What a pod's start takes with us in the chain and without: RunPodSandbox by
//! containerd, in the same rounds. The rest of a sandbox (namespaces, the first
//! process, `bridge`) is in both. containerd's own files are in memory, so that no
//! disk has a say.

use super::figure::{Baseline, Figure, Samples};
use super::node::{MESH, PLAIN, Pod, programs};
use anyhow::{Context, Result};
use e2e_node::agent::{Agent, Directories, namespace};
use e2e_node::containerd::Containerd;
use e2e_node::containerd::packages::Packages;
use e2e_node::lab::{Namespace, Scratch};
use e2e_node::runtime::Conflist;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A sandbox costs a quarter of a second or more, with its end: fewer than of ADDs.
const ROUNDS: std::ops::RangeInclusive<usize> = 20..=30;

/// The figures; none, with a message, without containerd's packages.
pub(crate) fn figures(dist: &Path, scratch: &Arc<Scratch>, rounds: usize) -> Result<Vec<Figure>> {
    let Some(packages) = Packages::find()? else {
        say("no figures through containerd: run scripts/fetch-containerd");
        return Ok(Vec::new());
    };
    let runtime = packages.containerd_1();
    let host = Namespace::create(scratch, "node")?;
    let programs = programs(dist);
    let directories = Directories::create(scratch, "cri")?;
    let (meshed, plain) = (Pod { namespace: MESH, number: 0 }, Pod { namespace: PLAIN, number: 0 });
    let (meshed, plain) = (meshed.manifest(), plain.manifest());
    for object in [&namespace(MESH), &namespace(PLAIN), &meshed, &plain] {
        directories.publish(object)?;
    }
    let agent = Agent::start(&programs, &host, &directories, "nftables")?;

    let ours = network(scratch, &directories)?;
    let mut alone = ours.clone();
    alone.plugins.truncate(1);
    let start =
        |list| Containerd::start(&host, Some(&programs.plugin), (&packages, &runtime), list);
    let (with, without) = (start(&ours)?, start(&alone)?);
    let ways = [(&with, &meshed), (&with, &plain), (&without, &plain)];
    let samples = measure(&ways, rounds.clamp(*ROUNDS.start(), *ROUNDS.end()))
        .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    let [meshed, plain, without] = &samples;
    let baseline = || Some(Baseline { name: "bridge alone", samples: without });
    Ok(vec![
        Figure::new("containerd/start/sidecar", "ms", meshed, baseline())?,
        Figure::new("containerd/start/outside-mesh", "ms", plain, baseline())?,
    ])
}

/// One sandbox after the other; the first round warms up.
fn measure(ways: &[(&Containerd, &Value); 3], rounds: usize) -> Result<[Samples; 3]> {
    let mut samples: [Samples; 3] = Default::default();
    for round in 0..=rounds {
        for step in 0..ways.len() {
            // There and back, as the kernel still takes the sandbox before apart: no way
            // always follows the same other.
            let step =
                if (round / ways.len()).is_multiple_of(2) { step } else { ways.len() - 1 - step };
            let i = (round + step) % ways.len();
            let (containerd, manifest) = ways[i];
            let start = Instant::now();
            let id = containerd.start_sandbox(manifest).with_context(|| containerd.log())?;
            if round > 0 {
                samples[i].add(start.elapsed());
            }
            containerd.stop(&id)?;
            containerd.remove(&id)?;
        }
    }
    Ok(samples)
}

/// A dual-stack network of `bridge` and ours.
fn network(scratch: &Scratch, directories: &Directories) -> Result<Conflist> {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": scratch.dir("ipam")?,
                    "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "istio-cni", "cni_agent_run_dir": directories.run},
        ],
    });
    Conflist::parse(&list.to_string())
}

#[expect(clippy::print_stderr, reason = "what is left out is to be seen, not to be parsed")]
fn say(what: &str) {
    eprintln!("{what}");
}
