//! Error codes of the plugin. They are a contract: an operator's runbook and
//! the event text of a pod quote them, so a code never changes its meaning.
//!
//! 1 to 99 belong to the CNI specification, 100 and up are ours.

/// CNI: the configuration's `cniVersion` is not supported, or the command needs a newer one.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// CNI: a field of the network configuration is not supported.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// CNI: the container is unknown or does not exist.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// CNI: a required environment variable is missing or invalid.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// CNI: reading the configuration, or another file, failed.
pub const IO_FAILURE: u32 = 5;
/// CNI: the configuration could not be decoded.
pub const DECODING_FAILURE: u32 = 6;
/// CNI: the configuration is well formed but invalid.
pub const INVALID_NETWORK_CONFIG: u32 = 7;
/// CNI: a passing condition, try again later.
pub const TRY_AGAIN_LATER: u32 = 11;
/// CNI STATUS: the plugin cannot serve ADD now.
pub const NOT_AVAILABLE: u32 = 50;

/// The agent's socket is missing, refuses, or is not the agent's.
pub const AGENT_UNREACHABLE: u32 = 100;
/// The agent did not answer within the plugin's deadline.
pub const AGENT_TIMED_OUT: u32 = 101;
/// The agent's answer is not one that the protocol knows.
pub const AGENT_ANSWERED_NONSENSE: u32 = 102;
/// The agent does not know the pod or its namespace.
pub const UNKNOWN_POD: u32 = 103;
/// An annotation or variable of the pod asks for what is not possible.
pub const INVALID_ANNOTATION: u32 = 104;
/// `CNI_NETNS` is gone, is no network namespace, or is the host's.
pub const INVALID_NETNS: u32 = 105;
/// The rules could not be programmed.
pub const RULES_NOT_PROGRAMMED: u32 = 106;
/// The rules are in, but a connection through them did not arrive at the proxy.
pub const CAPTURE_NOT_PROVED: u32 = 107;
/// The record of the sandbox, or of a pod that passes without the agent, could not be written.
pub const RECORD_NOT_WRITTEN: u32 = 108;
/// The pod is to be captured in a way that this agent cannot (ambient).
pub const CAPTURE_UNSUPPORTED: u32 = 109;
/// CHECK: the rules in the pod's namespace are not what they must be.
pub const RULES_MISSING: u32 = 110;
/// The agent has too many requests under way.
pub const AGENT_OVERLOADED: u32 = 111;
/// A defect of ours: a panic in plugin or agent.
pub const INTERNAL: u32 = 112;
/// An ambient pod's ADD: no ztunnel is connected to the agent.
pub const ZTUNNEL_NOT_CONNECTED: u32 = 113;
/// An ambient pod's ADD: ztunnel refused the pod, or did not answer in time.
pub const ZTUNNEL_NOT_ACCEPTED: u32 = 114;
