//! What is to be looked at because something was heard of it: soon, together with what
//! is heard a moment later, and not again and again when somebody keeps changing it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Changes that come this close together are one: a flush is many.
const SETTLE: Duration = Duration::from_millis(50);

/// From one look at the same to the next.
const GAP: Duration = Duration::from_secs(1);

/// The same when only that something was lost is known: it is of all of them.
const LOST_GAP: Duration = Duration::from_secs(5);

/// After a write of our own, which has been proved: a node that starts many pods at once
/// has other work first.
const LATER: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Attention<K> {
    waiting: HashMap<K, Waiting>,
    looked: HashMap<K, Instant>,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    /// When it was heard of first.
    since: Instant,
}

impl<K> Default for Attention<K> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), looked: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Attention<K> {
    /// It was changed.
    pub(crate) fn call(&mut self, key: K, now: Instant) {
        self.call_after(key, now, GAP);
    }

    /// It may have been changed, as may all others.
    pub(crate) fn suspect(&mut self, key: K, now: Instant) {
        self.call_after(key, now, LOST_GAP);
    }

    /// We changed it.
    pub(crate) fn call_later(&mut self, key: K, now: Instant) {
        self.waiting.entry(key).or_insert(Waiting { due: now + LATER, since: now });
    }

    fn call_after(&mut self, key: K, now: Instant, gap: Duration) {
        let free = self.looked.get(&key).map(|at| *at + gap);
        let due = free.map_or(now + SETTLE, |free| free.max(now + SETTLE));
        let waiting = self.waiting.entry(key).or_insert(Waiting { due, since: now });
        waiting.due = waiting.due.min(due);
    }

    /// When the next is to be looked at.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Those that are to be looked at now, with the time when they were heard of first.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<(K, Instant)> {
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.due <= now);
        let keys: Vec<K> = due.map(|(key, _)| key.clone()).collect();
        let taken = keys.into_iter().filter_map(|key| Some((self.begin(&key, now)?, key)));
        taken.map(|(since, key)| (key, since)).collect()
    }

    /// It is looked at now, for whatever reason; with the time when it was heard of
    /// first, if it was.
    pub(crate) fn begin(&mut self, key: &K, now: Instant) -> Option<Instant> {
        self.looked.insert(key.clone(), now);
        self.waiting.remove(key).map(|waiting| waiting.since)
    }

    /// It is no more.
    pub(crate) fn forget(&mut self, key: &K) {
        self.waiting.remove(key);
        self.looked.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_one_look_and_a_flap_one_a_second() {
        let mut attention = Attention::default();
        let begun = Instant::now();
        let mut looks = Vec::new();
        for step in 0..10_000 {
            let now = begun + step * MS;
            attention.call("flaps", now);
            if step == 4000 {
                attention.call("other", now);
            }
            assert!(attention.due().is_some());
            looks.extend(attention.take(now).into_iter().map(|(key, since)| (key, step, since)));
        }
        let of = |key| looks.iter().filter(move |(k, ..)| *k == key);
        assert_eq!(of("other").map(|(_, step, _)| *step).collect::<Vec<_>>(), [4050]);
        let flaps: Vec<_> = of("flaps").map(|(_, step, _)| *step).collect();
        assert_eq!(flaps, (0..10).map(|n| 50 + n * 1000).collect::<Vec<_>>());
        // Heard of again right after each look began.
        assert!(of("flaps").skip(1).all(|(_, step, since)| *since == begun + (step - 999) * MS));
    }

    #[test]
    fn losses_are_looked_after_more_slowly_than_changes() {
        let mut attention = Attention::default();
        let begun = Instant::now();
        let at = |seconds: u32| begun + Duration::from_secs(seconds.into());
        assert_eq!(attention.begin(&1, begun), None);
        attention.suspect(1, at(1));
        assert_eq!(attention.due(), Some(at(5)));
        attention.call(1, at(2));
        assert_eq!(attention.due(), Some(at(2) + SETTLE), "known to be changed");
        attention.suspect(1, at(2));
        assert_eq!(attention.due(), Some(at(2) + SETTLE), "not put off");
        assert_eq!(attention.take(at(3)), [(1, at(1))]);
        assert_eq!((attention.due(), attention.take(at(9))), (None, vec![]));
        attention.call(1, at(9));
        assert_eq!(attention.begin(&1, at(9)), Some(at(9)), "one look for both reasons");
        attention.call(1, at(9));
        attention.forget(&1);
        assert_eq!(attention.due(), None);
    }

    #[test]
    fn a_write_of_our_own_can_wait_and_a_change_cannot() {
        let mut attention = Attention::default();
        let begun = Instant::now();
        attention.call_later(1, begun);
        assert_eq!(attention.due(), Some(begun + LATER));
        attention.call(1, begun + MS);
        assert_eq!(attention.due(), Some(begun + MS + SETTLE));
        attention.call_later(1, begun + 2 * MS);
        assert_eq!(attention.take(begun + MS + SETTLE), [(1, begun)]);
    }
}
