//! Waiting for a condition, with a bound.

use anyhow::{Result, anyhow};
use std::time::{Duration, Instant};

/// What a healthy cluster needs at most on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Asks until there is an answer. An error is a reason to ask again; the last one is
/// in the message when time is up.
///
/// # Errors
/// When there is none within `bound`.
pub fn until<T>(
    what: &str,
    bound: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + bound;
    loop {
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(err) => Some(err),
        };
        if Instant::now() > end {
            let late = format!("{what}: not within {bound:?}");
            return Err(last.map_or_else(|| anyhow!(late.clone()), |err| err.context(late.clone())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// [`until`] a condition holds; the text says what is in the way.
///
/// # Errors
/// The same.
pub fn until_ok(what: &str, bound: Duration, mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    until(what, bound, || ask().map(Some))
}
