//! What a proof found.

use nix::errno::Errno;
use redirect::net::Family;
use std::fmt;
use std::net::SocketAddr;

/// Which way a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From an application of the pod to somewhere else.
    Outbound,
    /// From the proxy to the pod's own server: what istio-validation tests
    /// (reference 8.9).
    Loopback,
    /// From the node to the pod.
    Arrival,
    /// From an application of an ambient pod to a DNS server, by TCP.
    Dns,
    /// The same by UDP.
    Query,
    /// From ztunnel to somewhere else, which must not come back to it.
    Ztunnel,
    /// From ztunnel to an application of the pod, whose answer must.
    Reply,
    /// From kubelet to the pod, past ztunnel.
    Kubelet,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Loopback => "loopback",
            Self::Arrival => "inbound",
            Self::Dns => "DNS (TCP)",
            Self::Query => "DNS (UDP)",
            Self::Ztunnel => "ztunnel's own",
            Self::Reply => "reply",
            Self::Kubelet => "kubelet's",
        })
    }
}

/// What is known of one way in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The way.
    pub way: Way,
    /// The family.
    pub family: Family,
    /// What was found.
    pub outcome: Outcome,
}

/// What was found; that it is not captured is a [`ProbeError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A connection to this address arrived at our listener, which was told this
    /// address as the original destination.
    Proved(SocketAddr),
    /// A proxy that runs already accepted a connection to this address, where
    /// nobody else could have.
    Accepted(SocketAddr),
    /// The plan does not capture it, for this reason.
    NotCaptured(&'static str),
    /// It could not be tried, or nobody could be reached.
    NotProved(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.way, family_name(self.family))?;
        match &self.outcome {
            Outcome::Proved(target) => write!(f, "proved ({target})"),
            Outcome::Accepted(target) => write!(f, "accepted by the running proxy ({target})"),
            Outcome::NotCaptured(why) => write!(f, "not captured by the plan ({why})"),
            Outcome::NotProved(why) => write!(f, "not proved ({why})"),
        }
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// One finding a way and family.
    pub findings: Vec<Finding>,
}

impl Report {
    /// True when everything that the plan captures was proved.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.findings.iter().any(|f| matches!(f.outcome, Outcome::NotProved(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.findings.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

/// Why capture is not proved.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A connection that must be captured was not.
    #[error(
        "{way} {} connection to {target} did not arrive at the proxy's port {port}: {what}",
        family_name(*family)
    )]
    Escaped {
        /// The way it took.
        way: Way,
        /// Its family.
        family: Family,
        /// Where it was meant to go.
        target: SocketAddr,
        /// Where it should have arrived.
        port: u16,
        /// What happened instead.
        what: String,
    },
    /// A connection that must not be captured was.
    #[error(
        "{way} {} connection to {target} must pass and is sent to port {port}",
        family_name(*family)
    )]
    Caught {
        /// The way it took.
        way: Way,
        /// Its family.
        family: Family,
        /// Where it was meant to go.
        target: SocketAddr,
        /// Where it went.
        port: u16,
    },
    /// Whose ids count in the namespace is not to be found out.
    #[error("find the owner of the network namespace")]
    Owner(#[from] crate::iptables::Error),
    /// A socket that the proof needs could not be made.
    #[error("{action}")]
    Socket {
        /// What was to be done.
        action: String,
        /// What the kernel said.
        source: Errno,
    },
}

pub(super) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
