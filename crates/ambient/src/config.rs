//! Delays and limits. The defaults are what the agent uses; tests make them small.

use std::time::Duration;

/// Delays and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Time a ztunnel has for one response before its session is closed. ztunnel takes
    /// 1 to 5 ms for an Add. Doubled after each session that ended so, up to
    /// [`ack_timeout_max`](Self::ack_timeout_max), so that a slow one gets through.
    pub ack_timeout: Duration,
    /// Limit of the above.
    pub ack_timeout_max: Duration,
    /// Time after [`Event::Listed`](crate::event::Event::Listed) in which known pods
    /// are to be found and programmed before the first snapshot goes out without them
    /// (they are kept, and added later).
    pub settle: Duration,
    /// Time without any ztunnel after which pods stop to count as accepted. Shorter
    /// gaps are a ztunnel that connects again: its proxies keep running.
    pub ztunnel_grace: Duration,
    /// How long a request, done otherwise, waits for the annotation to be written. It
    /// is then answered all the same: the pod is captured.
    pub annotation_wait: Duration,
    /// First delay after a failure; doubled with each further one.
    pub retry: Duration,
    /// Limit of the above.
    pub retry_max: Duration,
    /// Failures in a row after which it is loud, and the annotation is taken back.
    pub loud_after: u32,
    /// Messages of one session that may wait for their response.
    pub window: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ack_timeout: Duration::from_secs(2),
            ack_timeout_max: Duration::from_secs(16),
            settle: Duration::from_secs(2),
            ztunnel_grace: Duration::from_secs(60),
            annotation_wait: Duration::from_secs(1),
            retry: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            loud_after: 5,
            window: 32,
        }
    }
}
