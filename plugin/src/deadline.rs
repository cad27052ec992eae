//! The one deadline of an invocation.

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
