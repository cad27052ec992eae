//! How often something may happen: so many times at once, then one in a time.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Pace {
    /// What may be used up in advance.
    credit: Duration,
    period: Duration,
    /// When the account is even.
    even: Option<Instant>,
}

impl Pace {
    pub(super) fn new(burst: u32, period: Duration) -> Self {
        Self { credit: period * burst.saturating_sub(1), period, even: None }
    }

    /// When it may happen next; None when it may now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let even = self.even?;
        let debt = even.saturating_duration_since(now);
        (debt > self.credit).then(|| now + (debt - self.credit))
    }

    /// It happens.
    pub(super) fn take(&mut self, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + self.period);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(3, Duration::from_millis(200));
        for _ in 0..3 {
            assert_eq!(pace.next(start), None);
            pace.take(start);
        }
        assert_eq!(pace.next(start), Some(at(200)));
        assert_eq!(pace.next(at(199)), Some(at(200)));
        assert_eq!(pace.next(at(200)), None);
        pace.take(at(200));
        assert_eq!(pace.next(at(200)), Some(at(400)));
        // A quiet time brings the burst back, and no more than that.
        for _ in 0..3 {
            assert_eq!(pace.next(at(10_000)), None);
            pace.take(at(10_000));
        }
        assert_eq!(pace.next(at(10_000)), Some(at(10_200)));
    }

    #[test]
    fn one_at_a_time_from_the_start() {
        let start = Instant::now();
        let mut pace = Pace::new(1, Duration::from_secs(1));
        assert_eq!(pace.next(start), None);
        pace.take(start);
        assert_eq!(pace.next(start), Some(start + Duration::from_secs(1)));
    }
}
