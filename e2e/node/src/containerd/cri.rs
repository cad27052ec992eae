//! The messages of the Kubernetes CRI, version 1, that the suite sends and reads:
//! of each only the fields that it uses, by their numbers in `api.proto`.

use prost::Message;
use std::collections::HashMap;

/// Service that all methods below are of.
pub const SERVICE: &str = "runtime.v1.RuntimeService";

/// Who a sandbox is for.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Name of the pod.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Uid of the pod.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Namespace of the pod.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Sandboxes of this pod before this one.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// What a sandbox is to be.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// Of whom.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Its host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// The pod's labels.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    /// The pod's annotations.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// Where and how.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// The part for Linux.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    /// Above the sandbox's cgroup.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// Its namespaces; absent means its own network.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxSandboxSecurityContext>,
}

/// The part about security.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxSandboxSecurityContext {
    /// Whose namespaces it uses.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

/// Whose namespaces a sandbox uses: 0 the pod's own, 1 each container's, 2 the node's.
#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOption {
    /// Network.
    #[prost(int32, tag = "1")]
    pub network: i32,
    /// Processes.
    #[prost(int32, tag = "2")]
    pub pid: i32,
}

/// Of RunPodSandbox.
#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    /// What it is to be.
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
}

/// The answer of RunPodSandbox, and the question of Stop- and RemovePodSandbox.
#[derive(Clone, PartialEq, Message)]
pub struct SandboxId {
    /// The sandbox.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Of PodSandboxStatus.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusRequest {
    /// The sandbox.
    #[prost(string, tag = "1")]
    pub id: String,
    /// With `info`.
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

/// Of PodSandboxStatus.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    /// The state.
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
    /// The runtime's own words, JSON.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// A sandbox's state.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    /// Its addresses.
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

/// A sandbox's addresses.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxNetworkStatus {
    /// The first.
    #[prost(string, tag = "1")]
    pub ip: String,
    /// The others.
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

/// One address.
#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    /// The address.
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// A question without any fields that matter.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// Of ListPodSandbox.
#[derive(Clone, PartialEq, Message)]
pub struct ListPodSandboxResponse {
    /// All sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<SandboxId>,
}

/// Of Status.
#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {
    /// With `info`.
    #[prost(bool, tag = "1")]
    pub verbose: bool,
}

/// Of Status.
#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    /// The state of the runtime.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RuntimeStatus>,
    /// The runtime's own words, JSON.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// The state of a runtime.
#[derive(Clone, PartialEq, Message)]
pub struct RuntimeStatus {
    /// RuntimeReady, NetworkReady.
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<RuntimeCondition>,
}

/// One condition of a runtime.
#[derive(Clone, PartialEq, Message)]
pub struct RuntimeCondition {
    /// Which.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Whether it holds.
    #[prost(bool, tag = "2")]
    pub status: bool,
    /// Why not, in a word.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// Why not.
    #[prost(string, tag = "4")]
    pub message: String,
}
