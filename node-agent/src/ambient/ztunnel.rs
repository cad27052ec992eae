//! The socket that ztunnels connect to: packets into messages and back. What is sent
//! when is the machine's business.

use super::driver::Input;
use super::jobs::Held;
use ambient::action::Message;
use ambient::event::Event;
use ambient::id::{PeerId, SessionId};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use sys::seqpacket::server::{self, Handle, Limits, Server};
use sys::seqpacket::{ListenError, Listener};
use zds::{Hello, Request, Response, WorkloadInfo};

/// The machine has its own patience, and this must not be less.
const ANSWER: Duration = Duration::from_secs(120);

/// Why ztunnel cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// There is no socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Its directory cannot be made.
    #[error("make directory {} of the socket for ztunnel", .path.display())]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No thread or descriptor is to be had.
    #[error("start to serve ztunnel")]
    Start(#[source] std::io::Error),
}

/// A message that cannot be sent, and why.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// It is no packet that ztunnel takes.
    #[error(transparent)]
    Encode(#[from] zds::EncodeError),
    /// The namespace of an Add is not held open.
    #[error("no descriptor of the network namespace is held")]
    NoDescriptor,
}

/// ztunnels that are connected.
#[derive(Debug)]
pub(super) struct Ztunnels {
    handle: Handle,
    _server: Server,
}

impl Ztunnels {
    /// Serves at a path from now on.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub(super) fn serve(
        path: &Path,
        window: usize,
        inputs: Sender<Input>,
    ) -> Result<Self, ServeError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|source| ServeError::Directory { path: directory.to_owned(), source })?;
        }
        let listener = Listener::bind(path)?;
        let limits = Limits { answer: ANSWER, window: window.max(1), ..Limits::default() };
        let on = move |event| drop(inputs.send(Input::Peer(event)));
        let server = Server::start(listener, limits, on).map_err(ServeError::Start)?;
        Ok(Self { handle: server.handle(), _server: server })
    }

    /// Queues a message.
    ///
    /// # Errors
    /// When it cannot be one: the session is to be closed then.
    pub(super) fn send(
        &self,
        session: SessionId,
        message: Message,
        held: Option<&Held>,
    ) -> Result<(), SendError> {
        let mut descriptor = None;
        let request = match message {
            Message::Add { uid, identity, .. } => {
                let held = held.ok_or(SendError::NoDescriptor)?;
                descriptor = Some(Arc::clone(&held.netns) as server::Descriptor);
                let info = WorkloadInfo {
                    name: identity.name,
                    namespace: identity.namespace,
                    service_account: identity.service_account,
                };
                Request::Add { uid: uid.as_str().to_owned(), info }
            }
            Message::Keep(uid) => Request::Keep { uid: uid.as_str().to_owned() },
            Message::Del(uid) => Request::Del { uid: uid.as_str().to_owned() },
            Message::SnapshotSent => Request::SnapshotSent,
        };
        let packet = request.encode()?;
        self.handle.send(server::PeerId(session.0), packet, descriptor);
        Ok(())
    }

    /// Ends a session.
    pub(super) fn close(&self, session: SessionId) {
        self.handle.close(server::PeerId(session.0));
    }

    /// What an event of the socket means; `None` when it means nothing to the machine.
    pub(super) fn read(&self, event: server::Event) -> Option<Event> {
        match event {
            server::Event::Connected { peer, credentials, hello } => {
                let session = SessionId(peer.0);
                match Hello::decode(&hello) {
                    Ok(hello) => {
                        let pid = u64::try_from(credentials.pid).unwrap_or_default();
                        tracing::info!(
                            session = session.0,
                            pid,
                            version = hello.version,
                            "ztunnel connected"
                        );
                        Some(Event::Connected { session, peer: PeerId(pid) })
                    }
                    Err(error) => {
                        tracing::error!(
                            session = session.0,
                            pid = credentials.pid,
                            reason = %crate::failure::causes(&error),
                            "who connected to ztunnel's socket is no ztunnel"
                        );
                        self.close(session);
                        None
                    }
                }
            }
            server::Event::Answered { peer, packet, truncated } => {
                let session = SessionId(peer.0);
                let response = if truncated {
                    Response::decode_cut_off(&packet)
                } else {
                    Response::decode(&packet)
                };
                match response {
                    Ok(Response::Ack) => Some(Event::Response { session, error: None }),
                    Ok(Response::Nack(error)) => {
                        Some(Event::Response { session, error: Some(error) })
                    }
                    Err(error) => {
                        tracing::error!(
                            session = session.0,
                            reason = %crate::failure::causes(&error),
                            "ztunnel's answer is none"
                        );
                        self.close(session);
                        Some(Event::Disconnected(session))
                    }
                }
            }
            server::Event::Disconnected { peer, reason } => {
                tracing::info!(session = peer.0, reason = %reason, "ztunnel disconnected");
                Some(Event::Disconnected(SessionId(peer.0)))
            }
            server::Event::Refused { credentials, reason } => {
                tracing::warn!(
                    pid = credentials.map(|c| c.pid),
                    reason = %reason,
                    "a connection to ztunnel's socket was refused"
                );
                None
            }
            // The driver's: it ends over this.
            server::Event::Stopped(_) => None,
        }
    }
}
