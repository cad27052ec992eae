//! The CNI protocol, versions 0.3.0 to 1.1.0, as a chained plugin sees it: the
//! environment, the configuration on stdin, results and errors on stdout.

mod args;
mod config;
mod environment;
mod error;
mod result;
mod version;

pub use args::Args;
pub use config::{Config, Hints, LogLevel, MAX_STDIN};
pub use environment::{Command, Environment};
pub use error::Error;
pub use result::PrevResult;
pub use version::{Version, version_reply};

#[cfg(test)]
mod tests;
