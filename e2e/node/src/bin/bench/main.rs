//! The figures of the project, measured in one run on one machine. Started by
//! `scripts/bench`, which builds what it measures. Nothing here judges a time.

mod add;
mod ambient;
mod containerd;
mod figure;
mod kubernetes;
mod memory;
mod node;
mod rules;
mod start;

use anyhow::{Context, Result};
use e2e_node::lab::Scratch;
use figure::{Figure, HEADER};
use std::path::{Path, PathBuf};

const USAGE: &str =
    "bench --dist DIR --nothing PROGRAM --rules PROGRAM [--rounds N] [--only-ambient] [--json]";

/// What the command line says.
struct Options {
    /// Where `istio-cni` and `sluice` are.
    dist: PathBuf,
    /// A static program that does nothing.
    nothing: PathBuf,
    /// The built `crates/sys/benches/rules.rs`.
    rules: PathBuf,
    /// Samples of each time.
    rounds: usize,
    /// Only what is measured of ambient mode.
    only_ambient: bool,
    /// One JSON object a line, no table.
    json: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut dist, mut nothing, mut rules) = (None, None, None);
        let (mut rounds, mut json, mut only_ambient) = (200, false, false);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} wants a value; {USAGE}"));
            match arg.as_str() {
                "--dist" => dist = Some(PathBuf::from(value()?)),
                "--nothing" => nothing = Some(PathBuf::from(value()?)),
                "--rules" => rules = Some(PathBuf::from(value()?)),
                "--rounds" => rounds = value()?.parse().context("--rounds wants a number")?,
                "--only-ambient" => only_ambient = true,
                "--json" => json = true,
                _ => anyhow::bail!("unknown argument {arg}; {USAGE}"),
            }
        }
        Ok(Self {
            dist: dist.context(USAGE)?,
            nothing: nothing.context(USAGE)?,
            rules: rules.context(USAGE)?,
            rounds,
            only_ambient,
            json,
        })
    }
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let Options { dist, rounds, json, .. } = &options;
    if !json {
        print(HEADER);
    }
    let show = |figures: Vec<Figure>| {
        for figure in figures {
            print(&if *json { figure.json()? } else { figure.row() });
        }
        anyhow::Ok(())
    };
    if options.only_ambient {
        return show(ambient::figures(dist, &Scratch::create()?)?);
    }
    show(start::figures(dist, &options.nothing, *rounds)?)?;
    show(rules::figures(&options.rules, *rounds)?)?;
    show(add::figures(dist, &Scratch::create()?, *rounds)?)?;
    show(containerd::figures(dist, &Scratch::create()?, *rounds)?)?;
    show(memory::figures(dist, &Scratch::create()?)?)?;
    show(kubernetes::figures(dist, &Scratch::create()?)?)?;
    show(ambient::figures(dist, &Scratch::create()?)?)
}

/// Size of a file in bytes.
fn size(path: &Path) -> std::io::Result<f64> {
    #[expect(clippy::cast_precision_loss, reason = "no program has 2^53 bytes")]
    let bytes = std::fs::metadata(path)?.len() as f64;
    Ok(bytes)
}

#[expect(clippy::print_stdout, reason = "what it prints is its result")]
fn print(line: &str) {
    println!("{line}");
}
