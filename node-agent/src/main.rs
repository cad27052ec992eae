//! `sluice`: the agent of each node, and its command line.

#![forbid(unsafe_code)]

mod agent;
mod backend;
mod config;
mod explain;
mod failure;
mod input;
#[cfg_attr(
    not(test),
    expect(dead_code, unused_imports, reason = "the agent's Kubernetes mode is what runs it")
)]
mod install;
mod log;
mod record;
mod rules;
mod server;
mod source;

use clap::Parser;
use config::{Cli, Command};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Agent(args) => agent::run(&args),
        Command::Explain(args) => explain::explain(&args).and_then(|text| print(&text)),
        Command::Rules(args) => rules::rules(&args).and_then(|text| print(&text)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when standard error is closed.
            let _ = writeln!(std::io::stderr(), "sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that went away early (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
