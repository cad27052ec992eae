//! Ambient capture broken on purpose: rules, namespaces, agent and ztunnel are taken
//! away at the worst moments, and pods are captured again, or do not start, or somebody
//! is told. The figures at full size are the benchmark's.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod cleaned;
mod dialects;
mod exempt;
mod flush;
mod hostrules;
mod killed;
mod kubelet;
mod manifests;
mod many;
mod marks;
mod migration;
mod recreated;
#[path = "../ambient/stage.rs"]
mod stage;
mod takeover;
mod unlisted;
mod ztunnel;

/// How agents look after captured pods.
pub(crate) const AUDIT: &[&str] = &["--audit-seconds=1"];
