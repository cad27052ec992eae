//! The socket that ztunnels connect to: packets into messages and back. What is sent
//! when is the machine's business.

use super::driver::Input;
use super::jobs::Held;
use crate::failure::causes;
use crate::metrics::figures::Figures;
use ambient::action::{Message, Stage};
use ambient::event::Event;
use ambient::id::{PeerId, SessionId};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use sys::seqpacket::server::{self, Handle, Limits, Server};
use sys::seqpacket::{Credentials, ListenError, Listener};
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
    figures: Arc<Figures>,
    /// When each message was sent that has no response, and whether it is an Add.
    sent: HashMap<SessionId, VecDeque<(bool, Instant)>>,
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
        figures: Arc<Figures>,
    ) -> Result<Self, ServeError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|source| ServeError::Directory { path: directory.to_owned(), source })?;
        }
        let listener = Listener::bind(path)?;
        let limits = Limits { answer: ANSWER, window: window.max(1), ..Limits::default() };
        let on = move |event| drop(inputs.send(Input::Peer(event)));
        let server = Server::start(listener, limits, on).map_err(ServeError::Start)?;
        Ok(Self { handle: server.handle(), _server: server, figures, sent: HashMap::new() })
    }

    /// Queues a message; closes the session where it cannot be one, whose end comes back
    /// as an event.
    pub(super) fn send(&mut self, session: SessionId, message: Message, held: Option<&Held>) {
        let is_add = matches!(message, Message::Add { .. });
        match self.queue(session, message, held) {
            Ok(()) => {
                if let Some(sent) = self.sent.get_mut(&session) {
                    sent.push_back((is_add, Instant::now()));
                }
            }
            Err(error) => {
                let reason = causes(&error);
                tracing::error!(session = session.0, reason, "cannot be sent to ztunnel");
                self.end(session);
            }
        }
    }

    fn queue(
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

    /// Ends a session that nobody is to hear of any more.
    pub(super) fn close(&mut self, session: SessionId) {
        self.forget(session);
        self.end(session);
    }

    fn end(&self, session: SessionId) {
        self.handle.close(server::PeerId(session.0));
    }

    fn forget(&mut self, session: SessionId) {
        self.sent.remove(&session);
        self.figures.ztunnels(self.sent.len());
    }

    /// What an event of the socket means; `None` when it means nothing to the machine.
    pub(super) fn read(&mut self, event: server::Event) -> Option<Event> {
        match event {
            server::Event::Connected { peer, credentials, hello } => {
                self.greeted(SessionId(peer.0), credentials, &hello)
            }
            server::Event::Answered { peer, packet, truncated } => {
                Some(self.answered(SessionId(peer.0), &packet, truncated))
            }
            server::Event::Disconnected { peer, reason } => {
                tracing::info!(session = peer.0, reason = %reason, "ztunnel disconnected");
                let session = SessionId(peer.0);
                self.forget(session);
                Some(Event::Disconnected(session))
            }
            server::Event::Refused { credentials, reason } => {
                tracing::warn!(
                    pid = credentials.map(|c| c.pid),
                    reason = %reason,
                    "a connection to ztunnel's socket was refused"
                );
                None
            }
            server::Event::Rebound => {
                tracing::warn!("the file of ztunnel's socket was gone, bound it again");
                None
            }
            server::Event::Lost(error) => {
                tracing::error!(reason = %causes(&error), "the file of ztunnel's socket is gone and cannot be made again: no ztunnel can connect");
                None
            }
            // The driver's: it ends over this.
            server::Event::Stopped(_) => None,
        }
    }

    fn greeted(
        &mut self,
        session: SessionId,
        credentials: Credentials,
        hello: &[u8],
    ) -> Option<Event> {
        match Hello::decode(hello) {
            Ok(hello) => {
                let pid = u64::try_from(credentials.pid).unwrap_or_default();
                let version = hello.version;
                tracing::info!(session = session.0, pid, version, "ztunnel connected");
                self.sent.insert(session, VecDeque::new());
                self.figures.ztunnels(self.sent.len());
                Some(Event::Connected { session, peer: PeerId(pid) })
            }
            Err(error) => {
                tracing::error!(
                    session = session.0,
                    pid = credentials.pid,
                    reason = %causes(&error),
                    "who connected to ztunnel's socket is no ztunnel"
                );
                self.end(session);
                None
            }
        }
    }

    fn answered(&mut self, session: SessionId, packet: &[u8], truncated: bool) -> Event {
        let sent = self.sent.get_mut(&session).and_then(VecDeque::pop_front);
        let decode = if truncated { Response::decode_cut_off } else { Response::decode };
        match decode(packet) {
            Ok(Response::Ack) => {
                if let Some((true, at)) = sent {
                    self.figures.took(Stage::Ztunnel, at.elapsed());
                }
                Event::Response { session, error: None }
            }
            Ok(Response::Nack(error)) => Event::Response { session, error: Some(error) },
            Err(error) => {
                tracing::error!(
                    session = session.0,
                    reason = %causes(&error),
                    "ztunnel's answer is none"
                );
                self.close(session);
                Event::Disconnected(session)
            }
        }
    }
}
