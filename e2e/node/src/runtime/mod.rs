//! A container runtime's half of CNI, as libcni does it: a configuration list is
//! run plugin by plugin, each result is the next plugin's prevResult, DEL goes
//! backwards with the cached result.
//!
//! Results are handed on as the text that the plugin printed, not as a parsed
//! value, so that a plugin that changes one byte of what passes through it shows.

mod list;

pub use list::{Conflist, Entry};

use crate::lab::Namespace;
use crate::process::Output;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// A runtime on a node.
#[derive(Debug)]
pub struct Runtime<'a> {
    /// Plugins run in this namespace: the host's.
    pub node: &'a Namespace,
    /// CNI_PATH, searched in order.
    pub path: Vec<PathBuf>,
    /// Where results are kept between ADD and DEL.
    pub cache: PathBuf,
}

/// One container's attachment to one network.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS; empty when the sandbox is gone.
    pub netns: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// Pairs of CNI_ARGS.
    pub args: Vec<(String, String)>,
    /// Values for plugins that declare the capability.
    pub capabilities: Map<String, Value>,
}

impl Attachment {
    /// As containerd attaches a pod's sandbox.
    #[must_use]
    pub fn of_pod(container: &str, netns: &Path, namespace: &str, pod: &str, uid: &str) -> Self {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Self {
            container: container.to_owned(),
            netns: netns.display().to_string(),
            interface: "eth0".to_owned(),
            args: vec![
                pair("IgnoreUnknown", "1"),
                pair("K8S_POD_NAMESPACE", namespace),
                pair("K8S_POD_NAME", pod),
                pair("K8S_POD_INFRA_CONTAINER_ID", container),
                pair("K8S_POD_UID", uid),
            ],
            capabilities: Map::new(),
        }
    }

    fn cni_args(&self) -> String {
        let pairs: Vec<_> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }
}

/// An error as a plugin reports it.
#[derive(Debug, Clone, Deserialize)]
pub struct CniError {
    /// Stable number.
    pub code: u32,
    /// One line of cause.
    #[serde(default)]
    pub msg: String,
    /// What to do next.
    #[serde(default)]
    pub details: String,
    /// Plugin that failed.
    #[serde(skip)]
    pub plugin: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, msg, details, plugin } = self;
        write!(f, "plugin {plugin} failed (code {code}): {msg}; {details}")
    }
}

impl std::error::Error for CniError {}

/// The plugin's own error in a failure of the runtime, if it is one.
#[must_use]
pub fn cni_error(err: &anyhow::Error) -> Option<&CniError> {
    err.downcast_ref()
}

/// What an ADD left: the result of each plugin, as printed.
#[derive(Debug, Clone)]
pub struct Added {
    /// By plugin, in the order of the list.
    pub results: Vec<String>,
}

impl Added {
    /// The chain's result.
    #[must_use]
    pub fn last(&self) -> &str {
        self.results.last().map_or("", String::as_str)
    }

    /// The pod's addresses in the chain's result, without their prefix lengths.
    ///
    /// # Errors
    /// When the result is not JSON or has none.
    pub fn addresses(&self) -> Result<Vec<std::net::IpAddr>> {
        let result: WithIps = serde_json::from_str(self.last()).context("the chain's result")?;
        let address = |ip: &WithAddress| {
            let text = ip.address.split('/').next().unwrap_or_default();
            text.parse().with_context(|| format!("address {}", ip.address))
        };
        result.ips.iter().map(address).collect()
    }
}

/// What of a result the lab reads. The rest may be anything.
#[derive(Deserialize)]
struct WithIps {
    ips: Vec<WithAddress>,
}

#[derive(Deserialize)]
struct WithAddress {
    address: String,
}

/// What libcni keeps of an attachment, in its own words.
#[derive(Serialize, Deserialize)]
struct Cached {
    kind: String,
    #[serde(rename = "containerId")]
    container: String,
    #[serde(rename = "ifName")]
    interface: String,
    #[serde(rename = "networkName")]
    network: String,
    #[serde(rename = "netns")]
    netns: String,
    #[serde(rename = "cniArgs")]
    args: Vec<(String, String)>,
    #[serde(rename = "capabilityArgs")]
    capabilities: Map<String, Value>,
    result: Box<RawValue>,
}

impl Runtime<'_> {
    /// Asks every plugin of the list which versions it speaks.
    ///
    /// # Errors
    /// When one does not speak the list's.
    pub fn validate(&self, list: &Conflist) -> Result<()> {
        for entry in &list.plugins {
            let env = [("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
            let stdin = json!({ "cniVersion": list.version }).to_string();
            let output = self.execute(&entry.kind, "VERSION", &env, stdin)?.success()?;
            let answer: Value = serde_json::from_str(&output)?;
            let supported = answer.get("supportedVersions").and_then(Value::as_array);
            let wanted = Value::from(list.version.as_str());
            if !supported.context("no supportedVersions")?.contains(&wanted) {
                bail!("plugin {} does not speak {}: {output}", entry.kind, list.version);
            }
        }
        Ok(())
    }

    /// Attaches a container.
    ///
    /// # Errors
    /// [`CniError`] when a plugin refuses; the caller then calls [`Self::delete`],
    /// as runtimes do.
    pub fn add(&self, list: &Conflist, to: &Attachment) -> Result<Added> {
        let mut results: Vec<String> = Vec::new();
        for entry in &list.plugins {
            let config = list.config(entry, to, results.last().map(String::as_str))?;
            results.push(self.call(entry, "ADD", to, config)?);
        }
        let added = Added { results };
        let cached = Cached {
            kind: "cniCacheV1".to_owned(),
            container: to.container.clone(),
            interface: to.interface.clone(),
            network: list.name.clone(),
            netns: to.netns.clone(),
            args: to.args.clone(),
            capabilities: to.capabilities.clone(),
            result: RawValue::from_string(added.last().trim().to_owned())
                .context("the chain's result is no JSON")?,
        };
        std::fs::create_dir_all(&self.cache)?;
        std::fs::write(self.cache_file(list, to), serde_json::to_vec(&cached)?)?;
        Ok(added)
    }

    /// Asks whether an attachment is still as it was made.
    ///
    /// # Errors
    /// [`CniError`] when a plugin finds it is not; when the version has no CHECK,
    /// or nothing was added.
    pub fn check(&self, list: &Conflist, to: &Attachment) -> Result<()> {
        if !list.is_at_least("0.4.0") {
            bail!("configuration version {} does not support CHECK", list.version);
        }
        let cached = self.cached(list, to).context("nothing cached")?;
        for entry in &list.plugins {
            let config = list.config(entry, to, Some(cached.result.get()))?;
            self.call(entry, "CHECK", to, config)?;
        }
        Ok(())
    }

    /// Detaches a container, with the cached result when there is one.
    ///
    /// # Errors
    /// [`CniError`] of the first plugin that fails; the rest is not called.
    pub fn delete(&self, list: &Conflist, from: &Attachment) -> Result<()> {
        let cached = self.cached(list, from).filter(|_| list.is_at_least("0.4.0"));
        for entry in list.plugins.iter().rev() {
            let previous = cached.as_ref().map(|cached| cached.result.get());
            let config = list.config(entry, from, previous)?;
            self.call(entry, "DEL", from, config)?;
        }
        std::fs::remove_file(self.cache_file(list, from)).ok();
        Ok(())
    }

    /// Asks every plugin whether it could take a container now.
    ///
    /// # Errors
    /// [`CniError`] of a plugin that could not; when the version has no STATUS.
    pub fn status(&self, list: &Conflist) -> Result<()> {
        self.network_wide(list, "STATUS", None)
    }

    /// Collects garbage: DEL for each cached attachment that is not in `valid`,
    /// then GC with the list of those that are; `valid` absent leaves the list out
    /// and deletes nothing.
    ///
    /// # Errors
    /// [`CniError`] of a plugin; when the version has no GC.
    pub fn collect(&self, list: &Conflist, valid: Option<&[Attachment]>) -> Result<()> {
        if let Some(valid) = valid {
            for stale in self.cached_attachments(list)? {
                let same = |a: &Attachment| {
                    a.container == stale.container && a.interface == stale.interface
                };
                if !valid.iter().any(same) {
                    self.delete(list, &stale)?;
                }
            }
        }
        self.network_wide(list, "GC", valid)
    }

    fn network_wide(
        &self,
        list: &Conflist,
        command: &str,
        valid: Option<&[Attachment]>,
    ) -> Result<()> {
        if !list.is_at_least("1.1.0") {
            bail!("configuration version {} does not support {command}", list.version);
        }
        for entry in &list.plugins {
            let config = list.network_config(entry, valid)?;
            let output = self.execute(&entry.kind, command, &[], config)?;
            outcome(entry, output)?;
        }
        Ok(())
    }

    fn call(
        &self,
        entry: &Entry,
        command: &str,
        to: &Attachment,
        config: String,
    ) -> Result<String> {
        let args = to.cni_args();
        let env = [
            ("CNI_CONTAINERID", to.container.as_str()),
            ("CNI_NETNS", to.netns.as_str()),
            ("CNI_IFNAME", to.interface.as_str()),
            ("CNI_ARGS", args.as_str()),
        ];
        outcome(entry, self.execute(&entry.kind, command, &env, config)?)
    }

    /// Runs a plugin once, in the node's namespace.
    ///
    /// # Errors
    /// When it is not on the path or cannot be run; not when it fails.
    pub fn execute(
        &self,
        kind: &str,
        command: &str,
        env: &[(&str, &str)],
        stdin: String,
    ) -> Result<Output> {
        let found = self.path.iter().map(|dir| dir.join(kind)).find(|file| file.is_file());
        let file = found.with_context(|| format!("no plugin {kind} in {:?}", self.path))?;
        let dirs: Vec<_> = self.path.iter().map(|dir| dir.display().to_string()).collect();
        let mut program = self.node.program(file).env("CNI_COMMAND", command);
        program = program.env("CNI_PATH", dirs.join(":"));
        for (name, value) in env {
            program = program.env(name, *value);
        }
        program.input(stdin).run()
    }

    fn cache_file(&self, list: &Conflist, of: &Attachment) -> PathBuf {
        let name = format!("{}-{}-{}", list.name, of.container, of.interface);
        self.cache.join(name)
    }

    fn cached(&self, list: &Conflist, of: &Attachment) -> Option<Cached> {
        let text = std::fs::read_to_string(self.cache_file(list, of)).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn cached_attachments(&self, list: &Conflist) -> Result<Vec<Attachment>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.cache)? {
            let text = std::fs::read_to_string(entry?.path())?;
            let cached: Cached = serde_json::from_str(&text)?;
            if cached.network == list.name {
                found.push(Attachment {
                    container: cached.container,
                    netns: cached.netns,
                    interface: cached.interface,
                    args: cached.args,
                    capabilities: cached.capabilities,
                });
            }
        }
        Ok(found)
    }
}

/// A plugin's output, or the error that it printed.
fn outcome(entry: &Entry, output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    match serde_json::from_str::<CniError>(&output.stdout) {
        Ok(err) => Err(CniError { plugin: entry.kind.clone(), ..err }.into()),
        Err(_) => bail!("no error in JSON from {}: {output}", entry.kind),
    }
}
