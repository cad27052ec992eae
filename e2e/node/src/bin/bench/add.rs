//! ADD as the runtime sees it: from before the plugin is started until its answer
//! is there, against others' ways of bringing the same rules into the same kind of
//! namespace, in the same rounds.

use super::figure::{Baseline, Figure, Samples};
use super::node::{self, Agent, DEFAULTS, MESH, PLAIN, Pod, Sandbox, addresses, programs};
use anyhow::{Context, Result};
use e2e_node::agent::namespace;
use e2e_node::lab::{Namespace, Scratch};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use sys::netns::within;
use sys::process::Command;

/// As many pods as start together on a node that comes back.
const AT_ONCE: usize = 32;

/// Program, arguments, standard input.
type Execution = (String, Vec<&'static str>, String);

/// A way to get a sandbox ready.
enum Way<'a> {
    /// ADD by this agent.
    Add(&'a Agent, &'static str),
    /// Executing these programs, each with its input.
    Programs(&'a [Execution]),
}

impl Way<'_> {
    fn measure(&self, sandbox: &Sandbox, number: usize) -> Result<Duration> {
        match self {
            Self::Add(agent, namespace) => agent.add(sandbox, Pod { namespace, number }),
            Self::Programs(programs) => within(sandbox.netns.netns(), || {
                let start = Instant::now();
                for (program, args, input) in *programs {
                    Command::new(program).args(args).stdin(input.as_bytes()).run()?;
                }
                Ok(start.elapsed())
            })?,
        }
    }

    fn clean(&self, sandbox: &Sandbox, number: usize) -> Result<()> {
        match self {
            Self::Add(agent, namespace) => agent.del(sandbox, Pod { namespace, number }),
            Self::Programs(_) => Ok(()),
        }
    }
}

/// All figures about ADD.
pub(crate) fn figures(dist: &Path, scratch: &Arc<Scratch>, rounds: usize) -> Result<Vec<Figure>> {
    let node = node::create(scratch, "node")?;
    let programs = programs(dist);
    let nftables = Agent::start(&programs, &node, "nftables", "nftables")?;
    let iptables = Agent::start(&programs, &node, "iptables", "iptables")?;
    let mut objects = vec![namespace(MESH), namespace(DEFAULTS), namespace(PLAIN)];
    for namespace in [PLAIN, DEFAULTS, MESH] {
        objects.extend((0..AT_ONCE).map(|number| Pod { namespace, number }.manifest()));
    }
    let last = Pod { namespace: MESH, number: AT_ONCE - 1 };
    for agent in [&nftables, &iptables] {
        agent.learn(&node, &objects, last)?;
    }

    let (restore, nft) = theirs(dist, scratch)?;
    let ways = [
        ("add/sidecar/nftables", Way::Add(&nftables, MESH)),
        ("add/sidecar/iptables", Way::Add(&iptables, MESH)),
        ("add/outside-mesh", Way::Add(&nftables, PLAIN)),
        ("add/sidecar-defaults/nftables", Way::Add(&nftables, DEFAULTS)),
        ("2x iptables-restore", Way::Programs(&restore)),
        ("nft -f", Way::Programs(&nft)),
    ];
    let alone = measure(&node, &ways, rounds, 1)?;
    let crowd = measure(&node, &ways, rounds.div_ceil(AT_ONCE).max(3), AT_ONCE)?;

    let mut figures = Vec::new();
    for (samples, suffix) in [(alone, ""), (crowd, "/32-at-once")] {
        let [nftables, iptables, outside, defaults, others @ ..] = samples.as_slice() else {
            continue;
        };
        for (name, ours) in [("nftables", nftables), ("iptables", iptables)] {
            for (samples, (baseline, _)) in others.iter().zip(&ways[4..]) {
                let baseline = Baseline { name: baseline, samples };
                let name = format!("add/sidecar/{name}{suffix}");
                figures.push(Figure::new(&name, "ms", ours, Some(baseline))?);
            }
        }
        for (name, samples) in [("outside-mesh", outside), ("sidecar-defaults/nftables", defaults)]
        {
            figures.push(Figure::new(&format!("add/{name}{suffix}"), "ms", samples, None)?);
        }
    }
    Ok(figures)
}

/// The same rules for others' programs, as `sluice rules` prints them.
fn theirs(dist: &Path, scratch: &Arc<Scratch>) -> Result<(Vec<Execution>, Vec<Execution>)> {
    let pod = Pod { namespace: MESH, number: 0 }.manifest();
    let file = scratch.file("pod.json", &pod.to_string())?;
    let (v4, v6) = addresses(0);
    let rules = |format: &str| {
        let command = Command::new(dist.join("sluice"))
            .args(["rules", "--format", format, "--addresses", &format!("{v4},{v6}"), "--pod"])
            .arg(&file);
        anyhow::Ok(String::from_utf8(command.run()?.stdout)?)
    };
    let program = |name: &str| {
        let dirs = ["/usr/sbin", "/sbin", "/usr/bin"];
        let mut paths = dirs.iter().map(|dir| format!("{dir}/{name}"));
        paths
            .find(|path| Path::new(path).exists())
            .with_context(|| format!("{name} is not installed"))
    };
    let restore = vec![
        (program("iptables-restore")?, vec!["--noflush"], rules("iptables")?),
        (program("ip6tables-restore")?, vec!["--noflush"], rules("ip6tables")?),
    ];
    let nft = vec![(program("nft")?, vec!["-f", "-"], rules("nft")?)];
    Ok((restore, nft))
}

/// `rounds` rounds, in each of which every way gets `at_once` fresh sandboxes at
/// the same moment. One sample a sandbox; the first round warms up.
fn measure(
    node: &Namespace,
    ways: &[(&str, Way<'_>)],
    rounds: usize,
    at_once: usize,
) -> Result<Vec<Samples>> {
    let mut samples = vec![Samples::default(); ways.len()];
    for round in 0..=rounds {
        for step in 0..ways.len() {
            let i = (round + step) % ways.len();
            let (name, way) = &ways[i];
            let sandboxes =
                (0..at_once).map(|_| Sandbox::create(node)).collect::<Result<Vec<_>>>()?;
            let times = together(way, &sandboxes).with_context(|| format!("measure {name}"))?;
            if round > 0 {
                samples[i].extend(times);
            }
            for (number, sandbox) in sandboxes.iter().enumerate() {
                way.clean(sandbox, number)?;
            }
        }
    }
    Ok(samples)
}

fn together(way: &Way<'_>, sandboxes: &[Sandbox]) -> Result<Vec<Duration>> {
    let barrier = Barrier::new(sandboxes.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = sandboxes
            .iter()
            .enumerate()
            .map(|(number, sandbox)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    way.measure(sandbox, number)
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Duration>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}
