//! What names a sandbox, and its record.

/// Sandboxes that were found without their name are called so, and the pod's uid.
const FOUND: &str = "found-";
/// Longest sandbox name: with `.json` it must fit a file name.
pub(super) const MAX_ID: usize = 200;

/// A sandbox's name, fit to be a file name: letters, digits, `_`, `.` and `-`,
/// the first a letter or digit (the CNI specification's own rule).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SandboxId(String);

/// Why a text names no sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "container id {0:?} is not valid: want a letter or digit, then letters, digits, '_', '.' and '-', at most {MAX_ID}"
)]
pub(crate) struct SandboxIdError(String);

impl SandboxId {
    /// Of a pod whose sandbox's own name is not known: it was found running.
    pub(crate) fn of_found(uid: &str) -> Result<Self, SandboxIdError> {
        Self::new(&format!("{FOUND}{uid}"))
    }

    /// Checks a container id.
    pub(crate) fn new(text: &str) -> Result<Self, SandboxIdError> {
        let mut bytes = text.bytes();
        let valid = text.len() <= MAX_ID
            && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(SandboxIdError(text.chars().take(MAX_ID).collect()))
        }
    }

    /// It is [`Self::of_found`].
    pub(crate) fn is_of_found(&self) -> bool {
        self.0.starts_with(FOUND)
    }

    /// The id.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
