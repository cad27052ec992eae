//! What Istio's agent leaves on a host (reference 4.7, 4.8). It goes on working
//! beside ours, which are asked first, and is removed when ours are in.

use super::{HostError, ipset, nft, picture};
use crate::iptables::{Iptables, Tool};
use crate::netlink::{Protocol, Socket};
use crate::nftables;
use crate::nftables::kernel::compat_chains;
use crate::process::{Command, ProcessError};
use redirect::host::rules::CHAIN as OURS;
use redirect::net::Family;
use std::path::PathBuf;

const TABLE: &str = "istio-ambient-nat";
const CHAIN: &str = "ISTIO_POSTRT";
const SETS: [&str; 2] = ["istio-inpod-probes-v4", "istio-inpod-probes-v6"];

/// Files that name the tables of iptables-legacy that are in use.
const LEGACY: [&str; 2] =
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

/// True when the calling thread's namespace may have something that iptables' tools
/// are needed for: rules of Istio's that only the legacy ones see, or a chain of ours
/// from an agent with the other dialect.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn needs_tools() -> Result<bool, HostError> {
    if !chains()?.is_empty() {
        return Ok(true);
    }
    // Nobody but the tools sees what is in the legacy ones.
    Ok(LEGACY.iter().any(|path| {
        std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "nat"))
    }))
}

fn is_istios(chain: &str) -> bool {
    chain.ends_with(CHAIN)
}

/// Chains of iptables-nft: Istio's, and ours.
fn chains() -> Result<Vec<String>, HostError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut found = Vec::new();
    for name in [CHAIN, OURS] {
        let there = compat_chains(&mut socket, name)?;
        let nat = there.into_iter().filter(|(_, table, chain)| table == "nat" && chain == name);
        found.extend(nat.map(|(family, table, chain)| format!("{family} {table} {chain}")));
    }
    Ok(found)
}

/// What is there, in lines that name each object; looks with the tools that are
/// given, and without any at what the kernel tells of itself.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find(tools: Option<&Iptables>) -> Result<Vec<String>, HostError> {
    let mut found = Vec::new();
    if picture::has_table(&mut Socket::open(Protocol::Netfilter)?, TABLE)? {
        found.push(format!("table inet {TABLE}"));
    }
    if tools.is_none() {
        found.extend(chains()?.into_iter().filter(|chain| is_istios(chain)));
    }
    each_tool(tools, |tool| {
        if let Some(jumps) = jumps(tool)? {
            found.push(format!("{} nat {CHAIN}, {jumps} jumps", tool.base.display()));
        }
        Ok(())
    })?;
    for set in SETS {
        // A kernel without ipset has none.
        if ipset::exists(set).unwrap_or(false) {
            found.push(format!("ipset {set}"));
        }
    }
    Ok(found)
}

/// Removes it; fine when there is nothing. A family's chain goes with its jumps in one
/// transaction, and a set after what asks it.
///
/// # Errors
/// The first thing that cannot be removed; what comes before it is gone.
pub fn remove(tools: Option<&Iptables>) -> Result<(), HostError> {
    nft::remove(TABLE)?;
    // iptables-nft's are ordinary chains of nf_tables.
    nftables::remove_compat_chain(CHAIN)?;
    each_tool(tools, |tool| {
        let Some(jumps) = jumps(tool)? else { return Ok(()) };
        let delete = format!("-D POSTROUTING -j {CHAIN}\n").repeat(jumps);
        let text = format!("*nat\n:{CHAIN} - [0:0]\n{delete}-X {CHAIN}\nCOMMIT\n");
        command(tool, "-restore").arg("--noflush").stdin(text.as_bytes()).run()?;
        Ok(())
    })?;
    for set in SETS {
        if ipset::exists(set).unwrap_or(false) {
            ipset::destroy(set)?;
        }
    }
    Ok(())
}

fn each_tool(
    tools: Option<&Iptables>,
    mut f: impl FnMut(&Tool) -> Result<(), HostError>,
) -> Result<(), HostError> {
    for family in [Family::V4, Family::V6] {
        for tool in tools.into_iter().flat_map(|tools| tools.host_tools(family)) {
            if !tool.is_bare() {
                f(tool)?;
            }
        }
    }
    Ok(())
}

fn command<'a>(tool: &Tool, suffix: &str) -> Command<'a> {
    let mut path = tool.base.clone().into_os_string();
    path.push(suffix);
    Command::new(PathBuf::from(path))
}

/// How often POSTROUTING jumps to Istio's chain; `None` without the chain.
fn jumps(tool: &Tool) -> Result<Option<usize>, HostError> {
    let list = |chain: &str| command(tool, "").args(["-t", "nat", "-S", chain]).run();
    match list(CHAIN) {
        Ok(_) => {
            let there = list("POSTROUTING")?;
            let text = String::from_utf8_lossy(&there.stdout).into_owned();
            let jump = format!("-A POSTROUTING -j {CHAIN}");
            Ok(Some(text.lines().filter(|line| line.trim_end() == jump).count()))
        }
        Err(ProcessError::Failed { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
