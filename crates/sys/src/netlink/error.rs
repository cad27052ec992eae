//! What can go wrong between a netlink socket and the kernel.

use nix::errno::Errno;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made, written or read.
    #[error("netlink socket: {what}")]
    Socket {
        /// The operation.
        what: &'static str,
        /// What the system said.
        source: Errno,
    },
    /// The kernel refused a message.
    #[error("{object}{}", detail.as_ref().map(|d| format!(" (kernel: {d})")).unwrap_or_default())]
    Refused {
        /// What the message was to do, for example
        /// `create chain inet istio-proxy-nat prerouting`.
        object: String,
        /// Text of the kernel's extended acknowledgement, when it sent one.
        detail: Option<String>,
        /// Its error number.
        source: Errno,
    },
    /// The kernel did not answer in time.
    #[error("{object}: no answer of the kernel within {seconds} s")]
    TimedOut {
        /// What was asked.
        object: String,
        /// How long was waited.
        seconds: u64,
    },
    /// What was listed changed each time while it was listed.
    #[error("{object}: changed during each of {tries} listings")]
    Interrupted {
        /// What was listed.
        object: String,
        /// How often.
        tries: u32,
    },
    /// An answer that is no netlink message, or not the one that was asked for.
    #[error("{object}: malformed answer of the kernel: {what}")]
    Malformed {
        /// What was asked.
        object: String,
        /// What is wrong with the answer.
        what: &'static str,
    },
}

impl NetlinkError {
    /// Error number of the kernel, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Socket { source, .. } | Self::Refused { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// True when the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Interrupted { .. } => true,
            Self::Malformed { .. } => false,
            Self::Socket { source, .. } | Self::Refused { source, .. } => matches!(
                source,
                Errno::EAGAIN | Errno::EINTR | Errno::EBUSY | Errno::ENOBUFS | Errno::ENOMEM
            ),
        }
    }
}
