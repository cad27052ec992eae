//! How a look at the node's chain ended: what is said of it, and when the next one comes.

use super::binary::CopyError;
use super::file::FileError;
use super::plan::{PlanError, State};
use super::{InstallEvent, Readiness};
use crate::failure::causes;
use std::time::{Duration, Instant};
use tokio::sync::watch::Sender;

/// A full look, whatever the kernel says.
const PERIOD: Duration = Duration::from_secs(10);
/// While a primary is gone or broken, which may end by time alone.
const SOON: Duration = Duration::from_secs(1);
/// What is broken for less than this makes nothing unready.
const MOMENT: Duration = Duration::from_secs(1);
/// First and last delay after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Why the plugin is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// The binary.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The primary cannot be extended.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Others write it faster than it can be restored.
    #[error(
        "the CNI configuration changes all the time, and still has istio-cni in it: stop what writes it, and repeat"
    )]
    Restless,
    /// The binary could be neither installed nor found, so that no chain may name it.
    #[error("{0} is not installed, so that no CNI configuration may name it")]
    NoBinary(&'static str),
}

/// How a look ended.
pub(super) enum Outcome {
    /// Everything that can be done is done.
    Settled(State),
    /// Too many writes: look again after this time.
    Later(Duration),
    /// The node was given up by `sluice cleanup`.
    Removed,
    /// It was, before the agent started, and is not yet free for another installation.
    Held,
}

/// How long to wait: whatever happens, and then for a change of the directories.
pub(super) struct Delay {
    pub(super) pause: Duration,
    pub(super) watch: Duration,
}

impl Delay {
    fn watch(watch: Duration) -> Self {
        Self { pause: Duration::ZERO, watch }
    }

    fn pause(pause: Duration) -> Self {
        Self { pause, watch: Duration::ZERO }
    }
}

/// What was said so far: each thing once.
#[derive(Debug, Default)]
pub(super) struct Progress {
    failures: u32,
    waiting_since: Option<Instant>,
    last: Option<String>,
}

impl Progress {
    /// Says what is new about a look, and how long to wait for the next.
    pub(super) fn report(
        &mut self,
        outcome: Result<Outcome, InstallError>,
        changed: bool,
        ready: &Sender<Readiness>,
        on_event: &impl Fn(InstallEvent),
    ) -> Delay {
        let state = match outcome {
            Ok(Outcome::Later(time)) => return Delay::pause(time),
            Ok(Outcome::Removed) => {
                publish(ready, false, "the mesh was removed from this node by `sluice cleanup`");
                return Delay::watch(PERIOD);
            }
            Ok(Outcome::Held) => {
                publish(
                    ready,
                    false,
                    "the mesh is being removed from this node by `sluice cleanup --hold`; installing once that has ended",
                );
                return Delay::watch(SOON);
            }
            Ok(Outcome::Settled(state)) => state,
            Err(error) => return self.failed(&error, ready, on_event),
        };
        self.failures = 0;
        let (is_ready, reason) = match &state {
            State::Complete => (true, ""),
            State::Kept(why) => (true, why.as_str()),
            State::Waiting(why) | State::Preempted(why) => (false, why.as_str()),
        };
        let was_ready = ready.borrow().ready;
        if matches!(state, State::Waiting(_)) {
            let since = *self.waiting_since.get_or_insert_with(Instant::now);
            if was_ready && since.elapsed() < MOMENT {
                return Delay::watch(MOMENT.saturating_sub(since.elapsed()));
            }
        } else {
            self.waiting_since = None;
        }
        self.say(&state, reason);
        publish(ready, is_ready, reason);
        if is_ready && (changed || !was_ready) {
            on_event(InstallEvent::Succeeded);
        }
        Delay::watch(if state == State::Complete { PERIOD } else { SOON })
    }

    fn failed(
        &mut self,
        error: &InstallError,
        ready: &Sender<Readiness>,
        on_event: &impl Fn(InstallEvent),
    ) -> Delay {
        let reason = causes(error);
        if self.last.as_ref() != Some(&reason) {
            tracing::error!(%reason, "cannot install the plugin, trying again");
            self.last = Some(reason.clone());
        }
        publish(ready, false, &reason);
        on_event(match error {
            InstallError::Copy(_) | InstallError::NoBinary(_) => InstallEvent::CopyFailed(reason),
            InstallError::Plan(_) | InstallError::File(_) | InstallError::Restless => {
                InstallEvent::ConfigFailed(reason)
            }
        });
        let delay = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        self.failures = self.failures.saturating_add(1);
        // The nodes of a cluster do not all try at the same moment.
        let watch = delay.mul_f64(0.75 + fastrand::f64() / 4.0);
        // A change of the files may have ended it, but must not make it a busy loop.
        Delay { pause: Duration::from_millis(100), watch }
    }

    fn say(&mut self, state: &State, reason: &str) {
        if self.last.as_deref() == Some(reason) {
            return;
        }
        self.last = Some(reason.to_owned());
        match state {
            State::Complete => tracing::info!("the plugin is installed"),
            State::Kept(_) => {
                tracing::warn!(%reason, "the CNI configuration that ours is made from cannot be followed, keeping its last good copy");
            }
            State::Waiting(_) => tracing::warn!(%reason, "waiting for a CNI configuration"),
            State::Preempted(_) => {
                tracing::error!(%reason, "our CNI configuration is not the one that is used")
            }
        }
    }
}

/// Tells only what is new.
fn publish(ready: &Sender<Readiness>, is_ready: bool, reason: &str) {
    ready.send_if_modified(|readiness| {
        let new = Readiness { ready: is_ready, reason: reason.to_owned() };
        let changed = *readiness != new;
        *readiness = new;
        changed
    });
}
