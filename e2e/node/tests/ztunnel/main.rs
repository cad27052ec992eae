//! The fake ztunnel is true to `reference/zds.md`: each row of its tables, against an
//! agent that this test plays, and real traffic through Istio's own rules.

#![expect(clippy::unwrap_used, reason = "a test")]

mod faults;
mod life;
mod mesh;
mod requests;
mod scripted;
mod served;
mod traffic;
mod unreadable;
