//! What decides about pods.

use super::{Switch, switch};
use crate::install::PluginEntry;
use clap::Args;
use redirect::enroll::Config;
use redirect::net::{Cidr, Owner};
use redirect::plan::Groups;
use redirect::selector::EnablementSelector;
use std::path::Path;

/// What decides about pods; the environment's names are Istio's (reference 2.2, 2.7).
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Ambient mode is on.
    #[arg(
        long,
        env = "AMBIENT_ENABLED",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = switch,
        default_value = "false"
    )]
    pub(super) ambient_enabled: Switch,
    /// Which pods are ambient: a YAML list of {podSelector, namespaceSelector}.
    #[arg(
        long,
        env = "AMBIENT_ENABLEMENT_SELECTOR",
        value_name = "YAML",
        allow_hyphen_values = true
    )]
    pub(super) ambient_enablement_selector: Option<String>,
    /// Namespaces that are left alone, separated by commas.
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_name = "LIST", default_value = "")]
    pub(super) exclude_namespaces: String,
    /// Namespace of the agent's own pods.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "")]
    pub(super) agent_namespace: String,
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
        if let Some(odd) = self.ambient_enabled.odd() {
            return Err(ConfigError::Value {
                option: "--ambient-enabled",
                value: odd.to_owned(),
                problem: "want true or false".to_owned(),
            });
        }
        self.build(None)
    }

    /// The same for the plugin's entry in the CNI configuration.
    ///
    /// # Errors
    ///
    /// When the selectors are no YAML.
    pub(super) fn entry(&self) -> Result<PluginEntry, ConfigError> {
        let yaml = self.ambient_enablement_selector.as_deref().unwrap_or_default();
        let enablement_selectors = if yaml.trim().is_empty() {
            serde_json::Value::Array(Vec::new())
        } else {
            serde_saphyr::from_str(yaml).map_err(|error| ConfigError::Value {
                option: "--ambient-enablement-selector",
                value: yaml.to_owned(),
                problem: error.without_snippet().to_string(),
            })?
        };
        Ok(PluginEntry {
            ambient_enabled: self.ambient_enabled.is_on(),
            enablement_selectors,
            exclude_namespaces: items(&self.exclude_namespaces).map(str::to_owned).collect(),
            pod_namespace: self.agent_namespace.clone(),
            ..PluginEntry::default()
        })
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
            // As in Istio: no selector, no ambient pod.
            Some(yaml) if yaml.trim().is_empty() => Vec::new(),
            Some(yaml) => serde_saphyr::from_str::<Vec<EnablementSelector>>(yaml).map_err(|e| {
                let problem = e.without_snippet().to_string();
                wrong("--ambient-enablement-selector", yaml, problem)
            })?,
        };
        Ok(Config {
            ambient_enabled: self.ambient_enabled.is_on(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn policy(args: &[&str]) -> Result<Config, ConfigError> {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            policy: PolicyArgs,
        }
        Only::parse_from([&["x"], args].concat()).policy.config()
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
