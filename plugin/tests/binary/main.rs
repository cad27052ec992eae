//! The built plugin against a stand of the tests' own: a real network
//! namespace for the pod, and an agent that says what the test wants said.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "all of this crate is tests")]

mod absent;
mod add;
mod agent;
mod differential;
mod environment;
mod lifecycle;
mod skew;
mod stand;
mod stdin;
mod syscalls;
