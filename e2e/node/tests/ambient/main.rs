//! Ambient capture end to end: the real plugin in a real chain, the real agent, and a
//! ztunnel that behaves as the real one does. Pods' traffic runs through it or not at
//! all.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod change;
mod course;
mod crowd;
mod drift;
mod enrol;
mod family;
mod live;
mod loud;
mod moved;
mod options;
mod probe;
mod restart;
mod stage;

/// How agents look after captured pods.
pub(crate) const AUDIT: &[&str] = &["--audit-seconds=1"];
