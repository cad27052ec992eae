//! The program: its threads, and what they share.

use super::control::{self, Status};
use super::fault::Faults;
use super::pod::Pod;
use super::record::Record;
use super::workloads::Workloads;
use super::{Config, Workload, agent, http};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::seqpacket::Connection;
use zds::WorkloadInfo;

/// How long a connection waits for XDS to know its pod.
const XDS_PATIENCE: Duration = Duration::from_secs(5);
/// Lines and records that are kept; a test makes no more.
const KEPT: usize = 20_000;

/// What all threads share.
pub(super) struct Shared {
    pub(super) config: Config,
    faults: Mutex<Faults>,
    workloads: Mutex<Workloads>,
    directory: Mutex<Directory>,
    records: Mutex<Vec<Record>>,
    notes: Mutex<Vec<String>>,
    connection: Mutex<Option<Arc<Connection>>>,
    connections: AtomicU64,
    ending: AtomicBool,
}

/// Who is where.
struct Directory {
    /// By the control plane's word.
    told: Option<Vec<Workload>>,
    /// By what runs here.
    own: BTreeMap<String, (WorkloadInfo, Vec<IpAddr>)>,
    names: BTreeMap<String, Vec<IpAddr>>,
}

/// Runs until SIGTERM, or until `orphaned` returns.
///
/// # Errors
/// When the control socket cannot be had.
pub fn run(
    config: Config,
    ready: impl FnOnce() -> Result<()>,
    orphaned: impl FnOnce() + Send + 'static,
) -> Result<()> {
    // Before there are threads, so that none of them takes it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let shared = Arc::new(Shared::new(config));
    let retry = Duration::from_millis(shared.config.retry_ms);
    let own = Arc::clone(&shared);
    std::thread::spawn(move || {
        while !own.is_ending() {
            std::thread::sleep(retry);
            own.workloads().retry(&own);
        }
    });
    control::serve(&shared)?;
    if let Some(address) = shared.config.http {
        http::serve(&shared, address)?;
    }
    let own = Arc::clone(&shared);
    let conversation = std::thread::spawn(move || agent::serve(&own));
    std::thread::spawn(move || {
        orphaned();
        std::process::exit(0);
    });
    ready()?;
    signals.wait().context("wait for SIGTERM")?;
    shared.end();
    // It may be in the middle of a pause; there is nothing left that it could do.
    drop(conversation);
    Ok(())
}

impl Shared {
    fn new(config: Config) -> Self {
        Self {
            faults: Mutex::new(config.faults.clone()),
            workloads: Mutex::default(),
            directory: Mutex::new(Directory {
                told: config.workloads.clone(),
                own: BTreeMap::new(),
                names: config.names.clone(),
            }),
            records: Mutex::default(),
            notes: Mutex::default(),
            connection: Mutex::default(),
            connections: AtomicU64::default(),
            ending: AtomicBool::default(),
            config,
        }
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(super) fn workloads(&self) -> MutexGuard<'_, Workloads> {
        lock(&self.workloads)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// A new connection; false when it came too late.
    pub(super) fn connected(&self, connection: &Arc<Connection>) -> bool {
        let mut current = lock(&self.connection);
        if self.is_ending() {
            return false;
        }
        *current = Some(Arc::clone(connection));
        self.connections.fetch_add(1, Ordering::SeqCst);
        self.workloads().connected();
        true
    }

    /// The end of one; whether it had been ready.
    pub(super) fn disconnected(&self) -> bool {
        lock(&self.connection).take();
        let mut workloads = self.workloads();
        let was_ready = workloads.is_ready();
        workloads.disconnected();
        was_ready
    }

    /// Closes the connection to the agent; it makes a new one.
    pub(super) fn hang_up(&self) {
        if let Some(connection) = &*lock(&self.connection) {
            connection.close();
        }
    }

    /// SIGTERM: the agent first, then the listeners, then the connections.
    fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.hang_up();
        let pods = self.workloads().close();
        let end = Instant::now() + Duration::from_millis(self.config.drain_ms);
        while Instant::now() < end && pods.iter().any(|pod| pod.connections() > 0) {
            std::thread::sleep(Duration::from_millis(5));
        }
        pods.iter().for_each(|pod: &Arc<Pod>| pod.cut());
    }

    pub(super) fn record(&self, record: Record) {
        keep(&self.records, record);
    }

    /// A line about what the agent asked and was answered.
    pub(super) fn note(&self, line: String) {
        keep(&self.notes, line);
    }

    /// A pod of this ztunnel has these addresses, or is not here any more.
    pub(super) fn own(&self, uid: &str, place: Option<(WorkloadInfo, Vec<IpAddr>)>) {
        let mut directory = lock(&self.directory);
        match place {
            Some(place) => directory.own.insert(uid.to_owned(), place),
            None => directory.own.remove(uid),
        };
    }

    /// What XDS says from now on.
    pub(super) fn tell(&self, workloads: Option<Vec<Workload>>) {
        lock(&self.directory).told = workloads;
    }

    /// Names that are answered here from now on.
    pub(super) fn name(&self, names: BTreeMap<String, Vec<IpAddr>>) {
        lock(&self.directory).names = names;
    }

    pub(super) fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        lock(&self.directory).names.get(name).cloned()
    }

    pub(super) fn takes_hbone(&self, ip: IpAddr) -> bool {
        let directory = lock(&self.directory);
        match &directory.told {
            Some(told) => told.iter().any(|w| w.hbone && w.addresses.contains(&ip)),
            None => directory.own.values().any(|(_, addresses)| addresses.contains(&ip)),
        }
    }

    /// Waits until the control plane knows the pod.
    pub(super) fn wait_known(&self, info: &WorkloadInfo) -> Result<()> {
        let end = Instant::now() + XDS_PATIENCE;
        loop {
            let known = match &lock(&self.directory).told {
                None => true,
                Some(told) => told.iter().any(|w| {
                    (&w.namespace, &w.name, &w.service_account)
                        == (&info.namespace, &info.name, &info.service_account)
                }),
            };
            if known {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("failed to fetch information about local workload");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn status(&self, is_whole: bool) -> Status {
        let connected = lock(&self.connection).is_some();
        let connections = self.connections.load(Ordering::SeqCst);
        let records = if is_whole { lock(&self.records).clone() } else { Vec::new() };
        let requests = if is_whole { lock(&self.notes).clone() } else { Vec::new() };
        Status::of(&self.workloads(), connected, connections, requests, records)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep<T>(list: &Mutex<Vec<T>>, item: T) {
    let mut list = lock(list);
    if list.len() < KEPT {
        list.push(item);
    }
}
