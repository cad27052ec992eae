//! How a test looks at the fake and tells it what to do: one line of JSON each way
//! over a Unix socket, which no network namespace is in the way of.

use super::fault::Faults;
use super::record::Record;
use super::run::Shared;
use super::workloads::Workloads;
use super::{Workload, identity};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// What it can be told. Each is answered with the [`Status`] after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Nothing.
    Look,
    /// Nothing, and not to say what it was asked and what ran through it, which is much
    /// after a while.
    Glance,
    /// To do these things wrong from now on, and no others.
    Fail(Faults),
    /// That XDS says this from now on.
    Know(Option<Vec<Workload>>),
    /// To answer these names itself.
    Name(BTreeMap<String, Vec<IpAddr>>),
    /// To close its connection to the agent, and make a new one.
    HangUp,
}

/// How it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Connected to an agent.
    pub connected: bool,
    /// Connections to an agent so far.
    pub connections: u64,
    /// This connection's snapshot is complete.
    pub snapshot: bool,
    /// What its readiness probe says.
    pub ready: bool,
    /// Its pods by uid.
    pub workloads: BTreeMap<String, View>,
    /// Proxies started so far.
    pub started: u64,
    /// Proxies stopped so far.
    pub stopped: u64,
    /// What it was asked and what became of it, a line each.
    pub requests: Vec<String>,
    /// What ran through it.
    pub records: Vec<Record>,
}

/// A pod of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its proxy runs; else it is tried again and again.
    pub up: bool,
    /// Namespace and name, `shop/web-0`.
    pub pod: String,
    /// `spiffe://...`
    pub identity: String,
    /// Device and inode of its network namespace.
    pub netns: Option<(u64, u64)>,
    /// Connections that run through it.
    pub connections: usize,
}

impl Status {
    pub(super) fn of(
        workloads: &Workloads,
        connected: bool,
        connections: u64,
        requests: Vec<String>,
        records: Vec<Record>,
    ) -> Self {
        let (started, stopped) = workloads.totals();
        let views = workloads.views().into_iter().map(|view| {
            let info = view.info;
            let shown = View {
                up: view.netns.is_some(),
                pod: format!("{}/{}", info.namespace, info.name),
                identity: identity(&info.namespace, &info.service_account),
                netns: view.netns,
                connections: view.connections,
            };
            (view.uid.to_owned(), shown)
        });
        Self {
            connected,
            connections,
            snapshot: connected && workloads.has_snapshot(),
            ready: workloads.is_ready(),
            workloads: views.collect(),
            started,
            stopped,
            requests,
            records,
        }
    }

    /// How many proxies run.
    #[must_use]
    pub fn active(&self) -> usize {
        self.workloads.values().filter(|view| view.up).count()
    }

    /// How many could not be started.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.workloads.len() - self.active()
    }
}

/// Serves the control socket for as long as the program runs.
pub(super) fn serve(shared: &Arc<Shared>) -> Result<()> {
    let path = &shared.config.control;
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            // Whoever asks may be gone before the answer.
            std::thread::spawn(move || answer(&shared, stream).ok());
        }
    });
    Ok(())
}

fn answer(shared: &Shared, mut stream: UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let command = serde_json::from_str(&line)?;
    let is_whole = !matches!(command, Command::Glance);
    match command {
        Command::Look | Command::Glance => {}
        Command::Fail(faults) => *shared.faults() = faults,
        Command::Know(workloads) => shared.tell(workloads),
        Command::Name(names) => shared.name(names),
        Command::HangUp => shared.hang_up(),
    }
    let mut status = serde_json::to_vec(&shared.status(is_whole))?;
    status.push(b'\n');
    Ok(stream.write_all(&status)?)
}

/// Tells the fake at a control socket something.
///
/// # Errors
/// When it is not there.
pub fn tell(control: &Path, command: &Command) -> Result<Status> {
    let failed = || format!("fake ztunnel at {}: {command:?}", control.display());
    let mut stream = UnixStream::connect(control).with_context(failed)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(failed)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).with_context(failed)?;
    serde_json::from_str(&line).with_context(failed)
}
