//! Kubelet's probes: the host's rules that exempt them, kept by a thread of
//! [`sys::hostprobe`]. The machine speaks of addresses, one owner each.

use super::options::Options;
use crate::backend::NodeBackend;
use crate::failure::causes;
use crate::metrics::figures::Figures;
use ambient::event::Failure;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use sys::hostprobe::{
    Caller, Config, Event, HostError, HostRules, Keeper, Owner, Sources, Status, Target, upstream,
};
use sys::iptables::Iptables;
use sys::netns::{Netns, within};

/// The host's processes as the chart mounts them. Without them the agent runs in the
/// host's own namespaces.
const HOST_PROC: &str = "/host/proc";

/// Pauses between tries to start, doubled.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The same between tries to take over, which nobody waits for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The exemption of kubelet's probes.
#[derive(Debug)]
pub(super) struct Probes {
    keeper: OnceLock<Keeper>,
    /// Why there is none yet.
    missing: Mutex<String>,
}

impl Probes {
    /// Starts to keep the rules, on a thread of its own: it may take a while, and what
    /// does not work now is tried again. `found` gets the addresses that are exempted
    /// already, before anything can be set.
    ///
    /// # Errors
    /// When there is no thread.
    pub(super) fn start(
        backend: Arc<NodeBackend>,
        options: &Options,
        figures: Arc<Figures>,
        found: impl Fn(IpAddr) + Send + 'static,
    ) -> std::io::Result<Arc<Self>> {
        let missing = Mutex::new("the host's rules for kubelet's probes are not there yet".into());
        let probes = Arc::new(Self { keeper: OnceLock::new(), missing });
        let own = Arc::downgrade(&probes);
        let capture = &options.capture;
        let sources =
            Sources { v4: Some(capture.probe_v4), v6: capture.ipv6.then_some(capture.probe_v6) };
        let branch = options.branch;
        std::thread::Builder::new().name("probes start".to_owned()).spawn(move || {
            let mut pause = FIRST_PAUSE;
            while let Some(probes) = own.upgrade() {
                match begin(&backend, sources, branch, &found) {
                    Ok((keeper, events)) => {
                        let _ = probes.keeper.set(keeper);
                        drop(probes);
                        listen(&events, &figures);
                        return;
                    }
                    Err(why) => {
                        tracing::error!(
                            reason = why,
                            "kubelet's probes of ambient pods cannot be exempted; tried again"
                        );
                        *probes.missing.lock().unwrap_or_else(PoisonError::into_inner) = why;
                    }
                }
                drop(probes);
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        })?;
        Ok(probes)
    }

    /// Exempts these ports of the address and no others.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub(super) fn set(&self, ip: IpAddr, ports: &BTreeSet<u16>) -> Result<(), Failure> {
        let targets = ports.iter().map(|port| Target { address: ip.to_canonical(), port: *port });
        self.keeper()?.upsert(owner(ip), targets.collect()).map_err(|error| failed(&error))
    }

    /// Exempts nothing of the address.
    ///
    /// # Errors
    /// When the kernel still does.
    pub(super) fn clear(&self, ip: IpAddr) -> Result<(), Failure> {
        self.keeper()?.release(owner(ip)).map_err(|error| failed(&error))
    }

    /// Takes Istio's own exemption of any root process off the host, once ours hold; on
    /// a thread that tries again until that is done. Call it when every captured pod is
    /// exempted by ours.
    pub(super) fn take_over(self: &Arc<Self>) {
        let own = Arc::downgrade(self);
        let work = move || {
            let mut pause = FIRST_PAUSE;
            while let Some(probes) = own.upgrade() {
                let taken = probes
                    .keeper()
                    .and_then(|keeper| keeper.take_over().map_err(|error| failed(&error)));
                match taken {
                    Ok(removed) if removed.is_empty() => return,
                    Ok(removed) => {
                        tracing::info!(
                            removed = removed.join("; "),
                            "Istio's own rules for kubelet's probes were removed from the host"
                        );
                        return;
                    }
                    Err(failure) => tracing::warn!(
                        reason = %failure,
                        "Istio's own rules for kubelet's probes may be on the host and let any root process past ztunnel; tried again"
                    ),
                }
                drop(probes);
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_WAIT);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("take over".to_owned()).spawn(work) {
            tracing::error!(reason = %error, "no thread to remove Istio's rules from the host");
        }
    }

    /// How the host's rules are, seen now.
    ///
    /// # Errors
    /// When they are not there yet, or the kernel cannot be asked; the text is one line.
    pub(super) fn status(&self) -> Result<Status, String> {
        let keeper = self.keeper().map_err(|failure| failure.to_string())?;
        keeper.status().map_err(|error| causes(&error))
    }

    /// Takes the host's rules out, those of an earlier agent too.
    ///
    /// # Errors
    /// When something stays; the text is one line.
    pub(super) fn remove(&self, backend: &NodeBackend) -> Result<(), String> {
        // It would put them back. What it leaves is tried once more below.
        if let Some(Err(error)) = self.keeper.get().map(Keeper::remove) {
            tracing::warn!(reason = %causes(&error), "not all of the host's rules were removed at once");
        }
        let (host, _) = host()?;
        let tools = host_tools(backend, &host)?;
        let removed = within(&host, || sys::hostprobe::remove(tools.as_ref()));
        removed.map_err(|error| causes(&error))?.map_err(|errors| all(&errors))
    }

    fn keeper(&self) -> Result<&Keeper, Failure> {
        self.keeper.get().ok_or_else(|| {
            let why = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            Failure::Transient(why.clone())
        })
    }
}

/// Errors in one line.
fn all(errors: &[HostError]) -> String {
    errors.iter().map(|error| causes(error)).collect::<Vec<_>>().join("; ")
}

/// The machine decides whose an address is.
fn owner(ip: IpAddr) -> Owner {
    Owner { pod: ip.to_canonical().to_string(), sandbox: String::new() }
}

fn failed(error: &HostError) -> Failure {
    Failure::Transient(causes(error))
}

fn begin(
    backend: &NodeBackend,
    sources: Sources,
    branch: bool,
    found: &impl Fn(IpAddr),
) -> Result<(Keeper, Receiver<Event>), String> {
    let (netns, proc) = host()?;
    let programmer = backend.programmer()?;
    let (sender, events) = channel();
    let tools = host_tools(backend, &netns)?;
    let mut config = Config { sources, branch, ..Config::new(netns, proc, programmer.clone()) };
    config.tools = config.tools.or(tools);
    let keeper = Keeper::start(config, sender).map_err(|error| causes(&error))?;
    // With what it took over from an agent of the other dialect. Who kubelet is makes no
    // difference to the elements.
    let rules = HostRules { caller: Caller::Uid(0), sources };
    let seen = within(&host()?.0, || programmer.observe(&rules)).map_err(|error| causes(&error))?;
    let seen = seen.map_err(|error| causes(&error))?;
    let mut known: BTreeMap<IpAddr, BTreeSet<Target>> = BTreeMap::new();
    for target in seen.elements {
        known.entry(target.address).or_default().insert(target);
    }
    for (ip, targets) in known {
        keeper.upsert(owner(ip), targets).map_err(|error| causes(&error))?;
        found(ip);
    }
    // Each has an owner now: from here on the machine says what goes.
    keeper.complete().map_err(|error| causes(&error))?;
    Ok((keeper, events))
}

/// The host's network namespace, and its processes.
fn host() -> Result<(Netns, PathBuf), String> {
    let mounted = Path::new(HOST_PROC).join("1/ns/net");
    let (netns, proc) = if mounted.exists() {
        (Netns::open(&mounted), PathBuf::from(HOST_PROC))
    } else {
        (Netns::current(), PathBuf::from("/proc"))
    };
    netns.map(|netns| (netns, proc)).map_err(|error| causes(&error))
}

/// iptables, where the host may have chains of Istio's or of an earlier agent of ours.
fn host_tools(backend: &NodeBackend, host: &Netns) -> Result<Option<Arc<Iptables>>, String> {
    let needed = within(host, upstream::needs_tools).map_err(|error| causes(&error))?;
    if !needed.map_err(|error| causes(&error))? {
        return Ok(None);
    }
    match backend.tools() {
        Ok(tools) => Ok(Some(Arc::clone(tools))),
        // What is there is told by who takes over.
        Err(why) => {
            tracing::debug!(reason = why, "no iptables to look at the host's rules with");
            Ok(None)
        }
    }
}

/// Says what happens to the host's rules, until their keeper ends.
fn listen(events: &Receiver<Event>, figures: &Figures) {
    for event in events {
        match event {
            Event::Repaired { diff, elements, cause, after } => {
                figures.repaired("host-rules");
                tracing::error!(
                    drift = %diff.to_string().replace('\n', "; "),
                    elements,
                    cause = ?cause,
                    after_ms = after.as_millis(),
                    "the host's rules for kubelet's probes had been changed and were put right"
                );
            }
            Event::Pruned(count) => tracing::info!(
                count,
                "addresses that nobody has any more are not exempted any more"
            ),
            Event::Kubelet(kubelet) => {
                tracing::info!(kubelet = %kubelet, "kubelet's probes are known by this")
            }
            Event::Ahead(chains) if chains.is_empty() => {}
            Event::Ahead(chains) => tracing::warn!(
                chains = chains.join(", "),
                "rules of others come before ours and may take kubelet's probes"
            ),
            Event::Failed(error) => tracing::error!(
                reason = %causes(&error),
                "the host's rules for kubelet's probes cannot be kept; tried again"
            ),
            _ => {}
        }
    }
}
