//! Closes what takes long to close.
//!
//! close() of a netlink socket over which something of nf_tables was deleted
//! waits for the destruction, an RCU grace period: 9 to 13 ms on 6.18, where the
//! whole transaction takes 0.3 ms. A pod's start should not wait for that.

use std::os::fd::OwnedFd;

/// Closes a descriptor on a thread that ends right after; here when there can be
/// no thread.
///
/// Not one thread for all: it would be in the network namespace of whoever came
/// first and keep that pod's interfaces alive.
pub(crate) fn close(fd: OwnedFd) {
    // When the thread cannot be started the closure, and so the descriptor, is
    // dropped here.
    let _ = std::thread::Builder::new()
        .name("reaper".to_owned())
        .stack_size(64 << 10)
        .spawn(move || drop(fd));
}
