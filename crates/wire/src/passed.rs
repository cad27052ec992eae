//! What the plugin, or an agent that could not ask anyone, let pass: one file a
//! sandbox below the run directory. The agent looks at each when it sees the pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Directory below the run directory.
pub const DIRECTORY: &str = "passed";
/// Directory below the run directory with the agent's records of captured sandboxes;
/// a file is named as one here.
pub const RECORDS: &str = "sandboxes";
/// Files that the directory may hold, those that are being written included. A
/// node has room for 256 pods by Kubernetes' largest setting; who comes to more
/// has to wait for the agent.
pub const MAX_FILES: usize = 1024;
/// Bytes that a file may have.
pub const MAX_BYTES: usize = 512 << 10;
/// Files that are being written begin so; no sandbox's name does.
pub const TEMPORARY: &str = ".new-";
/// Value of [`Passed::version`] in this version of the format.
pub const VERSION: u32 = 1;

/// A pod that passed unseen by the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// [`VERSION`].
    pub version: u32,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    #[serde(default)]
    pub interface: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid; empty when not known.
    #[serde(default)]
    pub uid: String,
    /// `CNI_NETNS`: where the network namespace was.
    pub netns: String,
    /// Device of the namespace's file.
    pub dev: u64,
    /// Its inode: what is at [`Passed::netns`] later may be another one.
    pub ino: u64,
    /// The mesh's annotations as the runtime said them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Why it passed, and why the agent did not say so.
    pub reason: String,
}

/// The name of a sandbox's file.
#[must_use]
pub fn file_name(container: &str) -> String {
    format!("{container}.json")
}
