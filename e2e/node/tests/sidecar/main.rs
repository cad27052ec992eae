//! Sidecar pods stay captured: whose sandbox is made anew while nobody asks us, and who
//! cannot be put right or looked at. The real plugin in a real chain, the real agent, and
//! packets.

#![expect(clippy::unwrap_used, reason = "a test")]

mod loud;
mod pod;
mod recreated;
#[path = "../ambient/stage.rs"]
#[expect(dead_code, reason = "parts of it are for the tests of ambient mode")]
mod stage;

/// How agents look after captured pods.
pub(crate) const AUDIT: &[&str] = &["--audit-seconds=1"];
