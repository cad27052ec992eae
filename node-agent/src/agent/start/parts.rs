//! What the agent's loops have in common, and the start of each of them.

use super::{HOUSE_SILENCE, SILENCE};
use crate::agent::Agent;
use crate::ambient::{Ambient, Node, Options};
use crate::backend::NodeBackend;
use crate::config::AgentArgs;
use crate::failure::causes;
use crate::health::Health;
use crate::hosts::Hosts;
use crate::metrics::figures::Figures;
use crate::metrics::{Metrics, Samples};
use crate::notice::{self, Notices};
use crate::operator::{Desk, Known, OperatorSocket};
use crate::place;
use crate::record::Records;
use crate::repair;
use crate::source::Pods;
use anyhow::Result;
use redirect::enroll::Config;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use sys::watch::Watch;
use tokio::task::JoinHandle;

/// Whatever more than one loop needs.
pub(super) struct Parts {
    pub(super) run_dir: PathBuf,
    pub(super) source: Pods,
    pub(super) config: Config,
    /// Settings of ambient mode; `None` where it is off.
    pub(super) options: Option<Options>,
    pub(super) backend: Arc<NodeBackend>,
    pub(super) records: Arc<Records>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) health: Arc<Health>,
    pub(super) figures: Arc<Figures>,
    /// What is to be said in the cluster.
    pub(super) notices: Arc<Notices>,
}

impl Parts {
    /// Starts what captures pods and keeps them so, in either mode.
    pub(super) fn capture(&self, args: &AgentArgs) -> Result<(Arc<Agent>, Option<Arc<Ambient>>)> {
        let watch = args.audits_on_change().then(listen).flatten();
        let agent = Arc::new(Agent::new(
            self.source.clone(),
            self.config.clone(),
            Arc::clone(&self.backend),
            Arc::clone(&self.records),
            Arc::clone(&self.hosts),
            Arc::clone(&self.notices),
            &self.run_dir,
        ));
        let audited = self.health.beats("drift", HOUSE_SILENCE);
        agent.keep_captured(Arc::clone(&self.figures), watch.clone(), args.audit(), audited)?;
        let ambient = match &self.options {
            Some(options) => {
                let node = self.node(options, watch);
                let beat = self.health.beats("ambient", SILENCE);
                Some(Ambient::start(node, Arc::clone(&self.figures), beat)?)
            }
            None => None,
        };
        if let Some(ambient) = &ambient {
            agent.serve_ambient(Arc::clone(ambient));
        }
        Ok((agent, ambient))
    }

    fn node(&self, options: &Options, watch: Option<Arc<Watch>>) -> Node {
        Node {
            source: self.source.clone(),
            policy: self.config.clone(),
            options: options.clone(),
            backend: Arc::clone(&self.backend),
            records: Arc::clone(&self.records),
            hosts: Arc::clone(&self.hosts),
            notices: Arc::clone(&self.notices),
            proc: place::root(),
            watch,
        }
    }

    /// Answers the operator, from now on.
    pub(super) fn operate(
        &self,
        agent: &Arc<Agent>,
        ambient: Option<Arc<Ambient>>,
    ) -> Result<JoinHandle<()>> {
        let socket = OperatorSocket::bind(&self.run_dir)?;
        let agent = Arc::clone(agent);
        let desk = Desk {
            known: Known::of_agent(
                &self.records,
                &self.config,
                self.options.as_ref(),
                &self.hosts,
                &self.backend,
            ),
            source: self.source.clone(),
            backend: Arc::clone(&self.backend),
            health: Arc::clone(&self.health),
            ambient,
            figures: Arc::clone(&self.figures),
            escaped: Box::new(move || agent.escaped()),
            started: Instant::now(),
        };
        Ok(tokio::spawn(socket.run(Arc::new(desk))))
    }

    /// What is counted from now on.
    pub(super) fn metrics(&self, agent: &Arc<Agent>) -> Arc<Metrics> {
        let agent = Arc::clone(agent);
        let escaped = move || agent.escaped();
        let backend = self.backend.kind().to_string();
        let health = Arc::clone(&self.health);
        let mut metrics = Metrics::new(health, self.source.clone(), backend, escaped);
        metrics.also(Box::new(Samples(Arc::clone(&self.figures))));
        metrics.also(Box::new(notice::Samples(Arc::clone(&self.notices))));
        Arc::new(metrics)
    }

    /// Repair needs to know how pods fare, which only a cluster tells.
    pub(super) fn repair(
        &self,
        settings: Option<repair::Settings>,
        agent: &Arc<Agent>,
        metrics: &Arc<Metrics>,
    ) {
        let (Some(settings), Pods::Kubernetes(kubernetes)) = (settings, &self.source) else {
            return;
        };
        tracing::info!(
            mode = settings.mode.as_str(),
            "looking for pods that started without rules"
        );
        let beat = self.health.beats("repair", HOUSE_SILENCE);
        let (agent, metrics) = (Arc::clone(agent), Arc::clone(metrics));
        let worker = repair::Worker::new(agent, Arc::clone(kubernetes), metrics, settings);
        tokio::spawn(worker.run(beat));
    }
}

/// Hears of changes in pods' namespaces; `None` where that cannot be had.
fn listen() -> Option<Arc<Watch>> {
    match Watch::start() {
        Ok(watch) => Some(Arc::new(watch)),
        Err(error) => {
            tracing::warn!(
                reason = %causes(&error),
                "changes in pods' namespaces are not heard of: captured pods are looked at by the period alone"
            );
            None
        }
    }
}
