//! The command line and the environment: the one place where either is read.

use crate::backend::Choice;
use crate::log;
use crate::source::SourceArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use redirect::enroll::Config;
use redirect::net::{Cidr, Owner};
use redirect::plan::Groups;
use redirect::pod::parse_bool;
use redirect::selector::EnablementSelector;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use sys::iptables::{Search, Variant};

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
    Agent(AgentArgs),
    /// Say what would happen to a pod, why, and what of its traffic is captured.
    Explain(ExplainArgs),
    /// Print the rules of a pod, as iptables-restore, ip6tables-restore or nft load them.
    Rules(RulesArgs),
}

/// Options of `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Directory of the plugin's socket and of the records of sandboxes.
    #[arg(long, value_name = "DIR", env = "SLUICE_RUN_DIR", default_value = wire::request::DEFAULT_RUN_DIR)]
    pub(crate) run_dir: PathBuf,
    /// What programs the pods' namespaces.
    #[arg(long, value_enum, env = "SLUICE_BACKEND", default_value = "auto")]
    backend: Choice,
    /// Istio's setting: true means nftables; anything else is up to --backend.
    #[arg(long, env = "NATIVE_NFTABLES", action = clap::ArgAction::Set, value_parser = boolean, default_value = "false", hide = true)]
    native_nftables: bool,
    /// With iptables: the kind of tool to use, legacy or nft, whatever else is installed.
    #[arg(long, value_name = "KIND", env = "FORCE_IPTABLES_BINARY", value_parser = variant)]
    force_iptables_binary: Option<ForcedVariant>,
    /// How a log line looks.
    #[arg(long, value_enum, env = "SLUICE_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: log::Format,
    /// What is logged: error, warn, info, debug, trace, or a list of target=level.
    #[arg(long, value_name = "LEVEL", env = "SLUICE_LOG", default_value = "info")]
    pub(crate) log_level: String,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

impl AgentArgs {
    /// Which iptables tools to look for.
    pub(crate) fn search(&self) -> Search {
        Search { force: self.force_iptables_binary.and_then(|kind| kind.0), ..Search::default() }
    }

    /// The backend that is asked for.
    pub(crate) fn choice(&self) -> Choice {
        match self.backend {
            Choice::Auto if self.native_nftables => Choice::Nftables,
            other => other,
        }
    }
}

/// What decides about pods; the environment's names are Istio's (reference 2.2, 2.7).
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Ambient mode is on.
    #[arg(long, env = "AMBIENT_ENABLED", value_name = "BOOL", action = clap::ArgAction::Set, value_parser = boolean, default_value = "false")]
    ambient_enabled: bool,
    /// Which pods are ambient: a YAML list of {podSelector, namespaceSelector}.
    #[arg(
        long,
        env = "AMBIENT_ENABLEMENT_SELECTOR",
        value_name = "YAML",
        allow_hyphen_values = true
    )]
    ambient_enablement_selector: Option<String>,
    /// Namespaces that are left alone, separated by commas.
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_name = "LIST", default_value = "")]
    exclude_namespaces: String,
    /// Namespace of the agent's own pods.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "")]
    agent_namespace: String,
    /// Groups whose outbound traffic is captured, ids or names separated by commas; * is all.
    #[arg(long, env = "ISTIO_OUTBOUND_OWNER_GROUPS", value_name = "LIST", default_value = "*")]
    outbound_owner_groups: String,
    /// With all groups captured: those that are not.
    #[arg(
        long,
        env = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
        value_name = "LIST",
        default_value = ""
    )]
    outbound_owner_groups_exclude: String,
    /// Destinations that count as the loopback address.
    #[arg(
        long,
        env = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
        value_name = "CIDR",
        default_value = "127.0.0.1/32"
    )]
    outbound_ipv4_loopback_cidr: String,
}

/// A setting that is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Its value is not allowed.
    #[error("{option}: {value:?}: {problem}")]
    Value {
        /// The option.
        option: &'static str,
        /// The value, or the item of it that is wrong.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The group database cannot be read.
    #[error("{option}: look up group {name:?} in {GROUPS}")]
    Groups {
        /// The option.
        option: &'static str,
        /// The group.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
}

const GROUPS: &str = "/etc/group";

impl PolicyArgs {
    /// The policy, with groups as numbers: the kernel knows no names, and a name that
    /// means nothing here must not wait for the first pod.
    ///
    /// # Errors
    ///
    /// Names the option, the value and what is allowed.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        self.build(Some(Path::new(GROUPS)))
    }

    /// The same for text output, where names may stay: the tool that loads the rules
    /// resolves them.
    ///
    /// # Errors
    ///
    /// Names the option, the value and what is allowed.
    pub(crate) fn config_with_names(&self) -> Result<Config, ConfigError> {
        self.build(None)
    }

    fn build(&self, groups: Option<&Path>) -> Result<Config, ConfigError> {
        let default = Config::default();
        let include = self.outbound_owner_groups.trim();
        let owner_groups = if include == "*" || include.is_empty() {
            let option = "--outbound-owner-groups-exclude";
            Groups::AllExcept(owners(option, &self.outbound_owner_groups_exclude, groups)?)
        } else {
            Groups::Only(owners("--outbound-owner-groups", include, groups)?)
        };
        let value = &self.outbound_ipv4_loopback_cidr;
        let wrong = |option, value: &str, problem: String| ConfigError::Value {
            option,
            value: value.to_owned(),
            problem,
        };
        let option = "--outbound-ipv4-loopback-cidr";
        let loopback_v4: Cidr = value.parse().map_err(|e| wrong(option, value, format!("{e}")))?;
        if loopback_v4.addr().is_ipv6() {
            return Err(wrong(option, value, "want an IPv4 prefix".to_owned()));
        }
        let enablement_selectors = match &self.ambient_enablement_selector {
            None => default.enablement_selectors,
            Some(yaml) => serde_saphyr::from_str::<Vec<EnablementSelector>>(yaml).map_err(|e| {
                let problem = e.without_snippet().to_string();
                wrong("--ambient-enablement-selector", yaml, problem)
            })?,
        };
        Ok(Config {
            ambient_enabled: self.ambient_enabled,
            enablement_selectors,
            exclude_namespaces: items(&self.exclude_namespaces).map(str::to_owned).collect(),
            agent_namespace: self.agent_namespace.clone(),
            owner_groups,
            loopback_v4,
        })
    }
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn owners(
    option: &'static str,
    list: &str,
    groups: Option<&Path>,
) -> Result<Vec<Owner>, ConfigError> {
    let parse = |item: &str| -> Result<Owner, ConfigError> {
        let wrong =
            |problem: String| ConfigError::Value { option, value: item.to_owned(), problem };
        let owner: Owner = item.parse().map_err(|e| wrong(format!("{e}")))?;
        let (Owner::Name(name), Some(path)) = (&owner, groups) else { return Ok(owner) };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Groups {
            option,
            name: name.clone(),
            source,
        })?;
        group_id(&text, name)
            .map(Owner::Id)
            .ok_or_else(|| wrong(format!("no such group in {}: use its number", path.display())))
    };
    items(list).map(parse).collect()
}

/// The number of a group in the text of a group database. No NSS: its modules reach
/// for the network, which has cost others half a minute a pod.
fn group_id(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// A kind of iptables; none when the setting is empty, as a chart writes "not set".
#[derive(Debug, Clone, Copy)]
struct ForcedVariant(Option<Variant>);

fn variant(text: &str) -> Result<ForcedVariant, String> {
    if text.is_empty() {
        return Ok(ForcedVariant(None));
    }
    text.parse().map(|kind| ForcedVariant(Some(kind))).map_err(|error| format!("{error}"))
}

fn boolean(text: &str) -> Result<bool, String> {
    // Empty is how a chart writes "not set".
    if text.is_empty() {
        return Ok(false);
    }
    parse_bool(text).ok_or_else(|| "want true or false".to_owned())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(args: &[&str]) -> Result<Config, ConfigError> {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            policy: PolicyArgs,
        }
        Only::parse_from([&["x"], args].concat()).policy.config()
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn groups_become_numbers_or_are_refused_by_name() {
        let config = policy(&["--outbound-owner-groups", "root, 202"]).unwrap();
        assert_eq!(config.owner_groups, Groups::Only(vec![Owner::Id(0), Owner::Id(202)]));
        let error = policy(&["--outbound-owner-groups-exclude", "no-such-group"]).unwrap_err();
        assert!(error.to_string().contains("no-such-group"), "{error}");
        assert!(policy(&["--outbound-owner-groups", "a;b"]).is_err());
        assert_eq!(group_id("a:x:1:\nroot:x:0:\nbad\n", "root"), Some(0));
        assert_eq!(group_id("a:x:1:\nbad\nc:x:y:\n", "c"), None);
    }

    #[test]
    fn settings_that_are_wrong_are_named() {
        let error = policy(&["--outbound-ipv4-loopback-cidr", "::1/128"]).unwrap_err();
        assert!(error.to_string().contains("IPv4"), "{error}");
        let error = policy(&["--ambient-enablement-selector", "- podSelector: 5"]).unwrap_err();
        assert!(error.to_string().contains("--ambient-enablement-selector"), "{error}");
        let config = policy(&[
            "--ambient-enablement-selector",
            "- podSelector: {matchLabels: {a: b}}\n  namespaceSelector: {}\n",
            "--exclude-namespaces",
            "kube-system, istio-system,",
        ])
        .unwrap();
        assert_eq!(config.enablement_selectors.len(), 1);
        assert_eq!(config.exclude_namespaces, ["kube-system", "istio-system"]);
    }
}
