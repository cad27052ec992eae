//! The one deadline of an invocation.

use std::cell::Cell;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;

/// A point in time after which nothing is waited for. It is computed once and
/// only ever moved to start + another length, so a peer that sends a byte now
/// and then cannot extend it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    started: Instant,
    length: Duration,
}

impl Deadline {
    /// `length` from now.
    pub(crate) fn after(length: Duration) -> Self {
        Self { started: Instant::now(), length }
    }

    /// The same start with another length, once the configuration is known.
    pub(crate) fn with_length(self, length: Duration) -> Self {
        Self { length, ..self }
    }

    /// The earlier of this and `length` from now.
    pub(crate) fn or_after(self, length: Duration) -> Self {
        Self { started: self.started, length: self.length.min(self.started.elapsed() + length) }
    }

    /// What is left; `None` when it is over.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.length.checked_sub(self.started.elapsed()).filter(|left| !left.is_zero())
    }

    /// What is left, for `ppoll`.
    pub(crate) fn timeout(self) -> Option<TimeSpec> {
        self.remaining().map(TimeSpec::from_duration)
    }

    /// The whole length, for messages.
    pub(crate) fn length(self) -> Duration {
        self.length
    }
}

/// A deadline that ends early for a caller who can do without an answer. Whether
/// it can is asked only when the early end has come: finding it out costs a file.
pub(crate) struct Patience<'a> {
    deadline: Deadline,
    early: Cell<Option<Deadline>>,
    over: Cell<bool>,
    can_do_without: &'a dyn Fn() -> bool,
}

impl<'a> Patience<'a> {
    /// Waits until `deadline`, or only for `early` when `can_do_without` says so then.
    pub(crate) fn new(
        deadline: Deadline,
        early: Duration,
        can_do_without: &'a dyn Fn() -> bool,
    ) -> Self {
        let early = Cell::new(Some(deadline.or_after(early)));
        Self { deadline, early, over: Cell::new(false), can_do_without }
    }

    /// How long to wait now, after which this is to be asked again; `None` when it
    /// is over.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        if let Some(early) = self.early.get() {
            if let Some(left) = early.remaining() {
                return Some(left);
            }
            self.early.set(None);
            self.over.set((self.can_do_without)());
        }
        if self.over.get() { None } else { self.deadline.remaining() }
    }

    /// [`Patience::remaining`], for `ppoll`.
    pub(crate) fn timeout(&self) -> Option<TimeSpec> {
        self.remaining().map(TimeSpec::from_duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_short_only_for_who_can_do_without() {
        let deadline = Deadline::after(Duration::from_secs(60));
        for can in [true, false] {
            let asked = Cell::new(0);
            let can_do_without = || {
                asked.set(asked.get() + 1);
                can
            };
            let patience = Patience::new(deadline, Duration::from_millis(5), &can_do_without);
            assert!(patience.remaining().unwrap() <= Duration::from_millis(5));
            assert_eq!(asked.get(), 0);
            std::thread::sleep(Duration::from_millis(6));
            for _ in 0..2 {
                assert_eq!(patience.remaining().is_none(), can);
            }
            assert_eq!(asked.get(), 1);
        }
    }

    #[test]
    fn patience_never_outlasts_the_deadline() {
        let deadline = Deadline::after(Duration::from_millis(1));
        let patience = Patience::new(deadline, Duration::from_secs(60), &|| false);
        std::thread::sleep(Duration::from_millis(2));
        assert!(patience.remaining().is_none());
    }
}
