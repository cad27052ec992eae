//! Why a request was refused, in the words and numbers that the container runtime
//! shows.

use std::error::Error;
use std::fmt;

/// A refusal: a stable code, one line of cause, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// HTTP status.
    pub(crate) status: u16,
    /// What the plugin prints.
    pub(crate) error: wire::cni::Error,
}

impl Failure {
    /// A failure of the agent's side.
    pub(crate) fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { status: 500, error: wire::cni::Error::new(code, one_line(&msg.into()), details) }
    }

    /// A request that is wrong in itself.
    pub(crate) fn bad_request(msg: impl Into<String>) -> Self {
        let next =
            "the plugin and the agent may be of different versions: install both from one release";
        Self::new(wire::code::DECODING_FAILURE, msg, next).with_status(400)
    }

    /// The same failure with another HTTP status.
    pub(crate) fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.error.msg, self.error.code)
    }
}

/// An error with all its causes, on one line.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    one_line(&text)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
