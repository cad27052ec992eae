//! A real Kubernetes of two nodes, without a host for it: each node has network,
//! mount, process, host name, IPC and cgroup namespaces of its own, so a DaemonSet
//! finds the default paths and two nodes do not meet.
//!
//! [`packages`] finds the programs, [`pki`] makes keys, [`control_plane`] and [`node`]
//! run them as [`daemon`]s, [`images`] makes what pods run, [`pods`] their manifests.
//! [`client`] is kubectl and Helm, [`cluster`] all of it, [`suite`] what its tests
//! are run by.

pub mod client;
pub mod cluster;
pub mod control_plane;
pub mod daemon;
pub mod images;
pub mod node;
pub mod packages;
pub mod pki;
pub mod pods;
pub mod suite;
pub mod wait;
