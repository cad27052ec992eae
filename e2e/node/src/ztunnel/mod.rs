//! A fake ztunnel: the peer of the agent on the ZDS socket and the proxy in the pods'
//! network namespaces, so that their traffic runs through it. It behaves as
//! `reference/zds.md` says, down to its exits, errors, time-outs and reconnects.
//! Nothing in Sluice knows that it is not the real one.
//!
//! [`agent`] is the conversation, [`workloads`] what the requests do, [`pod`] the
//! listeners in a pod, [`relay`] and [`dns`] what becomes of its traffic; [`control`]
//! is how a test looks at it and [`fault`] what a test can make it do wrong.
//!
//! What it does not have, and does instead:
//!
//! - **HBONE without TLS and HTTP/2**: [`hop`] is a line of JSON each way over plain
//!   TCP to port 15008, with the identities that certificates would prove. Who sends
//!   it is believed.
//! - **No XDS**: which address is whose, and takes HBONE, it knows of the pods it runs
//!   proxies in, or is told by [`Config::workloads`]; then it waits five seconds for a
//!   pod that is not listed and resets its connection, as ztunnel does.
//! - **No policy, no waypoints, no SOCKS5, no admin port.** DNS has no search
//!   domains. Readiness and metrics are at one port, [`Config::http`].

mod agent;
pub mod control;
pub mod dns;
pub mod fault;
mod hop;
mod http;
mod pod;
pub mod record;
mod relay;
pub mod run;
mod socket;
pub mod start;
mod workloads;

pub use control::Status;
pub use fault::Faults;
pub use record::{Direction, Record, Via};
pub use start::Ztunnel;

use crate::lab::Scratch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What the in-pod rules know its own packets by (PACKET_MARK).
pub const MARK: u32 = 0x539;
/// Port of connections out of the pod, that rules redirect to it.
pub const OUTBOUND: u16 = 15001;
/// Port of plain connections into the pod, that rules redirect to it.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// Port of connections from other ztunnels.
pub const INBOUND: u16 = 15008;
/// Port of DNS.
pub const DNS: u16 = 15053;

/// What it is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// The agent's socket (INPOD_UDS).
    pub agent: PathBuf,
    /// Where [`control`] listens.
    pub control: PathBuf,
    /// Port of readiness and metrics, in the network namespace that it runs in.
    pub http: Option<SocketAddr>,
    /// Milliseconds between tries to start a proxy that could not be started.
    pub retry_ms: u64,
    /// Milliseconds that connections have after SIGTERM
    /// (TERMINATION_GRACE_PERIOD_SECONDS less 5, or 5 s).
    pub drain_ms: u64,
    /// It answers DNS in pods (ISTIO_META_DNS_CAPTURE).
    pub dns: bool,
    /// Name servers that it asks about names it does not know: those of its own
    /// /etc/resolv.conf.
    pub resolvers: Vec<SocketAddr>,
    /// Names that it answers itself, in lower case and without the last dot.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// What XDS would tell it; None: see the module.
    pub workloads: Option<Vec<Workload>>,
    /// What it does wrong from the start.
    pub faults: Faults,
}

impl Config {
    /// As Istio's chart has it, for an agent's socket; its own goes into the run's
    /// directory under `name`.
    #[must_use]
    pub fn new(scratch: &Scratch, name: &str, agent: PathBuf) -> Self {
        Self {
            agent,
            control: scratch.path().join(format!("{name}.control")),
            http: None,
            retry_ms: 5000,
            drain_ms: 5000,
            dns: true,
            resolvers: Vec::new(),
            names: BTreeMap::new(),
            workloads: None,
            faults: Faults::default(),
        }
    }
}

/// A pod as the control plane knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It is reached through the ztunnel of its node: istiod says so of pods that are
    /// annotated `ambient.istio.io/redirection: enabled`.
    pub hbone: bool,
}

/// `spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT`.
#[must_use]
pub fn identity(namespace: &str, service_account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
}
