//! Names of things. All are plain data that the driver gives, but for [`StepId`] and
//! [`TimerId`], which the machine gives.

use std::fmt;
use std::sync::Arc;

/// `metadata.uid` of a pod; ztunnel's key of a workload. Cheap to copy about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Arc<str>);

/// Identifier that the container runtime gave a pod's sandbox (`CNI_CONTAINERID`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(Arc<str>);

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// From its text.
            #[must_use]
            pub fn new(text: &str) -> Self {
                Self(text.into())
            }

            /// Its text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text!(PodUid);
text!(SandboxId);

/// A network namespace, as `fstat` of a descriptor of it says. The kernel gives the
/// number of a dead namespace to the next one, so it names a namespace only as long
/// as somebody holds a descriptor: the driver does, until
/// [`Action::Release`](crate::action::Action::Release).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.ino)
    }
}

/// A connection of a ztunnel. Never given twice; a later connection has a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The ztunnel process at the other end of a session, so that what a process may
/// still run is known when it connects again: its pid by `SO_PEERCRED`. 0 where the
/// kernel does not say (another pid namespace); all such are taken for one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

/// A request of the plugin. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A piece of work that the machine asked for; its outcome carries the same number.
/// Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

/// A timer that the machine asked for. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub u64);

/// Hash of all that decides about a pod's rules (annotations, global options,
/// families). Equal hashes mean equal rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OptionsHash(pub u64);
