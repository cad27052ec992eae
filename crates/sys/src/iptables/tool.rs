//! One installed iptables or ip6tables: which it is, and its two programs that
//! this backend runs.

use super::Error;
use super::saved::Saved;
use super::userns;
use crate::netlink::{Protocol, Socket};
use crate::process::{Command, ProcessError};
use redirect::net::Family;
use std::ffi::{CStr, OsStr};
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// First version that knows `--wait` in all its programs.
const WAITS: Version = Version([1, 6, 2]);
/// First version that reads XTABLES_LOCKFILE. For older ones the lock is mounted
/// over [`COMMON_LOCK`]; where that cannot be done they share it, and pods wait
/// for each other.
const LOCKS_BY_NAME: Version = Version([1, 8, 6]);
/// Lock of versions that know no other.
const COMMON_LOCK: &CStr = c"/run/xtables.lock";
/// The lock of a namespace is the namespace itself, so that pods do not wait for
/// each other, and nothing has to be made, mounted or removed. It is a file that
/// everybody may open for reading, also root of a user namespace, who may not open
/// /run/xtables.lock; and it is the inode that Istio's plugin locks.
const LOCK: &CStr = c"/proc/self/ns/net";

/// Which kernel interface a tool writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// ip_tables, set and read by socket options.
    Legacy,
    /// nf_tables, in tables of the old names.
    Nft,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nf_tables",
        })
    }
}

/// A version's first three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub [u32; 3]);

impl Version {
    /// The first `v` that is followed by numbers with a dot between them.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        let starts = text.match_indices('v').map(|(at, _)| &text[at + 1..]);
        starts.into_iter().find_map(|rest| {
            let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
            let parts: Vec<u32> = rest[..end]
                .trim_end_matches('.')
                .split('.')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .ok()?;
            let at = |index: usize| parts.get(index).copied().unwrap_or(0);
            (parts.len() > 1).then(|| Self([at(0), at(1), at(2)]))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// An installed tool that has shown that it works with this kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Path of the program without `-save` and `-restore`.
    pub(crate) base: PathBuf,
    /// Family that it writes.
    pub family: Family,
    /// Kernel interface that it writes to.
    pub variant: Variant,
    /// Its version; 0.0.0 for one so old that it cannot tell.
    pub version: Version,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base.display();
        write!(f, "{base} v{} ({})", self.version, self.variant)
    }
}

/// Path of a tool's sibling.
pub(super) fn sibling(base: &Path, suffix: &str) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

impl Tool {
    /// What is loaded in the calling thread's namespace.
    pub(super) fn save(&self) -> Result<Saved, Error> {
        let output = Command::new(sibling(&self.base, "-save")).run()?;
        Saved::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Loads rules into the calling thread's namespace, beside those that are
    /// there, as root of the user namespace that owns it.
    pub(super) fn restore(&self, text: &str) -> Result<(), Error> {
        let owner = userns::foreign_owner()?;
        let mut command = self
            .writing(Command::new(sibling(&self.base, "-restore")).arg("--noflush"))
            .stdin(text.as_bytes());
        if let Some(owner) = &owner {
            command = command.user_namespace(owner.as_fd());
        }
        match command.run() {
            Ok(_) => Ok(()),
            Err(source) => {
                let (table, line) = refused(&source, text).unwrap_or_default();
                let (table, line) = (table.to_owned(), line.to_owned());
                Err(Error::Restore { family: self.family, table, line, source })
            }
        }
    }

    /// What a command that writes needs so that it minds the lock (reference 3.9);
    /// the nft variant needs none, the kernel orders its transactions.
    pub(super) fn writing<'a>(&self, command: Command<'a>) -> Command<'a> {
        if self.variant == Variant::Nft || self.version < WAITS {
            return command;
        }
        let command = command.arg("--wait=30");
        if self.version < LOCKS_BY_NAME {
            return command.cover(COMMON_LOCK, LOCK);
        }
        command.env("XTABLES_LOCKFILE", OsStr::from_bytes(LOCK.to_bytes()))
    }

    /// True when the namespace surely holds no table of this tool; asks the kernel
    /// and starts nothing. False when it cannot be told.
    pub(crate) fn is_bare(&self) -> bool {
        match self.variant {
            Variant::Legacy => matches!(legacy_tables(self.family), Ok(false)),
            Variant::Nft => matches!(nft_tables(self.family), Ok(false)),
        }
    }
}

/// True when legacy tables of a family are registered in the calling thread's
/// namespace. The kernel registers one when it is first looked at or written.
pub(super) fn legacy_tables(family: Family) -> std::io::Result<bool> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(!names.trim().is_empty()),
        // The kernel part is not loaded, or not built.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// True when the namespace has an nf_tables table of a family.
fn nft_tables(family: Family) -> Result<bool, crate::netlink::NetlinkError> {
    let (number, object) = match family {
        Family::V4 => (libc::AF_INET, "list tables of ip"),
        Family::V6 => (libc::AF_INET6, "list tables of ip6"),
    };
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8) | libc::NFT_MSG_GETTABLE;
    let kind = u16::try_from(kind).unwrap_or_default();
    let replies = Socket::open(Protocol::Netfilter)?.dump(object, kind, |buffer| {
        // struct nfgenmsg: family, version, resource.
        buffer.raw(&[u8::try_from(number).unwrap_or_default(), 0, 0, 0]);
    })?;
    Ok(replies.iter().next().is_some())
}

/// Table and line of the input that a tool complains about: `line 15: RULE_APPEND
/// failed`, `iptables-restore: line 20 failed`, `Error occurred at line: 3`.
fn refused<'a>(error: &ProcessError, text: &'a str) -> Option<(&'a str, &'a str)> {
    let ProcessError::Failed { stderr, .. } = error else { return None };
    let number = stderr.match_indices("line").find_map(|(at, word)| {
        let rest = stderr[at + word.len()..].trim_start_matches([':', ' ']);
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse::<usize>().ok()
    })?;
    let line = text.lines().nth(number.checked_sub(1)?)?;
    let tables = text.lines().take(number).filter_map(|line| line.strip_prefix('*'));
    Some((tables.last()?, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_versions_of_distributions() {
        for (text, version) in [
            ("iptables v1.8.7 (nf_tables)", [1, 8, 7]),
            ("iptables-save v1.8.7 (legacy)", [1, 8, 7]),
            ("iptables-save v1.6.0", [1, 6, 0]),
            ("iptables-save v1.6.1 on Mon Jan", [1, 6, 1]),
            ("iptables v1.4.21", [1, 4, 21]),
            ("ip6tables v1.8.4 (nf_tables)\n", [1, 8, 4]),
            ("iptables v1.8.9.", [1, 8, 9]),
            ("the very v2.0", [2, 0, 0]),
        ] {
            assert_eq!(Version::find(text), Some(Version(version)), "{text}");
        }
        for text in ["", "v", "v1", "version", "unrecognized option"] {
            assert_eq!(Version::find(text), None, "{text}");
        }
        assert!(Version([1, 6, 2]) < Version([1, 8, 0]));
        assert!(Version([1, 8, 10]) > Version([1, 8, 9]));
    }

    #[test]
    fn names_the_line_that_was_refused() {
        let error = |stderr: &str| ProcessError::Failed {
            argv: "iptables-restore".to_owned(),
            status: crate::process::Status::Exit(2),
            stderr: stderr.to_owned(),
        };
        let text = "*nat\n:A - [0:0]\n-A A -j B\nCOMMIT\n";
        for stderr in [
            "iptables-restore v1.8.9: \nline 3: RULE_APPEND failed (Invalid argument)",
            "iptables-restore: line 3 failed",
            "Error occurred at line: 3\nTry `iptables-restore -h'",
        ] {
            assert_eq!(refused(&error(stderr), text), Some(("nat", "-A A -j B")), "{stderr}");
        }
        assert_eq!(refused(&error("line 9 failed"), text), None);
        assert_eq!(refused(&error("line 0 failed"), text), None);
        assert_eq!(refused(&error("no such thing"), text), None);
    }
}
