//! Effects: everything of Sluice that touches the kernel, and all its unsafe code.
//!
//! [`netns`] owns how a network namespace is entered, [`backend`] what a backend
//! that programs rules must be able to do, [`netlink`] the socket, [`nftables`]
//! and [`routing`] what is said over it, [`conntrack`] what the kernel remembers of
//! connections. [`watch`] hears of changes, [`seqpacket`] is how ztunnel is spoken to.

pub mod backend;
pub mod conntrack;
pub mod descriptors;
pub mod hostprobe;
pub mod iptables;
#[cfg(test)]
mod lab;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod probe;
pub mod process;
mod reaper;
pub mod routing;
pub mod seqpacket;
pub mod socket;
pub mod watch;
