//! The command line and the environment: the one place where either is read.
//!
//! Settings that Istio's agent has keep its names, of flags and of variables, and its
//! rules (reference 6.1): a flag wins over a variable, a variable that is there but
//! empty is set, a boolean that is none is false. [`istio`] holds those that are
//! taken for the sake of its chart alone.

mod agent;
mod ambient;
mod cleanup;
mod install;
mod istio;
mod log;
mod operator;
mod policy;
mod print;
mod text;
mod value;

pub(crate) use agent::{AgentArgs, Entry};
pub(crate) use cleanup::CleanupArgs;
pub(crate) use operator::{AskArgs, DrainArgs, OutputFormat, VerifyArgs, environment};
pub(crate) use policy::PolicyArgs;
pub(crate) use text::{Compat, ExplainArgs, ExplainFormat, RulesArgs, RulesFormat};
pub(crate) use value::Listen;
use value::{Bound, Integer, Switch, bound, integer, switch};

use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::Path;

/// The name of the agent's program in Istio's image, and in ours beside its own.
const ISTIO_NAME: &str = "install-cni";

/// The agent of each node of an Istio mesh, and its command line.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the CNI plugin of this node (needs root).
    #[command(args_override_self = true)]
    Agent(AgentArgs),
    /// The agent as Istio's DaemonSet starts it: in a cluster, and it installs the plugin.
    #[command(name = ISTIO_NAME, args_override_self = true, args_conflicts_with_subcommands = true, after_help = istio::IGNORED)]
    InstallCni(InstallCniArgs),
    /// Take the plugin out of the node's CNI configuration, for good (needs root).
    #[command(args_override_self = true)]
    Cleanup(CleanupArgs),
    /// List the pods of the mesh on this node, and how well each is captured (needs root).
    Pods(AskArgs),
    /// Say whether the agent of this node can do its work, and what is in the way (needs root).
    Status(AskArgs),
    /// Walk the layers of a pod's capture and name the one that is broken (needs root).
    Verify(VerifyArgs),
    /// Un-enrol every ambient pod of this node, and wait until nothing is left (needs root).
    Drain(DrainArgs),
    /// Say what would happen to a pod, why, and what of its traffic is captured.
    Explain(ExplainArgs),
    /// Print the rules of a pod, as iptables-restore, ip6tables-restore or nft load them.
    Rules(RulesArgs),
}

/// Options of `install-cni`.
#[derive(Debug, Args)]
pub(crate) struct InstallCniArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
    #[command(subcommand)]
    pub(crate) instead: Option<Instead>,
}

/// What Istio's program does besides.
#[derive(Debug, Subcommand)]
pub(crate) enum Instead {
    /// Print the version.
    Version {
        /// Istio's: the version alone.
        #[arg(short, long)]
        short: bool,
        /// Istio's: yaml or json.
        #[arg(short, long, value_name = "FORMAT")]
        output: Option<String>,
    },
}

/// The command line. Called by Istio's name, the program is Istio's.
pub(crate) fn arguments() -> Vec<OsString> {
    renamed(std::env::args_os().collect())
}

fn renamed(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called = arguments.first().and_then(|path| Path::new(path).file_name());
    if called.is_some_and(|name| name == ISTIO_NAME) {
        arguments.insert(1, ISTIO_NAME.into());
    }
    arguments
}

#[cfg(test)]
mod tests;
