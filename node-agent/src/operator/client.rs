//! How a command asks the agent: one request over its socket, with an end in time
//! whatever the agent does.

use super::{BODY_LIMIT, SOCKET};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Why the agent did not tell.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody else is answered.
    #[error("the agent answers root alone: run this as root (this is uid {0})")]
    NotRoot(u32),
    /// No agent.
    #[error(
        "no agent answers at {}: {source}; start it (sluice agent), or name its directory with --run-dir",
        socket.display()
    )]
    NotThere {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One that hangs.
    #[error(
        "the agent at {} does not answer within {} s: it is stopped or stuck; look at its process and in its log",
        socket.display(), limit.as_secs()
    )]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the agent at {} ended the conversation: {source}", socket.display())]
    Broken {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It said something else.
    #[error("the agent at {} gave an answer that this release does not understand: {what}", socket.display())]
    Odd {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl AskError {
    /// Nobody who could know answered: what records and the kernel tell is better than
    /// nothing.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::NotThere { .. } | Self::Silent { .. } | Self::Broken { .. })
    }
}

/// An agent by its run directory.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    limit: Duration,
}

impl Client {
    /// One that waits so long for an answer.
    ///
    /// # Errors
    /// When the caller is not root.
    pub(super) fn new(run_dir: &Path, limit: Duration) -> Result<Self, AskError> {
        if !geteuid().is_root() {
            return Err(AskError::NotRoot(geteuid().as_raw()));
        }
        Ok(Self { socket: run_dir.join(SOCKET), limit })
    }

    /// Asks with GET.
    ///
    /// # Errors
    /// See [`AskError`].
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.ask("GET", path, b"")
    }

    /// Asks with POST.
    ///
    /// # Errors
    /// See [`AskError`].
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        let body = serde_json::to_vec(body).map_err(|error| self.odd(&error))?;
        self.ask("POST", path, &body)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<T, AskError> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let answer = self.exchange(request)?;
        let (status, body) = parse(&answer).map_err(|what| self.odd(&what))?;
        if status != 200 {
            let text = String::from_utf8_lossy(body).trim().to_owned();
            return Err(AskError::Refused(text));
        }
        serde_json::from_slice(body).map_err(|error| self.odd(&error))
    }

    /// On a thread that is left behind when time is up: to connect to an agent that is
    /// stopped may hang for ever, and there is no time-out for that.
    fn exchange(&self, request: Vec<u8>) -> Result<Vec<u8>, AskError> {
        let (sender, answer) = sync_channel(1);
        let socket = self.socket.clone();
        let failed = |source| AskError::NotThere { socket: self.socket.clone(), source };
        let work = move || {
            let result = match UnixStream::connect(&socket) {
                Ok(stream) => {
                    converse(stream, &request).map_err(|source| AskError::Broken { socket, source })
                }
                Err(source) => Err(AskError::NotThere { socket, source }),
            };
            // Nobody may wait any more.
            drop(sender.send(result));
        };
        std::thread::Builder::new().name("ask".to_owned()).spawn(work).map_err(failed)?;
        answer.recv_timeout(self.limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                AskError::Silent { socket: self.socket.clone(), limit: self.limit }
            }
            RecvTimeoutError::Disconnected => failed(io::Error::other("the asking thread died")),
        })?
    }

    fn odd(&self, what: &dyn std::fmt::Display) -> AskError {
        AskError::Odd { socket: self.socket.clone(), what: what.to_string() }
    }
}

fn converse(mut stream: UnixStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.take(BODY_LIMIT).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer came"));
    }
    Ok(answer)
}

/// Status and body.
fn parse(answer: &[u8]) -> Result<(u16, &[u8]), String> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut headers);
    let start = match head.parse(answer) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Err("it ends in its head".to_owned()),
        Err(error) => return Err(format!("not HTTP/1: {error}")),
    };
    let status = head.code.unwrap_or_default();
    let length = crate::server::content_length(head.headers)?;
    let body = answer.get(start..start + length).ok_or("it was cut off")?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    fn client(dir: &Path, ms: u64) -> Client {
        Client { socket: dir.join(SOCKET), limit: Duration::from_millis(ms) }
    }

    #[test]
    fn tells_absence_from_silence() {
        let dir = tempfile::tempdir().unwrap();
        let ask = |ms| client(dir.path(), ms).get::<u32>("/").unwrap_err();
        let error = ask(5000);
        assert!(error.is_absence() && error.to_string().contains("sluice agent"), "{error}");
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let begun = Instant::now();
        let error = ask(100);
        assert!(matches!(error, AskError::Silent { .. }), "{error}");
        assert!(error.is_absence() && begun.elapsed() < Duration::from_secs(10));
        drop(listener);
        assert!(ask(5000).to_string().contains("refused"));
    }

    #[test]
    fn takes_whole_answers_only() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n17";
        assert_eq!(parse(text.as_bytes()), Ok((200, &b"17"[..])));
        for end in 0..text.len() {
            assert!(parse(&text.as_bytes()[..end]).is_err(), "{end}");
        }
        assert!(parse(b"hello\r\n\r\n").is_err());
    }
}
