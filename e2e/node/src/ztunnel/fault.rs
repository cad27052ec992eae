//! What a test can make the fake do wrong.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What it does wrong. Pods are named by uid, or all by `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// It connects and never says hello.
    pub no_hello: bool,
    /// It reads requests, does nothing and does not answer.
    pub silent: bool,
    /// It does not even read.
    pub deaf: bool,
    /// Milliseconds that it waits before the answer to a pod's request.
    pub delay_ms: BTreeMap<String, u64>,
    /// Only Adds have such a wait, and it ends with the connection: what took so long is
    /// given up, and the next connection does not wait for it.
    pub gives_up: bool,
    /// So many times the start of a pod's proxy fails.
    pub refuse: BTreeMap<String, u32>,
    /// Its errors come with a stack trace, as those of a debug build do: 12307 bytes.
    pub long_errors: bool,
    /// After so many requests of a connection it closes it without an answer to the
    /// last. Once.
    pub close_at: Option<u32>,
    /// After so many requests of a connection it ends without an answer to the last.
    pub exit_at: Option<u32>,
    /// Nothing that was sent is answered right: it acknowledges everything, and starts
    /// no proxy.
    pub lying: bool,
}

impl Faults {
    pub(super) fn delay(&self, uid: Option<&str>) -> Duration {
        let of = |key: &str| self.delay_ms.get(key).copied();
        let delay = uid.and_then(of).or_else(|| of("*"));
        Duration::from_millis(delay.unwrap_or_default())
    }

    /// Uses up one of a pod's refusals.
    pub(super) fn refuses(&mut self, uid: &str) -> bool {
        for key in [uid, "*"] {
            if let Some(left) = self.refuse.get_mut(key).filter(|left| **left > 0) {
                *left -= 1;
                return true;
            }
        }
        false
    }
}
