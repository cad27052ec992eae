//! A server of several peers, each of which says one packet first and then answers
//! each of the server's with one of its own, in order.
//!
//! What the packets say is the caller's matter: it gets [`Event`]s and gives packets
//! to a [`Handle`]. One thread does all I/O and never blocks on any one peer, so a
//! peer that does not read keeps nobody else waiting.
//!
//! An answer bears no number. Once one is late, later ones cannot be matched to
//! their requests, so a peer that takes longer than [`Limits::answer`] loses its
//! connection, and can make a new one.

mod event;
mod pace;
mod session;

use super::connection::{Credentials, until};
use super::{Connection, Listener, RECEIVE_BUFFER};
pub use event::{Event, PeerId, Reason};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use pace::Pace;
use session::{Outgoing, Session};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Something that stays open until its descriptor was sent, without a second
/// descriptor for the wait.
pub type Descriptor = Arc<dyn AsFd + Send + Sync>;

/// How often it is looked whether peers can find the socket.
const LOOK: Duration = Duration::from_secs(1);

/// What the server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections accepted at once after a quiet time...
    pub burst: u32,
    /// ...and afterwards one in this time: a peer that stumbles over something
    /// connects again at once, for ever.
    pub pace: Duration,
    /// Peers at a time.
    pub peers: usize,
    /// The only user that may be one.
    pub uid: u32,
    /// How long a peer may take to say its first packet.
    pub hello: Duration,
    /// How long the oldest request may be without an answer, from when it became the
    /// oldest: a peer handles one after the other, so a long queue is not its fault.
    pub answer: Duration,
    /// Requests sent and not answered. Each may hold a descriptor under way, of which
    /// the kernel allows a user only so many.
    pub window: usize,
}

impl Default for Limits {
    /// As Istio's agent: five connections a second, never two at once, and five
    /// seconds for anything.
    fn default() -> Self {
        Self {
            burst: 1,
            pace: Duration::from_millis(200),
            peers: 16,
            uid: 0,
            hello: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            window: 64,
        }
    }
}

/// A running server. It ends with this value: peers see the end of the connection,
/// no event follows, and the file at the path goes.
#[derive(Debug)]
pub struct Server {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Gives packets to a server; any number of threads may have one.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: Sender<Command>,
    wake: Arc<UnixStream>,
}

enum Command {
    Send(PeerId, Outgoing),
    Close(PeerId),
    Stop,
}

impl Server {
    /// Serves a listener on a thread of its own, which also runs `on`: it must not
    /// block, and what it takes is missing from every peer's time.
    ///
    /// # Errors
    /// When there is no thread or no descriptor to be had.
    pub fn start(
        listener: Listener,
        limits: Limits,
        on: impl FnMut(Event) + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let (commands, received) = channel();
        let serving = Serving {
            pace: Pace::new(limits.burst, limits.pace),
            listener,
            limits,
            commands: received,
            woken,
            sessions: Vec::new(),
            next: 0,
            look: Instant::now() + LOOK,
            lost: None,
            buffer: vec![0; RECEIVE_BUFFER],
            on,
        };
        let thread = std::thread::Builder::new().name("packet peers".to_owned());
        let thread = thread.spawn(move || serving.run())?;
        let handle = Handle { commands, wake: Arc::new(wake) };
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A way to give it packets. It does nothing once the server has ended.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of `on` has been printed.
            thread.join().ok();
        }
    }
}

impl Handle {
    /// Queues a packet for a peer. One that is gone by now gets nothing, and its
    /// [`Event::Disconnected`] says so.
    pub fn send(&self, peer: PeerId, packet: Vec<u8>, descriptor: Option<Descriptor>) {
        self.command(Command::Send(peer, Outgoing { packet, descriptor }));
    }

    /// Ends a connection.
    pub fn close(&self, peer: PeerId) {
        self.command(Command::Close(peer));
    }

    fn command(&self, command: Command) {
        // The server has ended: so have its peers, and nobody waits for an answer.
        if self.commands.send(command).is_ok() {
            // No room means that enough is in there to wake it.
            (&*self.wake).write_all(&[0]).ok();
        }
    }
}

struct Serving<F> {
    listener: Listener,
    limits: Limits,
    pace: Pace,
    commands: Receiver<Command>,
    woken: UnixStream,
    sessions: Vec<Session>,
    next: u64,
    /// When the listener's file is looked at next.
    look: Instant,
    /// What keeps it from coming back, as it was told.
    lost: Option<String>,
    buffer: Vec<u8>,
    on: F,
}

impl<F: FnMut(Event)> Serving<F> {
    fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    (self.on)(Event::Stopped(errno));
                    return;
                }
            };
            if ready.woken && !self.obey() {
                return;
            }
            let mut ended = Vec::new();
            for session in &mut self.sessions {
                let hit = ready.sessions.contains(&session.id);
                let done = session.turn(hit, &self.limits, &mut self.buffer, &mut self.on);
                if let Err(reason) = done {
                    ended.push((session.id, reason));
                }
            }
            for (peer, reason) in ended {
                self.end(peer, reason);
            }
            if ready.listener {
                self.accept();
            }
            if Instant::now() >= self.look {
                self.keep();
            }
        }
    }

    /// Somebody may empty the directory under a running agent, which no peer that
    /// comes later would find.
    fn keep(&mut self) {
        self.look = Instant::now() + LOOK;
        match self.listener.keep() {
            Ok(is_new) => {
                self.lost = None;
                if is_new {
                    (self.on)(Event::Rebound);
                }
            }
            Err(error) => {
                let reason = Some(error.to_string());
                if self.lost != reason {
                    self.lost = reason;
                    (self.on)(Event::Lost(error));
                }
            }
        }
    }

    /// Waits until somebody has something to say, or a time is up.
    fn wait(&self) -> Result<Ready, Errno> {
        let now = Instant::now();
        // None while it has to wait: connections do so in the kernel.
        let accepting = self.pace.next(now);
        let times = self.sessions.iter().filter_map(|session| session.deadline(&self.limits));
        let deadline = times.chain(accepting).chain([self.look]).min();
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        for session in &self.sessions {
            fds.push(PollFd::new(session.connection.as_fd(), session.interest()));
        }
        if accepting.is_none() {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut fds, until(deadline))?;
        let mut hits = fds.iter().map(|fd| fd.any() == Some(true));
        let woken = hits.next() == Some(true);
        let hit = self.sessions.iter().zip(hits.by_ref()).filter(|(_, hit)| *hit);
        let sessions = hit.map(|(session, _)| session.id).collect();
        Ok(Ready { woken, sessions, listener: hits.next() == Some(true) })
    }

    /// Does what the handles ask; false when it is to end.
    fn obey(&mut self) -> bool {
        let mut bytes = [0; 256];
        // Emptied before the queue is: what comes in between wakes it again.
        while matches!((&self.woken).read(&mut bytes), Ok(256)) {}
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop => return false,
                Command::Close(peer) => self.end(peer, Reason::Closed),
                Command::Send(peer, outgoing) => {
                    if let Some(session) = self.sessions.iter_mut().find(|s| s.id == peer) {
                        session.queue(outgoing);
                    }
                }
            }
        }
        true
    }

    fn accept(&mut self) {
        self.pace.take(Instant::now());
        let (credentials, reason) = match self.listener.accept() {
            Ok(connection) => match self.admit(&connection) {
                Ok(credentials) => {
                    let id = PeerId(self.next);
                    self.next += 1;
                    self.sessions.push(Session::new(id, connection, credentials));
                    return;
                }
                Err(refused) => refused,
            },
            // It has gone in the meantime.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            Err(errno) => (None, Reason::Failed { call: "accept", errno }),
        };
        (self.on)(Event::Refused { credentials, reason });
    }

    fn admit(&self, connection: &Connection) -> Result<Credentials, (Option<Credentials>, Reason)> {
        let credentials = connection
            .credentials()
            .map_err(|errno| (None, Reason::Failed { call: "getsockopt", errno }))?;
        let Credentials { uid, .. } = credentials;
        if uid != self.limits.uid {
            return Err((Some(credentials), Reason::Uid { uid, want: self.limits.uid }));
        }
        if self.sessions.len() >= self.limits.peers {
            return Err((Some(credentials), Reason::Crowded(self.limits.peers)));
        }
        Ok(credentials)
    }

    fn end(&mut self, peer: PeerId, reason: Reason) {
        let Some(place) = self.sessions.iter().position(|session| session.id == peer) else {
            return;
        };
        let session = self.sessions.remove(place);
        (self.on)(session.end(reason));
    }
}

/// Who has something to say.
struct Ready {
    woken: bool,
    listener: bool,
    sessions: Vec<PeerId>,
}
