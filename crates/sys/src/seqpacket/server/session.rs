//! One peer: what it was asked and has not answered, and what it is to be asked.

use super::{Descriptor, Event, Limits, PeerId, Reason};
use crate::seqpacket::{Connection, Credentials};
use nix::errno::Errno;
use nix::poll::PollFlags;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long to wait after the kernel had no room that it would tell us about.
const PAUSE: Duration = Duration::from_millis(10);

/// A packet that is to be sent.
pub(super) struct Outgoing {
    pub(super) packet: Vec<u8>,
    pub(super) descriptor: Option<Descriptor>,
}

/// Whether a packet can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// As far as is known.
    Yes,
    /// Not before the peer has read: the kernel will say.
    Full,
    /// Not before then: it is somebody else who is in the way.
    After(Instant),
}

pub(super) struct Session {
    pub(super) id: PeerId,
    pub(super) connection: Connection,
    credentials: Credentials,
    accepted: Instant,
    greeted: bool,
    waiting: VecDeque<Outgoing>,
    /// Sent and not answered.
    sent: usize,
    /// Since when the oldest request, sent or not, has been the oldest.
    since: Option<Instant>,
    room: Room,
}

impl Session {
    pub(super) fn new(id: PeerId, connection: Connection, credentials: Credentials) -> Self {
        Self {
            id,
            connection,
            credentials,
            accepted: Instant::now(),
            greeted: false,
            waiting: VecDeque::new(),
            sent: 0,
            since: None,
            room: Room::Yes,
        }
    }

    pub(super) fn queue(&mut self, outgoing: Outgoing) {
        self.waiting.push_back(outgoing);
        self.since.get_or_insert_with(Instant::now);
    }

    /// What to wait for, besides the end of the connection.
    pub(super) fn interest(&self) -> PollFlags {
        match self.room {
            Room::Full => PollFlags::POLLIN | PollFlags::POLLOUT,
            Room::Yes | Room::After(_) => PollFlags::POLLIN,
        }
    }

    /// When it needs a turn though nothing has come.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let patience = if self.greeted {
            self.since.map(|since| since + limits.answer)
        } else {
            Some(self.accepted + limits.hello)
        };
        let room = match self.room {
            Room::After(then) => Some(then),
            Room::Yes | Room::Full => None,
        };
        patience.into_iter().chain(room).min()
    }

    /// Reads what came, sends what can be sent, and looks at the clock.
    pub(super) fn turn(
        &mut self,
        hit: bool,
        limits: &Limits,
        buffer: &mut [u8],
        on: &mut impl FnMut(Event),
    ) -> Result<(), Reason> {
        if hit {
            self.read(buffer, on)?;
            if self.room == Room::Full {
                self.room = Room::Yes;
            }
        }
        if let Err(errno) = self.write(limits) {
            // What it said before it went counts.
            self.read(buffer, on)?;
            return Err(Reason::Failed { call: "sendmsg", errno });
        }
        self.look_at_clock(limits)
    }

    fn read(&mut self, buffer: &mut [u8], on: &mut impl FnMut(Event)) -> Result<(), Reason> {
        let mut reset = false;
        loop {
            let packet = match self.connection.receive(buffer) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Err(Reason::End),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                // It closed without reading all; what it sent before is still there,
                // and then the end.
                Err(Errno::ECONNRESET) if !reset => {
                    reset = true;
                    continue;
                }
                Err(errno) => return Err(Reason::Failed { call: "recvmsg", errno }),
            };
            if packet.stray {
                return Err(Reason::Stray);
            }
            let bytes = buffer.get(..packet.len).unwrap_or_default().to_vec();
            on(self.take(bytes, packet.truncated)?);
        }
    }

    /// A packet is the hello or the answer to the oldest request.
    fn take(&mut self, packet: Vec<u8>, truncated: bool) -> Result<Event, Reason> {
        if !self.greeted {
            self.greeted = true;
            let credentials = self.credentials;
            return Ok(Event::Connected { peer: self.id, credentials, hello: packet });
        }
        self.sent = self.sent.checked_sub(1).ok_or(Reason::Unasked)?;
        let more = self.sent > 0 || !self.waiting.is_empty();
        self.since = more.then(Instant::now);
        Ok(Event::Answered { peer: self.id, packet, truncated })
    }

    fn write(&mut self, limits: &Limits) -> Result<(), Errno> {
        if matches!(self.room, Room::After(then) if then <= Instant::now()) {
            self.room = Room::Yes;
        }
        while self.room == Room::Yes && self.sent < limits.window {
            let Some(Outgoing { packet, descriptor }) = self.waiting.front() else {
                return Ok(());
            };
            let descriptor = descriptor.as_ref().map(|descriptor| descriptor.as_fd());
            match self.connection.send(packet, descriptor) {
                Ok(()) => {
                    self.waiting.pop_front();
                    self.sent += 1;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.room = Room::Full,
                Err(Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => {
                    self.room = Room::After(Instant::now() + PAUSE);
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn look_at_clock(&self, limits: &Limits) -> Result<(), Reason> {
        let now = Instant::now();
        if !self.greeted {
            let late = now >= self.accepted + limits.hello;
            return if late { Err(Reason::NoHello(limits.hello)) } else { Ok(()) };
        }
        if self.since.is_some_and(|since| now >= since + limits.answer) {
            let outstanding = self.sent + self.waiting.len();
            return Err(Reason::NoAnswer { after: limits.answer, outstanding });
        }
        Ok(())
    }

    /// Closes it.
    pub(super) fn end(self, reason: Reason) -> Event {
        // Now and not when the value goes: the peer may have been asked things that
        // hold a descriptor.
        self.connection.close();
        if self.greeted {
            Event::Disconnected { peer: self.id, reason }
        } else {
            Event::Refused { credentials: Some(self.credentials), reason }
        }
    }
}
