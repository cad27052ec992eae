//! From a pod as a source has it to the facts that the state machine decides by.

use super::options::Options;
use crate::source::follow::Told;
use ambient::event::{Annotation, Identity, PodState, Wanted};
use ambient::id::{OptionsHash, PodUid};
use redirect::ambient::{AmbientPlan, Ipv6, ProbePorts, plan_running};
use redirect::enroll::{self, DecideError, decide};
use redirect::pod::{Namespace, Pod};
use redirect::sidecar::PlanError;

/// The annotation that istiod and istioctl read (reference 4.14).
pub(super) const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Label by which ztunnel's own pods are known, in the system namespace.
const ZTUNNEL: (&str, &str) = ("app", "ztunnel");

/// Whether a pod is to be captured.
///
/// # Errors
/// When its namespace is not known and would decide.
pub(super) fn wanted(
    told: &Told,
    namespace: Option<&Namespace>,
    policy: &enroll::Config,
    options: &Options,
) -> Result<Wanted, DecideError> {
    let pod = told.facts();
    if is_ztunnel(pod, options) {
        return Ok(Wanted::No);
    }
    Ok(match decide(pod, namespace, policy)? {
        enroll::Decision::Ambient => Wanted::Ambient(hash(told, options)),
        enroll::Decision::Sidecar | enroll::Decision::Skip(_) => Wanted::No,
    })
}

/// ztunnel's own traffic cannot go through ztunnel.
pub(super) fn is_ztunnel(pod: &Pod, options: &Options) -> bool {
    pod.namespace == options.system_namespace
        && pod.labels.get(ZTUNNEL.0).is_some_and(|value| value == ZTUNNEL.1)
}

/// What of its traffic is captured, and what is wrong with its annotations.
pub(super) fn plan(told: &Told, options: &Options, ipv6: Ipv6) -> (AmbientPlan, Vec<PlanError>) {
    let (mut plan, errors) = plan_running(told.facts(), &options.capture, ipv6);
    plan.probe_ports = ProbePorts::Only(told.workload().probe_ports.to_vec());
    (plan, errors)
}

/// [`plan`] of facts that were written down.
pub(super) fn plan_of(
    pod: &Pod,
    probe_ports: Vec<u16>,
    options: &Options,
    ipv6: Ipv6,
) -> AmbientPlan {
    let (mut plan, _) = plan_running(pod, &options.capture, ipv6);
    plan.probe_ports = ProbePorts::Only(probe_ports);
    plan
}

/// Equal hashes mean equal rules in the same namespace.
pub(super) fn hash(told: &Told, options: &Options) -> OptionsHash {
    let (plan, _) = plan(told, options, Ipv6::Present);
    OptionsHash(fnv(format!("{plan:?}").as_bytes()))
}

/// FNV-1a, the same in every build.
fn fnv(bytes: &[u8]) -> u64 {
    let begin: u64 = 0xcbf2_9ce4_8422_2325;
    bytes.iter().fold(begin, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Who it is to ztunnel.
pub(super) fn identity(told: &Told) -> Identity {
    let pod = told.facts();
    Identity {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: told.workload().service_account.to_string(),
    }
}

/// The value that the annotation has.
pub(super) fn annotation(pod: &Pod) -> Annotation {
    match pod.annotation(REDIRECTION) {
        None => Annotation::Absent,
        Some("pending") => Annotation::Pending,
        Some("enabled") => Annotation::Enabled,
        Some(_) => Annotation::Foreign,
    }
}

/// The text of a value that is to be written; `None` to take it away.
pub(super) fn text(value: Annotation) -> Option<&'static str> {
    match value {
        Annotation::Absent | Annotation::Foreign => None,
        Annotation::Pending => Some("pending"),
        Annotation::Enabled => Some("enabled"),
    }
}

/// The pod as the machine is told of it.
pub(super) fn state(told: &Told, wanted: Wanted, annotation: Annotation) -> PodState {
    let status = told.status();
    PodState {
        uid: PodUid::new(&told.uid()),
        identity: identity(told),
        ips: status.map_or_else(Vec::new, |s| {
            s.addresses.iter().map(std::net::IpAddr::to_canonical).collect()
        }),
        wanted,
        terminal: status.is_some_and(|s| s.over),
        deleting: status.is_some_and(|s| s.deleting),
        probe_ports: told.workload().probe_ports.iter().copied().collect(),
        annotation,
    }
}
