//! The conversation with the agent of the node: one request on one connection,
//! under one deadline.

mod socket;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::Serialize;
use wire::cni::{Config, Error};
use wire::code;
use wire::http;
use wire::request::{Answer, Endpoint, Extension, MAX_BODY, PROTOCOL_VERSION, SOCKET_NAME};

use crate::deadline::{Deadline, Patience};
use socket::Socket;

/// Bytes of an agent's text that are passed on: an event of Kubernetes has
/// room for 1024, a log for more.
const MAX_TEXT: usize = 4096;

/// How long an agent that accepts and does not answer is waited for by who can do
/// without it. A working one answers within some milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no decision.
#[derive(Debug)]
pub(crate) enum AskError {
    /// The agent could not be asked, or what it said is no answer.
    Unanswered(Error),
    /// The agent answered that it failed, or that it will not.
    Refused(Error),
}

impl AskError {
    /// Nobody judged the pod: the agent is away, stuck, or has no time for it. What
    /// is wrong with the request itself stays so.
    pub(crate) fn leaves_open(&self) -> bool {
        match self {
            Self::Unanswered(error) => error.code != code::INVALID_NETWORK_CONFIG,
            Self::Refused(error) => {
                matches!(error.code, code::AGENT_TIMED_OUT | code::AGENT_OVERLOADED)
            }
        }
    }

    /// The error to print, whoever made it.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Unanswered(error) | Self::Refused(error) => error,
        }
    }
}

/// The agent as the configuration names it.
#[derive(Debug)]
pub(crate) struct Agent {
    path: String,
    next_step: String,
    deadline: Deadline,
}

impl Agent {
    /// The agent of `config`, asked within `deadline`.
    pub(crate) fn new(config: &Config<'_>, deadline: Deadline) -> Self {
        let namespace = match config.agent_namespace() {
            "" => "istio-system",
            namespace => namespace,
        };
        Self {
            path: format!("{}/{SOCKET_NAME}", config.run_dir().trim_end_matches('/')),
            next_step: format!(
                "see whether the istio-cni-node pod of this node runs (kubectl -n {namespace} get pods -o wide) and what it logs; the runtime tries again"
            ),
            deadline,
        }
    }

    /// What the agent has to know about the asker. The time left goes with it,
    /// so that the agent does not begin what nobody will wait for.
    pub(crate) fn extension(&self) -> Extension {
        let left = self.deadline.remaining().unwrap_or_default();
        Extension {
            version: PROTOCOL_VERSION,
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            ..Extension::default()
        }
    }

    /// Asks, with the namespace's descriptor when there is one. A caller that can
    /// do without an answer waits for a second at most.
    ///
    /// # Errors
    /// [`AskError`], with one of the codes 100, 101 and 102 when unanswered.
    pub(crate) fn ask(
        &self,
        endpoint: Endpoint,
        body: &impl Serialize,
        netns: Option<BorrowedFd<'_>>,
        can_do_without: &dyn Fn() -> bool,
    ) -> Result<Answer, AskError> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        if body.len() > MAX_BODY {
            return Err(AskError::Unanswered(Error::new(
                code::INVALID_NETWORK_CONFIG,
                format!(
                    "the request to the agent has {} bytes, at most {MAX_BODY} are allowed",
                    body.len()
                ),
                "prevResult or cni.dev/valid-attachments is far larger than any real one; check the runtime",
            )));
        }
        let patience = Patience::new(self.deadline, PATIENCE, can_do_without);
        let bytes = self
            .exchange(&http::request(endpoint, &body), netns, &patience)
            .map_err(AskError::Unanswered)?;
        // `exchange` ends with a complete answer, so this parses it once more
        // instead of carrying offsets about.
        match http::response(&bytes, true) {
            Ok(Some(answer)) => self.interpret(answer),
            Ok(None) => Err(self.nonsense("the answer is incomplete", b"")),
            Err(e) => Err(self.nonsense(&e.to_string(), b"")),
        }
    }

    fn exchange(
        &self,
        request: &[u8],
        netns: Option<BorrowedFd<'_>>,
        patience: &Patience<'_>,
    ) -> Result<Vec<u8>, Error> {
        let socket = Socket::connect(&self.path, patience).map_err(|e| self.explain(e))?;
        // An agent that is overloaded answers before it has read everything
        // and closes, so a failed write still leaves an answer to read.
        let written = socket.write(request, netns);
        if let Err(e @ socket::Error::TimedOut(_)) = written {
            return Err(self.explain(e));
        }
        socket.read_answer().map_err(|read| match (written, read) {
            (Err(write), socket::Error::Closed | socket::Error::Io(..)) => self.explain(write),
            (_, read) => self.explain(read),
        })
    }

    fn interpret(&self, answer: http::Response<'_>) -> Result<Answer, AskError> {
        if answer.status == 200 {
            // Istio's own agent answers with an empty body. It would have done
            // what is ambient's and nothing for a sidecar, so it is no yes.
            return wire::json::decode(answer.body).map_err(|e| {
                self.nonsense(&format!("status 200 without a decision: {e}"), answer.body)
            });
        }
        match wire::json::decode::<Error>(answer.body) {
            Ok(error) if error.code != 0 && !error.msg.is_empty() => {
                Err(AskError::Refused(Error::new(
                    error.code,
                    excerpt(error.msg.as_bytes()),
                    excerpt(error.details.as_bytes()),
                )))
            }
            _ => Err(self.nonsense(
                &format!("status {} without an error object", answer.status),
                answer.body,
            )),
        }
    }

    fn nonsense(&self, cause: &str, body: &[u8]) -> AskError {
        let quote = if body.is_empty() {
            String::new()
        } else {
            format!(" (it said {:?})", excerpt(&body[..body.len().min(200)]))
        };
        AskError::Unanswered(Error::new(
            code::AGENT_ANSWERED_NONSENSE,
            format!(
                "the agent at {} gave no answer that this plugin knows: {cause}{quote}",
                self.path
            ),
            format!(
                "plugin and agent have to be of the same product and release: find out who serves the socket; {}",
                self.next_step
            ),
        ))
    }

    fn explain(&self, error: socket::Error) -> Error {
        let (code, cause) = match &error {
            socket::Error::TimedOut(stage) => (
                code::AGENT_TIMED_OUT,
                format!(
                    "no answer within {:?}: it did not {stage} in time",
                    self.deadline.length()
                ),
            ),
            socket::Error::Answer(e) => (code::AGENT_ANSWERED_NONSENSE, e.to_string()),
            socket::Error::Closed => {
                (code::AGENT_UNREACHABLE, "it closed the connection without an answer".to_owned())
            }
            socket::Error::Stranger(uid) => (
                code::AGENT_UNREACHABLE,
                format!(
                    "the socket belongs to uid {uid}, neither to root nor to the plugin's user"
                ),
            ),
            socket::Error::Path(length) => (
                code::INVALID_NETWORK_CONFIG,
                format!("the path has {length} bytes, a socket's has at most 107"),
            ),
            socket::Error::Io(stage, errno) => {
                (code::AGENT_UNREACHABLE, format!("{stage}: {}", errno.desc()))
            }
        };
        Error::new(code, format!("ask the agent at {}: {cause}", self.path), self.next_step.clone())
    }
}

fn excerpt(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let end = text.floor_char_boundary(MAX_TEXT);
    text[..end].trim_end().to_owned()
}
