//! `sluice`: the agent of each node, and its command line.

#![forbid(unsafe_code)]

mod agent;
mod ambient;
mod backend;
mod cleanup;
mod config;
mod explain;
mod failure;
mod health;
mod input;
mod install;
mod log;
mod logsocket;
mod metrics;
mod record;
mod repair;
mod responder;
mod rules;
mod server;
mod snapshot;
mod source;

use clap::Parser;
use config::{AgentArgs, Cli, Command, Entry, Instead};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse_from(config::arguments()).command {
        Command::Agent(args) => run(&args, Entry::Agent),
        Command::InstallCni(args) => match args.instead {
            None => run(&args.agent, Entry::InstallCni),
            Some(Instead::Version { .. }) => print(concat!(env!("CARGO_PKG_VERSION"), "\n")),
        },
        Command::Cleanup(args) => cleanup::cleanup(&args),
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

fn run(args: &AgentArgs, entry: Entry) -> anyhow::Result<()> {
    if args.print_config {
        return print(&format!("{:#}\n", args.printed(entry)));
    }
    agent::run(args, entry)
}

/// A reader that went away early (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
