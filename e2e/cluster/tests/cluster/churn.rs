//! Mesh pods that are created all the time while something else happens. Each ends by
//! itself when it has seen that its traffic is captured.

use anyhow::{Context, Result, bail, ensure};
use e2e_cluster::client::Client;
use e2e_cluster::cluster::{Cluster, name};
use e2e_cluster::pods::probe;
use e2e_cluster::wait::until;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two pods of a node. They are a load for the machine too.
const PERIOD: Duration = Duration::from_millis(1500);
/// Until the last one has ended: a refused pod is tried again after some ten seconds,
/// and each time it is refused again.
const END: Duration = Duration::from_secs(300);

/// Somebody who creates pods, until the value is dropped.
pub(crate) struct Churn {
    namespace: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<usize>>>,
}

impl Churn {
    /// Makes the namespace and begins; the first pods are created when this returns.
    pub(crate) fn start(cluster: &Cluster, namespace: &'static str) -> Result<Self> {
        cluster.namespace(namespace)?;
        let nodes: Vec<_> = cluster.nodes.iter().map(|node| node.name.clone()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (Arc::clone(&stop), cluster.client.clone());
        create(&client, namespace, &nodes, 0)?;
        let thread = std::thread::spawn(move || {
            let mut round = 1;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(PERIOD);
                create(&client, namespace, &nodes, round)?;
                round += 1;
            }
            Ok(round * nodes.len())
        });
        Ok(Self { namespace, stop, thread: Some(thread) })
    }

    /// Ends it and waits for all of them: each was captured, and none is left over.
    pub(crate) fn finish(mut self, cluster: &Cluster) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("already finished")?;
        let created = thread.join().ok().context("creating pods panicked")??;
        ensure!(created >= 4, "only {created} pods were created meanwhile");
        until("every pod has seen that it is captured", END, || {
            let pods = cluster.client.list(&["pods", "-n", self.namespace, "-l", "probe=true"])?;
            let phase = |pod: &Value| pod["status"]["phase"].as_str().unwrap_or("").to_owned();
            if let Some(failed) = pods.iter().find(|pod| phase(pod) == "Failed") {
                // Asking again would not change it.
                return Ok(Some(Err(self.explain(cluster, name(failed), "escaped"))));
            }
            let open: Vec<_> = pods.iter().filter(|pod| phase(pod) != "Succeeded").collect();
            if let Some(open) = open.first() {
                return Err(self.explain(cluster, name(open), "is stuck"));
            }
            ensure!(pods.len() == created, "{} of {created} pods are there", pods.len());
            Ok(Some(Ok(())))
        })??;
        cluster.client.delete(&["namespace", self.namespace])
    }

    fn explain(&self, cluster: &Cluster, pod: &str, what: &str) -> anyhow::Error {
        let events = cluster.events(self.namespace, pod).unwrap_or_default();
        anyhow::anyhow!("pod {pod} {what}:\n{}", events.join("\n"))
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn create(client: &Client, namespace: &str, nodes: &[String], round: usize) -> Result<()> {
    let pod = |node: &String| probe(namespace, &format!("probe-{round}-{node}"), node);
    let pods: Vec<_> = nodes.iter().map(pod).collect();
    if pods.is_empty() {
        bail!("no node");
    }
    client.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))
}
