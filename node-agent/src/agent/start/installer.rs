//! The installer on its thread, beside the agent.

use crate::health::Health;
use crate::install::{InstallEvent, Installer, PluginEntry, Readiness, Settings};
use crate::metrics::Metrics;
use anyhow::{Context, Result};
use std::io::PipeWriter;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// How long it may be silent. It looks every 10 s, and every 30 s after failures; a
/// look itself may be slow on a busy disk.
const SILENCE: Duration = Duration::from_secs(120);

/// How long it may take to end.
const END: Duration = Duration::from_secs(2);

/// A running installer. Ending it uninstalls nothing.
#[derive(Debug)]
pub(super) struct Installation {
    /// The installer ends when this is dropped.
    stop: PipeWriter,
    thread: JoinHandle<()>,
}

/// Makes "installed" a condition of being ready; the other end is the installer's.
pub(super) fn condition(health: &Health) -> watch::Sender<Readiness> {
    let (sender, ready) = watch::channel(Readiness::starting());
    health.needs("installed", move || {
        let now = ready.borrow();
        (!now.ready).then(|| now.reason.clone())
    });
    sender
}

impl Installation {
    /// Starts it. Must be called in the runtime.
    ///
    /// # Errors
    ///
    /// When a setting cannot work.
    pub(super) fn start(
        settings: Settings,
        entry: PluginEntry,
        ready: watch::Sender<Readiness>,
        metrics: Arc<Metrics>,
        health: &Health,
    ) -> Result<Self> {
        let installer = Installer::new(settings, entry)?;
        let (stopped, stop) = std::io::pipe().context("make a pipe")?;
        let mut changes = ready.subscribe();
        let gauge = Arc::clone(&metrics);
        tokio::spawn(async move {
            loop {
                gauge.install_ready(changes.borrow_and_update().ready);
                if changes.changed().await.is_err() {
                    break;
                }
            }
        });
        let beat = health.beats("installer", SILENCE);
        let told = move |event: InstallEvent| {
            if event == InstallEvent::Looks {
                beat.beat();
            }
            metrics.installed(&event);
        };
        let thread = std::thread::Builder::new()
            .name("installer".to_owned())
            .spawn(move || installer.run(&stopped, &ready, told))
            .context("start the installer's thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends it, and waits a moment for what it is writing.
    pub(super) async fn stop(self) {
        drop(self.stop);
        let ended = async {
            while !self.thread.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(END, ended).await.is_err() {
            tracing::warn!("the installer does not end and is abandoned");
        }
    }
}
