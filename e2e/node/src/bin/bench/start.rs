//! Starting the plugin, against starting a static program that does nothing.

use super::figure::{Baseline, Figure, Samples};
use anyhow::Result;
use std::path::Path;
use std::time::Instant;
use sys::process::Command;

const BASELINE: &str = "static C program that returns 0";

/// Size and start of the plugin.
pub(crate) fn figures(dist: &Path, nothing: &Path, rounds: usize) -> Result<Vec<Figure>> {
    let plugin = dist.join("istio-cni");
    let version =
        Command::new(&plugin).env("CNI_COMMAND", "VERSION").stdin(br#"{"cniVersion":"1.1.0"}"#);
    let baseline = Command::new(nothing);
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for round in 0..=rounds {
        let (a, b) = (time(&version)?, time(&baseline)?);
        // The first reads the files from disk.
        if round > 0 {
            ours.add(a);
            theirs.add(b);
        }
    }
    let size = |path: &Path| Ok::<_, std::io::Error>(Samples::single(super::size(path)?));
    let (small, theirs) = (size(nothing)?, &theirs);
    let sizes = Baseline { name: BASELINE, samples: &small };
    let starts = Baseline { name: BASELINE, samples: theirs };
    Ok(vec![
        Figure::new("plugin/size", "bytes", &size(&plugin)?, Some(sizes))?,
        Figure::new("plugin/start", "ms", &ours, Some(starts))?,
        Figure::new("agent/size", "bytes", &size(&dist.join("sluice"))?, None)?,
    ])
}

fn time(command: &Command<'_>) -> Result<std::time::Duration> {
    let start = Instant::now();
    command.run()?;
    Ok(start.elapsed())
}
