//! Why the API server did not give what was asked of it.

use std::time::Duration;

/// Longest text of somebody else's that goes into a message.
const QUOTED: usize = 300;

/// A request that came to nothing. `what` is the request, as `get pod a/b`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// The server said no.
    #[error("the API server refused to {what}: {status} {message}{}", hint(*.status))]
    Refused {
        /// The request.
        what: String,
        /// HTTP status.
        status: u16,
        /// The server's words, on one line.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// There was no conversation, or it broke off.
    #[error("the API server cannot be asked to {what}: {cause}")]
    Unreachable {
        /// The request.
        what: String,
        /// What failed.
        cause: String,
    },
    /// No answer in time.
    #[error("the API server did not {what} within {} ms", limit.as_millis())]
    Late {
        /// The request.
        what: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// An answer that is not what it must be.
    #[error("the API server's answer to {what} cannot be used: {problem}")]
    Invalid {
        /// The request.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
}

fn hint(status: u16) -> &'static str {
    match status {
        401 => " (the agent's token is not accepted: look at its ServiceAccount)",
        403 => " (look at the agent's ClusterRole and its binding)",
        _ => "",
    }
}

impl ApiError {
    /// The object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The agent may not.
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { status: 403, .. })
    }

    /// The version that was asked from is too old: list anew.
    pub(crate) fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { status: 410, .. })
    }

    /// The server does not take requests of this kind: it is too old for them, or
    /// they are switched off. 422 is what it says of `sendInitialEvents`, and of
    /// `resourceVersionMatch` on a watch before 1.27.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 405 | 415 | 422 | 501, .. })
    }

    /// Worth another attempt at once. Permissions do not come back within a request.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Unreachable { .. } | Self::Late { .. } | Self::Invalid { .. } => true,
        }
    }

    /// When the server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Somebody else's text, fit for a message: one line, no control characters, short.
pub(super) fn quote(text: &str) -> String {
    let clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_look_at() {
        let refused = |status| ApiError::Refused {
            what: "list pods".into(),
            status,
            message: "no".into(),
            retry_after: None,
        };
        assert!(refused(403).to_string().contains("ClusterRole"));
        assert!(refused(401).to_string().contains("token"));
        assert!(!refused(403).is_transient() && refused(429).is_transient());
        assert!(refused(422).is_unsupported() && refused(410).is_expired());
        assert_eq!(quote("a\n\u{1b}[1mb"), "a [1mb");
        assert_eq!(quote(&"x".repeat(1000)).len(), QUOTED);
    }
}
