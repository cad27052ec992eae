//! The plugin's requests to the agent, and the agent's answers.
//!
//! One request a connection, on a unix stream socket, as HTTP/1.1 (see
//! [`crate::http`]). The descriptor of the pod's network namespace travels by
//! `SCM_RIGHTS` with the first byte of [`Endpoint::Add`] and
//! [`Endpoint::Check`].
//!
//! [`PodRequest`] is a superset of what Istio's plugin sends
//! (`cni/pkg/nodeagent/cni-watcher.go`, `CNIPluginAddEvent`), so that a plugin
//! that is still on the host while Sluice takes over is served: such a request
//! has no [`PodRequest::sluice`] and no descriptor, and ignores the answer's
//! body. Unknown fields are ignored in both directions, so that plugin and
//! agent may be of different versions during an upgrade.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The socket's file name below the agent's run directory; Istio's name.
pub const SOCKET_NAME: &str = "pluginevent.sock";
/// The agent's run directory when the configuration names none; Istio's default.
pub const DEFAULT_RUN_DIR: &str = "/var/run/istio-cni";
/// Bytes that a request's or an answer's body may have.
pub const MAX_BODY: usize = 1 << 20;
/// Bytes that the head of a request or an answer may have.
pub const MAX_HEAD: usize = 16 << 10;
/// Value of [`Extension::version`] in this version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// What the plugin asks for; each has its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Decide on a pod and capture it: [`PodRequest`] with the namespace's descriptor.
    Add,
    /// Say whether a pod's rules are still there: [`PodRequest`] with the descriptor.
    Check,
    /// A sandbox is going away: [`PodRequest`] without a descriptor.
    Del,
    /// Forget sandboxes that are no more: [`GcRequest`].
    Gc,
    /// Say whether ADD would be served: [`StatusRequest`].
    Status,
}

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Self; 5] = [Self::Add, Self::Check, Self::Del, Self::Gc, Self::Status];

    /// The path of the request line.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Add => "/cmdadd",
            Self::Check => "/cmdcheck",
            Self::Del => "/cmddel",
            Self::Gc => "/cmdgc",
            Self::Status => "/status",
        }
    }

    /// The endpoint of a path, `None` for one that is not ours.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.path() == path)
    }
}

/// Body of ADD, CHECK and DEL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRequest {
    /// `CNI_NETNS` as the runtime gave it: a path on the host; empty on a second DEL.
    #[serde(rename = "Netns", default)]
    pub netns: String,
    /// `K8S_POD_NAME`.
    #[serde(rename = "PodName", default)]
    pub pod_name: String,
    /// `K8S_POD_NAMESPACE`.
    #[serde(rename = "PodNamespace", default)]
    pub pod_namespace: String,
    /// The addresses of prevResult; `None` (JSON `null`) without a prevResult.
    #[serde(rename = "IPs", default)]
    pub ips: Option<Vec<IpConfig>>,
    /// What Istio's plugin does not say; `None` when it is Istio's that asks.
    #[serde(rename = "Sluice", default, skip_serializing_if = "Option::is_none")]
    pub sluice: Option<Extension>,
}

/// The part of a request that is ours alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// [`PROTOCOL_VERSION`] of the sender.
    #[serde(rename = "Version")]
    pub version: u32,
    /// `CNI_CONTAINERID`: the sandbox.
    #[serde(rename = "ContainerID", default)]
    pub container_id: String,
    /// `CNI_IFNAME`.
    #[serde(rename = "IfName", default)]
    pub if_name: String,
    /// `K8S_POD_UID`, empty where the runtime gives none.
    #[serde(rename = "PodUID", default)]
    pub pod_uid: String,
    /// Milliseconds until the plugin gives up, counted from when it wrote this; 0 = not said.
    #[serde(rename = "DeadlineMs", default)]
    pub deadline_ms: u64,
    /// Those of the pod's annotations that are the mesh's, as the runtime said
    /// them; `None` where it said none at all.
    #[serde(rename = "PodAnnotations", default, skip_serializing_if = "Option::is_none")]
    pub pod_annotations: Option<BTreeMap<String, String>>,
    /// The pod's cgroup as the runtime said it, below the hierarchy's root; empty
    /// where it said none.
    #[serde(rename = "CgroupPath", default, skip_serializing_if = "String::is_empty")]
    pub cgroup_path: String,
    /// The network namespace that the plugin itself runs in: the host's, which is
    /// never programmed. With ADD and CHECK.
    #[serde(rename = "HostNetns", default, skip_serializing_if = "Option::is_none")]
    pub host_netns: Option<NetnsFile>,
}

/// What identifies a network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsFile {
    /// Device of its file.
    #[serde(rename = "Dev")]
    pub dev: u64,
    /// Inode of it.
    #[serde(rename = "Ino")]
    pub ino: u64,
}

/// One address of prevResult, with Go's field names and Go's encodings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into prevResult's interfaces.
    #[serde(rename = "Interface", default)]
    pub interface: Option<i64>,
    /// The address with its mask.
    #[serde(rename = "Address", default)]
    pub address: IpNet,
    /// The gateway as text, empty when there is none.
    #[serde(rename = "Gateway", default)]
    pub gateway: String,
}

/// Go's `net.IPNet` as `encoding/json` writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNet {
    /// The address as text; Go writes an unset one as the empty string.
    #[serde(rename = "IP", default)]
    pub ip: String,
    /// Base64 of the raw mask bytes; Go writes an unset one as null.
    #[serde(rename = "Mask", default)]
    pub mask: Option<String>,
}

impl IpNet {
    /// The address and prefix length in Go's encoding.
    #[must_use]
    pub fn new(ip: IpAddr, prefix: u8) -> Self {
        let width = if ip.is_ipv4() { 4 } else { 16 };
        let mask: Vec<u8> = (0..width)
            .map(|i| {
                let ones = usize::from(prefix).saturating_sub(i * 8).min(8);
                // `ones` is at most 8, so the shift is at most 8 on a u16.
                (0xff00_u16 >> ones).to_be_bytes()[1]
            })
            .collect();
        Self { ip: ip.to_string(), mask: Some(base64(&mask)) }
    }

    /// The address, with an IPv4 address in IPv6 clothes unmapped as Istio's
    /// agent does it; `None` when the text is no address.
    #[must_use]
    pub fn addr(&self) -> Option<IpAddr> {
        self.ip.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    }
}

/// Standard base64 with padding. Four or sixteen bytes a pod do not earn a
/// dependency in the plugin.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |w, b| (w << 8) | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            if i <= chunk.len() {
                let index = (word >> (18 - 6 * i)) & 63;
                out.push(char::from(ALPHABET[index as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

/// Body of GC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// Who asks; only [`Extension::version`] and the deadline are set.
    #[serde(rename = "Sluice", default)]
    pub sluice: Extension,
    /// The attachments that live. `None` = the runtime did not say (libcni 1.3's
    /// `cnitool gc` does not): nothing may be deleted by it.
    #[serde(rename = "Attachments", default)]
    pub attachments: Option<Vec<Attachment>>,
}

/// One attachment that lives. Read with the configuration's names
/// (`containerID`, `ifname`), written with the request's.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox.
    #[serde(rename = "ContainerID", alias = "containerID")]
    pub container_id: String,
    /// The interface in it.
    #[serde(rename = "IfName", alias = "ifname")]
    pub if_name: String,
}

/// Body of STATUS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// Who asks; only [`Extension::version`] and the deadline are set.
    #[serde(rename = "Sluice", default)]
    pub sluice: Extension,
}

/// Body of a 200. A failure (any other status) has a [`crate::cni::Error`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What was decided, or [`Decision::Done`] where nothing is decided.
    pub decision: Decision,
    /// Why, for logs.
    #[serde(default)]
    pub reason: String,
}

/// What the agent decided and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The pod is captured for its sidecar.
    Sidecar,
    /// The pod is captured for ztunnel.
    Ambient,
    /// The pod is not of the mesh.
    Skip,
    /// DEL, GC and STATUS: done, nothing to decide.
    Done,
}

impl Decision {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Ambient => "ambient",
            Self::Skip => "skip",
            Self::Done => "done",
        }
    }
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
