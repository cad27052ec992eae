//! What this kernel can do, proved with a connection in a namespace made for it.
//!
//! `socket cgroupv2` came with Linux 5.13. Before 5.15 a host that also uses net_cls
//! or net_prio of the first cgroup version lost the finding for new sockets. Until
//! 6.12 its level was counted from the root of all cgroups and since then from that
//! of the cgroup namespace of whoever writes the rule; xt_cgroup's path likewise
//! since 6.1. Numbers of versions prove nothing about what distributions carry, so
//! it is tried with the agent's own cgroup.

use super::kubelet::{cgroup_of, look};
use super::{Caller, HostError, HostRules, Programmer, Sources, Target};
use crate::netns::{Netns, within};
use crate::routing;
use redirect::desired::Routing;
use redirect::net::Cidr;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Levels that a cgroup namespace may be below the root of all.
const OFFSETS: u8 = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// Proves that rules of this dialect give a connection its source, and one to
/// another port not.
///
/// # Errors
/// When they do not, or no namespace can be made.
pub fn dialect(programmer: &Programmer) -> Result<(), HostError> {
    let unproved = |what| HostError::Unproved { dialect: programmer.kind().as_str(), what };
    in_scratch(|source| {
        let caller = Caller::Uid(nix::unistd::geteuid().as_raw());
        attempt(programmer, caller, source).map_err(unproved)
    })?
}

/// Levels that the kernel counts more than a cgroup's path has names.
///
/// # Errors
/// Why processes cannot be known by their cgroup here, in words.
pub fn cgroups(programmer: &Programmer, mounts: &[PathBuf]) -> Result<u8, String> {
    let path = cgroup_of(Path::new("/proc/thread-self")).ok_or("the kernel has no cgroup2")?;
    let path = path.trim_matches('/').to_owned();
    let id = look(mounts, &path)?.id;
    let depth = path.split('/').filter(|name| !name.is_empty()).count();
    let depth = u8::try_from(depth).map_err(|_| format!("cgroup /{path} is too deep"))?;
    let tried = in_scratch(|source| {
        let mut why = String::new();
        for offset in 0..=OFFSETS {
            let level = depth.saturating_add(offset);
            let caller = Caller::Cgroup { path: path.clone(), level, id };
            match attempt(programmer, caller, source) {
                Ok(()) => return Ok(offset),
                Err(error) if why.is_empty() => why = error,
                Err(_) => (),
            }
            // iptables has no level.
            if matches!(programmer, Programmer::Iptables(_)) {
                break;
            }
        }
        Err(why)
    });
    tried.map_err(|error| error.to_string())?
}

/// Runs `f` in a namespace in which a connection from the probe source can be
/// answered.
fn in_scratch<T: Send>(f: impl FnOnce(Ipv4Addr) -> T + Send) -> Result<T, HostError> {
    let scratch = Netns::create()?;
    within(&scratch, || {
        let source = redirect::host::SOURCE_V4;
        let loopback = vec![Cidr::host(source.into())];
        routing::ensure(&Routing { loopback, ..Routing::default() })
            .map_err(|error| HostError::Unproved { dialect: "any dialect", what: said(&error) })?;
        Ok(f(source))
    })?
}

/// An error with its causes, on one line.
pub(super) fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn attempt(programmer: &Programmer, caller: Caller, source: Ipv4Addr) -> Result<(), String> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| format!("listen: {e}"));
    let (probe, other) = (listen()?, listen()?);
    let port = probe.local_addr().map_err(|e| format!("listen: {e}"))?.port();
    let target = Target { address: Ipv4Addr::LOCALHOST.into(), port };
    let rules = HostRules { caller, sources: Sources { v4: Some(source), v6: None } };
    let installed = programmer.install(&rules, &BTreeSet::from([target]));
    installed.map_err(|error| said(&error))?;
    let came = peer(&probe)?;
    if came != IpAddr::V4(source) {
        return Err(format!("a connection that must come from {source} came from {came}"));
    }
    let came = peer(&other)?;
    if came == IpAddr::V4(source) {
        return Err("a connection to a port that is no target was taken too".to_owned());
    }
    Ok(())
}

/// Where a connection to the listener seems to come from.
fn peer(listener: &TcpListener) -> Result<IpAddr, String> {
    let to = listener.local_addr().map_err(|error| format!("listen: {error}"))?;
    let client =
        TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| format!("connect: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| format!("listen: {error}"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((_, from)) => {
                drop(client);
                return Ok(from.ip());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(format!("accept: {error}")),
        }
    }
}
