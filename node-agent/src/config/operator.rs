//! Options of the commands that ask a running agent.

use super::cleanup::duration;
use super::{AgentArgs, Cli, Command};
use clap::{Args, Parser, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// How an answer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Aligned lines for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Options of `pods` and `status`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// How the answer looks.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: OutputFormat,
    /// The agent's run directory [default: /var/run/istio-cni].
    #[arg(long, value_name = "DIR", env = "CNI_AGENT_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// The same.
    #[arg(long = "sluice-run-dir", value_name = "DIR", env = "SLUICE_RUN_DIR", hide = true)]
    own_run_dir: Option<PathBuf>,
    /// How long the agent has for an answer.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

impl AskArgs {
    /// The agent's run directory, as the agent itself takes it.
    pub(crate) fn run_dir(&self) -> PathBuf {
        let given = self.run_dir.as_ref().or(self.own_run_dir.as_ref());
        given.cloned().unwrap_or_else(|| PathBuf::from(wire::request::DEFAULT_RUN_DIR))
    }
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The pod; without a namespace that of its name on this node.
    #[arg(value_name = "[NAMESPACE/]POD")]
    pub(crate) pod: String,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Options of `drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// How long to wait until nothing is left.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// The agent's settings as far as the environment has them.
///
/// # Errors
/// When a variable is wrong.
pub(crate) fn environment() -> anyhow::Result<AgentArgs> {
    match Cli::try_parse_from(["sluice", "agent"])?.command {
        Command::Agent(args) => Ok(args),
        _ => anyhow::bail!("`sluice agent` is another command by now"),
    }
}
