//! How long to wait before the next attempt: doubled each time, with jitter, so that
//! the agents of a thousand nodes do not come back as one.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// Delays between attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    most: Duration,
}

impl Backoff {
    /// From `least`, doubled up to `most`; each is lengthened by up to its own
    /// length at random.
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(least)
            .with_max_delay(most / 2)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self { delays: builder.build(), builder, most }
    }

    /// The next delay, at least what the server asked for, which is not believed
    /// beyond the longest delay.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let own = self.delays.next().unwrap_or(self.most).min(self.most);
        own.max(asked.unwrap_or_default().min(self.most))
    }

    /// What was tried works: the next delay is the shortest again.
    pub(super) fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_back() {
        let most = Duration::from_secs(30);
        let mut backoff = Backoff::new(Duration::from_millis(100), most);
        let first = backoff.next(None);
        assert!(first >= Duration::from_millis(100) && first <= Duration::from_millis(200));
        let later: Vec<_> = (0..50).map(|_| backoff.next(None)).collect();
        assert!(later.iter().all(|delay| *delay <= most));
        assert!(later[49] >= most / 2);
        assert!(later[20..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        assert_eq!(backoff.next(Some(Duration::from_secs(3600))), most);
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_millis(200));
        assert!(backoff.next(Some(Duration::from_secs(20))) >= Duration::from_secs(20));
    }
}
