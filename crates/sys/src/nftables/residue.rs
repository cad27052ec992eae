//! Rules that Istio wrote with iptables, which live beside ours and are invisible
//! in our tables.

use super::kernel;
use crate::backend::BackendError;
use crate::netlink::{Protocol, Socket};
use std::io::ErrorKind;

/// What of iptables is in a namespace. Each line names its object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Residue {
    /// Chains named `ISTIO_...` that iptables-nft made: `ip nat ISTIO_OUTPUT`.
    pub nft_chains: Vec<String>,
    /// Tables that iptables-legacy has in use, as `ip nat`. Their rules are seen
    /// by iptables-legacy only: one may be there without a rule of Istio's.
    pub legacy_tables: Vec<String>,
}

impl Residue {
    /// True when iptables was not used here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nft_chains.is_empty() && self.legacy_tables.is_empty()
    }
}

/// Looks for iptables in the calling thread's namespace.
///
/// # Errors
/// When the kernel cannot be asked for nf_tables chains, or the names of legacy
/// tables are there and cannot be read (they are root's).
pub fn iptables_residue() -> Result<Residue, BackendError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let nft_chains = kernel::compat_chains(&mut socket, "ISTIO_")?
        .into_iter()
        .map(|(family, table, chain)| format!("{family} {table} {chain}"))
        .collect();
    Ok(Residue { nft_chains, legacy_tables: legacy_tables()? })
}

/// Tables of legacy iptables in the calling thread's namespace, with their family. The
/// kernel registers one when it is first looked at or written.
///
/// # Errors
/// When the names are there and cannot be read (they are root's).
pub fn legacy_tables() -> Result<Vec<String>, BackendError> {
    let mut tables = Vec::new();
    for (family, path) in [
        ("ip", "/proc/thread-self/net/ip_tables_names"),
        ("ip6", "/proc/thread-self/net/ip6_tables_names"),
    ] {
        let names = match std::fs::read_to_string(path) {
            Ok(names) => names,
            // The kernel has no legacy iptables at all.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(BackendError::File { path, source }),
        };
        tables.extend(names.lines().map(|table| format!("{family} {table}")));
    }
    Ok(tables)
}
