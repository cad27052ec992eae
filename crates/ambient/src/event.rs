//! What the driver tells the machine.
//!
//! Rules for the driver:
//!
//! * Events are fed one at a time, from one place, in the order in which they were
//!   seen; the actions of one are performed (started) in order before the next is fed.
//! * Each action with a [`StepId`] has exactly one outcome, with that number, sooner or
//!   later: the driver bounds every step in time and says [`Failure`] when the bound is
//!   over or a thread died. An outcome that comes twice, or that nobody waits for any
//!   more, does no harm.
//! * Everything else may come at any time, late, twice or never.

use crate::id::{
    NetnsId, OptionsHash, PeerId, PodUid, RequestId, SandboxId, SessionId, StepId, TimerId,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A pod of this node is there or has changed, or what is wanted of it has changed
    /// (labels of its namespace, configuration). Every pod of the node is told, wanted
    /// or not; telling what is known already does nothing.
    Pod(PodState),
    /// The pod is deleted in the API (or is no longer on this node). Pods that have a
    /// record and are not in the first complete list need not be told.
    PodGone(PodUid),
    /// Before [`Event::Listed`]: a pod that has a record is listed, or may be, and nothing
    /// can be decided about it (yet): its object or its namespace cannot be read. It is
    /// kept as its record says until [`Event::Pod`] or [`Event::PodGone`].
    Doubtful(PodUid),
    /// The first complete list of pods was fed. Until then no ztunnel gets a snapshot,
    /// and nothing that was found at the start is taken for a leftover.
    Listed,

    /// At the start, before the first [`Event::Pod`]: a record says that the pod was
    /// captured in this namespace. Every record is told, that of a pod which is gone
    /// too: [`Action::Forget`](crate::action::Action::Forget) ends it.
    Recorded {
        /// Whose it is.
        uid: PodUid,
        /// What ztunnel was told about the pod, where the record has it.
        identity: Option<Identity>,
        /// Its sandbox.
        sandbox: Option<SandboxId>,
        /// Its namespace, of which the driver holds a descriptor. `None` when that
        /// could not be opened, is another one by now (the number was used again), or
        /// is not the pod's (the ownership check, where the pod is listed).
        netns: Option<NetnsId>,
        /// What must be in it by the record, until [`Event::Pod`] says what is wanted;
        /// `None` where its rules were being taken out.
        options: Option<OptionsHash>,
    },
    /// At the start: this address is exempted from capture for kubelet's probes. Kept
    /// until it is known to be nobody's.
    ProbeFound {
        /// The address in the set.
        ip: IpAddr,
    },

    /// The plugin asks for a pod's capture (CNI ADD). [`Event::Pod`] of that uid was
    /// fed before. Exactly one [`Action::Answer`](crate::action::Action::Answer)
    /// follows, now or later.
    Add {
        /// To be named in the answer.
        request: RequestId,
        /// The pod.
        uid: PodUid,
        /// The sandbox that is being made.
        sandbox: SandboxId,
        /// Its namespace, of which the driver holds a descriptor. Not the host's.
        netns: NetnsId,
        /// Addresses that the chain gave it (`prevResult`); they count until the pod's
        /// own status has some.
        ips: Vec<IpAddr>,
    },
    /// The request's time is nearly over, or nobody waits for it: it is answered now,
    /// with what it was waiting for. Its namespace stays captured.
    Expired(RequestId),
    /// The runtime took a sandbox down (CNI DEL, GC).
    SandboxGone {
        /// The sandbox. One that no pod is in is ignored.
        sandbox: SandboxId,
    },

    /// Outcome of [`Action::Find`](crate::action::Action::Find). With `Ok` the driver
    /// holds a descriptor of the namespace, which is not the host's and has an address
    /// of the pod.
    Found {
        /// Which search.
        step: StepId,
        /// The namespace; or why there is none (yet).
        result: Result<Place, Failure>,
    },
    /// Outcome of [`Action::Program`](crate::action::Action::Program): rules and
    /// routes were read back and proved by a connection. `Ok` says with which options,
    /// since the pod may have changed meanwhile.
    Programmed {
        /// Which step.
        step: StepId,
        /// What is in the namespace now.
        result: Result<OptionsHash, Failure>,
    },
    /// Outcome of [`Action::Unprogram`](crate::action::Action::Unprogram): nothing of
    /// ours is left in the namespace, and that was read back.
    Unprogrammed {
        /// Which step.
        step: StepId,
        /// Done, or why not.
        result: Result<(), Failure>,
    },
    /// Outcome of [`Action::SetProbe`](crate::action::Action::SetProbe) or
    /// [`Action::ClearProbe`](crate::action::Action::ClearProbe).
    ProbeDone {
        /// Which step.
        step: StepId,
        /// Done, or why not.
        result: Result<(), Failure>,
    },
    /// The whole set of exempted addresses was lost (host rules were flushed or made
    /// anew): every address is set again.
    ProbesLost,
    /// Outcome of [`Action::Annotate`](crate::action::Action::Annotate). A pod that is
    /// not there any more counts as done.
    Annotated {
        /// Which step.
        step: StepId,
        /// Done, or why not.
        result: Result<(), Failure>,
    },

    /// A ztunnel connected and said hello.
    Connected {
        /// The new session.
        session: SessionId,
        /// Which process it is.
        peer: PeerId,
    },
    /// A session's next response: they come in the order of what was sent.
    Response {
        /// Which session. One that is closed is ignored.
        session: SessionId,
        /// `None`, or ztunnel's words.
        error: Option<String>,
    },
    /// A session ended: end of file, an error of reading or of writing, a message that
    /// is not a response. After [`Action::Close`](crate::action::Action::Close) it may
    /// come or not.
    Disconnected(SessionId),

    /// The audit looked at a pod that
    /// [`Machine::audits`](crate::machine::Machine::audits) names.
    Audited {
        /// The pod.
        uid: PodUid,
        /// The namespace that was looked at; an audit of another than the pod's
        /// present one is ignored.
        netns: NetnsId,
        /// What was seen.
        verdict: Verdict,
    },
    /// A timer's delay is over. One that was cancelled or replaced does no harm.
    Timer(TimerId),
    /// All pods are to be un-enrolled and none enrolled any more, until the process
    /// ends. [`Action::Drained`](crate::action::Action::Drained) says when it is done.
    Drain,
}

/// A pod, as far as this machine cares. The driver makes it from the API's object and
/// from `redirect::enroll`; labels never come here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// Its uid.
    pub uid: PodUid,
    /// Who it is to ztunnel.
    pub identity: Identity,
    /// `status.podIPs` (else `podIP`); empty as long as it has none.
    pub ips: Vec<IpAddr>,
    /// Whether it is to be captured.
    pub wanted: Wanted,
    /// Its phase is `Succeeded` or `Failed`: no process runs, none will.
    pub terminal: bool,
    /// It has a `deletionTimestamp`: no new sandbox is to be expected.
    pub deleting: bool,
    /// TCP ports that kubelet's probes of it go to; empty when it has none.
    pub probe_ports: BTreeSet<u16>,
    /// `ambient.istio.io/redirection`, as the API has it. The driver must not feed one
    /// that is older than its own last successful write (it knows the write's
    /// `resourceVersion`): it would be written once more.
    pub annotation: Annotation,
}

/// Exactly what ztunnel looks a workload up by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
}

/// Whether a pod is to be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Yes, with these options.
    Ambient(OptionsHash),
    /// No (not labelled, excluded, host network, a sidecar).
    No,
}

/// The value of `ambient.istio.io/redirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Annotation {
    /// There is none.
    Absent,
    /// `pending`: rules are in, ztunnel has not accepted the pod.
    Pending,
    /// `enabled`: captured, by rules that were proved and a ztunnel that took it.
    Enabled,
    /// Something that nobody of ours wrote. Never to be written.
    Foreign,
}

/// Where a pod was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace.
    pub netns: NetnsId,
    /// Its sandbox, where that is known.
    pub sandbox: Option<SandboxId>,
}

/// What an audit saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Rules and routes are as they must be.
    Fine,
    /// They are not: they are programmed again.
    Broken {
        /// What is wrong, for people.
        drift: String,
    },
    /// The namespace is dead, or the pod's processes are not in it any more.
    Gone,
    /// The pod's processes are in another one, of which the driver holds a descriptor
    /// and which passed the ownership check.
    Elsewhere(Place),
    /// It could not be looked at.
    Unreadable(Failure),
}

/// Why a step was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// May work the next time.
    #[error("{0}")]
    Transient(String),
    /// Will not work before something changes, for instance an annotation's value: a
    /// request fails at once. A running pod is still tried again, slowly.
    #[error("{0}")]
    Refused(String),
    /// The namespace is dead.
    #[error("the network namespace is gone")]
    NamespaceGone,
}
