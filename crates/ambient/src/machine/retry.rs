//! A lane of work that is tried again after a failure, ever more slowly.

use super::desk::{Alarm, Desk};
use crate::config::Config;
use crate::id::TimerId;
use std::time::Duration;

/// Failures in a row, and the pause after the last one.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    last: Option<String>,
    timer: Option<TimerId>,
}

/// What people are to hear about a lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Stuck { failures: u32, error: String },
    Recovered,
}

impl Retry {
    /// In the pause after a failure: nothing is to be started.
    pub(super) fn waiting(&self) -> bool {
        self.timer.is_some()
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    pub(super) fn loud(&self, config: &Config) -> bool {
        self.failures >= config.loud_after.max(1)
    }

    /// Counts a failure and starts the pause. `slow`: nothing will get better soon.
    pub(super) fn fail(
        &mut self,
        desk: &mut Desk,
        config: &Config,
        alarm: Alarm,
        error: String,
        slow: bool,
    ) -> Told {
        let told = self.count(config, error);
        let delay = if slow { config.retry_max } else { delay(config, self.failures) };
        self.pause(desk, delay, alarm);
        told
    }

    /// Counts a failure without a pause: something else decides when to try again.
    pub(super) fn count(&mut self, config: &Config, error: String) -> Told {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(error.clone());
        let first = config.loud_after.max(1);
        let doubled =
            self.failures.is_multiple_of(first) && (self.failures / first).is_power_of_two();
        if doubled { Told::Stuck { failures: self.failures, error } } else { Told::Nothing }
    }

    /// A pause that is not due to a failure.
    pub(super) fn pause(&mut self, desk: &mut Desk, delay: Duration, alarm: Alarm) {
        self.nudge(desk);
        self.timer = Some(desk.arm(alarm, delay, true));
    }

    /// Worked. Says so where people had heard of the trouble.
    pub(super) fn succeed(&mut self, desk: &mut Desk, config: &Config) -> Told {
        let loud = self.loud(config);
        self.reset(desk);
        if loud { Told::Recovered } else { Told::Nothing }
    }

    /// Starts anew: what failed was something else.
    pub(super) fn reset(&mut self, desk: &mut Desk) {
        self.nudge(desk);
        self.failures = 0;
        self.last = None;
    }

    /// Ends the pause; failures stay counted.
    pub(super) fn nudge(&mut self, desk: &mut Desk) {
        if let Some(timer) = self.timer.take() {
            desk.cancel(timer);
        }
    }

    /// The pause is over by itself. False when it was another pause's timer.
    pub(super) fn ring(&mut self, timer: TimerId) {
        if self.timer == Some(timer) {
            self.timer = None;
        }
    }
}

/// The pause after that many failures.
fn delay(config: &Config, failures: u32) -> Duration {
    doubled(config.retry, failures.saturating_sub(1), config.retry_max)
}

/// `first`, doubled `times`, at most `limit`.
pub(super) fn doubled(first: Duration, times: u32, limit: Duration) -> Duration {
    first.checked_mul(1_u32 << times.min(20)).map_or(limit, |d| d.min(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit() {
        let config = Config::default();
        let delays: Vec<_> = (1..=10).map(|n| delay(&config, n).as_millis()).collect();
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays[9], 30_000);
        assert_eq!(delay(&config, u32::MAX), config.retry_max);
    }

    #[test]
    fn trouble_is_told_each_time_it_has_doubled_and_its_end_once() {
        let config = Config { loud_after: 3, ..Config::default() };
        let (mut retry, mut desk) = (Retry::default(), Desk::default());
        let told: Vec<u32> = (1..=30)
            .filter(|_| matches!(retry.count(&config, "no".into()), Told::Stuck { .. }))
            .collect();
        assert_eq!(told, [3, 6, 12, 24]);
        assert_eq!(retry.succeed(&mut desk, &config), Told::Recovered);
        assert_eq!(retry.succeed(&mut desk, &config), Told::Nothing);
    }
}
