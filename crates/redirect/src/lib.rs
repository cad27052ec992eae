//! Pure packet policy. Facts of a pod, of its namespace and of the agent's
//! configuration go in; a [`enroll::Decision`], then a [`plan::Plan`] or
//! an [`ambient::AmbientPlan`], then [`desired::Desired`] rules come out. Nothing here reads a file, a clock, an
//! environment variable or a socket.

#![forbid(unsafe_code)]

pub mod ambient;
pub mod annotation;
pub mod case;
pub mod compile;
pub mod desired;
pub mod enroll;
pub mod host;
pub mod iptables;
pub mod net;
pub mod nft;
pub mod packet;
pub mod plan;
pub mod pod;
pub mod selector;
pub mod sidecar;
