//! From a pod as a source has it to the facts that the state machine decides by.

use super::options::Options;
use crate::backend::rules_hash;
use crate::record::{AmbientFacts, Facts, PodKey, Record};
use crate::source::follow::Told;
use ambient::event::{Annotation, Identity, PodState, Wanted};
use ambient::id::{OptionsHash, PodUid};
use redirect::ambient::{AmbientPlan, Ipv6, ProbePorts, plan_running};
use redirect::enroll::{self, DecideError, decide};
use redirect::pod::{Namespace, Pod};
use redirect::sidecar::PlanError;
use std::sync::Arc;
use sys::backend::BackendKind;

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

/// What must be in the namespace of a pod by its record.
pub(crate) fn recorded_plan(record: &Record, options: &Options, ipv6: Ipv6) -> AmbientPlan {
    let (mut plan, _) = plan_running(&record.pod(), &options.capture, ipv6);
    let ports = record.ambient.as_ref().map(|facts| facts.probe_ports.clone());
    plan.probe_ports = ProbePorts::Only(ports.unwrap_or_default());
    plan
}

/// Equal hashes mean equal rules in the same namespace.
pub(super) fn hash(told: &Told, options: &Options) -> OptionsHash {
    digest(&plan(told, options, Ipv6::Present).0)
}

/// [`hash`] of a pod as its record has it.
pub(super) fn recorded_hash(record: &Record, options: &Options) -> OptionsHash {
    digest(&recorded_plan(record, options, Ipv6::Present))
}

fn digest(plan: &AmbientPlan) -> OptionsHash {
    OptionsHash(fnv(format!("{plan:?}").as_bytes()))
}

/// Who says what is wanted of a captured pod.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// The source.
    Told(Told),
    /// The record of an earlier agent, as long as the source says nothing.
    Recorded(Arc<Record>),
}

impl Subject {
    /// What the pod is known by.
    pub(super) fn uid(&self) -> String {
        match self {
            Self::Told(told) => told.uid(),
            Self::Recorded(record) => record.key(),
        }
    }

    /// Uids that its processes may have.
    pub(super) fn uids(&self) -> Vec<String> {
        match self {
            Self::Told(told) => told.uids(),
            Self::Recorded(record) => vec![record.key()],
        }
    }

    /// See [`hash`].
    pub(super) fn hash(&self, options: &Options) -> OptionsHash {
        match self {
            Self::Told(told) => hash(told, options),
            Self::Recorded(record) => recorded_hash(record, options),
        }
    }

    /// See [`plan`].
    pub(super) fn plan(&self, options: &Options, ipv6: Ipv6) -> (AmbientPlan, Vec<PlanError>) {
        match self {
            Self::Told(told) => plan(told, options, ipv6),
            // What is wrong with its annotations was said when it was written.
            Self::Recorded(record) => (recorded_plan(record, options, ipv6), Vec::new()),
        }
    }

    /// It was programmed otherwise than it would be now, by other settings or an older
    /// agent: that is no drift, and what is to become of it is decided once it is told of.
    pub(super) fn is_outdated(&self, options: &Options, backend: BackendKind) -> bool {
        let Self::Recorded(record) = self else { return false };
        let same = |ipv6| rules_hash(&recorded_plan(record, options, ipv6)) == record.rules;
        // What IPv6 the namespace has may have changed since.
        let is_known = [Ipv6::Present, Ipv6::NoLoopback, Ipv6::Absent].into_iter().any(same);
        !is_known || record.backend != backend.to_string()
    }

    /// The part of a record that is about the pod.
    pub(super) fn facts(&self) -> (PodKey, Facts, Option<AmbientFacts>) {
        match self {
            Self::Told(told) => {
                let Pod { namespace, name, uid, .. } = told.facts().clone();
                let facts = Facts::of(told.facts());
                (PodKey { namespace, name, uid }, facts, Some(AmbientFacts::of(told.workload())))
            }
            Self::Recorded(record) => {
                (record.pod.clone(), record.facts.clone(), record.ambient.clone())
            }
        }
    }
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
