//! The network configuration on stdin.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::environment::is_name;
use super::{Command, Error, PrevResult, Version};
use crate::code;
use crate::request::{Attachment, DEFAULT_RUN_DIR};

/// Bytes that stdin may have. A prevResult has some kilobytes, a pod's
/// annotations (as a capability) at most 256 KiB, GC's list 100 bytes a pod.
pub const MAX_STDIN: usize = 4 << 20;

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(4500);
const MIN_TIMEOUT_MS: u64 = 100;
const MAX_TIMEOUT_MS: u64 = 60_000;

/// The keys that are read; every other one is ignored, Istio's that concern
/// the agent's decisions included. A key that is there twice is refused, since
/// readers differ on which one counts.
#[derive(Debug, Deserialize)]
pub struct Config<'a> {
    #[serde(rename = "cniVersion", default)]
    cni_version: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(rename = "prevResult", borrow, default)]
    prev_result: Option<&'a RawValue>,
    #[serde(rename = "cni.dev/valid-attachments", borrow, default)]
    valid_attachments: Option<&'a RawValue>,
    #[serde(rename = "runtimeConfig", borrow, default)]
    runtime_config: Option<&'a RawValue>,
    #[serde(default)]
    plugin_log_level: Option<String>,
    #[serde(default)]
    cni_agent_run_dir: Option<String>,
    #[serde(default)]
    exclude_namespaces: Option<Vec<String>>,
    #[serde(default)]
    pod_namespace: Option<String>,
    #[serde(default)]
    agent_timeout_ms: Option<u64>,
    #[serde(default)]
    agent_host_network: Option<bool>,
    #[serde(default)]
    agent_goes_by_annotations: Option<bool>,
}

impl<'a> Config<'a> {
    /// Decodes stdin.
    ///
    /// # Errors
    /// [`code::DECODING_FAILURE`] when it is not one JSON object in UTF-8 whose
    /// known keys have their types.
    pub fn parse(stdin: &'a [u8]) -> Result<Self, Error> {
        let undecodable = |cause: String| {
            Error::new(
                code::DECODING_FAILURE,
                format!("decode the network configuration on stdin: {cause}"),
                "check the files in the runtime's CNI configuration directory (default /etc/cni/net.d)",
            )
        };
        if stdin.trim_ascii().is_empty() {
            return Err(undecodable("it is empty".to_owned()));
        }
        let text = std::str::from_utf8(stdin).map_err(|e| undecodable(e.to_string()))?;
        // serde would also take an array for a struct.
        if !text.trim_ascii_start().starts_with('{') {
            return Err(undecodable("it is no JSON object".to_owned()));
        }
        serde_json::from_str(text).map_err(|e| undecodable(e.to_string()))
    }

    /// Checks name and version for `command`, in libcni's order.
    ///
    /// # Errors
    /// [`code::INVALID_NETWORK_CONFIG`] for a missing or malformed name,
    /// [`code::INCOMPATIBLE_VERSION`] for a version that is not spoken or does
    /// not have the command.
    pub fn check(&self, command: Command) -> Result<Version, Error> {
        let name = self.name.as_deref().unwrap_or_default();
        if !is_name(name) {
            let cause = if name.is_empty() {
                "the network configuration has no name".to_owned()
            } else {
                format!("the network configuration's name {name:?} is invalid")
            };
            return Err(Error::new(
                code::INVALID_NETWORK_CONFIG,
                cause,
                "name has to start with a letter or digit and to consist of letters, digits, '_', '.' and '-'",
            ));
        }
        let version = Version::negotiate(self.cni_version.as_deref())?;
        if version < command.since() {
            return Err(Error::new(
                code::INCOMPATIBLE_VERSION,
                format!(
                    "cniVersion {version} of the network configuration does not have {}",
                    command.as_str()
                ),
                format!("set cniVersion to {} or newer", command.since()),
            ));
        }
        Ok(version)
    }

    /// `cniVersion` as it stands.
    #[must_use]
    pub fn cni_version(&self) -> Option<&str> {
        self.cni_version.as_deref()
    }

    /// The result of the plugin before; `None` when absent or null.
    ///
    /// # Errors
    /// [`code::DECODING_FAILURE`] when it is no JSON object.
    pub fn prev_result(&self) -> Result<Option<PrevResult<'a>>, Error> {
        self.prev_result.map(PrevResult::new).transpose()
    }

    /// GC: the attachments that live; `None` when the runtime does not say.
    ///
    /// # Errors
    /// [`code::DECODING_FAILURE`] when it is no list of attachments.
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, Error> {
        let Some(raw) = self.valid_attachments else {
            return Ok(None);
        };
        serde_json::from_str(raw.get()).map_err(|e| {
            Error::new(
                code::DECODING_FAILURE,
                format!("decode cni.dev/valid-attachments: {e}"),
                "the container runtime writes it as a list of {\"containerID\": ..., \"ifname\": ...}; nothing was cleaned up",
            )
        })
    }

    /// What the runtime says about the pod because our entry asks for it by
    /// `capabilities`. What cannot be read is as if it had not been said: a hint
    /// must not break a pod.
    #[must_use]
    pub fn hints(&self) -> Hints {
        let Some(raw) = self.runtime_config else { return Hints::default() };
        let said: RuntimeConfig = serde_json::from_str(raw.get()).unwrap_or_default();
        let said_any = said.annotations.as_ref().is_some_and(|all| !all.is_empty());
        // Not `retain`, nor `collect`: taking out of a tree, or sorting, would be
        // kilobytes of the plugin.
        let of_the_mesh = |all: BTreeMap<String, String>| {
            let mut kept = BTreeMap::new();
            for (key, value) in all {
                if key.contains(MESH_DOMAIN) {
                    kept.insert(key, value);
                }
            }
            kept
        };
        Hints {
            annotations: said.annotations.filter(|_| said_any).map(of_the_mesh),
            cgroup_path: said.cgroup_path.unwrap_or_default(),
        }
    }

    /// What is worth a line on stderr; unknown words mean the default, info,
    /// because a level is no reason to keep pods from starting.
    #[must_use]
    pub fn log_level(&self) -> LogLevel {
        LogLevel::parse(self.plugin_log_level.as_deref().unwrap_or_default())
    }

    /// Where the agent's sockets are.
    #[must_use]
    pub fn run_dir(&self) -> &str {
        self.cni_agent_run_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT_RUN_DIR)
    }

    /// Whether pods of the namespace are none of the mesh's business.
    #[must_use]
    pub fn excludes(&self, namespace: &str) -> bool {
        self.exclude_namespaces.iter().flatten().any(|excluded| excluded == namespace)
    }

    /// The agent's own namespace; empty when it is not said.
    #[must_use]
    pub fn agent_namespace(&self) -> &str {
        self.pod_namespace.as_deref().unwrap_or_default()
    }

    /// How long the whole invocation may take: `agent_timeout_ms`, a key of
    /// ours, held between 0.1 and 60 s; 4.5 s when absent. Istio's plugin waits
    /// 5 s; ours gives up earlier so that its own message, not the runtime's
    /// kill, is what the pod's event shows.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.agent_timeout_ms.map_or(DEFAULT_TIMEOUT, |ms| {
            Duration::from_millis(ms.clamp(MIN_TIMEOUT_MS, MAX_TIMEOUT_MS))
        })
    }

    /// The agent is in the host's network, so that it starts although STATUS says that
    /// no pod can: `agent_host_network`, a key of ours. Not so when it is not said.
    #[must_use]
    pub fn agent_is_on_host(&self) -> bool {
        self.agent_host_network.unwrap_or_default()
    }

    /// Whether a pod's annotations alone tell that it is outside the mesh:
    /// `agent_goes_by_annotations`, a key of ours. So it is where pods come from
    /// Kubernetes and none can be ambient. Not so when it is not said. It outlives a
    /// reboot, which the agent's snapshot does not.
    #[must_use]
    pub fn agent_goes_by_annotations(&self) -> bool {
        self.agent_goes_by_annotations.unwrap_or_default()
    }

    /// [`Config::timeout`] where there is no configuration yet.
    #[must_use]
    pub const fn default_timeout() -> Duration {
        DEFAULT_TIMEOUT
    }
}

/// In the keys of all annotations that the mesh reads. The others of a pod may be
/// large, or secret, and are nobody's business here.
const MESH_DOMAIN: &str = "istio.io/";

/// `runtimeConfig`, as far as we asked for it.
#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations", default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(rename = "cgroupPath", default)]
    cgroup_path: Option<String>,
}

/// What the runtime knows of the pod besides its name. Hints, not facts: they are
/// compared with the pod when it is seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The mesh's annotations among the pod's. `None` where the runtime did not
    /// say any annotation: kubelet puts some of its own on each pod, so an empty
    /// list means a runtime that does not know, not a pod that has none.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The pod's cgroup; empty when not said.
    pub cgroup_path: String,
}

/// `plugin_log_level`, the chattiest last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Nothing at all.
    None,
    /// Failures; Istio's `fatal` is the same.
    Error,
    /// And what was done without.
    Warn,
    /// And every outcome.
    #[default]
    Info,
    /// And what was passed through.
    Debug,
}

impl LogLevel {
    /// The level of Istio's words; empty and unknown mean info.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "none" => Self::None,
            "fatal" | "error" => Self::Error,
            "warn" => Self::Warn,
            "debug" => Self::Debug,
            _ => Self::Info,
        }
    }

    /// The word in a log line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}
