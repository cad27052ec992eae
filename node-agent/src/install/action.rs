//! Changes of the CNI directory, as data.

/// Permission bits and owner of a file to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permissions {
    /// Permission bits.
    pub(crate) mode: u32,
    /// User and group; the agent's own when absent.
    pub(crate) owner: Option<(u32, u32)>,
}

/// One change of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make this file so, whatever it was: it is ours.
    Write { name: String, text: String, permissions: Permissions },
    /// Another product's file, only while there is none.
    Create { name: String, text: String, permissions: Permissions },
    /// Another product's file, only while it still holds `old`.
    Replace { name: String, old: String, text: String, permissions: Permissions },
    /// Permission bits of a file of ours whose content is right.
    Chmod { name: String, mode: u32 },
    /// Remove a file, only while it still holds `old` where that is given.
    Remove { name: String, old: Option<String> },
}

impl Action {
    /// The file that is changed.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Write { name, .. }
            | Self::Create { name, .. }
            | Self::Replace { name, .. }
            | Self::Chmod { name, .. }
            | Self::Remove { name, .. } => name,
        }
    }
}
