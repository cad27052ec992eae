//! Why rules could not be read or written by iptables.

use crate::backend::BackendError;
use crate::process::ProcessError;
use nix::errno::Errno;
use redirect::net::Family;

/// Why rules could not be read or written by iptables.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// IPv6 is wanted, and there is no ip6tables that works.
    #[error("IPv6 rules are wanted: {why}")]
    NoIpv6Tool {
        /// What was tried.
        why: String,
    },
    /// A program could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Rules were not taken.
    #[error("load {} rules{}", family_name(*.family), place(.table, .line))]
    Restore {
        /// Family of the rules.
        family: Family,
        /// The table, and the line of it, that were refused, when the tool named
        /// one; empty otherwise.
        table: String,
        /// See `table`.
        line: String,
        /// How the tool ended.
        source: ProcessError,
    },
    /// The output of iptables-save has a line that is none.
    #[error("iptables-save printed '{line}', which is no table, chain or rule")]
    Unreadable {
        /// The line.
        line: String,
    },
    /// A table that another tool made, which iptables cannot write.
    #[error("nf_tables table that iptables cannot handle: {note}; use the nftables backend")]
    Incompatible {
        /// What iptables-save says.
        note: String,
    },
    /// The user namespace of the pod could not be found.
    #[error("{what}")]
    UserNamespace {
        /// The step.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// Writing failed, and so did taking back what had been written.
    #[error("take back the rules of a failed attempt ({undo})")]
    HalfDone {
        /// Why the attempt failed.
        #[source]
        cause: Box<BackendError>,
        /// Why it could not be taken back.
        undo: String,
    },
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn place(table: &str, line: &str) -> String {
    if table.is_empty() { String::new() } else { format!(": table {table}, '{line}'") }
}

impl Error {
    /// True when the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Process(error) | Self::Restore { source: error, .. } => match error {
                ProcessError::TimedOut { .. } => true,
                ProcessError::Failed { stderr, .. } => stderr.contains("xtables lock"),
                _ => false,
            },
            Self::HalfDone { cause, .. } => cause.is_transient(),
            _ => false,
        }
    }
}
