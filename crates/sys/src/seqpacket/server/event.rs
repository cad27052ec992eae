//! What a server tells of its peers.

use crate::seqpacket::{Credentials, ListenError};
use nix::errno::Errno;
use std::fmt;
use std::time::Duration;

/// One connection of a peer; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What happened. Of one peer: `Connected`, any number of `Answered`, `Disconnected`.
#[derive(Debug)]
pub enum Event {
    /// A peer has connected and said its first packet.
    Connected {
        /// The new connection.
        peer: PeerId,
        /// Who it is.
        credentials: Credentials,
        /// What it said.
        hello: Vec<u8>,
    },
    /// A peer answered its oldest request.
    Answered {
        /// Which.
        peer: PeerId,
        /// What it said.
        packet: Vec<u8>,
        /// It said more than [`RECEIVE_BUFFER`](crate::seqpacket::RECEIVE_BUFFER) bytes; the rest is lost.
        truncated: bool,
    },
    /// A peer is gone, and with it every request that it has not answered.
    Disconnected {
        /// Which.
        peer: PeerId,
        /// Why.
        reason: Reason,
    },
    /// A connection ended before it was a peer's.
    Refused {
        /// Who made it, when that is known.
        credentials: Option<Credentials>,
        /// Why.
        reason: Reason,
    },
    /// The socket's file was gone, and peers find it again.
    Rebound,
    /// It is gone, and for this reason it cannot be made again. That is tried again, and
    /// told when there is another reason.
    Lost(ListenError),
    /// The server cannot go on; nothing follows.
    Stopped(Errno),
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The peer closed it.
    #[error("closed by the peer")]
    End,
    /// [`Handle::close`](super::Handle::close).
    #[error("closed here")]
    Closed,
    /// It came and said nothing.
    #[error("no first packet within {0:?}")]
    NoHello(Duration),
    /// A request was not answered in time.
    #[error("no answer within {after:?}, {outstanding} requests wait")]
    NoAnswer {
        /// The limit.
        after: Duration,
        /// How many are unanswered, those that are not even sent included.
        outstanding: usize,
    },
    /// It said something that nobody asked.
    #[error("a packet that answers no request")]
    Unasked,
    /// It sent descriptors, which no answer has.
    #[error("an answer with descriptors")]
    Stray,
    /// It is another user.
    #[error("user {uid}, want {want}")]
    Uid {
        /// Who it is.
        uid: u32,
        /// Who it must be.
        want: u32,
    },
    /// There are too many already.
    #[error("{0} peers are connected already")]
    Crowded(usize),
    /// The kernel says no.
    #[error("{call}: {}", errno.desc())]
    Failed {
        /// To what.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}
