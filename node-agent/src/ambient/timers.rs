//! Times at which something is due, in order.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// Keys, each due once; a key that is set again is due at its new time only.
#[derive(Debug)]
pub(super) struct Timers<K> {
    due: BTreeMap<(Instant, u64), K>,
    keys: HashMap<K, (Instant, u64)>,
    next: u64,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), keys: HashMap::new(), next: 0 }
    }
}

impl<K: Clone + Eq + Hash> Timers<K> {
    /// Makes a key due then.
    pub(super) fn set(&mut self, key: K, at: Instant) {
        self.cancel(&key);
        let place = (at, self.next);
        self.next += 1;
        self.due.insert(place, key.clone());
        self.keys.insert(key, place);
    }

    /// Makes it not due at all.
    pub(super) fn cancel(&mut self, key: &K) {
        if let Some(place) = self.keys.remove(key) {
            self.due.remove(&place);
        }
    }

    /// The earliest time that something is due.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Takes the first key that is due by now.
    pub(super) fn take(&mut self, now: Instant) -> Option<K> {
        let place = *self.due.keys().next().filter(|(at, _)| *at <= now)?;
        let key = self.due.remove(&place)?;
        self.keys.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_is_due_once_and_in_order() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set("b", at(20));
        timers.set("a", at(10));
        timers.set("c", at(10));
        timers.set("b", at(5));
        timers.cancel(&"c");
        timers.cancel(&"unknown");
        assert_eq!(timers.earliest(), Some(at(5)));
        assert_eq!(timers.take(at(4)), None);
        assert_eq!(timers.take(at(30)), Some("b"));
        assert_eq!(timers.take(at(30)), Some("a"));
        assert_eq!((timers.take(at(30)), timers.earliest()), (None, None));
        assert!(timers.keys.is_empty());
    }
}
