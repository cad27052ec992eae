//! How long it takes until the rules of a dual-stack sidecar with DNS capture are
//! in a fresh network namespace: by our backends, and by the programs that others
//! execute for it, in the same rounds.
//!
//! Run by `scripts/bench`, which reads the samples: one JSON object a line. The
//! namespace is made before and thrown away after what is measured. Each way
//! begins as often as it ends a round, since what the kernel still cleans up from
//! the one before costs time.

use redirect::compile::compile;
use redirect::desired::{Desired, Form};
use redirect::net::Family;
use redirect::pod::{Container, Pod};
use redirect::{enroll, iptables, nft, sidecar};
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sys::backend::{Applied, Backend};
use sys::iptables::Iptables;
use sys::netns::{Netns, within};
use sys::nftables::Nftables;
use sys::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A way to bring the rules into the namespace of the calling thread.
type Way<'a> = Box<dyn Fn() -> Result<()> + Sync + 'a>;

fn main() -> Result<()> {
    let rounds = rounds()?;
    let want = desired()?;
    let ways = ways(&want)?;
    let mut samples = vec![Vec::with_capacity(rounds); ways.len()];
    for round in 0..rounds {
        for step in 0..ways.len() {
            let i = (round + step) % ways.len();
            samples[i].push(measure(&ways[i].1)?);
        }
    }
    let mut out = std::io::stdout().lock();
    for ((name, _), samples) in ways.iter().zip(&samples) {
        let nanos: Vec<_> = samples.iter().map(|time| time.as_nanos().to_string()).collect();
        writeln!(out, r#"{{"name":"{name}","ns":[{}]}}"#, nanos.join(","))?;
    }
    Ok(())
}

/// The argument after `--rounds`; 20 when there is none (`cargo bench` passes
/// arguments of its own).
fn rounds() -> Result<usize> {
    let mut args = std::env::args().skip_while(|arg| arg != "--rounds").skip(1);
    Ok(args.next().map(|n| n.parse()).transpose()?.unwrap_or(20))
}

fn desired() -> Result<Desired> {
    let var = |name: &str| (name.to_owned(), "true".to_owned());
    let proxy = Container {
        name: redirect::pod::PROXY_CONTAINER.to_owned(),
        args: vec!["proxy".to_owned(), "sidecar".to_owned()],
        env: vec![var("ISTIO_DUAL_STACK"), var("ISTIO_META_DNS_CAPTURE")],
        ..Container::default()
    };
    let pod = Pod {
        name: "bench".to_owned(),
        namespace: "bench".to_owned(),
        containers: vec![proxy],
        ..Pod::default()
    };
    let addresses = ["10.0.0.5".parse()?, "fd00::5".parse()?];
    let plan = sidecar::plan(&pod, &enroll::Config::default(), &addresses)?;
    Ok(compile(&plan, Form::Sluice))
}

fn ways(want: &Desired) -> Result<Vec<(&'static str, Way<'_>)>> {
    let nftables = Nftables::new();
    let iptables = Iptables::detect()?;
    let script = nft::render(want);
    let tables = [
        (program("iptables-restore")?, iptables::render(want, Family::V4)),
        (program("ip6tables-restore")?, iptables::render(want, Family::V6)),
    ];
    let nft = program("nft")?;
    Ok(vec![
        ("nftables", Box::new(move || created(&nftables, want))),
        ("iptables", Box::new(move || created(&iptables, want))),
        (
            "nft -f",
            Box::new(move || {
                Command::new(&nft).args(["-f", "-"]).stdin(script.as_bytes()).run()?;
                Ok(())
            }),
        ),
        (
            "2x iptables-restore",
            Box::new(move || {
                for (program, rules) in &tables {
                    Command::new(program).args(["--noflush"]).stdin(rules.as_bytes()).run()?;
                }
                Ok(())
            }),
        ),
    ])
}

fn created(backend: &dyn Backend, want: &Desired) -> Result<()> {
    match backend.apply(want, None)? {
        Applied::Created => Ok(()),
        other => Err(format!("{}: rules {other} in a fresh namespace", backend.kind()).into()),
    }
}

fn measure(way: &Way<'_>) -> Result<Duration> {
    let netns = Netns::create()?;
    within(&netns, || {
        let start = Instant::now();
        way()?;
        Ok(start.elapsed())
    })?
}

/// Where a program of the system is; none is looked for while the clock runs.
fn program(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| format!("{name} is not installed").into())
}
