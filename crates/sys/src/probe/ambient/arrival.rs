//! Connections from the node to the pod.

use super::dial::{Dial, Listener};
use super::{AmbientInside, Ports, Want, judge, listen, socket};
use crate::probe::report::{Outcome, ProbeError, Report, Way};
use crate::routing::is_unresolved;
use nix::errno::Errno;
use redirect::ambient::{AmbientPlan, ProbePorts};
use redirect::net::Family;
use redirect::plan::INBOUND_PORT;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// What is to be dialled from the node.
#[derive(Debug)]
pub(super) struct Arrival {
    way: Way,
    from: Option<IpAddr>,
    to: SocketAddr,
    want: Want,
    /// Keeps a refusal from ending the connection's entry.
    listener: Option<Listener>,
}

impl AmbientInside {
    /// Prepares what [`Self::finish`] dials.
    pub(super) fn arrivals(
        &mut self,
        plan: &AmbientPlan,
        address: IpAddr,
        ports: Ports,
    ) -> Result<(), ProbeError> {
        let family = Family::of(address);
        if !plan.inbound {
            let why = Outcome::NotCaptured("inbound connections are the pod's own");
            self.push(Way::Arrival, family, why);
            return Ok(());
        }
        self.arrivals.push(Arrival {
            way: Way::Arrival,
            from: None,
            to: SocketAddr::new(address, super::PORT),
            want: Want::Port(INBOUND_PORT),
            listener: listen(family, INBOUND_PORT, ports)?,
        });
        let port = match &plan.probe_ports {
            ProbePorts::Any => super::PORT,
            ProbePorts::Only(ports) => match ports.first() {
                Some(port) => *port,
                None => {
                    let why = Outcome::NotCaptured("the pod declares no probe");
                    self.push(Way::Kubelet, family, why);
                    return Ok(());
                }
            },
        };
        let from = match family {
            Family::V4 => plan.probe_v4.into(),
            Family::V6 => plan.probe_v6.into(),
        };
        self.arrivals.push(Arrival {
            way: Way::Kubelet,
            from: Some(from),
            to: SocketAddr::new(address, port),
            want: Want::Untouched,
            // The application's port may be its own already.
            listener: listen(family, port, Ports::Ours)?,
        });
        Ok(())
    }

    /// Proves what arrives from outside: called in the node's namespace. A node that
    /// does not reach the pod proves nothing and is no error; the report says so. A pod
    /// whose hardware address the node is still looking for is waited for, at most
    /// until `until`.
    ///
    /// # Errors
    ///
    /// As [`super::ambient_inside`].
    pub fn finish(mut self, until: Instant) -> Result<Report, ProbeError> {
        // All listeners stay to the end: without the inbound one, a probe that is
        // captured would be refused and not seen.
        let arrivals = std::mem::take(&mut self.arrivals);
        for arrival in &arrivals {
            let outcome = loop {
                let (outcome, sought) = self.arrive(arrival)?;
                let again = sought && matches!(outcome, Outcome::NotProved(_));
                if !again || Instant::now() >= until {
                    break outcome;
                }
            };
            self.push(arrival.way, Family::of(arrival.to.ip()), outcome);
        }
        Ok(self.report)
    }

    /// True with it when the pod was looked for when the packet was sent. Asked
    /// afterwards, it may have been found just too late for that packet.
    fn arrive(&mut self, arrival: &Arrival) -> Result<(Outcome, bool), ProbeError> {
        let Arrival { way, from, to, want, ref listener } = *arrival;
        let not_proved = |errno: Errno| {
            Ok((Outcome::NotProved(format!("node to {to}: {}", errno.desc())), false))
        };
        let dial = match Dial::deaf(to, from, None) {
            Ok(dial) => dial,
            Err(errno) => return not_proved(errno),
        };
        let redirected = matches!(want, Want::Port(_));
        if let (Some(listener), true) = (listener, redirected) {
            listener.admit(dial.source().port()).map_err(socket("filter a listener"))?;
        }
        if let Err(errno) = dial.connect() {
            return not_proved(errno);
        }
        let sought = is_unresolved(to.ip()).unwrap_or(false);
        let port = if let Want::Port(port) = want { port } else { 0 };
        let seen = self.tracker.watch(&dial, to, port, !sought)?;
        Ok((judge(way, to, want, &seen, listener.is_some())?, sought))
    }
}
