//! How the agent speaks to the thread that keeps the host's rules ([`state`]).

mod follow;
mod state;

use super::{HostError, Kubelet, Owner, Programmer, Sources, Target};
use crate::backend::{BackendKind, Diff};
use crate::iptables::Iptables;
use crate::netns::{Netns, within};
use state::State;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a keeper is started with.
#[derive(Debug)]
pub struct Config {
    /// The host's network namespace.
    pub host: Netns,
    /// The host's /proc, as the agent sees it.
    pub proc: PathBuf,
    /// Which dialect.
    pub programmer: Programmer,
    /// Tools to look with for Istio's rules, and for ours of another day, also when
    /// ours are nftables.
    pub tools: Option<Arc<Iptables>>,
    /// What kubelet's source becomes.
    pub sources: Sources,
    /// Kubelet may be known by its cgroup. Without, it is its user. Programs called
    /// `nft` before 0.9.9 (2021) read beyond a table of theirs when they list
    /// `socket cgroupv2`; a node that runs one on Linux 5.13 or later has this switch.
    pub cgroups: bool,
    /// Policy rules for AWS' branch interfaces (reference 4.10).
    pub branch: bool,
    /// How often everything is looked at, notified or not.
    pub audit: Duration,
}

impl Config {
    /// The usual one: audit each 30 s, both families, branch interfaces too. With
    /// nftables it has no tools; a node that Istio had, or an agent of ours with
    /// iptables, needs some.
    #[must_use]
    pub fn new(host: Netns, proc: impl Into<PathBuf>, programmer: Programmer) -> Self {
        let tools = match &programmer {
            Programmer::Iptables(tools) => Some(Arc::clone(tools)),
            Programmer::Nftables => None,
        };
        let audit = Duration::from_secs(30);
        let sources = Sources::default();
        let proc = proc.into();
        Self { host, proc, programmer, tools, sources, cgroups: true, branch: true, audit }
    }
}

/// Why the rules were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The keeper started.
    Start,
    /// The kernel notified.
    Notification,
    /// A request found them gone.
    Request,
    /// It was time.
    Audit,
}

/// What happened, for whoever logs and counts.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Rules or elements were not as they should be, and are now.
    Repaired {
        /// How they were.
        diff: Diff,
        /// Elements that were missing.
        elements: usize,
        /// Why they were looked at.
        cause: Cause,
        /// From the notification, or the look, to the repair.
        after: Duration,
    },
    /// Elements that nobody wants any more were taken out.
    Pruned(usize),
    /// Kubelet is known, or known in another way than before, and the rules say so.
    Kubelet(Kubelet),
    /// Chains of others that now come before ours and may take kubelet's
    /// connections; empty when there are none any more.
    Ahead(Vec<String>),
    /// Something could not be done; it is tried again.
    Failed(HostError),
}

/// How things are.
#[derive(Debug, Clone)]
pub struct Status {
    /// Which dialect.
    pub backend: BackendKind,
    /// Who kubelet is; its `word()` is for tables, its text for people.
    pub kubelet: Kubelet,
    /// Elements that are wanted.
    pub elements: usize,
    /// Sandboxes that want them.
    pub owners: usize,
    /// Every enrolled pod was told.
    pub complete: bool,
    /// The kernel has what is wanted, seen now.
    pub holds: bool,
    /// Repairs since the start.
    pub repairs: u64,
    /// Connections that got the source since the rules were last written; nftables
    /// only.
    pub packets: Option<u64>,
    /// Chains of others that come before ours.
    pub ahead: Vec<String>,
    /// Istio's rules that are there too.
    pub upstream: Vec<String>,
}

type Reply<T> = SyncSender<Result<T, HostError>>;

enum Command {
    Upsert(Owner, BTreeSet<Target>, Reply<()>),
    Release(Owner, Reply<()>),
    ReleasePod(String, Reply<()>),
    Complete(Reply<()>),
    TakeOver(Reply<Vec<String>>),
    Status(Reply<Status>),
    Stop { remove: bool, reply: Reply<()> },
}

/// Keeps the host's rules until it is stopped or dropped, which leaves them there.
/// Every call returns when it is done in the kernel.
#[derive(Debug)]
pub struct Keeper {
    commands: Sender<Command>,
    bell: PipeWriter,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Proves the dialect, finds kubelet, writes the rules with the elements that
    /// are there, and then keeps them. Events go to `events` until its receiver is
    /// gone.
    ///
    /// # Errors
    /// When the dialect does not work here or the rules cannot be written. That
    /// kubelet is not found is none.
    pub fn start(config: Config, events: Sender<Event>) -> Result<Self, HostError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| HostError::Keeper { what: format!("{what}: {error}") }
        };
        let (commands, inbox) = mpsc::channel();
        let (ears, bell) = std::io::pipe().map_err(failed("make a pipe"))?;
        let (ready, started) = mpsc::sync_channel(1);
        let run = move || {
            let late = ready.clone();
            let namespace = enter_cgroup_namespace(&config.proc);
            let config = &config;
            let ran = within(&config.host, move || match State::begin(config, events, namespace) {
                Ok(state) => {
                    let _ = ready.send(Ok(()));
                    state.run(&inbox, ears);
                }
                Err(error) => drop(ready.send(Err(error))),
            });
            if let Err(error) = ran {
                let _ = late.send(Err(error.into()));
            }
        };
        let thread = std::thread::Builder::new().name("probes".to_owned()).spawn(run);
        let thread = thread.map_err(failed("start its thread"))?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { commands, bell, thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(gone()),
        }
    }

    /// Says what a sandbox's pod wants, all of it.
    ///
    /// # Errors
    /// When the kernel refuses; the elements are wanted all the same and written by
    /// the next audit.
    pub fn upsert(&self, owner: Owner, targets: BTreeSet<Target>) -> Result<(), HostError> {
        self.ask(|reply| Command::Upsert(owner, targets, reply))
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub fn release(&self, owner: Owner) -> Result<(), HostError> {
        self.ask(|reply| Command::Release(owner, reply))
    }

    /// Forgets all sandboxes of a pod.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub fn release_pod(&self, pod: &str) -> Result<(), HostError> {
        self.ask(|reply| Command::ReleasePod(pod.to_owned(), reply))
    }

    /// Says that every enrolled pod was told; what nobody wants goes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn complete(&self) -> Result<(), HostError> {
        self.ask(Command::Complete)
    }

    /// Removes Istio's own rules and sets from the host; says which. Ours are looked
    /// at first.
    ///
    /// # Errors
    /// Before [`Self::complete`], when a pod that only Istio's set knows could lose
    /// its probes; when ours do not hold, or something cannot be removed.
    pub fn take_over(&self) -> Result<Vec<String>, HostError> {
        self.ask(Command::TakeOver)
    }

    /// Looks at the kernel and says how things are.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn status(&self) -> Result<Status, HostError> {
        self.ask(Command::Status)
    }

    /// Stops and leaves everything in place, as dropping does.
    pub fn stop(mut self) {
        self.end();
    }

    /// Stops and removes everything of ours; what it is asked for afterwards fails.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn remove(&self) -> Result<(), HostError> {
        self.ask(|reply| Command::Stop { remove: true, reply })
    }

    fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, HostError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands.send(command(reply)).map_err(|_| gone())?;
        // A full pipe has been heard already.
        let _ = (&self.bell).write(&[1]);
        answer.recv().map_err(|_| gone())?
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.ask(|reply| Command::Stop { remove: false, reply });
            // It panicked, and has ended.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn gone() -> HostError {
    HostError::Keeper { what: "its thread has ended".to_owned() }
}

/// The kernel shows paths of cgroups, and reads those of rules, as seen from the
/// cgroup namespace of the thread that asks. An agent in a container has one of its
/// own, in which kubelet is nowhere; this thread takes the host's.
fn enter_cgroup_namespace(proc: &Path) -> Result<(), HostError> {
    let path = proc.join("1/ns/cgroup");
    let failed = |source| HostError::CgroupNamespace { path: path.display().to_string(), source };
    let file = File::open(&path).map_err(failed)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a cgroup namespace, on a thread that lives for this alone"
    )]
    nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWCGROUP)
        .map_err(|errno| failed(errno.into()))
}
