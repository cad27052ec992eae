//! A node of the lab: pods as namespaces, a CNI runtime, real plugins, real
//! packets. It drives the built programs `istio-cni` and `sluice`, and uses
//! nothing of their code.
//!
//! [`lab`] makes namespaces and links, [`process`] starts programs in them,
//! [`stand_in`] and [`packet`] are the two ends of every connection, [`matrix`]
//! and [`conformance`] what is sent through whose rules, [`rules`] loads them.
//! [`flow`] keeps a connection open, [`page`] asks a server.
//! [`runtime`] is the container runtime's half of CNI, [`agent`] the one under
//! test, [`cluster`] all of it at work, [`ztunnel`] its peer in ambient mode.

pub mod agent;
pub mod api;
pub mod cluster;
pub mod conformance;
pub mod containerd;
pub mod envoy;
pub mod flow;
pub mod host;
pub mod lab;
pub mod listing;
pub mod matrix;
pub mod packet;
pub mod page;
pub mod process;
pub mod programs;
pub mod rules;
pub mod runtime;
pub mod stand_in;
mod trace;
pub mod validation;
pub mod ztunnel;
