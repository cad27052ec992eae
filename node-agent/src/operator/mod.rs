//! The operator's view: `sluice pods`, `status`, `verify` and `drain`.
//!
//! The agent answers on a socket of its own ([`socket`], [`desk`]); a command asks
//! there ([`client`]) and prints ([`text`]). [`mod@pods`] and [`mod@verify`] put together what
//! the records, the kernel ([`kernel`]) and, where it answers, the agent know; both
//! work without one, for what is left then.

mod answer;
mod client;
mod desk;
mod kernel;
mod known;
mod pods;
mod socket;
mod text;
mod verify;

pub(crate) use desk::Desk;
pub(crate) use known::Known;
pub(crate) use socket::OperatorSocket;

use crate::config::{AskArgs, DrainArgs, OutputFormat, VerifyArgs, environment};
use crate::hosts::Hosts;
use crate::record::Records;
use answer::{Agent, Drain, Name, Pods, Status, Verify};
use anyhow::{Context, Result};
use client::{AskError, Client};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Name of the socket in the run directory.
const SOCKET: &str = "operator.sock";

/// Longest answer that is read: 500 pods are some 400 KB.
const BODY_LIMIT: u64 = 64 << 20;

/// Between two looks at a drain.
const PROGRESS: Duration = Duration::from_millis(250);

/// `sluice pods`: every pod of the mesh on the node.
///
/// # Errors
/// When nothing can be told.
pub(crate) fn pods(args: &AskArgs) -> Result<ExitCode> {
    let client = Client::new(&args.run_dir(), args.timeout)?;
    let (answer, code) = match client.get::<Pods>("/v1/pods") {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) if error.is_absence() => {
            let agent = absent(&error, "what records and the kernel tell");
            let known = records(args)?;
            (Pods { agent, pods: pods::pods(&known, None) }, ExitCode::FAILURE)
        }
        Err(error) => return Err(error.into()),
    };
    show(args.output, &answer, text::pods)?;
    Ok(code)
}

/// `sluice status`: whether the agent can do its work.
///
/// # Errors
/// When it does not answer.
pub(crate) fn status(args: &AskArgs) -> Result<ExitCode> {
    let answer: Status = Client::new(&args.run_dir(), args.timeout)?.get("/v1/status")?;
    show(args.output, &answer, text::status)?;
    Ok(if answer.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `sluice verify`: which layer of a pod's capture is broken.
///
/// # Errors
/// When it is not known which pod is meant, or nothing can be told.
pub(crate) fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    let name = named(&args.pod)?;
    let client = Client::new(&args.ask.run_dir(), args.ask.timeout)?;
    let answer = match client.post::<Verify>("/v1/verify", &name) {
        Ok(answer) => answer,
        Err(error) if error.is_absence() => {
            let agent = absent(&error, "what its record and the kernel tell");
            let found = verify::verify(&records(&args.ask)?, None, &name)?;
            Verify { agent, ..found }
        }
        Err(error) => return Err(error.into()),
    };
    show(args.ask.output, &answer, text::verify)?;
    let is_well = answer.agent.answers && matches!(answer.verdict.as_str(), "ok" | "outside");
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `sluice drain`: un-enrols every ambient pod, and waits until that is seen.
///
/// # Errors
/// When the agent does not answer.
pub(crate) fn drain(args: &DrainArgs) -> Result<ExitCode> {
    let client = Client::new(&args.ask.run_dir(), args.ask.timeout)?;
    let end = Instant::now() + args.wait;
    let mut answer: Drain = client.post("/v1/drain", &())?;
    let mut said = None;
    while answer.ambient && !answer.drained && Instant::now() < end {
        if said != Some(answer.left.len()) {
            said = Some(answer.left.len());
            tell(&format!("{} ambient pods are left", answer.left.len()));
        }
        std::thread::sleep(PROGRESS);
        answer = client.get("/v1/drain")?;
    }
    show(args.ask.output, &answer, text::drained)?;
    let is_done = answer.drained || !answer.ambient;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says why there is less than asked for.
fn absent(error: &AskError, instead: &str) -> Agent {
    tell(&format!("sluice: {error}; here is {instead}, without the agent"));
    Agent { answers: false, error: Some(error.to_string()) }
}

/// On standard error, so that what programs read stays clean.
fn tell(text: &str) {
    // Nobody is left to be told when that is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What there is without an agent.
fn records(args: &AskArgs) -> Result<Known> {
    let settings = environment()?;
    let (policy, options) = (settings.policy().config()?, settings.ambient_options()?);
    let hosts = Hosts::find().context("look for the host's network namespace")?;
    Ok(Known::of_records(Records::look(&args.run_dir()), policy, Some(options), hosts))
}

fn named(text: &str) -> Result<Name> {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    if name.is_empty() || name.contains('/') || (namespace.is_empty() && text.contains('/')) {
        anyhow::bail!("pod {text:?}: want [NAMESPACE/]NAME");
    }
    Ok(Name { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn show<T: Serialize>(format: OutputFormat, answer: &T, table: fn(&T) -> String) -> Result<()> {
    let text = match format {
        OutputFormat::Table => table(answer),
        OutputFormat::Json => serde_json::to_string_pretty(answer)? + "\n",
    };
    crate::print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_as_people_do() {
        let name = |text: &str| named(text).unwrap();
        assert_eq!(name("a").namespace, "");
        assert_eq!((name("n/a").namespace.as_str(), name("n/a").name.as_str()), ("n", "a"));
        for bad in ["", "/", "n/", "/a", "a/b/c"] {
            assert!(named(bad).unwrap_err().to_string().contains("[NAMESPACE/]NAME"), "{bad}");
        }
    }
}
