//! The agent of a node: what each request does. [`crate::server`] owns the socket,
//! `redirect` the decisions, `sys` the effects; this brings them together.

mod add;
mod ambient;
mod audit;
mod busy;
mod check;
mod drift;
mod gate;
mod hints;
mod notice;
mod running;
mod start;
mod target;

pub(crate) use audit::Escaped;
pub(crate) use running::RunningError;
pub(crate) use start::run;

use crate::ambient::Ambient;
use crate::backend::NodeBackend;
use crate::failure::{Failure, causes};
use crate::hosts::Hosts;
use crate::notice::Notices;
use crate::record::{Records, SandboxId};
use crate::server::{Along, Caller, Service};
use crate::snapshot::Keeper;
use crate::source::{Found, Missing, Pods, Wanted};
use audit::Audit;
use busy::{Busy, Key, Turn};
use gate::Gate;
use redirect::enroll::Config;
use serde::de::DeserializeOwned;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use sys::backend::BackendError;
use sys::netns::{Netns, NetnsId};
use target::Said;
use wire::code;
use wire::request::{Answer, Decision, Endpoint, GcRequest, PodRequest};

/// Time for a request that names none. Istio's plugin gives up after 5 s
/// (reference 1.4), and has to be told before.
const DEFAULT_LIMIT: Duration = Duration::from_millis(4500);

/// Longest time that a request is given, whatever it asks for.
const MAX_LIMIT: Duration = Duration::from_secs(60);

/// Kept of the plugin's deadline for the answer's way back. On a node that stands still
/// for a while the plugin must not give up first, and say less than the answer does.
const MARGIN: Duration = Duration::from_millis(250);

/// Everything that requests share.
#[derive(Debug)]
pub(crate) struct Agent {
    source: Pods,
    config: Config,
    backend: Arc<NodeBackend>,
    records: Arc<Records>,
    busy: Busy,
    /// Programs that load rules: two a pod, each of them slow.
    restores: Gate,
    /// Namespaces that are never programmed.
    hosts: Arc<Hosts>,
    /// What the plugin has for the time without an agent.
    keeper: Keeper,
    /// What passed unseen.
    audit: Audit,
    /// Ambient capture, where that mode is on.
    ambient: OnceLock<Arc<Ambient>>,
    /// What is said of pods in the cluster.
    notices: Arc<Notices>,
    /// Looks at captured sidecar pods.
    rounds: OnceLock<Sender<drift::Word>>,
}

impl Service for Agent {
    fn caller(&self, body: &[u8]) -> Caller {
        // Read leniently: what is wrong with the body is said where it is used.
        let sent: PodRequest = serde_json::from_slice(body).unwrap_or_default();
        let sluice = sent.sluice.unwrap_or_default();
        Caller {
            limit: limit(sluice.deadline_ms),
            namespace: sent.pod_namespace,
            pod: sent.pod_name,
            uid: sluice.pod_uid,
        }
    }

    fn serve(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        along: Along,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        match endpoint {
            Endpoint::Add => self.add(&parse(body)?, along, deadline),
            Endpoint::Check => self.check(&parse(body)?, along, deadline),
            Endpoint::Del => self.del(&parse(body)?, deadline),
            Endpoint::Gc => self.gc(&parse::<GcRequest>(body)?),
            Endpoint::Status => self.status(),
        }
    }
}

fn limit(asked_ms: u64) -> Duration {
    if asked_ms == 0 {
        return DEFAULT_LIMIT;
    }
    let asked = Duration::from_millis(asked_ms).min(MAX_LIMIT);
    // A very short one is not eaten up by the margin.
    asked.saturating_sub(MARGIN).max(asked / 2)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("request body is not valid: {error}")))
}

fn answer(decision: Decision, reason: impl Into<String>) -> Answer {
    Answer { decision, reason: reason.into() }
}

impl Agent {
    /// An agent that keeps its files in a run directory.
    pub(crate) fn new(
        source: Pods,
        config: Config,
        backend: Arc<NodeBackend>,
        records: Arc<Records>,
        hosts: Arc<Hosts>,
        notices: Arc<Notices>,
        run_dir: &Path,
    ) -> Self {
        let (keeper, audit) = (Keeper::new(run_dir), Audit::new(run_dir));
        let (busy, ambient) = (Busy::default(), OnceLock::new());
        let (restores, rounds) = (Gate::default(), OnceLock::new());
        Self {
            source,
            config,
            backend,
            records,
            busy,
            restores,
            hosts,
            keeper,
            audit,
            ambient,
            notices,
            rounds,
        }
    }

    /// From now on ambient pods are captured by it.
    pub(crate) fn serve_ambient(&self, ambient: Arc<Ambient>) {
        // Called once, at the start.
        let _ = self.ambient.set(ambient);
    }

    /// The pod's namespace: the descriptor that came along or, from Istio's plugin,
    /// the path. Never the host's, which is also where the plugin runs.
    fn netns(&self, request: &PodRequest, along: Along) -> Result<Netns, Failure> {
        let said = request.sluice.as_ref().and_then(|sluice| sluice.host_netns);
        let host = said.map(|file| NetnsId { dev: file.dev, ino: file.ino });
        if let Some(host) = host.or_else(|| target::of_process(along.process?)) {
            self.hosts.tell(host);
        }
        let path = &request.netns;
        let next = "the runtime must pass the sandbox's own network namespace in CNI_NETNS";
        let invalid = |what: String| Failure::new(code::INVALID_NETNS, what, next);
        let netns = match along.netns {
            Some(fd) => Netns::from_fd(fd).map_err(|error| {
                invalid(format!("network namespace {path:?}: {}", causes(&error)))
            }),
            None if path.is_empty() => Err(invalid(
                "no network namespace: neither a descriptor nor a path came with the request"
                    .to_owned(),
            )),
            None => {
                let addresses = named(request);
                let said = Said { path, addresses: &addresses, process: along.process };
                target::of_said(&said).map_err(|tried| {
                    invalid(format!("network namespace {path:?} is not to be found: {tried}"))
                })
            }
        }?;
        if self.hosts.contains(netns.id()) {
            return Err(invalid(format!(
                "network namespace {path:?} is the host's own, not a pod's"
            )));
        }
        Ok(netns)
    }

    /// Fails where nothing tells a pod's namespace from the host's.
    fn host_is_known(&self, netns: &Netns) -> Result<(), Failure> {
        if self.hosts.are_certain() {
            return Ok(());
        }
        Err(Failure::new(
            code::INVALID_NETNS,
            format!("network namespace {} cannot be told from the host's", netns.id()),
            "mount the host's /proc at /host/proc in the agent's container, or replace the istio-cni plugin by that of this release",
        ))
    }

    /// The pod, waiting a moment for it to be known.
    fn find(&self, request: &PodRequest, deadline: Instant) -> Result<Found, Failure> {
        let PodRequest { pod_name, pod_namespace, sluice, .. } = request;
        let wanted = Wanted {
            namespace: pod_namespace,
            name: pod_name,
            uid: sluice.as_ref().map_or("", |s| &s.pod_uid),
        };
        self.source.wait(wanted, deadline).map_err(|missing| {
            let what = match missing {
                Missing::Unknown => format!("pod {pod_namespace}/{pod_name} is not known to the agent"),
                Missing::OtherUid(uid) => format!(
                    "pod {pod_namespace}/{pod_name} is known to the agent with uid {uid}, not {}",
                    wanted.uid
                ),
                Missing::Unreachable(why) => format!(
                    "pod {pod_namespace}/{pod_name} is not known to the agent, and could not be asked for: {why}"
                ),
                Missing::Unusable(why) => {
                    format!("pod {pod_namespace}/{pod_name} cannot be decided about: {why}")
                }
            };
            Failure::new(
                code::UNKNOWN_POD,
                what,
                self.source.advice(),
            )
        })
    }

    /// The turn of a sandbox and of a namespace, in this order.
    fn turns(
        &self,
        sandbox: Option<&SandboxId>,
        netns: Option<NetnsId>,
        deadline: Instant,
    ) -> Result<Vec<Turn<'_>>, Failure> {
        let keys = sandbox.cloned().map(Key::Sandbox).into_iter().chain(netns.map(Key::Netns));
        keys.map(|key| {
            self.busy.enter(key, deadline).ok_or_else(|| {
                Failure::new(
                    code::AGENT_TIMED_OUT,
                    "another request for the same sandbox is still under way",
                    "the runtime tries again",
                )
            })
        })
        .collect()
    }
}

/// Addresses that the plugins before have given the pod.
fn named(request: &PodRequest) -> Vec<IpAddr> {
    request.ips.iter().flatten().filter_map(|ip| ip.address.addr()).collect()
}

/// A namespace that has none of the addresses that were given to the pod.
fn misplaced(path: &str, why: &str) -> Failure {
    Failure::new(
        code::INVALID_NETNS,
        format!("network namespace {path:?} is not the pod's: {why}"),
        "the runtime must pass the sandbox's own network namespace in CNI_NETNS",
    )
}

/// The sandbox that a request is about; `None` when it is Istio's plugin that asks,
/// which does not say.
fn sandbox(request: &PodRequest) -> Result<Option<SandboxId>, Failure> {
    let Some(sluice) = &request.sluice else { return Ok(None) };
    SandboxId::new(&sluice.container_id).map(Some).map_err(|error| {
        Failure::new(
            code::INVALID_ENVIRONMENT,
            error.to_string(),
            "the runtime must pass the sandbox's id in CNI_CONTAINERID",
        )
        .with_status(400)
    })
}

/// Addresses of the calling thread's namespace, as a plan takes them. `::6` on `lo`
/// comes from the rules themselves (reference 3.5): it is no address of the pod, and
/// must not turn IPv6 on when a pod is programmed again.
fn addresses() -> Result<Vec<IpAddr>, BackendError> {
    sys::routing::addresses().map(without_validation)
}

fn without_validation(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    const VALIDATION: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
    addresses.retain(|address| *address != VALIDATION);
    addresses
}

/// Fails when time is up. `step` is what would have come next.
fn in_time(deadline: Instant, step: &str) -> Result<(), Failure> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(Failure::new(
        code::AGENT_TIMED_OUT,
        format!("time was up before {step}"),
        "the runtime tries again; if it stays, look in the agent's log for what is slow",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_time_for_the_answer() {
        assert_eq!(limit(0), DEFAULT_LIMIT);
        assert_eq!(limit(4500), Duration::from_millis(4250));
        assert_eq!(limit(400), Duration::from_millis(200));
        assert_eq!(limit(100), Duration::from_millis(50));
        assert_eq!(limit(u64::MAX), MAX_LIMIT - MARGIN);
    }
}
