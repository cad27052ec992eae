//! `istio-validation` in a pod of the lab: 0 when the probe is redirected, 126
//! when not, 1 for anything else. `--ipv6` for a pod whose first address is one.

use anyhow::Result;
use e2e_node::programs::variable;
use e2e_node::validation::{NOT_REDIRECTED, is_redirected};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> Result<ExitCode> {
    let ipv6 = std::env::args().any(|arg| arg == "--ipv6");
    let timeout = match variable("PROBE_TIMEOUT") {
        Some(text) => Duration::from_secs(text.trim_end_matches('s').parse()?),
        None => Duration::from_secs(5),
    };
    if is_redirected(ipv6, timeout)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut stderr = std::io::stderr();
    writeln!(stderr, "the pod was scheduled before its node was ready to redirect it")?;
    Ok(ExitCode::from(NOT_REDIRECTED))
}
