//! Tries to capture what escaped: further and further apart, for as long as it runs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest pause between two tries; the first is two seconds.
const PAUSE: Duration = Duration::from_secs(60);

/// What was tried, by file.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<String, Attempt>>);

#[derive(Debug)]
struct Attempt {
    since: Instant,
    failures: u32,
    due: Instant,
    /// Of the last failure.
    why: Option<String>,
}

impl Attempt {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, failures: 0, due: now, why: None }
    }
}

impl Attempts {
    /// It is to be looked at now.
    pub(super) fn is_due(&self, name: &str) -> bool {
        self.lock().get(name).is_none_or(|attempt| Instant::now() >= attempt.due)
    }

    /// Nothing was tried yet.
    pub(super) fn is_first(&self, name: &str) -> bool {
        self.lock().get(name).is_none_or(|attempt| attempt.failures == 0)
    }

    /// How long ago this was asked first.
    pub(super) fn known_for(&self, name: &str) -> Duration {
        self.lock().entry(name.to_owned()).or_insert_with(Attempt::new).since.elapsed()
    }

    /// Counts a failed try; true when it failed otherwise than the one before.
    pub(super) fn failed(&self, name: &str, why: &str) -> bool {
        let mut all = self.lock();
        let attempt = all.entry(name.to_owned()).or_insert_with(Attempt::new);
        attempt.failures += 1;
        let pause = Duration::from_secs(1 << attempt.failures.min(6));
        attempt.due = Instant::now() + pause.min(PAUSE);
        let differs = attempt.why.as_deref() != Some(why);
        attempt.why = Some(why.to_owned());
        differs
    }

    /// How many failed so far.
    pub(super) fn failing(&self) -> usize {
        self.lock().values().filter(|attempt| attempt.why.is_some()).count()
    }

    /// Forgets files that are no more.
    pub(super) fn retain(&self, names: &[String]) {
        self.lock().retain(|name, _| names.contains(name));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Attempt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_with_pauses_and_says_each_change_once() {
        let attempts = Attempts::default();
        assert!(attempts.is_due("a") && attempts.is_first("a"));
        assert!(attempts.known_for("a") < PAUSE);
        assert!(attempts.is_first("a"));
        let mut before = Duration::ZERO;
        for number in 1..100 {
            assert_eq!(attempts.failed("a", "no"), number == 1);
            assert!(!attempts.is_due("a") && !attempts.is_first("a"));
            let pause = attempts.lock()["a"].due - Instant::now();
            assert!(pause > before || pause > PAUSE / 2, "{number}: {pause:?}");
            assert!(pause <= PAUSE);
            before = pause;
        }
        assert!(attempts.failed("a", "gone") && !attempts.failed("a", "gone"));
        assert!(attempts.failed("b", "no"));
        assert_eq!(attempts.failing(), 2);
        attempts.retain(&["b".to_owned()]);
        assert_eq!(attempts.failing(), 1);
        assert!(attempts.is_due("a") && attempts.is_first("a"));
    }
}
