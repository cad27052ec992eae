//! The agent tries what an ADD needs, again and again: readiness is seen, not
//! remembered. A step that hangs here would hang an ADD too, and is found by the
//! missing beat.

use crate::agent::Agent;
use crate::health::{Beat, Health};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often, while all is well.
const PERIOD: Duration = Duration::from_secs(30);

/// How soon after a failure.
const SOON: Duration = Duration::from_secs(2);

/// Failures in a row that count: one alone may be a busy moment.
const FAILURES: u32 = 2;

/// Longest time between two tries.
const LIMIT: Duration = Duration::from_secs(150);

/// Name of the file that is written in the run directory.
const FILE: &str = ".self-test";

/// What the last tries said.
#[derive(Debug, Default)]
pub(super) struct SelfTest {
    wrong: Mutex<Option<String>>,
}

impl SelfTest {
    /// One whose findings are a condition of being ready. The backend has been proved
    /// when the agent gets here.
    pub(super) fn new(health: &Health) -> Arc<Self> {
        let test = Arc::new(Self::default());
        let asked = Arc::clone(&test);
        health.needs("programming", move || {
            asked.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
        });
        test
    }

    /// Tries until it is dropped.
    pub(super) async fn run(
        self: Arc<Self>,
        agent: Arc<Agent>,
        run_dir: PathBuf,
        health: Arc<Health>,
    ) {
        let beat: Arc<Beat> = health.beats("self-test", LIMIT);
        let mut failures = 0;
        loop {
            let pause =
                if failures == 0 { PERIOD.mul_f64(0.9 + fastrand::f64() / 5.0) } else { SOON };
            tokio::time::sleep(pause).await;
            let (tried, dir) = (Arc::clone(&agent), run_dir.clone());
            let result = tokio::task::spawn_blocking(move || {
                tried.backend.prove()?;
                // The lock that every lookup takes.
                tried.source.count();
                writable(&dir)
            });
            let wrong = match result.await {
                Ok(result) => result.err(),
                Err(error) => Some(format!("the agent's own defect: {error}")),
            };
            failures = if wrong.is_some() { failures + 1 } else { 0 };
            self.note(wrong, failures);
            beat.beat();
        }
    }

    fn note(&self, found: Option<String>, failures: u32) {
        if found.is_some() && failures < FAILURES {
            return;
        }
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        match (&found, &*wrong) {
            (Some(reason), None) => {
                tracing::error!(reason, "pods cannot be captured on this node now");
            }
            (None, Some(_)) => tracing::info!("pods can be captured on this node again"),
            _ => {}
        }
        *wrong = found;
    }
}

/// Records can be written.
fn writable(run_dir: &Path) -> Result<(), String> {
    let path = run_dir.join(FILE);
    let result = std::fs::write(&path, "x").and_then(|()| std::fs::remove_file(&path));
    result.map_err(|error| {
        format!("the run directory {} cannot be written: {error}", run_dir.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_stays() {
        let health = Health::default();
        let test = SelfTest::new(&health);
        let ready = || health.page("/readyz").status == 200;
        assert!(ready());
        test.note(Some("no".to_owned()), 1);
        assert!(ready(), "a moment");
        test.note(Some("no".to_owned()), 2);
        assert!(health.page("/readyz").body.contains("programming: no"));
        test.note(None, 0);
        assert!(ready());
    }

    #[test]
    fn sees_a_run_directory_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(dir.path()), Ok(()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let gone = dir.path().join("gone");
        assert!(writable(&gone).unwrap_err().contains("gone"));
    }
}
