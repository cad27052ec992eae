//! Who waits for whom: requests for the same sandbox or namespace go one after the
//! other, all others side by side.

use crate::record::SandboxId;
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;
use sys::netns::NetnsId;

/// What a request works on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A sandbox and its record.
    Sandbox(SandboxId),
    /// A network namespace and its rules.
    Netns(NetnsId),
}

/// What is being worked on.
#[derive(Debug, Default)]
pub(super) struct Busy {
    keys: Mutex<HashSet<Key>>,
    freed: Condvar,
}

/// The right to work on something; given back on drop.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    busy: &'a Busy,
    key: Key,
}

impl Busy {
    /// Waits for the turn; `None` when it has not come by `until`. A request that
    /// takes several turns takes the sandbox's first, so that two cannot wait for
    /// each other.
    pub(super) fn enter(&self, key: Key, until: Instant) -> Option<Turn<'_>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        while keys.contains(&key) {
            let left = until.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())?;
            let waited = self.freed.wait_timeout(keys, left);
            keys = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        keys.insert(key.clone());
        Some(Turn { busy: self, key })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut keys = self.busy.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.remove(&self.key);
        self.busy.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_same_waits_and_others_do_not() {
        let busy = Busy::default();
        let key = |n| Key::Netns(NetnsId { dev: 1, ino: n });
        let soon = || Instant::now() + Duration::from_millis(20);
        let first = busy.enter(key(1), soon()).unwrap();
        assert!(busy.enter(key(2), soon()).is_some());
        assert!(busy.enter(key(1), soon()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope
                .spawn(|| busy.enter(key(1), Instant::now() + Duration::from_secs(60)).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert!(busy.enter(key(1), soon()).is_some());
    }
}
