//! The thread itself: it lives in the host's network namespace and owns all state,
//! who wants which element and who kubelet is. Requests and repairs are done one
//! after the other, so nothing is written twice.
//!
//! After a notification it looks once, not at once but after [`SETTLE`], and between
//! two repairs it waits, longer each time and never more than [`LONGEST_GAP`]: a
//! flush in a loop costs a repair or two a second.

use super::{Cause, Command, Config, Event, Status};
use crate::hostprobe::kubelet::mounts;
use crate::hostprobe::nft::Line;
use crate::hostprobe::watch::{Directory, Notifications};
use crate::hostprobe::{
    Caller, HostError, HostRules, Kubelet, Observed, ProbeSet, Programmer, Sources, Target, branch,
    trial, upstream,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use redirect::host::Change;
use redirect::net::Family;
use std::collections::BTreeSet;
use std::io::{PipeReader, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

/// From a notification to the look at the rules: time for a transaction's others.
const SETTLE: Duration = Duration::from_millis(20);
const SHORTEST_GAP: Duration = Duration::from_millis(50);
/// With [`SETTLE`] and the repair itself below a second.
const LONGEST_GAP: Duration = Duration::from_millis(800);
/// Without a repair for this long, the next comes after the shortest gap again.
const QUIET: Duration = Duration::from_secs(10);
/// How often ipsets and the legacy tables are looked at, of which the kernel
/// notifies nobody.
const RECHECK: Duration = Duration::from_secs(5);

/// What the thread knows.
pub(super) struct State<'a> {
    pub(super) config: &'a Config,
    pub(super) events: Sender<Event>,
    pub(super) sources: Sources,
    pub(super) mounts: Vec<PathBuf>,
    pub(super) level_offset: Result<u8, String>,
    /// Why the host's cgroup namespace could not be entered.
    pub(super) namespace: Option<String>,
    pub(super) kubelet: Kubelet,
    /// Looks in a row that found kubelet in no cgroup of its own any more.
    pub(super) doubts: u8,
    /// When it is looked for again before the audit.
    pub(super) look_again: Option<Instant>,
    /// Where kubelet's cgroup is made again when kubelet starts again.
    pub(super) parent: Option<(PathBuf, Directory)>,
    pub(super) set: ProbeSet,
    pub(super) line: Line,
    pub(super) notifications: Notifications,
    pub(super) ahead: Vec<String>,
    pub(super) repairs: u64,
    pub(super) repaired_at: Option<Instant>,
    pub(super) gap: Duration,
    /// A notification that was not looked after yet.
    pub(super) dirty: Option<Instant>,
    pub(super) next_audit: Instant,
    pub(super) next_recheck: Instant,
}

impl<'a> State<'a> {
    pub(super) fn begin(
        config: &'a Config,
        events: Sender<Event>,
        namespace: Result<(), HostError>,
    ) -> Result<Self, HostError> {
        trial::dialect(&config.programmer)?;
        let mounts = mounts(&config.proc);
        let level_offset = match config.cgroups {
            true => trial::cgroups(&config.programmer, &mounts),
            false => Err("it is switched off".to_owned()),
        };
        // It matters only where kubelet is outside of ours, and then it is the reason.
        let namespace = namespace.err().map(|error| trial::said(&error));
        let mut sources = config.sources;
        let no_tool =
            |tools: &Arc<crate::iptables::Iptables>| tools.host_tools(Family::V6).is_empty();
        let tools = match &config.programmer {
            Programmer::Iptables(tools) => Some(tools),
            Programmer::Nftables => None,
        };
        // A host without IPv6 has no IPv6 probes; a host is not asked for more than
        // that (istio/istio#57869).
        if !Path::new("/proc/sys/net/ipv6").exists() || tools.is_some_and(no_tool) {
            sources.v6 = None;
        }
        let now = Instant::now();
        let mut state = Self {
            config,
            events,
            sources,
            mounts,
            level_offset,
            namespace,
            kubelet: Kubelet { caller: Caller::Uid(0), process: None, why: None },
            doubts: 0,
            look_again: None,
            parent: None,
            set: ProbeSet::default(),
            line: Line::default(),
            // Before the first look: what changes after it is heard.
            notifications: Notifications::subscribe()?,
            ahead: Vec::new(),
            repairs: 0,
            repaired_at: None,
            gap: SHORTEST_GAP,
            dirty: None,
            next_audit: now + config.audit,
            next_recheck: now + RECHECK,
        };
        state.kubelet = state.find_kubelet()?;
        state.watch_parent();
        state.tell(Event::Kubelet(state.kubelet.clone()));
        state.check(Cause::Start, now)?;
        state.adopt()?;
        Ok(state)
    }

    /// Takes over what an agent with the other dialect left: its elements, then its
    /// rules go.
    fn adopt(&mut self) -> Result<(), HostError> {
        let other = match (&self.config.programmer, &self.config.tools) {
            (Programmer::Iptables(_), _) => Programmer::Nftables,
            (Programmer::Nftables, Some(tools)) => Programmer::Iptables(Arc::clone(tools)),
            (Programmer::Nftables, None) => return Ok(()),
        };
        let rules = self.rules();
        // A kernel without the other dialect has nothing of it.
        let Ok(Observed { present, elements, .. }) = other.observe(&rules) else { return Ok(()) };
        if !present && elements.is_empty() {
            return Ok(());
        }
        self.update(&rules, &Change { add: elements, remove: BTreeSet::new() })?;
        if let Err(errors) = other.remove() {
            errors.into_iter().for_each(|error| self.tell(Event::Failed(error)));
        }
        Ok(())
    }

    pub(super) fn tell(&self, event: Event) {
        // Nobody listens.
        let _ = self.events.send(event);
    }

    pub(super) fn rules(&self) -> HostRules {
        HostRules { caller: self.kubelet.caller.clone(), sources: self.sources }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Command>, mut ears: PipeReader) {
        loop {
            let (rung, notified, moved) = self.wait(&ears);
            if rung {
                // One read for many rings: the inbox is emptied below.
                let _ = ears.read(&mut [0; 4096]);
            }
            if notified && self.notifications.concern_us(self.line.port()) {
                self.dirty.get_or_insert_with(Instant::now);
            }
            if moved {
                self.cgroup_moved();
            }
            while let Ok(command) = inbox.try_recv() {
                if let Command::Stop { remove, reply } = command {
                    let removed = if remove { self.remove() } else { Ok(()) };
                    let _ = reply.send(removed);
                    return;
                }
                self.obey(command);
            }
            self.work();
        }
    }

    /// Waits for something to do: the bell, the kernel, kubelet's cgroup.
    fn wait(&self, ears: &PipeReader) -> (bool, bool, bool) {
        let due = self.due().saturating_duration_since(Instant::now());
        // Up, so that it is time after it.
        let millis = u16::try_from(due.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = vec![
            PollFd::new(ears.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.notifications.as_fd(), PollFlags::POLLIN),
        ];
        if let Some((_, directory)) = &self.parent {
            fds.push(PollFd::new(directory.as_fd(), PollFlags::POLLIN));
        }
        if poll(&mut fds, PollTimeout::from(millis)).is_err() {
            return (true, true, self.parent.is_some());
        }
        let ready = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
        (ready(0), ready(1), ready(2))
    }

    /// When there is something to do by itself.
    fn due(&self) -> Instant {
        let mut due = self.look_again.map_or(self.next_audit, |at| at.min(self.next_audit));
        if matches!(self.config.programmer, Programmer::Iptables(_)) {
            due = due.min(self.next_recheck);
        }
        match self.check_at() {
            Some(at) => due.min(at),
            None => due,
        }
    }

    /// When a notification is looked after.
    fn check_at(&self) -> Option<Instant> {
        let settled = self.dirty? + SETTLE;
        Some(self.repaired_at.map_or(settled, |at| settled.max(at + self.gap)))
    }

    fn work(&mut self) {
        let now = Instant::now();
        if self.look_again.is_some_and(|at| now >= at) {
            self.refresh_kubelet();
        }
        let iptables = matches!(self.config.programmer, Programmer::Iptables(_));
        let (cause, since) = match self.dirty {
            _ if now >= self.next_audit => (Cause::Audit, now),
            Some(since) if self.check_at().is_some_and(|at| now >= at) => {
                (Cause::Notification, since)
            }
            _ if iptables && now >= self.next_recheck => (Cause::Audit, now),
            _ => return,
        };
        self.next_recheck = now + RECHECK;
        if now >= self.next_audit {
            self.next_audit = now + self.config.audit;
            self.refresh_kubelet();
            self.branch();
        }
        self.dirty = None;
        if let Err(error) = self.check(cause, since) {
            self.tell(Event::Failed(error));
            // Again, and not at once.
            self.slow_down(now);
            self.dirty = Some(now);
        }
    }

    fn slow_down(&mut self, now: Instant) {
        let quiet = self.repaired_at.is_none_or(|at| now.duration_since(at) > QUIET);
        self.gap = if quiet { SHORTEST_GAP } else { (self.gap * 2).min(LONGEST_GAP) };
        self.repaired_at = Some(now);
    }

    /// Looks at the kernel and writes what is missing.
    fn check(&mut self, cause: Cause, since: Instant) -> Result<(), HostError> {
        let rules = self.rules();
        let Observed { present, diff, elements, ahead, .. } =
            self.config.programmer.observe(&rules)?;
        let change = self.set.reconcile(&elements);
        let holds = diff.is_empty() && (change.is_empty() || self.update(&rules, &change)?);
        if !holds {
            self.install(&rules, &elements, &change)?;
        }
        if ahead != self.ahead {
            self.ahead.clone_from(&ahead);
            self.tell(Event::Ahead(ahead));
        }
        if !change.remove.is_empty() {
            self.tell(Event::Pruned(change.remove.len()));
        }
        let first = cause == Cause::Start && !present;
        if !first && (!diff.is_empty() || !change.add.is_empty()) {
            self.repairs += 1;
            self.slow_down(Instant::now());
            let elements = change.add.len();
            self.tell(Event::Repaired { diff, elements, cause, after: since.elapsed() });
        }
        Ok(())
    }

    fn update(&mut self, rules: &HostRules, change: &Change) -> Result<bool, HostError> {
        self.config.programmer.update_over(&mut self.line, rules, change)
    }

    pub(super) fn install(
        &self,
        rules: &HostRules,
        there: &BTreeSet<Target>,
        change: &Change,
    ) -> Result<(), HostError> {
        let kept = there.difference(&change.remove).copied();
        self.config.programmer.install(rules, &kept.chain(self.set.wanted()).collect())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Upsert(owner, targets, reply) => {
                let change = self.set.upsert(owner, targets);
                let _ = reply.send(self.change(&change));
            }
            Command::Release(owner, reply) => {
                let change = self.set.release(&owner);
                let _ = reply.send(self.change(&change));
            }
            Command::ReleasePod(pod, reply) => {
                let change = self.set.release_pod(&pod);
                let _ = reply.send(self.change(&change));
            }
            Command::Complete(reply) => {
                self.set.complete();
                let checked = self.check(Cause::Request, Instant::now());
                self.branch();
                let _ = reply.send(checked);
            }
            Command::TakeOver(reply) => drop(reply.send(self.take_over())),
            Command::Status(reply) => drop(reply.send(self.status())),
            // Its caller ends the loop.
            Command::Stop { reply, .. } => drop(reply.send(Ok(()))),
        }
    }

    fn change(&mut self, change: &Change) -> Result<(), HostError> {
        if !self.update(&self.rules(), change)? {
            self.check(Cause::Request, Instant::now())?;
        }
        let added: BTreeSet<IpAddr> = change.add.iter().map(|target| target.address).collect();
        let removed = change.remove.iter().map(|target| target.address);
        let still = |address: &IpAddr| self.set.wanted().any(|target| target.address == *address);
        let removed: BTreeSet<IpAddr> = removed.filter(|address| !still(address)).collect();
        if self.config.branch && (!added.is_empty() || !removed.is_empty()) {
            branch::ensure(&added)?;
            branch::release(&removed)?;
        }
        Ok(())
    }

    /// Policy rules of branch interfaces, all of them.
    fn branch(&self) {
        if !self.config.branch {
            return;
        }
        let addresses = self.set.wanted().map(|target| target.address).collect();
        let done = match self.set.is_complete() {
            true => branch::reconcile(&addresses),
            false => branch::ensure(&addresses),
        };
        if let Err(error) = done {
            self.tell(Event::Failed(error));
        }
    }

    fn take_over(&mut self) -> Result<Vec<String>, HostError> {
        if !self.set.is_complete() {
            let what = "Istio's rules stay until every enrolled pod is in our set".to_owned();
            return Err(HostError::Keeper { what });
        }
        self.check(Cause::Request, Instant::now())?;
        let tools = self.config.tools.as_deref();
        let found = upstream::find(tools)?;
        upstream::remove(tools)?;
        Ok(found)
    }

    fn status(&self) -> Result<Status, HostError> {
        let observed = self.config.programmer.observe(&self.rules())?;
        let wanted: BTreeSet<Target> = self.set.wanted().collect();
        Ok(Status {
            backend: self.config.programmer.kind(),
            kubelet: self.kubelet.clone(),
            elements: wanted.len(),
            owners: self.set.owners(),
            complete: self.set.is_complete(),
            holds: observed.diff.is_empty() && wanted.is_subset(&observed.elements),
            repairs: self.repairs,
            packets: observed.packets,
            ahead: observed.ahead,
            upstream: upstream::find(self.config.tools.as_deref())?,
        })
    }

    fn remove(&self) -> Result<(), HostError> {
        let removed = self.config.programmer.remove();
        if self.config.branch {
            branch::reconcile(&BTreeSet::new())?;
        }
        match removed {
            Ok(()) => Ok(()),
            Err(errors) => errors.into_iter().next().map_or(Ok(()), Err),
        }
    }
}
