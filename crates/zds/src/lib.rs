//! ZDS: what the agent tells ztunnel about the pods of its node, and what ztunnel
//! answers. Package `istio.workload.zds` of istio's `pkg/zdsapi/zds.proto`, as in
//! `reference/zds.md`.
//!
//! One message is one packet of a SOCK_SEQPACKET socket, bare protobuf: no length
//! and no type. Which type it is follows from who sends it and when: ztunnel sends
//! one [`Hello`], and then one [`Response`] for each [`Request`] of the agent, in
//! order. An Add carries the descriptor of the pod's network namespace; that is the
//! socket's matter, as is the end of the stream, which an empty packet stands for.
//!
//! Bytes go in, values come out. Nothing here opens, reads or waits.
//!
//! A crate of its own and not a part of `wire`: a feature of `wire` would be switched
//! on for the plugin too when the workspace is built at once, and link prost into it.

#![forbid(unsafe_code)]

mod error;
mod hello;
mod message;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use error::{DecodeError, EncodeError};
pub use hello::Hello;
pub use request::{Request, WorkloadInfo};
pub use response::Response;

/// The most bytes that a request may have: ztunnel's receive buffer. A longer one
/// is cut off there, answered with an error, and costs the connection.
pub const MAX_REQUEST: usize = 1024;
