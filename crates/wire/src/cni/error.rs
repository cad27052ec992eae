//! The error object: what a plugin prints on stdout when it fails, and what
//! the agent answers with when it refuses.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A failure that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The protocol version of the printer; the agent's answers leave it out
    /// and the plugin fills it in.
    #[serde(rename = "cniVersion", default, skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// One of [`crate::code`], or another plugin's.
    pub code: u32,
    /// One line: the cause.
    pub msg: String,
    /// What to do next; empty when nothing is to be said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error of `code` with its cause and the next step.
    #[must_use]
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { cni_version: None, code, msg: msg.into(), details: details.into() }
    }

    /// The object as JSON. Never fails: strings and a number always encode.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)
    }
}

impl std::error::Error for Error {}
