//! From the command line to a serving agent, and back.

use super::{Agent, Busy};
use crate::backend::NodeBackend;
use crate::config::AgentArgs;
use crate::record::Records;
use crate::server::Server;
use crate::source::Pods;
use crate::source::kubernetes::Interest;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::sync::Arc;
use sys::netns::{Netns, NetnsId};
use tokio::signal::unix::{SignalKind, signal};

/// Namespace of the first process, which is the host's wherever the agent runs in
/// the host's pid namespace.
const INIT_NETNS: &str = "/proc/1/ns/net";

/// Threads that only wait for sockets; the work is done on blocking threads.
const WORKERS: usize = 2;

/// More than the server's requests, so that none waits for a thread.
const BLOCKING: usize = 300;

/// Runs the agent until it is told to stop.
///
/// # Errors
///
/// When it cannot start: no root, a setting that is wrong, no directory, no backend,
/// no socket.
pub(crate) fn run(args: &AgentArgs) -> Result<()> {
    sys::memory::keep_small();
    crate::log::init(args.log_format, &args.log_level)?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the agent programs other processes' network namespaces: run it as root (this is uid {})",
            nix::unistd::geteuid()
        );
    }
    let config = args.policy.config()?;
    let backend = NodeBackend::choose(args.choice(), &args.search())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        backend = %backend.kind(),
        with = backend.describe(),
        "backend proved in a scratch namespace"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        // Before the socket, or a signal in between would kill without cleaning up.
        let stop = stop_signal()?;
        let interest =
            Interest { namespace_labels: config.ambient_enabled, ..Interest::default() };
        let source = Pods::open(&args.source, interest).await?;
        let (pods, namespaces) = source.count();
        let server = Server::bind(&args.run_dir)?;
        let records = Records::open(&args.run_dir)?;
        tracing::info!(run_dir = %args.run_dir.display(), records = records.ids().len(), pods, namespaces, "serving");
        let hosts = hosts()?;
        let agent = Agent { source, config, backend, records, busy: Busy::default(), hosts };
        server.run(Arc::new(agent), stop).await;
        Ok(())
    });
    // A step that hangs must not keep the process: its request was answered.
    runtime.shutdown_background();
    tracing::info!("stopped; rules stay in place");
    result
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

fn hosts() -> Result<Vec<NetnsId>> {
    let mut hosts = vec![Netns::current()?.id()];
    match Netns::open(Path::new(INIT_NETNS)) {
        Ok(init) if !hosts.contains(&init.id()) => hosts.push(init.id()),
        Ok(_) => {}
        Err(error) => tracing::warn!(
            reason = %crate::failure::causes(&error),
            "cannot see the first process' namespace: only the agent's own is refused"
        ),
    }
    Ok(hosts)
}
