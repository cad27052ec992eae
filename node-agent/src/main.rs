//! `sluice`: the agent of each node, and its command line.

#![forbid(unsafe_code)]

mod agent;
mod ambient;
mod attention;
mod backend;
mod cleanup;
mod config;
mod explain;
mod failure;
mod health;
mod hosts;
mod input;
mod install;
mod log;
mod logsocket;
mod metrics;
mod notice;
mod operator;
mod place;
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
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match Cli::parse_from(config::arguments()).command {
        Command::Agent(args) => done(run(&args, Entry::Agent)),
        Command::InstallCni(args) => done(match args.instead {
            None => run(&args.agent, Entry::InstallCni),
            Some(Instead::Version { .. }) => print(concat!(env!("CARGO_PKG_VERSION"), "\n")),
        }),
        Command::Cleanup(args) => done(cleanup::cleanup(&args)),
        Command::Pods(args) => operator::pods(&args),
        Command::Status(args) => operator::status(&args),
        Command::Verify(args) => operator::verify(&args),
        Command::Drain(args) => operator::drain(&args),
        Command::Explain(args) => done(explain::explain(&args).and_then(|text| print(&text))),
        Command::Rules(args) => done(rules::rules(&args).and_then(|text| print(&text))),
    };
    match result {
        Ok(code) => code,
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
