//! What the agent tells an operator, as it travels over the socket and as `--output
//! json` prints it. Fields are added, never renamed or given another meaning.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Whether the agent was there to tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Agent {
    /// It answered. Without it there is only what records and the kernel tell.
    pub(crate) answers: bool,
    /// Why not.
    pub(crate) error: Option<String>,
}

/// `sluice pods`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Pods {
    /// Who tells.
    pub(crate) agent: Agent,
    /// Pods of the mesh on this node, by namespace and name.
    pub(crate) pods: Vec<Pod>,
}

/// A row of `sluice pods`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Pod {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid, as far as known.
    pub(crate) uid: Option<String>,
    /// `sidecar` or `ambient`.
    pub(crate) mode: String,
    /// What programmed it: `nftables` or `iptables`.
    pub(crate) backend: Option<String>,
    /// `verified`, `unverified` (not known to be captured), `exposed` (its traffic can
    /// pass the mesh by) or `leaving` (it is being un-enrolled).
    pub(crate) standing: String,
    /// Why it is not verified.
    pub(crate) reason: Option<String>,
    /// For how long it has stood so; ambient pods only.
    pub(crate) since_seconds: Option<u64>,
    /// How long ago its rules were last seen to be right.
    pub(crate) verified_seconds_ago: Option<u64>,
    /// ztunnel's word; ambient pods only.
    pub(crate) ztunnel: Option<Ztunnel>,
    /// Its rules.
    pub(crate) rules: Option<Rules>,
    /// Connections and queries that the rules took; `null` where the backend does not
    /// count.
    pub(crate) captured: Option<Captured>,
    /// Its network namespace.
    pub(crate) netns: Option<Netns>,
    /// Its sandbox, where the runtime's name of it is known.
    pub(crate) sandbox: Option<String>,
    /// Addresses that it was captured with.
    pub(crate) addresses: Vec<String>,
}

/// What ztunnel said of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Ztunnel {
    /// `acked`, `held` (by one that is gone, whose proxy may go on) or `waiting`.
    pub(crate) state: String,
    /// Sessions that took it as it is now.
    pub(crate) sessions: Vec<u64>,
    /// ztunnel's last refusal, or what it waits for.
    pub(crate) error: Option<String>,
}

/// A pod's rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Rules {
    /// Tells one set of rules from another; the record's.
    pub(crate) hash: String,
    /// The kernel's number of the last change in the namespace; nftables only.
    pub(crate) generation: Option<u32>,
}

/// Counters of rules that send to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Captured {
    /// To port 15001.
    pub(crate) outbound: u64,
    /// To port 15006.
    pub(crate) inbound: u64,
    /// To port 15053.
    pub(crate) dns: u64,
}

/// A network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Netns {
    /// Device of its file.
    pub(crate) dev: u64,
    /// Inode.
    pub(crate) ino: u64,
}

/// What is asked about: `[NAMESPACE/]NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Name {
    /// Empty: any, if that names one pod of the node.
    pub(crate) namespace: String,
    /// The pod.
    pub(crate) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How a layer of a pod's capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// As it must be.
    Ok,
    /// Not as it must be.
    Broken,
    /// It could not be looked at, or means nothing here.
    NotTried,
}

impl State {
    /// In words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Broken => "BROKEN",
            Self::NotTried => "not tried",
        }
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// `source`, `decision`, `record`, `namespace`, `rules`, `routing`, `ztunnel`,
    /// `listeners`, `canary`, `probes` or `annotation`.
    pub(crate) name: String,
    /// How it is.
    pub(crate) state: State,
    /// What was seen, or why it was not tried.
    pub(crate) why: String,
}

/// `sluice verify`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Verify {
    /// Who tells.
    pub(crate) agent: Agent,
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid, as far as known.
    pub(crate) uid: Option<String>,
    /// `sidecar`, `ambient` or `none`.
    pub(crate) mode: String,
    /// `ok`, `broken`, `outside` (not of the mesh) or `incomplete` (nothing is seen to
    /// be broken, and something that counts could not be looked at).
    pub(crate) verdict: String,
    /// The first broken layer: those after it may follow from it.
    pub(crate) broken: Option<String>,
    /// What to do about it.
    pub(crate) next: Option<String>,
    /// Every layer, in the order in which they build on each other.
    pub(crate) layers: Vec<Layer>,
}

/// `sluice status`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    /// A pod that starts now would be captured.
    pub(crate) ready: bool,
    /// The agent's version.
    pub(crate) version: String,
    /// Its process, in its own pid namespace.
    pub(crate) pid: u32,
    /// Since its start.
    pub(crate) up_seconds: u64,
    /// Conditions of being ready: `synced`, `programming` (the self test), `installed`
    /// (the installer) and others, as `/readyz`.
    pub(crate) conditions: Vec<Check>,
    /// Its loops, as `/healthz`.
    pub(crate) loops: Vec<Check>,
    /// What programs pods.
    pub(crate) backend: Backend,
    /// Where pods come from.
    pub(crate) source: Source,
    /// Ambient mode; `null` when it is off.
    pub(crate) ambient: Option<Ambient>,
    /// Pods of either mode that the audit does not know to be captured, by why not.
    pub(crate) unverified: BTreeMap<String, u64>,
    /// Records of captured sandboxes.
    pub(crate) records: u64,
    /// Pods that passed unseen and should not have, since the start.
    pub(crate) escaped_total: u64,
    /// Of these, those that still run uncaptured.
    pub(crate) escaped_now: u64,
}

/// Something that is well or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// What.
    pub(crate) name: String,
    /// It is well.
    pub(crate) ok: bool,
    /// What is wrong.
    pub(crate) error: Option<String>,
}

/// The node's backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Backend {
    /// `nftables` or `iptables`.
    pub(crate) name: String,
    /// The programs behind it.
    pub(crate) with: String,
    /// How it was proved, now.
    pub(crate) proof: Option<String>,
    /// Why it does not work now.
    pub(crate) error: Option<String>,
}

/// The source of pods.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Source {
    /// `kubernetes` or `manifests`.
    pub(crate) name: String,
    /// Pods of this node.
    pub(crate) pods: u64,
    /// Namespaces.
    pub(crate) namespaces: u64,
    /// Complete lists were seen.
    pub(crate) complete: bool,
    /// What it is behind with, and since when.
    pub(crate) behind: Option<String>,
}

/// Ambient mode.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Ambient {
    /// A pod could be enrolled now.
    pub(crate) ready: bool,
    /// Pods are un-enrolled, until the agent starts anew.
    pub(crate) draining: bool,
    /// And all are.
    pub(crate) drained: bool,
    /// Pods that are to be captured.
    pub(crate) pods: u64,
    /// Of these, those that are known to be.
    pub(crate) verified: u64,
    /// ztunnels that are connected, oldest first.
    pub(crate) ztunnels: Vec<Session>,
    /// The host's rules for kubelet's probes; `null` when they are not there.
    pub(crate) host_rules: Option<HostRules>,
    /// Why not.
    pub(crate) host_rules_error: Option<String>,
}

/// A connection of a ztunnel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Its number.
    pub(crate) session: u64,
    /// ztunnel's process.
    pub(crate) pid: u64,
    /// It has its snapshot.
    pub(crate) live: bool,
    /// It gets new pods.
    pub(crate) newest: bool,
    /// Messages that it has not answered.
    pub(crate) unanswered: u64,
    /// Pods that it took.
    pub(crate) taken: u64,
    /// Pods that it refused.
    pub(crate) refused: u64,
}

/// The host's rules for kubelet's probes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct HostRules {
    /// The kernel has them, seen now.
    pub(crate) hold: bool,
    /// How kubelet is known: `cgroup`, `cgroup-shared` or `uid`.
    pub(crate) kubelet: String,
    /// The same as a sentence.
    pub(crate) kubelet_is: String,
    /// Addresses and ports that are exempted.
    pub(crate) elements: u64,
    /// Repairs since the start.
    pub(crate) repairs: u64,
    /// Chains of others that come before ours.
    pub(crate) ahead: Vec<String>,
    /// Istio's rules that are there too.
    pub(crate) istio: Vec<String>,
}

/// `sluice drain`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// Ambient mode is on; else there is nothing to drain.
    pub(crate) ambient: bool,
    /// It is under way, or done.
    pub(crate) draining: bool,
    /// Nothing of any ambient pod is left; seen, not assumed.
    pub(crate) drained: bool,
    /// What is left.
    pub(crate) left: Vec<Left>,
    /// Pods captured for a sidecar, which are not touched.
    pub(crate) sidecars: u64,
}

/// A pod of which something is left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Left {
    /// `NAMESPACE/NAME`, or its uid.
    pub(crate) pod: String,
    /// What it waits for.
    pub(crate) waits_for: String,
}
