//! What is known of one pod, and what is to become of it.

use super::retry::Retry;
use crate::action::{Cause, Standing};
use crate::event::{Annotation, Identity, PodState, Wanted};
use crate::id::{NetnsId, OptionsHash, PodUid, RequestId, SandboxId, StepId};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A pod.
#[derive(Debug)]
pub(super) struct Pod {
    /// As last told; `None` for one that only a record knows.
    pub(super) state: Option<PodState>,
    /// By the record.
    pub(super) recorded_as: Option<Identity>,
    /// What must be in its namespace by the record.
    pub(super) recorded_options: Option<OptionsHash>,
    /// Deleted.
    pub(super) gone: bool,
    /// Listed, or may be, and nothing can be decided about it: all is left as it is.
    pub(super) doubtful: bool,
    pub(super) place: Place,
    pub(super) rules: Rules,
    /// The search or kernel step under way.
    pub(super) step: Option<StepId>,
    pub(super) find: Retry,
    pub(super) program: Retry,
    /// ztunnel's refusals and silences.
    pub(super) accept: Retry,
    /// Audits that could not look; they come by themselves, so it has no timer.
    pub(super) audit: Retry,
    /// A proxy that a session had taken which is gone since: it keeps running.
    pub(super) held: Option<Proxy>,
    pub(super) marker: Marker,
    pub(super) requests: BTreeSet<RequestId>,
    /// A request failed since the pod was last whole.
    pub(super) refused: bool,
    /// Addresses that the chain gave, and those that the status had then.
    pub(super) chain_ips: Vec<IpAddr>,
    pub(super) former_ips: Vec<IpAddr>,
    /// What an audit found changed, until it was put right.
    pub(super) drift: Option<String>,
    /// Rules of an earlier agent may be in its namespace, which is not known.
    pub(super) maybe_rules: bool,
    /// The sandbox that these are in, where a record says it.
    pub(super) rules_in: Option<SandboxId>,
    /// Has a record, or may have one.
    pub(super) recorded: bool,
    /// Why it is not verified, while it is not.
    pub(super) cause: Cause,
    /// As last told.
    pub(super) standing: Standing,
    pub(super) enrolled: bool,
}

/// Where a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Not known yet.
    Unknown,
    /// There.
    At(Placed),
    /// It was in a namespace that is gone, or not its own any more. `down`: its
    /// sandbox was taken down in good order.
    Lost { down: bool },
}

/// A pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) netns: NetnsId,
    pub(super) sandbox: Option<SandboxId>,
    pub(super) by: By,
}

/// Who said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The plugin, whose request is not answered yet: no process runs.
    Request,
    /// The plugin, and the pod was let start.
    Started,
    /// A record of an earlier agent.
    Record,
    /// A search or an audit.
    Search,
}

/// What is in a pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// Nothing of ours.
    Absent,
    /// Not known: not looked at yet, or a step failed halfway.
    Unknown,
    /// Proved.
    Proved(OptionsHash),
}

/// A proxy that ztunnel runs for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub(super) identity: Identity,
    pub(super) netns: NetnsId,
}

/// The annotation.
#[derive(Debug)]
pub(super) struct Marker {
    /// As the API has it, as far as is known.
    pub(super) seen: Annotation,
    /// What the watch said while a write was under way.
    pub(super) meanwhile: Option<Annotation>,
    /// The write under way.
    pub(super) writing: Option<(StepId, Annotation)>,
    pub(super) retry: Retry,
}

/// What is to become of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Nothing is known but a record, by which it was being un-enrolled, or which does
    /// not say more.
    Wait,
    /// Nothing is known but a record: what it says stays in its namespace, and is put
    /// right. ztunnel is told nothing new of it.
    Keep(OptionsHash),
    /// Captured.
    In(OptionsHash),
    /// Runs on without capture.
    Leave,
    /// It has ended: its namespace dies by itself, with the rules in it. They are not
    /// taken out, so that whatever still runs there stays captured.
    Gone,
}

/// What a ztunnel is to have of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    Present(Proxy),
    Absent,
    /// Whatever it has: rules are in the namespace, or may be, and are not proved.
    AsIs,
}

impl Pod {
    pub(super) fn new() -> Self {
        Self {
            state: None,
            recorded_as: None,
            recorded_options: None,
            gone: false,
            doubtful: false,
            place: Place::Unknown,
            rules: Rules::Absent,
            step: None,
            find: Retry::default(),
            program: Retry::default(),
            accept: Retry::default(),
            audit: Retry::default(),
            held: None,
            marker: Marker {
                seen: Annotation::Absent,
                meanwhile: None,
                writing: None,
                retry: Retry::default(),
            },
            requests: BTreeSet::new(),
            refused: false,
            chain_ips: Vec::new(),
            former_ips: Vec::new(),
            drift: None,
            maybe_rules: false,
            rules_in: None,
            recorded: false,
            cause: Cause::New,
            standing: Standing::Outside,
            enrolled: false,
        }
    }

    pub(super) fn goal(&self, draining: bool) -> Goal {
        if self.gone {
            return Goal::Gone;
        }
        match &self.state {
            None => match self.recorded_options {
                Some(options) if !draining => Goal::Keep(options),
                _ => Goal::Wait,
            },
            Some(state) if state.terminal => Goal::Gone,
            Some(_) if draining => Goal::Leave,
            Some(state) => match state.wanted {
                Wanted::Ambient(options) => Goal::In(options),
                Wanted::No => Goal::Leave,
            },
        }
    }

    pub(super) fn placed(&self) -> Option<&Placed> {
        match &self.place {
            Place::At(placed) => Some(placed),
            Place::Unknown | Place::Lost { .. } => None,
        }
    }

    pub(super) fn netns(&self) -> Option<NetnsId> {
        self.placed().map(|p| p.netns)
    }

    /// The pod's addresses. Those of the status may be of a former sandbox: until they
    /// change, the chain's count.
    pub(super) fn ips(&self) -> &[IpAddr] {
        let told = self.state.as_ref().map_or(&[][..], |s| &s.ips);
        let stale = told.is_empty() || told == self.former_ips;
        if stale && !self.chain_ips.is_empty() { &self.chain_ips } else { told }
    }

    /// Who it is, as far as is known.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.state.as_ref().map(|s| &s.identity).or(self.recorded_as.as_ref())
    }

    /// The proxy that ztunnel should run for it where it is now.
    pub(super) fn proxy(&self) -> Option<Proxy> {
        let identity = self.state.as_ref()?.identity.clone();
        Some(Proxy { identity, netns: self.netns()? })
    }

    /// It is not in its namespace any more: nothing that was known of it there holds.
    pub(super) fn lose(&mut self, down: bool) {
        self.place = Place::Lost { down };
        self.rules = Rules::Absent;
        self.held = None;
        self.drift = None;
        self.chain_ips.clear();
        self.former_ips.clear();
    }

    /// What ztunnel is to have of it.
    pub(super) fn want(&self, goal: Goal) -> Want {
        match (goal, &self.place, self.rules) {
            (Goal::Gone, _, _) | (Goal::In(_) | Goal::Leave, Place::Lost { .. }, _) => Want::Absent,
            (Goal::In(_), Place::At(_), Rules::Proved(_)) => {
                self.proxy().map_or(Want::AsIs, Want::Present)
            }
            (Goal::Leave, Place::At(_), Rules::Absent) => Want::Absent,
            (Goal::Leave, Place::Unknown, _) if !self.hides_rules() => Want::Absent,
            (Goal::Wait | Goal::Keep(_) | Goal::In(_) | Goal::Leave, _, _) => Want::AsIs,
        }
    }

    /// It runs, and its namespace, which is not known, may have rules in it.
    pub(super) fn hides_rules(&self) -> bool {
        self.maybe_rules && !self.ips().is_empty()
    }

    pub(super) fn deleting(&self) -> bool {
        self.state.as_ref().is_some_and(|s| s.deleting)
    }

    /// Its place was tried, so that a first snapshot need not wait for it.
    pub(super) fn tried(&self, goal: Goal) -> bool {
        let Goal::In(options) = goal else { return true };
        match self.place {
            Place::At(_) => self.rules == Rules::Proved(options) || self.program.failures() > 0,
            Place::Unknown => self.find.failures() > 0 || self.ips().is_empty(),
            Place::Lost { .. } => true,
        }
    }
}

/// Pods by uid.
pub(super) type Pods = std::collections::BTreeMap<PodUid, Pod>;
