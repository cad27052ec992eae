//! A connection from the node to the pod.

use super::endpoint::{Dial, Fate, Listener};
use super::report::{Outcome, ProbeError, Way};
use super::{ATTEMPT, attempt, escaped};
use crate::netns::{Netns, within};
use crate::routing::is_unresolved;
use nix::errno::Errno;
use redirect::net::Family;
use std::net::SocketAddr;
use std::time::Instant;

/// A connection to be made from the node.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) target: SocketAddr,
    /// `None` when a proxy listens already.
    pub(super) listener: Option<Listener>,
    /// Nobody but a proxy could accept there.
    pub(super) exclusive: bool,
}

impl Arrival {
    /// Until `until` as long as the kernel does not know where to send: it asks for a
    /// neighbour's address once a second, and a busy machine's fresh link loses that.
    pub(super) fn prove(
        &self,
        port: u16,
        pod: &Netns,
        until: Instant,
    ) -> Result<Outcome, ProbeError> {
        let dial = || attempt(None, None, self.target, self.listener.as_ref());
        let not_proved = |errno: Errno| {
            Ok(Outcome::NotProved(format!("node to {}: {}", self.target, errno.desc())))
        };
        let mut fate = dial();
        while fate == Ok(Fate::Silence) && Instant::now() + ATTEMPT < until {
            let (again, sought) = self.dial_seeking();
            fate = again;
            if !sought {
                break;
            }
        }
        match fate {
            Ok(Fate::Arrived) => Ok(Outcome::Proved(self.target)),
            Ok(Fate::Elsewhere) if self.listener.is_none() && self.exclusive => {
                Ok(Outcome::Accepted(self.target))
            }
            Ok(Fate::Elsewhere) if self.listener.is_none() => Ok(Outcome::NotProved(format!(
                "port {port} is taken, so who accepted the connection to {} cannot be seen",
                self.target
            ))),
            Ok(fate @ Fate::Elsewhere) => Err(escaped(Way::Arrival, self.target, port, &fate)),
            Ok(Fate::Silence) => not_proved(Errno::ETIMEDOUT),
            Ok(Fate::Failed(Errno::ECONNREFUSED)) | Err(Errno::ECONNREFUSED) => {
                self.refused(port, pod, dial)
            }
            Ok(Fate::Failed(errno)) | Err(errno) => not_proved(errno),
        }
    }

    /// Dials once more; true when the neighbour was looked for when the packet was sent.
    /// Asked afterwards, it may have been found just too late for that packet.
    fn dial_seeking(&self) -> (Result<Fate, Errno>, bool) {
        let dial = match Dial::start(None, None, self.target) {
            Ok(dial) => dial,
            Err(errno) => return (Err(errno), false),
        };
        let sought = is_unresolved(self.target.ip()).unwrap_or(false);
        (Ok(dial.fate(self.listener.as_ref(), Instant::now() + ATTEMPT)), sought)
    }

    /// A refusal is the pod's own, and then the rules do not work, or that of a
    /// policy on the way. What the pod has sent tells.
    fn refused(
        &self,
        port: u16,
        pod: &Netns,
        dial: impl Fn() -> Result<Fate, Errno>,
    ) -> Result<Outcome, ProbeError> {
        let family = Family::of(self.target.ip());
        let sent = || within(pod, || packets_sent(family)).ok().flatten();
        let before = sent();
        let again = dial();
        if matches!(again, Ok(Fate::Arrived)) {
            return Ok(Outcome::Proved(self.target));
        }
        let after = sent();
        if before.is_some() && before == after {
            return Ok(Outcome::NotProved(format!(
                "node to {}: refused on the way, not by the pod",
                self.target
            )));
        }
        let refused = Fate::Failed(Errno::ECONNREFUSED);
        Err(escaped(Way::Arrival, self.target, port, &refused))
    }
}

/// How much this thread's namespace has sent. A sandbox in which nothing runs yet
/// sends no IPv4 by itself; but neighbour discovery is IPv6, so there only resets
/// count, which leaves out those that a packet filter makes.
fn packets_sent(family: Family) -> Option<u64> {
    let (group, name) = match family {
        Family::V4 => ("Ip: ", "OutRequests"),
        Family::V6 => ("Tcp: ", "OutRsts"),
    };
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let column = lines.next()?.split(' ').position(|found| found == name)?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}
