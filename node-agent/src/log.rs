//! Logs: one event a line on standard error, as text or JSON.

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Starts logging.
///
/// # Errors
///
/// When `level` is neither a level nor a list of `target=level`.
pub(crate) fn init(format: Format, level: &str) -> Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!(
            "log level {level:?}: want error, warn, info, debug, trace, or a list of target=level"
        )
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let set = match format {
        Format::Text => lines.with_ansi(false).try_init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
