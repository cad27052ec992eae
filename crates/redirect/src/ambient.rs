//! Ambient pods: from annotations, the agent's options and what the pod's network
//! namespace has, to the plan of what goes to ztunnel (reference 4.1, 4.2).

use crate::annotation;
use crate::desired::Mark;
use crate::net::Interface;
use crate::pod::{Pod, parse_bool};
use crate::sidecar::PlanError;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Mark of everything that ztunnel itself sends (reference 4.1).
pub const ZTUNNEL_MARK: Mark = Mark::masked(0x539, 0xfff);
/// Mark of connections that ztunnel opened to the pod, and of their replies.
pub const REPLY_MARK: Mark = Mark::masked(0x111, 0xfff);
/// Routing table that delivers those replies to ztunnel.
pub const REPLY_TABLE: u32 = 100;
/// Priority of the ip rule that leads there.
pub const REPLY_PRIORITY: u32 = 32764;
/// Source addresses of kubelet's probes, once the host's rules have changed them.
pub use crate::host::{SOURCE_V4 as PROBE_V4, SOURCE_V6 as PROBE_V6};

/// What the agent is told once about ambient pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmbientConfig {
    /// Capture DNS unless the pod says otherwise (`AMBIENT_DNS_CAPTURE`).
    pub dns_capture: bool,
    /// Capture IPv6 where a pod has it (`AMBIENT_IPV6`).
    pub ipv6: bool,
    /// Source of probes (`HOST_PROBE_SNAT_IP`), [`PROBE_V4`].
    pub probe_v4: Ipv4Addr,
    /// Source of probes (`HOST_PROBE_SNAT_IPV6`), [`PROBE_V6`].
    pub probe_v6: Ipv6Addr,
}

impl Default for AmbientConfig {
    fn default() -> Self {
        Self { dns_capture: false, ipv6: true, probe_v4: PROBE_V4, probe_v6: PROBE_V6 }
    }
}

/// What IPv6 a network namespace has. A node may have it and a pod not, and the
/// other way round, so each namespace is asked (`sys::routing::ipv6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ipv6 {
    /// None: every interface has it switched off, or the kernel has none. Nothing of
    /// IPv6 is written.
    Absent,
    /// All but on `lo`. It is captured, so that nothing goes round ztunnel, and fails
    /// there: without `::1` nothing can be redirected, and the route of replies,
    /// which is on `lo`, is left out.
    NoLoopback,
    /// All of it.
    Present,
}

/// Ports on which the source address of probes is believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProbePorts {
    /// All, as Istio does.
    Any,
    /// Those that the pod declares probes for; none without.
    Only(Vec<u16>),
}

/// What of an ambient pod's traffic goes to ztunnel, which listens in the pod's own
/// network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmbientPlan {
    /// What IPv6 is captured; IPv4 always is.
    pub ipv6: Ipv6,
    /// Inbound connections are captured. An ingress gateway takes them itself
    /// (HBONE reaches ztunnel all the same).
    pub inbound: bool,
    /// DNS queries are captured.
    pub dns: bool,
    /// Interfaces of guests, whose connections are outbound ones of the pod.
    pub virtual_interfaces: Vec<Interface>,
    /// Source of probes, which reach the pod past ztunnel.
    pub probe_v4: Ipv4Addr,
    /// The same for IPv6.
    pub probe_v6: Ipv6Addr,
    /// Where they do.
    pub probe_ports: ProbePorts,
}

impl AmbientPlan {
    /// True when IPv6 packets are captured.
    #[must_use]
    pub fn captures_ipv6(&self) -> bool {
        self.ipv6 != Ipv6::Absent
    }
}

const WANT_BOOL: &str = "true or false";
const WANT_NICS: &str = "interface names separated by commas, each at most 15 characters: a letter, then letters, digits, '_', '.', '-', and at most one '*' at the end";

/// Makes the plan of a pod that is not running yet. Istio warns of a wrong value and
/// ignores it; nobody reads that, and the pod then runs otherwise than it says. Here
/// it does not start, and its event says why.
///
/// # Errors
///
/// [`PlanError::Annotation`] names the first annotation that is wrong.
pub fn plan(pod: &Pod, config: &AmbientConfig, ipv6: Ipv6) -> Result<AmbientPlan, PlanError> {
    let (plan, mut errors) = plan_running(pod, config, ipv6);
    if errors.is_empty() { Ok(plan) } else { Err(errors.remove(0)) }
}

/// Makes the plan of a pod that runs already, which nothing can refuse any more: to
/// leave it out would be to let its traffic pass. What is wrong counts as not said,
/// which captures no less, and is returned for a warning and an event.
#[must_use]
pub fn plan_running(
    pod: &Pod,
    config: &AmbientConfig,
    ipv6: Ipv6,
) -> (AmbientPlan, Vec<PlanError>) {
    let mut errors = Vec::new();
    let bypass = flag(pod, annotation::BYPASS_INBOUND_CAPTURE, &mut errors).unwrap_or(false);
    let dns = flag(pod, annotation::DNS_CAPTURE, &mut errors).unwrap_or(config.dns_capture);
    let plan = AmbientPlan {
        ipv6: if config.ipv6 { ipv6 } else { Ipv6::Absent },
        inbound: !bypass,
        dns,
        virtual_interfaces: interfaces(pod, &mut errors),
        probe_v4: config.probe_v4,
        probe_v6: config.probe_v6,
        probe_ports: ProbePorts::Any,
    };
    (plan, errors)
}

fn flag(pod: &Pod, key: &'static str, errors: &mut Vec<PlanError>) -> Option<bool> {
    let value = pod.annotation(key)?;
    let parsed = parse_bool(value);
    if parsed.is_none() {
        let problem = "no boolean".to_owned();
        let value = value.to_owned();
        errors.push(PlanError::Annotation { key, value, problem, want: WANT_BOOL });
    }
    parsed
}

/// Blanks around a name and empty items do not count (reference 4.2). An item that
/// no interface can be called stands for no rule.
fn interfaces(pod: &Pod, errors: &mut Vec<PlanError>) -> Vec<Interface> {
    let key = annotation::REROUTE_VIRTUAL_INTERFACES;
    let text = pod.annotation(key).unwrap_or_default();
    let mut all = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.parse::<Interface>() {
            Ok(nic) if all.contains(&nic) => (),
            Ok(nic) => all.push(nic),
            Err(problem) => errors.push(PlanError::Annotation {
                key,
                value: text.to_owned(),
                problem: problem.to_string(),
                want: WANT_NICS,
            }),
        }
    }
    all
}

#[cfg(test)]
mod tests;
