//! From the command line to a serving agent, and back.

mod installer;
mod selftest;

use super::Agent;
use super::hosts::Hosts;
use crate::ambient::{Ambient, Figures, Node, Options, Samples};
use crate::backend::NodeBackend;
use crate::config::{AgentArgs, Entry};
use crate::failure::causes;
use crate::health::Health;
use crate::install::{PluginEntry, Settings};
use crate::logsocket::LogSocket;
use crate::metrics::{Metrics, Served};
use crate::notice::{self, Notices};
use crate::operator::{Desk, Known, OperatorSocket};
use crate::record::Records;
use crate::repair::{self, place};
use crate::responder::Responder;
use crate::server::Server;
use crate::source::Pods;
use crate::source::kubernetes::Interest;
use anyhow::{Context, Result, bail};
use installer::Installation;
use redirect::enroll::Config;
use selftest::SelfTest;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::watch::Watch;
use tokio::signal::unix::{SignalKind, signal};

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
        tracing::info!("stopped; rules, plugin and configuration stay in place");
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
    let health_port =
        bind(args.health(), "/healthz and /readyz", "--health-address (SLUICE_HEALTH_ADDRESS)")?;
    let metrics_port = bind(args.monitoring()?, "/metrics", "--monitoring-port (MONITORING_PORT)")?;
    let interest = Interest {
        annotations: repair.iter().map(|repair| repair.signs.annotation.clone()).collect(),
        namespace_labels: config.ambient_enabled,
    };
    let source = Pods::open(&args.source(), interest).await?;
    synced(&health, &source);
    let self_test = SelfTest::new(&health);
    let installed = installation.as_ref().map(|_| installer::condition(&health));
    tick(&health);
    if let Some(port) = health_port {
        let health = Arc::clone(&health);
        tokio::spawn(port.run(move |path| health.page(path)));
    }
    let kind = backend.kind().to_string();
    let (pods, namespaces) = source.count();
    let server = Server::bind(&run_dir, &[wire::passed::RECORDS])?;
    let log_socket = LogSocket::bind(&run_dir)?;
    let (backend, records) = (Arc::new(backend), Arc::new(Records::open(&run_dir)?));
    tracing::info!(run_dir = %run_dir.display(), records = records.ids().len(), pods, namespaces, "serving");
    let writes = (ambient.is_some(), repair.is_some());
    let notices = start_notices(&source, args, writes, &health);
    let known = Known::of_agent(&records, &config, ambient.as_ref(), &hosts, &backend);
    let shown = (source.clone(), Arc::clone(&backend));
    let (looked_at, followed) = (source.clone(), source.clone());
    let watch = args.audits_on_change().then(listen).flatten();
    let node = ambient.map(|options| Node {
        source: source.clone(),
        policy: config.clone(),
        options,
        backend: Arc::clone(&backend),
        records: Arc::clone(&records),
        hosts: Arc::clone(&hosts),
        notices: Arc::clone(&notices),
        proc: place::root(),
        watch: watch.clone(),
    });
    let agent = Agent::new(source, config, backend, records, hosts, Arc::clone(&notices), &run_dir);
    let agent = Arc::new(agent);
    let figures = Arc::new(Figures::default());
    let audited = health.beats("drift", HOUSE_SILENCE);
    agent.keep_captured(Arc::clone(&figures), watch, args.audit(), audited)?;
    let ambient = node
        .map(|node| Ambient::start(node, Arc::clone(&figures), health.beats("ambient", SILENCE)));
    let ambient = ambient.transpose()?;
    if let Some(ambient) = &ambient {
        agent.serve_ambient(Arc::clone(ambient));
    }
    let operator_socket =
        operate(&run_dir, known, shown, &health, ambient.clone(), &figures, &agent)?;
    agent.keep_house(installation.is_some(), health.beats("house", HOUSE_SILENCE))?;
    let counted = Arc::clone(&agent);
    let escaped = move || counted.escaped();
    let mut metrics = Metrics::new(Arc::clone(&health), looked_at, kind, escaped);
    metrics.also(Box::new(Samples(figures)));
    metrics.also(Box::new(notice::Samples(notices)));
    let metrics = Arc::new(metrics);
    if let Some(port) = metrics_port {
        let metrics = Arc::clone(&metrics);
        tokio::spawn(port.run(move |path| metrics.page(path)));
    }
    start_repair(repair, &followed, &agent, &metrics, &health);
    let lines = Arc::clone(&metrics);
    let log_socket = tokio::spawn(log_socket.run(move |level| lines.plugin_line(level)));
    tokio::spawn(self_test.run(Arc::clone(&agent), run_dir, Arc::clone(&health)));
    let beat = health.beats("plugin socket", SILENCE);
    let observer = Arc::new(Served { metrics: Arc::clone(&metrics), beat });
    let ending = Arc::clone(&health);
    let stop = async move {
        stop.await;
        ending.stop();
    };
    let serving = tokio::spawn(server.run(agent, observer, stop));
    // Last: the plugin must find someone to ask.
    let installation = match (installation, installed) {
        (Some((settings, entry)), Some(ready)) => {
            Some(Installation::start(settings, entry, ready, metrics, &health)?)
        }
        _ => None,
    };
    let served = serving.await.context("the plugin socket's loop");
    if let Some(installation) = installation {
        installation.stop().await;
    }
    for socket in [log_socket, operator_socket] {
        socket.abort();
        // Its socket's file goes when the task has.
        let _ = socket.await;
    }
    served
}

/// Hears of changes in pods' namespaces; `None` where that cannot be had.
fn listen() -> Option<Arc<Watch>> {
    match Watch::start() {
        Ok(watch) => Some(Arc::new(watch)),
        Err(error) => {
            tracing::warn!(
                reason = %causes(&error),
                "changes in pods' namespaces are not heard of: captured pods are looked at by the period alone"
            );
            None
        }
    }
}

/// Answers the operator, from now on.
fn operate(
    run_dir: &Path,
    known: Known,
    (source, backend): (Pods, Arc<NodeBackend>),
    health: &Arc<Health>,
    ambient: Option<Arc<Ambient>>,
    figures: &Arc<Figures>,
    agent: &Arc<Agent>,
) -> Result<tokio::task::JoinHandle<()>> {
    let socket = OperatorSocket::bind(run_dir)?;
    let (health, figures, agent) = (Arc::clone(health), Arc::clone(figures), Arc::clone(agent));
    let escaped = Box::new(move || agent.escaped());
    let started = Instant::now();
    let desk = Desk { known, source, backend, health, ambient, figures, escaped, started };
    Ok(tokio::spawn(socket.run(Arc::new(desk))))
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

/// Repair needs to know how pods fare, which only a cluster tells.
fn start_repair(
    settings: Option<repair::Settings>,
    source: &Pods,
    agent: &Arc<Agent>,
    metrics: &Arc<Metrics>,
    health: &Health,
) {
    let (Some(settings), Pods::Kubernetes(kubernetes)) = (settings, source) else { return };
    tracing::info!(mode = settings.mode.as_str(), "looking for pods that started without rules");
    let beat = health.beats("repair", HOUSE_SILENCE);
    let (agent, metrics) = (Arc::clone(agent), Arc::clone(metrics));
    let worker = repair::Worker::new(agent, Arc::clone(kubernetes), metrics, settings);
    tokio::spawn(worker.run(beat));
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

fn bind(
    listen: Option<crate::config::Listen>,
    what: &'static str,
    setting: &'static str,
) -> Result<Option<Responder>> {
    Ok(listen.map(|listen| Responder::bind(listen, what, setting)).transpose()?)
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
