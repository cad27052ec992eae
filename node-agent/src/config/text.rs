//! Options of the commands that only print.

use super::PolicyArgs;
use clap::{Args, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;

/// Options of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A Pod manifest, YAML or JSON, with its Namespace in the same file if there is one; - is standard input.
    #[arg(value_name = "POD.yaml")]
    pub(crate) manifest: PathBuf,
    /// How the answer looks.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: ExplainFormat,
    #[command(flatten)]
    pub(crate) addresses: AddressArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

/// How an explanation looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainFormat {
    /// Sentences.
    Text,
    /// One JSON object.
    Json,
}

/// The addresses of a pod that does not run.
#[derive(Debug, Args)]
pub(crate) struct AddressArgs {
    /// Addresses of the pod in the kernel's order, separated by commas: they decide about IPv6.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "10.0.0.5")]
    pub(crate) addresses: Vec<IpAddr>,
}

/// Options of `rules`.
#[derive(Debug, Args)]
#[group(id = "input", required = true, multiple = false, args = ["pod", "case"])]
pub(crate) struct RulesArgs {
    /// A Pod manifest, YAML or JSON; - is standard input.
    #[arg(long, value_name = "POD.yaml")]
    pub(crate) pod: Option<PathBuf>,
    /// A conformance case: JSON with `config` (capture options) or `pod`; - is standard input.
    #[arg(long, value_name = "CASE.json")]
    pub(crate) case: Option<PathBuf>,
    /// What loads the rules.
    #[arg(long, value_enum, default_value = "iptables")]
    pub(crate) format: RulesFormat,
    /// Print exactly the rules that another product's tool of this format writes.
    #[arg(long, value_enum)]
    pub(crate) compat: Option<Compat>,
    #[command(flatten)]
    pub(crate) addresses: AddressArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

/// What loads the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RulesFormat {
    /// iptables-restore (IPv4).
    Iptables,
    /// ip6tables-restore (IPv6; nothing when the pod has none).
    Ip6tables,
    /// nft -f.
    Nft,
    /// A program: every dialect's lines by table, with addresses and routes.
    Json,
}

/// Whose exact rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compat {
    /// Istio's.
    Istio,
}
