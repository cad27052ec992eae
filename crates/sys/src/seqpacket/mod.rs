//! Unix sockets of whole packets (SOCK_SEQPACKET), with descriptors: what ztunnel
//! and the agent talk over.
//!
//! [`Listener`] and [`Connection`] are the socket, without a word of what is said on
//! it; [`server`] serves several peers that answer each packet with one of theirs.
//!
//! Facts of the kernel (Linux 6.18, measured) that the rest rests on:
//!
//! - An empty packet cannot be told from the end of the connection.
//! - A packet is sent whole or not at all. One longer than the sender's buffer
//!   (`net.core.wmem_default`, 212992 bytes) is EMSGSIZE.
//! - Of a connected pair, `net.unix.max_dgram_qlen` does not count: some 278 small
//!   packets fit in the sender's buffer, then EAGAIN until the peer reads.
//! - A peer that closes with packets unread makes the next call here ECONNRESET,
//!   once; what it had sent before can be read after that.

mod connection;
mod listener;
pub mod server;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Credentials, Packet};
pub use listener::{ListenError, Listener};

/// As long as a packet can be while the kernel's limit on sends is the usual one. A
/// NACK of 12 kB has been seen; one more page costs nothing until it is written to.
pub const RECEIVE_BUFFER: usize = 256 << 10;
