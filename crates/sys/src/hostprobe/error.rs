//! What can go wrong on the host.

use crate::backend::BackendError;
use crate::iptables::DetectError;
use crate::netlink::NetlinkError;
use crate::netns::NetnsError;
use crate::process::ProcessError;

/// Why the host's rules could not be looked at or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A chain of iptables-nft could not be removed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// iptables could not be run, or refused.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No iptables can be used.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The host's namespace cannot be had.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The host's other namespace cannot be had.
    #[error("enter cgroup namespace of {path}")]
    CgroupNamespace {
        /// Whose.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("read {path}")]
    File {
        /// Which one.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread that keeps the rules could not be started, or is gone.
    #[error("keeper of the host's rules: {what}")]
    Keeper {
        /// What happened.
        what: String,
    },
    /// Rules of this dialect do not do here what they say.
    #[error("probe rules in {dialect} on this kernel: {what}")]
    Unproved {
        /// Which dialect.
        dialect: &'static str,
        /// What was seen.
        what: String,
    },
}
