//! How many do something expensive at once: more than there are processors only take
//! time from each other, and the first of them is done no sooner.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// So many places.
#[derive(Debug)]
pub(super) struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

/// A place; given back on drop.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Gate);

impl Default for Gate {
    /// One place a processor, and two at least.
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(2, usize::from).max(2))
    }
}

impl Gate {
    fn new(places: usize) -> Self {
        Self { free: Mutex::new(places), freed: Condvar::new() }
    }

    /// Waits for a place; `None` when there was none by `until`.
    pub(super) fn enter(&self, until: Instant) -> Option<Place<'_>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            let left = until.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())?;
            let waited = self.freed.wait_timeout(free, left);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Some(Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_more_than_its_places() {
        let gate = Gate::new(2);
        let soon = || Instant::now() + Duration::from_millis(10);
        let first = gate.enter(soon()).unwrap();
        let _second = gate.enter(soon()).unwrap();
        assert!(gate.enter(soon()).is_none());
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| gate.enter(Instant::now() + Duration::from_secs(20)).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert!(gate.enter(soon()).is_some());
    }
}
