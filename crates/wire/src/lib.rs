//! What crosses a process: the container runtime's CNI JSON ([`cni`]), the
//! plugin's requests to the agent of its node ([`request`], [`http`]), what the
//! two leave for each other in the run directory ([`snapshot`], [`passed`]) and
//! the error codes that both sides and the operator know ([`code`]); [`json`] is
//! how the plugin reads all of it.
//!
//! Bytes go in, values come out. Nothing here opens, reads or waits.

#![forbid(unsafe_code)]

pub mod cni;
pub mod code;
pub mod http;
pub mod json;
pub mod passed;
pub mod request;
pub mod snapshot;
