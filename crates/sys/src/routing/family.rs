//! What IPv6 a network namespace has.

use crate::backend::BackendError;
use redirect::ambient::Ipv6;
use std::io::ErrorKind;

const CONF: &str = "/proc/sys/net/ipv6/conf";

/// What IPv6 the calling thread's namespace has, whatever the node has. By the
/// switches and not by the addresses, of which the first may come later: what is on
/// here and not captured would go round ztunnel.
///
/// # Errors
/// When the switches cannot be read.
pub fn ipv6() -> Result<Ipv6, BackendError> {
    let failed = |source| BackendError::File { path: CONF, source };
    // Of the namespace of the thread that looks.
    let entries = match std::fs::read_dir(CONF) {
        Ok(entries) => entries,
        // The kernel has none.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Ipv6::Absent),
        Err(source) => return Err(failed(source)),
    };
    // With nothing but `lo`, what the next interface would get.
    let (mut others, mut default, mut loopback) = (None, true, true);
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let value = match std::fs::read_to_string(entry.path().join("disable_ipv6")) {
            Ok(value) => value,
            // The interface went meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(failed(source)),
        };
        let on = value.trim() == "0";
        match entry.file_name().to_str() {
            Some("all") => (),
            Some("default") => default = on,
            Some("lo") => loopback = on,
            _ => others = Some(others.unwrap_or(false) || on),
        }
    }
    Ok(match (others.unwrap_or(default), loopback) {
        (false, _) => Ipv6::Absent,
        (true, false) => Ipv6::NoLoopback,
        (true, true) => Ipv6::Present,
    })
}
