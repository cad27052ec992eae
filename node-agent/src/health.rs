//! Whether the agent is alive, and whether it can do what it is for.
//!
//! Alive: its loops go round. A loop that is stuck is ended by a restart, which
//! `/healthz` asks the kubelet for; pods that are captured do not notice. Ready: a
//! pod that starts now would be captured. `/readyz` says what is in the way.

use crate::responder::Page;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Says what is wrong, or nothing.
type Check = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// A named check.
#[derive(Clone)]
struct Named {
    name: &'static str,
    check: Check,
}

/// What is asked about the agent.
#[derive(Default)]
pub(crate) struct Health {
    loops: Mutex<Vec<Named>>,
    conditions: Mutex<Vec<Named>>,
    stopping: AtomicBool,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |checks: &Mutex<Vec<Named>>| -> Vec<&str> {
            lock(checks).iter().map(|named| named.name).collect()
        };
        f.debug_struct("Health")
            .field("loops", &names(&self.loops))
            .field("conditions", &names(&self.conditions))
            .finish_non_exhaustive()
    }
}

/// A loop's sign of life.
#[derive(Debug)]
pub(crate) struct Beat {
    begun: Instant,
    last: AtomicU64,
}

impl Beat {
    /// The loop went round.
    pub(crate) fn beat(&self) {
        self.last.store(millis(self.begun.elapsed()), Ordering::Relaxed);
    }

    fn silent(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn lock(checks: &Mutex<Vec<Named>>) -> MutexGuard<'_, Vec<Named>> {
    checks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names with what is wrong.
fn run(checks: &Mutex<Vec<Named>>) -> Vec<(&'static str, Option<String>)> {
    // A check that hangs must not keep the list.
    let checks = lock(checks).clone();
    checks.into_iter().map(|named| (named.name, (named.check)())).collect()
}

impl Health {
    /// A loop that must beat within `limit`, again and again from now on.
    pub(crate) fn beats(&self, name: &'static str, limit: Duration) -> Arc<Beat> {
        let beat = Arc::new(Beat { begun: Instant::now(), last: AtomicU64::new(0) });
        let watched = Arc::clone(&beat);
        let check = move || {
            let silent = watched.silent();
            (silent > limit).then(|| format!("stuck for {} s", silent.as_secs()))
        };
        lock(&self.loops).push(Named { name, check: Arc::new(check) });
        beat
    }

    /// A condition of being ready.
    pub(crate) fn needs(
        &self,
        name: &'static str,
        check: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        lock(&self.conditions).push(Named { name, check: Arc::new(check) });
    }

    /// From now on not ready, for good.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Conditions of being ready, and what is wrong with each.
    pub(crate) fn conditions(&self) -> Vec<(&'static str, Option<String>)> {
        let mut conditions = run(&self.conditions);
        let stopping = self.stopping.load(Ordering::Relaxed);
        conditions.push(("running", stopping.then(|| "the agent is stopping".to_owned())));
        conditions
    }

    /// Loops, and what is wrong with each.
    pub(crate) fn loops(&self) -> Vec<(&'static str, Option<String>)> {
        run(&self.loops)
    }

    /// `/healthz` and `/readyz`.
    pub(crate) fn page(&self, path: &str) -> Page {
        let checks = match path {
            "/healthz" => self.loops(),
            "/readyz" => self.conditions(),
            _ => return Page::text(404, "no such page: want /healthz or /readyz"),
        };
        let wrong: Vec<String> = checks
            .into_iter()
            .filter_map(|(name, wrong)| Some(format!("{name}: {}", wrong?)))
            .collect();
        if wrong.is_empty() { Page::text(200, "ok") } else { Page::text(503, &wrong.join("\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_is_stuck_is_named() {
        let health = Health::default();
        let (good, bad) = (
            health.beats("good", Duration::from_secs(60)),
            health.beats("bad", Duration::from_millis(30)),
        );
        assert_eq!(health.page("/healthz"), Page::text(200, "ok"));
        std::thread::sleep(Duration::from_millis(60));
        let page = health.page("/healthz");
        assert_eq!((page.status, page.body.as_str()), (503, "bad: stuck for 0 s\n"));
        assert_eq!(health.page("/readyz").status, 200, "another question");
        good.beat();
        bad.beat();
        assert_eq!(health.page("/healthz").status, 200);
    }

    #[test]
    fn readiness_says_what_is_missing() {
        let health = Health::default();
        let ready = Arc::new(AtomicBool::new(false));
        let (one, other) = (Arc::clone(&ready), Arc::clone(&ready));
        health.needs("installed", move || {
            (!one.load(Ordering::Relaxed)).then(|| "no binary".to_owned())
        });
        health.needs("synced", move || {
            (!other.load(Ordering::Relaxed)).then(|| "no list yet".to_owned())
        });
        let page = health.page("/readyz");
        assert_eq!(
            (page.status, page.body.as_str()),
            (503, "installed: no binary\nsynced: no list yet\n")
        );
        ready.store(true, Ordering::Relaxed);
        assert_eq!(health.page("/readyz"), Page::text(200, "ok"));
        health.stop();
        assert!(health.page("/readyz").body.contains("stopping"));
        assert_eq!(health.page("/").status, 404);
    }
}
