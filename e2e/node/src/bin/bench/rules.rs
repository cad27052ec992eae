//! Rules alone: reads the samples of `crates/sys/benches/rules.rs`, which may
//! call the backends in its own process.

use super::figure::{Baseline, Figure, Samples};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use sys::process::Command;

/// What one way took.
#[derive(Deserialize)]
struct Line {
    name: String,
    ns: Vec<u64>,
}

/// Each backend against each of the ways of others.
pub(crate) fn figures(program: &Path, rounds: usize) -> Result<Vec<Figure>> {
    let output = Command::new(program)
        .args(["--rounds", &rounds.to_string()])
        .timeout(Duration::from_secs(300))
        .run()?;
    let mut ways = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let line: Line = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let mut samples = Samples::default();
        samples.extend(line.ns.into_iter().map(Duration::from_nanos));
        ways.push((line.name, samples));
    }
    let (ours, theirs): (Vec<_>, Vec<_>) =
        ways.iter().partition(|(name, _)| matches!(name.as_str(), "nftables" | "iptables"));
    let mut figures = Vec::new();
    for (name, samples) in ours {
        for (baseline, others) in &theirs {
            let baseline = Baseline { name: baseline, samples: others };
            figures.push(Figure::new(&format!("rules/{name}"), "ms", samples, Some(baseline))?);
        }
    }
    Ok(figures)
}
