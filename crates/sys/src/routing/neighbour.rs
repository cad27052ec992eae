//! Whether a neighbour's link address is known.

use super::address::malformed;
use super::address_family;
use crate::backend::BackendError;
use crate::netlink::{Protocol, Socket, attributes};
use netlink_packet_route::neighbour::NeighbourMessage;
use redirect::net::Family;
use std::net::IpAddr;

/// `struct ndmsg`, and where the state is in it.
const HEADER: usize = 12;
const STATE: usize = 8;

/// States of `ndm_state` in which packets wait: nobody has answered yet, or not in time.
const INCOMPLETE: u16 = 0x01;
const FAILED: u16 = 0x20;

const NDA_DST: u16 = 1;

/// True when packets to a neighbour of the calling thread's namespace wait for its link
/// address: what was asked for it may be lost, and the kernel asks again after a second.
/// False too where it is no neighbour.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_unresolved(neighbour: IpAddr) -> Result<bool, BackendError> {
    const OBJECT: &str = "list neighbours";
    let mut socket = Socket::open(Protocol::Route)?;
    let replies = socket.dump(OBJECT, libc::RTM_GETNEIGH, |b| {
        let mut message = NeighbourMessage::default();
        message.header.family = address_family(Family::of(neighbour));
        super::write(b, &message);
    })?;
    let octets = match neighbour {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    for (_, body) in replies.iter().filter(|(kind, _)| *kind == libc::RTM_NEWNEIGH) {
        let state = body.get(STATE..STATE + 2).and_then(|bytes| bytes.try_into().ok());
        let state = u16::from_ne_bytes(state.ok_or_else(|| malformed(OBJECT))?);
        let rest = body.get(HEADER..).unwrap_or_default();
        let is_it = attributes(rest).any(|(kind, value)| kind == NDA_DST && value == octets);
        if is_it && state & (INCOMPLETE | FAILED) != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
