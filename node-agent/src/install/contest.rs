//! Limits for when others write the same files.

use std::time::{Duration, Instant};

/// Writes in a row before the rate counts.
const BURST: u32 = 10;
/// After that, one in this time: well under the second in which a change of the
/// primary has to be followed.
const EVERY: Duration = Duration::from_millis(250);
/// This many repairs of one file ...
const MANY: usize = 5;
/// ... within this time are a fight.
const WINDOW: Duration = Duration::from_secs(60);

/// A token bucket.
#[derive(Debug)]
pub(super) struct Rate {
    tokens: u32,
    refilled: Instant,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BURST, refilled: now }
    }

    /// Takes one, or says how long to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.refilled);
        let new = u32::try_from(passed.as_millis() / EVERY.as_millis()).unwrap_or(BURST);
        if self.tokens + new.min(BURST) >= BURST {
            self.tokens = BURST;
            self.refilled = now;
        } else {
            self.tokens += new;
            self.refilled += EVERY * new;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(EVERY.saturating_sub(now.saturating_duration_since(self.refilled))),
        }
    }
}

/// Counts repairs of what had been right.
#[derive(Debug, Default)]
pub(super) struct Contest {
    recent: Vec<Instant>,
    warned: Option<Instant>,
    times: u64,
}

impl Contest {
    /// Notes one; the number so far when it is time to warn.
    pub(super) fn repaired(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        self.recent.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        if self.recent.len() < MANY {
            self.recent.push(now);
        }
        let quiet = self.warned.is_none_or(|at| now.saturating_duration_since(at) >= WINDOW);
        if self.recent.len() < MANY || !quiet {
            return None;
        }
        self.warned = Some(now);
        Some(self.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_burst_through_and_then_four_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for _ in 0..BURST {
            rate.take(start).unwrap();
        }
        assert_eq!(rate.take(start), Err(EVERY));
        let mut passed = 0;
        for ms in 0..10_000 {
            passed += u32::from(rate.take(start + Duration::from_millis(ms)).is_ok());
        }
        assert_eq!(passed, 39);
        let later = start + Duration::from_secs(3600);
        for _ in 0..BURST {
            rate.take(later).unwrap();
        }
        assert!(rate.take(later).is_err());
    }

    #[test]
    fn warns_of_a_fight_once_a_minute() {
        let start = Instant::now();
        let mut contest = Contest::default();
        let warnings: Vec<u64> =
            (0..600).filter_map(|s| contest.repaired(start + Duration::from_secs(s))).collect();
        assert_eq!(warnings.first(), Some(&5));
        assert!((9..=11).contains(&warnings.len()), "{warnings:?}");
        let mut rare = Contest::default();
        assert!((0..100).all(|n| rare.repaired(start + WINDOW * n).is_none()));
    }
}
