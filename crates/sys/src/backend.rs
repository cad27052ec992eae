//! What a backend that programs a network namespace must be able to do, in terms
//! that hold for each of them.

use crate::netlink::NetlinkError;
use crate::routing;
use redirect::desired::Desired;
use std::fmt;

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// nf_tables over netlink.
    Nftables,
    /// `iptables-restore` and its IPv6 twin.
    Iptables,
}

impl BackendKind {
    /// Name in configuration, records and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What [`Backend::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Nothing of ours was there; now it is.
    Created,
    /// Something of ours was there, but not what was wanted; now it is.
    Replaced,
    /// What was wanted already held, and nothing was written.
    Unchanged,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
        })
    }
}

/// How a namespace differs from what is wanted, in lines for people. Each line
/// names its table and chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Wanted and not there.
    pub missing: Vec<String>,
    /// There, in a table or chain of ours, and not wanted.
    pub unexpected: Vec<String>,
    /// Chains that hold just the wanted rules, but in another order.
    pub misplaced: Vec<String>,
}

impl Diff {
    /// True when what is wanted holds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misplaced.is_empty()
    }
}

impl fmt::Display for Diff {
    /// One line each: `- missing`, `+ unexpected`, `~ misplaced`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [("- ", &self.missing), ("+ ", &self.unexpected), ("~ ", &self.misplaced)];
        let mut first = true;
        for (sign, lines) in groups {
            for line in lines {
                if !first {
                    f.write_str("\n")?;
                }
                first = false;
                write!(f, "{sign}{line}")?;
            }
        }
        Ok(())
    }
}

/// Why a backend could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// iptables could not be run, or refused.
    #[error(transparent)]
    Iptables(#[from] crate::iptables::Error),
    /// A file of /proc could not be read.
    #[error("read {path}")]
    File {
        /// The file.
        path: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// An owner that is still a name, where the kernel takes numbers only.
    #[error("rule for user or group '{name}': the kernel takes ids only, resolve the name first")]
    OwnerName {
        /// The name.
        name: String,
    },
    /// IPv6 is wanted in a namespace that has it switched off.
    #[error("{object}: IPv6 is disabled in this network namespace (sysctl {sysctl} is 1)")]
    Ipv6Disabled {
        /// What was to be done.
        object: String,
        /// The setting.
        sysctl: &'static str,
    },
}

impl BackendError {
    /// True when the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Netlink(error) => error.is_transient(),
            Self::Iptables(error) => error.is_transient(),
            Self::File { .. } | Self::OwnerName { .. } | Self::Ipv6Disabled { .. } => false,
        }
    }
}

/// Programs the network namespace of the calling thread: call it inside
/// [`crate::netns::within_pod`].
pub trait Backend: Send + Sync + fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> BackendKind;

    /// Makes `want` hold, its rules and its routing. Nothing is written when
    /// `want` holds already, or `also`: another form of the same plan that counts
    /// as equal (the rules that Istio itself would have written).
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses. Rules are then as they were
    /// before, or, with a backend whose unit is the table, some tables are new.
    fn apply(&self, want: &Desired, also: Option<&Desired>) -> Result<Applied, BackendError>;

    /// How the namespace differs from `want`, routing too. Writes nothing.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn observe(&self, want: &Desired) -> Result<Diff, BackendError>;

    /// Removes every table and chain of our names (Istio's names, so its rules
    /// too), and not the routing; goes on past errors. Fine when nothing is there.
    ///
    /// # Errors
    /// All that went wrong.
    fn remove_rules(&self) -> Result<(), Vec<BackendError>>;

    /// [`Self::remove_rules`], then the routing.
    ///
    /// # Errors
    /// All that went wrong.
    fn remove(&self) -> Result<(), Vec<BackendError>> {
        let mut errors = self.remove_rules().err().unwrap_or_default();
        errors.extend(routing::remove(&routing::everything()).err().into_iter().flatten());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// Makes `want` hold by `own`, and then removes what the other backend, or Istio with
/// the other tool, left in the namespace: `other`, when it has anything there.
///
/// New rules first, then the old ones out, so no packet finds none. For the moment
/// between both hold, which harms nothing: the kernel asks one nat chain after the
/// other until one has decided about a connection, and both decide the same; marks
/// and zones are set twice to the same. Connections that are open by then have been
/// decided about and are asked about no more.
///
/// # Errors
/// When `want` does not hold, or something of the other is left.
pub fn convert(
    own: &dyn Backend,
    other: Option<&dyn Backend>,
    want: &Desired,
) -> Result<Applied, Vec<BackendError>> {
    let applied = own.apply(want, None).map_err(|error| vec![error])?;
    let Some(other) = other else {
        return Ok(applied);
    };
    other.remove_rules()?;
    routing::remove(&routing::stale(&want.routing))?;
    Ok(Applied::Replaced)
}

/// Removes all rules of all generations by `backends`, then the routing; goes on past
/// errors. The order matters: a mark that is still set while its route is gone sends
/// ztunnel's replies to the client.
///
/// # Errors
/// All that went wrong.
pub fn clear(backends: &[&dyn Backend]) -> Result<(), Vec<BackendError>> {
    let mut errors = Vec::new();
    for backend in backends {
        errors.extend(backend.remove_rules().err().into_iter().flatten());
    }
    errors.extend(routing::remove(&routing::everything()).err().into_iter().flatten());
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
