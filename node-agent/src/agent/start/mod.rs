//! From the command line to a serving agent, and back.

mod installer;
mod parts;
mod selftest;

use crate::ambient::Options;
use crate::backend::NodeBackend;
use crate::config::{AgentArgs, Entry, Listen};
use crate::health::Health;
use crate::hosts::Hosts;
use crate::install::{PluginEntry, Readiness, Settings};
use crate::logsocket::LogSocket;
use crate::metrics::{Metrics, Served};
use crate::notice::{self, Notices};
use crate::record::Records;
use crate::repair;
use crate::responder::{Page, Responder};
use crate::server::Server;
use crate::source::Pods;
use crate::source::kubernetes::Interest;
use anyhow::{Context, Result, bail};
use installer::Installation;
use parts::Parts;
use redirect::enroll::Config;
use selftest::SelfTest;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Threads that only wait for sockets; the work is done on blocking threads.
const WORKERS: usize = 2;

/// More than the server's requests, so that none waits for a thread.
const BLOCKING: usize = 300;

/// How long a loop of the runtime may be silent: it beats every second.
const SILENCE: Duration = Duration::from_secs(15);

/// And the one that keeps the snapshot and captures late what passed: at most a few
/// seconds for each of a node's pods.
const HOUSE_SILENCE: Duration = Duration::from_secs(300);

/// What was made of the command line.
struct Prepared<'a> {
    args: &'a AgentArgs,
    run_dir: PathBuf,
    config: Config,
    backend: NodeBackend,
    installation: Option<(Settings, PluginEntry)>,
    repair: Option<repair::Settings>,
    ambient: Option<Options>,
}

/// Runs the agent until it is told to stop. Ending takes nothing back: rules, records,
/// plugin and configuration stay.
///
/// # Errors
///
/// When it cannot start: no root, a setting that is wrong, no directory, no backend,
/// no socket, no port.
pub(crate) fn run(args: &AgentArgs, entry: Entry) -> Result<()> {
    sys::memory::keep_small();
    crate::log::init(&args.log(entry)?)?;
    for warning in args.warnings(entry) {
        tracing::warn!("{warning}");
    }
    let ignored = args.ignored();
    if !ignored.is_empty() {
        tracing::info!(settings = ignored.join(" "), "settings without effect");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the agent programs other processes' network namespaces: run it as root (this is uid {})",
            nix::unistd::geteuid()
        );
    }
    if let Err(errno) = sys::descriptors::raise_limit() {
        tracing::warn!(reason = errno.desc(), "the limit of open files cannot be raised");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .context("start the runtime")?;
    // First: as the first process of a container it would not even be killed by a
    // signal that nobody waits for.
    let stop = runtime.block_on(async { stop_signal() })?;
    let config = args.policy().config()?;
    let installation = args.installation(entry)?;
    let repair = args.repair()?;
    let ambient = args.ambient()?;
    let backend = NodeBackend::choose(args.choice(), &args.search())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        backend = %backend.kind(),
        with = backend.describe(),
        "backend proved in a scratch namespace"
    );
    let prepared =
        Prepared { args, run_dir: args.run_dir(), config, backend, installation, repair, ambient };
    let result = runtime.block_on(serve(prepared, stop));
    // A step that hangs must not keep the process: its request was answered.
    runtime.shutdown_background();
    if result.is_ok() {
        tracing::info!("stopped; rules of pods, plugin and configuration are left as they are");
    }
    result
}

async fn serve(
    prepared: Prepared<'_>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let Prepared { args, run_dir, config, backend, mut installation, repair, ambient } = prepared;
    let hosts = Arc::new(Hosts::find()?);
    if let Some((_, entry)) = &mut installation {
        entry.agent_host_network |= hosts.agent_is_on_host();
    }
    let health = Arc::new(Health::default());
    let ports = Ports::bind(args)?;
    let source = Pods::open(&args.source(), interest(&config, repair.as_ref())).await?;
    synced(&health, &source);
    let self_test = SelfTest::new(&health);
    let installation =
        installation.map(|(settings, entry)| (settings, entry, installer::condition(&health)));
    tick(&health);
    let pages = Arc::clone(&health);
    show(ports.health, move |path| pages.page(path));
    let removed = run_dir.join(crate::install::REMOVED);
    let server = Server::bind(&run_dir, &[wire::passed::RECORDS])?;
    let log_socket = LogSocket::bind(&run_dir)?;
    let records = Arc::new(Records::open(&run_dir)?);
    let (pods, namespaces) = source.count();
    tracing::info!(run_dir = %run_dir.display(), records = records.ids().len(), pods, namespaces, "serving");
    let writes = (ambient.is_some(), repair.is_some());
    let parts = Parts {
        notices: start_notices(&source, args, writes, &health),
        run_dir,
        source,
        config,
        options: ambient,
        backend: Arc::new(backend),
        records,
        hosts,
        health: Arc::clone(&health),
        figures: Arc::default(),
    };
    let (agent, ambient) = parts.capture(args)?;
    let operator_socket = parts.operate(&agent, ambient)?;
    agent.keep_house(installation.is_some(), health.beats("house", HOUSE_SILENCE))?;
    let metrics = parts.metrics(&agent);
    let pages = Arc::clone(&metrics);
    show(ports.metrics, move |path| pages.page(path));
    parts.repair(repair, &agent, &metrics);
    let lines = Arc::clone(&metrics);
    let log_socket = tokio::spawn(log_socket.run(move |level| lines.plugin_line(level)));
    tokio::spawn(self_test.run(Arc::clone(&agent), parts.run_dir, Arc::clone(&health)));
    let beat = health.beats("plugin socket", SILENCE);
    let observer = Arc::new(Served { metrics: Arc::clone(&metrics), beat });
    let stop = ending(stop, &health);
    let serving = tokio::spawn(server.run(Arc::clone(&agent), observer, stop));
    // Last: the plugin must find someone to ask.
    let installation = install(installation, metrics, &health)?;
    let served = ended(serving, installation, [log_socket, operator_socket]).await;
    if removed.exists() {
        tokio::task::spawn_blocking(move || agent.leave_host()).await?;
    }
    served
}

/// What the source is to keep of pods and namespaces.
fn interest(config: &Config, repair: Option<&repair::Settings>) -> Interest {
    Interest {
        annotations: repair.iter().map(|repair| repair.signs.annotation.clone()).collect(),
        namespace_labels: config.ambient_enabled,
    }
}

fn install(
    wanted: Option<(Settings, PluginEntry, watch::Sender<Readiness>)>,
    metrics: Arc<Metrics>,
    health: &Health,
) -> Result<Option<Installation>> {
    let Some((settings, entry, ready)) = wanted else { return Ok(None) };
    Installation::start(settings, entry, ready, metrics, health).map(Some)
}

/// `stop`, from which on the agent is not ready.
fn ending(
    stop: impl Future<Output = ()> + Send + 'static,
    health: &Arc<Health>,
) -> impl Future<Output = ()> + Send + 'static {
    let health = Arc::clone(health);
    async move {
        stop.await;
        health.stop();
    }
}

/// Waits for the end of the plugin's requests, and then ends the rest.
async fn ended(
    serving: JoinHandle<()>,
    installation: Option<Installation>,
    sockets: [JoinHandle<()>; 2],
) -> Result<()> {
    let served = serving.await.context("the plugin socket's loop");
    if let Some(installation) = installation {
        installation.stop().await;
    }
    for socket in sockets {
        socket.abort();
        // Its socket's file goes when the task has.
        let _ = socket.await;
    }
    served
}

/// Says in the cluster what is wrong with pods. The chart gives the rights for it with
/// ambient mode, and with repair.
fn start_notices(
    source: &Pods,
    args: &AgentArgs,
    (ambient, repair): (bool, bool),
    health: &Health,
) -> Arc<Notices> {
    let notices = Arc::new(Notices::default());
    let rights = notice::Rights { events: ambient || repair, conditions: ambient };
    let node = args.source().kubernetes.node_name;
    let writer = notice::Writer::new(Arc::clone(&notices), source.clone(), node, rights);
    tokio::spawn(writer.run(health.beats("notices", HOUSE_SILENCE)));
    notices
}

/// The runtime's own sign of life.
fn tick(health: &Health) {
    let beat = health.beats("runtime", SILENCE);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            beat.beat();
        }
    });
}

/// Ports of pages; `None` is one that is not wanted.
struct Ports {
    health: Option<Responder>,
    metrics: Option<Responder>,
}

impl Ports {
    fn bind(args: &AgentArgs) -> Result<Self> {
        let bind = |listen: Option<Listen>, what, setting| {
            listen.map(|listen| Responder::bind(listen, what, setting)).transpose()
        };
        let setting = "--health-address (SLUICE_HEALTH_ADDRESS)";
        let health = bind(args.health(), "/healthz and /readyz", setting)?;
        let setting = "--monitoring-port (MONITORING_PORT)";
        let metrics = bind(args.monitoring()?, "/metrics", setting)?;
        Ok(Self { health, metrics })
    }
}

fn show(port: Option<Responder>, page: impl Fn(&str) -> Page + Send + Sync + 'static) {
    if let Some(port) = port {
        tokio::spawn(port.run(page));
    }
}

/// The first list of pods is a condition of being ready. What is behind later is not:
/// known pods are served, and others are asked for one by one.
fn synced(health: &Health, source: &Pods) {
    let Pods::Kubernetes(kubernetes) = source else { return };
    let kubernetes = Arc::clone(kubernetes);
    health.needs("synced", move || {
        if kubernetes.synced().borrow().is_complete() {
            return None;
        }
        let why = kubernetes.behind().unwrap_or_else(|| "no list of namespaces yet".to_owned());
        Some(format!("pods and namespaces of the API server are not known yet: {why}"))
    });
}

fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
