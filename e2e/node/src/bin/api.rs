//! The API server's stand-in as a program, with a socket to control it.

use anyhow::{Context, Result};
use e2e_node::api::{Server, serve_control};
use std::path::PathBuf;

const USAGE: &str = "api --listen ADDRESS:PORT --control SOCKET";

fn main() -> Result<()> {
    let (mut listen, mut control) = (None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} wants a value; {USAGE}"))?;
        match arg.as_str() {
            "--listen" => listen = Some(value.parse().context("--listen wants ADDRESS:PORT")?),
            "--control" => control = Some(PathBuf::from(value)),
            _ => anyhow::bail!("unknown argument {arg}; {USAGE}"),
        }
    }
    let server = Server::listen(None, listen.context(USAGE)?)?;
    serve_control(&server, &control.context(USAGE)?)
}
