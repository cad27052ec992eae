//! Netlink, synchronously: one request socket a piece of work.

mod error;

pub use error::NetlinkError;
