//! Netlink, synchronously: a socket that lives for one piece of work, the framing
//! of messages and attributes, and the kernel's own words for why it refused.
//!
//! A socket belongs for ever to the namespace of the thread that opened it.

mod batch;
mod error;
mod message;
mod socket;

pub(crate) use batch::{Batch, Rejected};
pub use error::NetlinkError;
pub(crate) use message::{Buffer, attributes, be16, be32, ne32, text};
pub(crate) use socket::{Protocol, Replies, Socket};
