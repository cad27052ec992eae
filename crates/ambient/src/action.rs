//! What the machine asks of the driver.
//!
//! Rules for the driver:
//!
//! * Actions are started in the order given and never wait for each other, but for
//!   two: messages of one session go out in order, and steps in one namespace (or for
//!   one address, or one pod's annotation) that were asked for one after the other
//!   must not overtake each other. The machine asks for the second only when the
//!   first is done, unless the first belongs to a pod or namespace that it gave up.
//! * A step keeps its own descriptor: [`Action::Release`] may come while it runs.
//! * A step that cannot be started (thread, descriptor, process limits) is one that
//!   failed: its event comes all the same.

use crate::event::{Annotation, Failure, Identity};
use crate::id::{NetnsId, OptionsHash, PodUid, RequestId, SandboxId, SessionId, StepId, TimerId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look for a running pod's namespace (record, then /proc), with the ownership
    /// check on every path. Comes back as [`Event::Found`](crate::event::Event::Found).
    Find {
        /// To be named in the event.
        step: StepId,
        /// The pod.
        uid: PodUid,
    },
    /// Write the record, then make the namespace's rules and routes what the pod's
    /// options say (observe, compare, write once), and prove them by a connection. The
    /// record comes first: an agent that is killed in between must find the namespace
    /// again. Comes back as [`Event::Programmed`](crate::event::Event::Programmed).
    Program {
        /// To be named in the event.
        step: StepId,
        /// The pod.
        uid: PodUid,
        /// Where.
        netns: NetnsId,
        /// The options wanted. If the driver's view has moved on, it may program those
        /// and say so in the event. Of a pod that was not told of yet, what its record
        /// says.
        options: OptionsHash,
    },
    /// Take everything of ours (and of Istio's ambient form) out of the namespace, and
    /// read back that it is out. The record says so first: an agent that is killed and
    /// comes back without a list of pods must not put it in again. Comes back as
    /// [`Event::Unprogrammed`](crate::event::Event::Unprogrammed); a dead namespace
    /// counts as done, by [`Failure::NamespaceGone`] or by `Ok`.
    Unprogram {
        /// To be named in the event.
        step: StepId,
        /// The pod.
        uid: PodUid,
        /// Where.
        netns: NetnsId,
    },
    /// The machine names this namespace no more: close the descriptor. It may be named
    /// again only by an event of the driver's that brings it anew.
    Release(NetnsId),
    /// Nothing of the pod is left anywhere: remove its record. A [`Action::Program`] of
    /// it that was given up may be under way: from now on it writes none.
    Forget(PodUid),

    /// Send a message to a ztunnel. What cannot be written ends the session:
    /// [`Event::Disconnected`](crate::event::Event::Disconnected). Never blocks the
    /// machine; at most [`Config::window`](crate::config::Config::window) messages of
    /// one session wait for their response.
    Send {
        /// To whom.
        session: SessionId,
        /// What.
        message: Message,
    },
    /// Close the connection, so that ztunnel connects again and gets a new snapshot.
    /// Accepting is rate-limited by the driver. The machine has forgotten the session:
    /// responses that are still in it are not to be told, or do no harm.
    Close(SessionId),

    /// Exempt kubelet's probes of these ports of this address; replaces whatever the
    /// set has for the address. Comes back as
    /// [`Event::ProbeDone`](crate::event::Event::ProbeDone).
    SetProbe {
        /// To be named in the event.
        step: StepId,
        /// The pod's address.
        ip: IpAddr,
        /// Ports, at least one.
        ports: BTreeSet<u16>,
        /// Whose it is now.
        owner: ProbeOwner,
    },
    /// Take the address out of the set. Comes back as
    /// [`Event::ProbeDone`](crate::event::Event::ProbeDone); not there counts as done.
    ClearProbe {
        /// To be named in the event.
        step: StepId,
        /// The address.
        ip: IpAddr,
    },

    /// Write the pod's annotation (merge patch of `pods/status` with the uid as
    /// precondition; null for [`Annotation::Absent`]). Comes back as
    /// [`Event::Annotated`](crate::event::Event::Annotated).
    Annotate {
        /// To be named in the event.
        step: StepId,
        /// The pod.
        uid: PodUid,
        /// Its value from now on; never [`Annotation::Foreign`].
        value: Annotation,
    },

    /// Answer the plugin. Exactly one for each request.
    Answer {
        /// Which request.
        request: RequestId,
        /// Captured, or why not.
        result: Result<(), Refusal>,
    },

    /// Feed [`Event::Timer`](crate::event::Event::Timer) once, after this delay; the
    /// driver adds up to a fifth of it by chance where
    /// `jitter` says so.
    Timer {
        /// To be named in the event.
        timer: TimerId,
        /// From now.
        delay: Duration,
        /// A retry: many of them must not come at the same moment.
        jitter: bool,
    },
    /// The timer is not needed any more. Its event does no harm.
    Cancel(TimerId),

    /// What is known of a pod's capture has changed. The driver stamps the time, and
    /// counts pods that are not verified and seconds for which traffic could escape.
    /// A pod that was never told stands [`Standing::Outside`].
    Standing {
        /// The pod.
        uid: PodUid,
        /// From now on.
        standing: Standing,
    },
    /// Tell people: log, Event on the pod, metric, pod condition.
    Report {
        /// The pod, if it is about one. It may be one that is gone.
        uid: Option<PodUid>,
        /// What happened.
        report: Report,
    },
    /// [`Event::Drain`](crate::event::Event::Drain) is done: nothing of any pod is
    /// left. Said once; pods that change later are still not enrolled.
    Drained,
}

/// A message to ztunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// `AddWorkload`, with the namespace's descriptor in the same packet (`O_RDONLY`,
    /// exactly one). Where the record names another identity, it is changed first: after
    /// a restart it tells what ztunnel may run. An outcome of the driver's for a descriptor that it has not is
    /// [`Event::Disconnected`](crate::event::Event::Disconnected).
    Add {
        /// ztunnel's key.
        uid: PodUid,
        /// `WorkloadInfo`, always present.
        identity: Identity,
        /// The namespace.
        netns: NetnsId,
    },
    /// `KeepWorkload`.
    Keep(PodUid),
    /// `DelWorkload`.
    Del(PodUid),
    /// `SnapshotSent`.
    SnapshotSent,
}

/// Who an exempted address belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeOwner {
    /// The pod.
    pub uid: PodUid,
    /// Its sandbox, where known.
    pub sandbox: Option<SandboxId>,
}

/// Why a request failed. The text is for the pod's event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// [`Event::Pod`](crate::event::Event::Pod) was never fed for it, or it is deleted.
    #[error("the pod is not known, or deleted by now")]
    Unknown,
    /// It is not to be captured (any more): the driver decides anew.
    #[error("the pod is not to be captured any more")]
    Unwanted,
    /// Its phase is terminal.
    #[error("the pod has ended")]
    Ended,
    /// The node is being drained.
    #[error("ambient capture is being drained from this node")]
    Draining,
    /// A later request brought another sandbox of the same pod.
    #[error("a newer sandbox of the pod, {0}, has taken its place")]
    Superseded(SandboxId),
    /// The sandbox was taken down, or its namespace died, or it turned out to be
    /// another pod's.
    #[error("the sandbox was taken down meanwhile")]
    SandboxGone,
    /// The step failed in a way that does not get better by itself.
    #[error("{stage}: {failure}")]
    Failed {
        /// Which step.
        stage: Stage,
        /// Why.
        failure: Failure,
    },
    /// Time was over.
    #[error("not done in time: waiting for {stage}{}", last.as_deref().map(|l| format!(", last error: {l}")).unwrap_or_default())]
    Late {
        /// What it was waiting for.
        stage: Stage,
        /// The last error of that stage, if it had one.
        last: Option<String>,
    },
}

/// A part of enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The first list of pods, and so the first snapshot.
    Listing,
    /// Finding the namespace.
    Namespace,
    /// Rules, routes and their proof; or taking them out.
    Rules,
    /// A ztunnel being connected at all.
    Connection,
    /// ztunnel's ack.
    Ztunnel,
    /// The probe exemption.
    Probes,
    /// The annotation.
    Annotation,
}

impl Stage {
    /// A stable word for programs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Listing => "listing",
            Self::Namespace => "namespace",
            Self::Rules => "rules",
            Self::Connection => "connection",
            Self::Ztunnel => "ztunnel",
            Self::Probes => "probes",
            Self::Annotation => "annotation",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Listing => "the list of pods",
            Self::Namespace => "the network namespace",
            Self::Rules => "rules and their proof",
            Self::Connection => "a ztunnel to connect",
            Self::Ztunnel => "ztunnel's ack",
            Self::Probes => "the exemption of kubelet's probes",
            Self::Annotation => "the annotation",
        })
    }
}

/// What is known of a pod's capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Not to be captured.
    Outside,
    /// Rules proved, and a ztunnel has it.
    Verified,
    /// Not known to be so. Nothing escapes as far as is known: the pod is starting, or
    /// its rules are in and ztunnel has not taken it, or nobody has looked yet.
    Unverified(Cause),
    /// It runs, and its traffic can pass the mesh by.
    Exposed(Cause),
}

/// Why a pod is not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// It is new, newly wanted, or the agent has just started.
    New,
    /// Its namespace was not found.
    NotFound,
    /// Its namespace died.
    NamespaceGone,
    /// Rules could not be programmed or proved.
    NotProgrammed,
    /// The audit found its rules changed.
    Drifted,
    /// The audit could not look.
    Unreadable,
    /// No ztunnel has taken it.
    NotAccepted,
}

impl Cause {
    /// A stable word for metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::NotFound => "namespace-not-found",
            Self::NamespaceGone => "namespace-gone",
            Self::NotProgrammed => "not-programmed",
            Self::Drifted => "drifted",
            Self::Unreadable => "unreadable",
            Self::NotAccepted => "not-accepted",
        }
    }
}

/// Something that people should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// All is in place: rules, ack, probes.
    Enrolled,
    /// Nothing of it is left, although the pod runs on.
    Unenrolled,
    /// A step has failed this often in a row. It is still tried, ever more slowly;
    /// said again each time the number doubles.
    Stuck {
        /// Which step.
        stage: Stage,
        /// How often.
        failures: u32,
        /// The last error.
        error: String,
    },
    /// What was stuck works again.
    Recovered(Stage),
    /// What [`Report::Drifted`] told of was put right, and proved. Traffic may have
    /// escaped meanwhile.
    Repaired {
        /// What had drifted.
        drift: String,
    },
    /// The audit found rules changed; they are being programmed again.
    Drifted {
        /// What is wrong.
        drift: String,
    },
    /// The pod is in another namespace than it was, and nobody had said so.
    Moved {
        /// The former namespace.
        from: NetnsId,
        /// The present one; `None` while it is looked for.
        to: Option<NetnsId>,
    },
    /// A search or audit says that the pod is in a namespace that is another pod's. Not
    /// believed; tried again.
    Conflict {
        /// The namespace.
        netns: NetnsId,
        /// Whose it is.
        owner: PodUid,
    },
    /// A pod that runs is to be left alone, and its namespace, which may have rules in
    /// it, has not been found this often in a row. ztunnel goes on serving it, and it is
    /// looked for as long as it runs; said again each time the number doubles.
    RulesMayRemain {
        /// How often.
        failures: u32,
        /// The last error.
        error: String,
    },
    /// ztunnel did not answer in time. The session was closed.
    Silent {
        /// Which.
        session: SessionId,
    },
    /// No ztunnel has been connected for
    /// [`Config::ztunnel_grace`](crate::config::Config::ztunnel_grace).
    NoZtunnel,
    /// A ztunnel is back after [`Report::NoZtunnel`].
    ZtunnelBack,
    /// ztunnel refused the end of the snapshot. The session was closed.
    SnapshotRefused {
        /// Which.
        session: SessionId,
        /// ztunnel's words.
        error: String,
    },
    /// A session answered what was not asked. It was closed.
    Unasked {
        /// Which.
        session: SessionId,
    },
}
