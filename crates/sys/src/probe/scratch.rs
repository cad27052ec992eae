//! Whether a backend's rules act on this kernel: tried in a namespace that is made
//! for it and gone afterwards.

use super::{ProbeError, endpoint, loopback_only};
use crate::backend::{Backend, BackendError};
use crate::netns::{Netns, NetnsError, within};
use crate::routing::bring_loopback_up;
use redirect::compile::compile;
use redirect::desired::Form;
use redirect::net::Owner;
use redirect::plan::{Destinations, Dns, Groups, Inbound, Mode, Outbound, Plan, Proxy};

/// Why a backend does not work here.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// No namespace to try it in.
    #[error("make a scratch namespace")]
    Netns(#[from] NetnsError),
    /// It cannot program one.
    #[error("program a scratch namespace")]
    Backend(#[from] BackendError),
    /// Its rules do not act.
    #[error("send a connection through the rules of a scratch namespace")]
    Probe(#[from] ProbeError),
}

/// Programs a new namespace with the rules of a plain sidecar and sends a
/// connection through its REDIRECT, as the proxy of that plan: ourselves, since acting
/// as another user takes capabilities that we may not have. IPv4 only: a node without IPv6 is fine, and a
/// pod that wants it is proved by itself.
///
/// # Errors
///
/// The step that failed.
pub fn scratch(backend: &dyn Backend) -> Result<(), ScratchError> {
    let plan = plain();
    let netns = Netns::create()?;
    within(&netns, || {
        bring_loopback_up()?;
        backend.apply(&compile(&plan, Form::Sluice), None)?;
        loopback_only(&plan)?;
        Ok(())
    })?
}

fn plain() -> Plan {
    let own = endpoint::own();
    Plan {
        proxy: Proxy {
            uids: vec![Owner::Id(own.uid)],
            gids: vec![Owner::Id(own.gid)],
            ..Proxy::default()
        },
        mode: Mode::Redirect,
        ipv6: false,
        loopback_v4: Plan::default_loopback_v4(),
        inbound: Inbound::AllExcept(Vec::new()),
        outbound: Outbound {
            include: Destinations::All,
            exclude: Vec::new(),
            include_ports: Vec::new(),
            exclude_ports: Vec::new(),
            groups: Groups::AllExcept(Vec::new()),
        },
        dns: Dns::Off,
        exclude_interfaces: Vec::new(),
        virtual_interfaces: Vec::new(),
        drop_invalid: false,
    }
}
