//! `sluice cleanup`: takes the plugin out of a node, by order only. Nothing else ever
//! does. The rules of pods that run stay, and so does the plugin's binary: sandboxes
//! that were made with it are taken down with it. The host's rules for kubelet's probes
//! go with the agent that keeps them, or here where there is none (reference 6.8).

use crate::config::CleanupArgs;
use crate::failure::causes;
use crate::install::{self, BinaryFate, Hold, REMOVED, Settings};
use crate::log::{Format, Setup, Target};
use crate::source::kubernetes::client::{Api, Verb};
use crate::source::kubernetes::connect;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use serde::Deserialize;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use sys::hostprobe::{HostError, upstream};
use sys::iptables::Iptables;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use wire::request::SOCKET_NAME;

/// How often it is looked whether an agent began to install again.
const HOLD: Duration = Duration::from_millis(200);

/// How often a DaemonSet is asked for.
const POLL: Duration = Duration::from_secs(2);

/// Does what the options say.
///
/// # Errors
///
/// When something of ours could not be taken out, or was waited for in vain.
pub(crate) fn cleanup(args: &CleanupArgs) -> Result<()> {
    let (filter, targets) = ("info".to_owned(), vec![Target::Stderr]);
    crate::log::init(&Setup { format: Format::Text, filter, targets, caller: false })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    if let Some(name) = &args.wait_for_daemonset {
        return runtime.block_on(wait(args, name));
    }
    let settings = args.settings()?;
    // Before the mark: an agent that sees that one is to see this too.
    let held = args.hold.then(|| Hold::take(&settings.run_dir)).transpose()?;
    take_out(&settings)?;
    // Goes on past an error: nothing else waits for these rules.
    let host = take_out_of_host(&settings);
    if let Some(cache) = &args.cni_cache_dir {
        match install::remove_binary(&settings, cache)? {
            BinaryFate::Absent => {}
            BinaryFate::Removed => tracing::info!("removed the plugin's binary"),
            BinaryFate::Needed(sandboxes) => {
                tracing::info!(sandboxes, "the plugin's binary is needed to take sandboxes down");
            }
        }
    }
    let Some(held) = held else { return host };
    if let Err(error) = host {
        tracing::error!(reason = format!("{error:#}"), "holding the node all the same");
    }
    runtime.block_on(hold(&settings, held))
}

fn take_out(settings: &Settings) -> Result<()> {
    let removal = install::remove(settings);
    for file in &removal.changed {
        tracing::info!(file = %settings.net_dir.join(file).display(), "took istio-cni out");
    }
    if !removal.errors.is_empty() {
        let errors: Vec<String> = removal.errors.iter().map(|error| causes(error)).collect();
        bail!("istio-cni is not wholly removed from this node: {}", errors.join("; "));
    }
    if let Some(binary) = removal.binary {
        tracing::info!(file = %binary.display(), "the plugin's binary stays, for sandboxes that were made with it (--cni-cache-dir removes it once there are none)");
    }
    tracing::info!(net_dir = %settings.net_dir.display(), "istio-cni is not in the CNI configuration of this node");
    Ok(())
}

/// The host's rules for kubelet's probes. An agent that runs keeps them for its pods,
/// and takes them out when it ends.
fn take_out_of_host(settings: &Settings) -> Result<()> {
    if UnixStream::connect(settings.run_dir.join(SOCKET_NAME)).is_ok() {
        tracing::info!("the host's rules for kubelet's probes go when the agent ends");
        return Ok(());
    }
    let needed = match upstream::needs_tools() {
        Err(HostError::Netlink(error)) if error.errno() == Some(Errno::EPERM) => {
            tracing::warn!(
                "no NET_ADMIN: the host's rules for kubelet's probes stay if an agent with ambient mode was killed here; run `sluice cleanup` as root in the host's network namespace"
            );
            return Ok(());
        }
        needed => needed?,
    };
    let tools = needed.then(Iptables::detect).transpose()?.map(Arc::new);
    sys::hostprobe::remove(tools.as_ref()).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(|error| causes(error)).collect();
        anyhow!(
            "the host's rules for kubelet's probes are not wholly removed: {}",
            errors.join("; ")
        )
    })
}

/// An agent that is started leaves a node alone that is held; one of an earlier version
/// takes the mark of the removal away and installs.
async fn hold(settings: &Settings, mut held: Hold) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tracing::info!("staying, so that no agent installs again");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(HOLD) => {}
        }
        if settings.run_dir.join(REMOVED).exists() {
            continue;
        }
        tracing::warn!("an agent has begun to install again, taking it out");
        // The run directory may have been wiped, and the lock with it.
        match Hold::take(&settings.run_dir) {
            Ok(new) => held = new,
            Err(error) => {
                tracing::error!(reason = %causes(&error), "agents are not kept from installing")
            }
        }
        if let Err(error) = take_out(settings) {
            tracing::error!(reason = format!("{error:#}"), "trying again");
        }
    }
    drop(held);
    Ok(())
}

/// As much of a DaemonSet as says how far it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonSet {
    metadata: Metadata,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    generation: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    observed_generation: i64,
    desired_number_scheduled: i64,
    updated_number_scheduled: i64,
    number_ready: i64,
}

impl DaemonSet {
    /// What is missing; `None` when every node is done.
    fn missing(&self) -> Option<String> {
        let Status { observed_generation, desired_number_scheduled: want, .. } = self.status;
        let ready = self.status.number_ready.min(self.status.updated_number_scheduled);
        if observed_generation < self.metadata.generation.max(1) {
            return Some("its controller has not looked at it yet".to_owned());
        }
        (ready < want).then(|| format!("{ready} of {want} nodes are done"))
    }
}

async fn wait(args: &CleanupArgs, name: &str) -> Result<()> {
    if args.namespace.is_empty() {
        bail!("--namespace (POD_NAMESPACE) is not set: want the namespace of DaemonSet {name}");
    }
    let api = connect(&args.kubernetes).await?;
    let end = Instant::now() + args.timeout;
    loop {
        let missing = match ask(&api, &args.namespace, name).await {
            Ok(set) => match set.missing() {
                None => {
                    tracing::info!("every node is done");
                    return Ok(());
                }
                Some(missing) => missing,
            },
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() + POLL >= end {
            bail!(
                "DaemonSet {}/{name}: not done within {} s: {missing}",
                args.namespace,
                args.timeout.as_secs()
            );
        }
        tracing::info!(reason = missing, "waiting");
        tokio::time::sleep(POLL).await;
    }
}

async fn ask(api: &Api, namespace: &str, name: &str) -> Result<DaemonSet> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
    let request = http::Request::get(path).body(Vec::new()).context("--wait-for-daemonset")?;
    let json =
        tokio::time::timeout(Duration::from_secs(10), api.call(Verb::Get, "daemonsets", request));
    let json = json.await.context("no answer of the API server within 10 s")??;
    serde_json::from_slice(&json).context("the API server's answer is no DaemonSet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_nodes() {
        let missing = |json: &str| serde_json::from_str::<DaemonSet>(json).unwrap().missing();
        let set = |observed: i64, want: i64, updated: i64, ready: i64| {
            format!(
                "{{\"metadata\":{{\"generation\":2,\"name\":\"x\"}},\"status\":{{\"observedGeneration\":{observed},\"desiredNumberScheduled\":{want},\"updatedNumberScheduled\":{updated},\"numberReady\":{ready}}}}}"
            )
        };
        assert_eq!(missing(&set(2, 3, 3, 3)), None);
        assert_eq!(missing(&set(2, 0, 0, 0)), None);
        assert!(missing(&set(2, 3, 3, 2)).unwrap().contains("2 of 3"));
        assert!(missing(&set(2, 3, 1, 3)).unwrap().contains("1 of 3"));
        assert!(missing(&set(1, 3, 3, 3)).unwrap().contains("not looked"));
        assert!(missing("{}").is_some());
    }
}
