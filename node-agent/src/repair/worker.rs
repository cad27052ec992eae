//! The loop: pods as they change, one at a time, each tried a few times.

use super::calls::Calls;
use super::{Mode, Outcome, Settings};
use crate::agent::{Agent, RunningError};
use crate::health::Beat;
use crate::metrics::Metrics;
use crate::notice::{State, Trouble};
use crate::source::kubernetes::Kubernetes;
use crate::source::kubernetes::object::{NodePod, PodName, Seen};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Tries for one pod, until it changes again.
const TRIES: u32 = 5;

/// Before the second try; doubled for each after it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How long nothing may happen until the loop says that it is there.
const IDLE: Duration = Duration::from_secs(5);

/// Repairs pods for as long as it runs.
#[derive(Debug)]
pub(crate) struct Worker {
    agent: Arc<Agent>,
    kubernetes: Arc<Kubernetes>,
    metrics: Arc<Metrics>,
    settings: Settings,
    calls: Calls,
    /// Pods that were programmed, by name, with their uids.
    repaired: HashMap<PodName, String>,
    /// Uids of pods that were there before the agent and are not looked at yet.
    early: HashSet<String>,
    /// Tries that failed, and when the next is due.
    failed: HashMap<PodName, (u32, Instant)>,
}

/// How one look at a pod ended.
enum Ended {
    /// Nothing was to be done, or it is done.
    Done,
    /// It is to be tried again.
    Again,
}

impl Worker {
    /// One that has begun nothing.
    pub(crate) fn new(
        agent: Arc<Agent>,
        kubernetes: Arc<Kubernetes>,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Self {
        metrics.repairs_by(settings.mode);
        let calls = Calls::new(Arc::clone(kubernetes.api()), settings.clone());
        let (repaired, early, failed) = (HashMap::new(), HashSet::new(), HashMap::new());
        Self { agent, kubernetes, metrics, settings, calls, repaired, early, failed }
    }

    /// Works until it is dropped.
    pub(crate) async fn run(mut self, beat: Arc<Beat>) {
        let mut synced = self.kubernetes.synced();
        while !synced.borrow().is_complete() {
            beat.beat();
            // Ends with the source, which lives as long as this.
            if let Ok(Err(_)) = tokio::time::timeout(IDLE, synced.changed()).await {
                return;
            }
        }
        if self.settings.mode == Mode::Repair {
            let pods = self.kubernetes.pods().into_iter();
            self.early = pods.filter_map(|pod| pod.facts.uid).collect();
        }
        let mut changes = self.kubernetes.events();
        loop {
            beat.beat();
            let due = self.failed.values().map(|(_, due)| *due).min();
            let wake = due.unwrap_or_else(|| Instant::now() + IDLE);
            match tokio::time::timeout_at(wake, changes.next()).await {
                Ok(name) => self.changed(name).await,
                Err(_) => self.retry(&beat).await,
            }
        }
    }

    async fn changed(&mut self, name: PodName) {
        // One that failed waits for its time, however often it changes.
        if self.failed.get(&name).is_some_and(|(_, due)| *due > Instant::now()) {
            return;
        }
        self.look(name).await;
    }

    async fn retry(&mut self, beat: &Beat) {
        let now = Instant::now();
        let due = self.failed.iter().filter(|(_, (_, due))| *due <= now);
        let due: Vec<PodName> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.look(name).await;
            beat.beat();
        }
    }

    async fn look(&mut self, name: PodName) {
        let ended = match self.kubernetes.pod(&name).as_deref() {
            Some(Seen::Usable(pod)) => self.treat(&name, pod).await,
            Some(Seen::Unusable { .. }) => Ended::Done,
            None => {
                self.repaired.remove(&name);
                Ended::Done
            }
        };
        if matches!(ended, Ended::Done) {
            self.failed.remove(&name);
            return;
        }
        let (tries, due) = self.failed.entry(name.clone()).or_insert((0, Instant::now()));
        *tries += 1;
        *due = Instant::now() + FIRST_PAUSE * 2_u32.pow(*tries - 1);
        if *tries >= TRIES {
            tracing::error!(
                ns = name.namespace,
                pod = name.name,
                tries,
                "a pod that runs uncaptured cannot be helped; it is tried again when it changes"
            );
            self.failed.remove(&name);
        }
    }

    async fn treat(&mut self, name: &PodName, pod: &NodePod) -> Ended {
        let uid = pod.facts.uid.clone().unwrap_or_default();
        if pod.deleting || pod.is_over() {
            self.early.remove(&uid);
            return Ended::Done;
        }
        if !self.settings.signs.are_seen(pod) {
            return self.treat_early(name, pod, uid).await;
        }
        match self.settings.mode {
            Mode::Repair => self.repair(name, pod, uid).await,
            Mode::Delete => {
                let done = self.calls.delete(pod).await;
                self.told(pod, done).await
            }
            Mode::Label if pod.facts.labels.contains_key(&self.settings.label.0) => {
                self.count(Outcome::Skip);
                Ended::Done
            }
            Mode::Label => {
                let done = self.calls.label(pod).await;
                self.told(pod, done).await
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        self.metrics.repaired(self.settings.mode, outcome);
    }

    /// Counts, logs and tells what the API server made of a request.
    async fn told(
        &self,
        pod: &NodePod,
        done: Result<(), crate::source::kubernetes::error::ApiError>,
    ) -> Ended {
        let (ns, name, uid) = (&pod.facts.namespace, &pod.facts.name, &pod.facts.uid);
        let action = self.settings.mode.as_str();
        match done {
            Ok(()) => {
                self.count(Outcome::Success);
                tracing::warn!(ns, pod = name, uid, action, "a pod that started without rules");
                self.calls.tell(pod, Ok(())).await;
                Ended::Done
            }
            Err(error) if error.is_not_found() => {
                tracing::info!(ns, pod = name, uid, action, "a broken pod is gone already");
                Ended::Done
            }
            Err(error) => {
                self.count(Outcome::Fail);
                tracing::error!(ns, pod = name, uid, action, reason = %error, "cannot help a pod that started without rules");
                self.calls.tell(pod, Err(&error)).await;
                Ended::Again
            }
        }
    }

    async fn repair(&mut self, name: &PodName, pod: &NodePod, uid: String) -> Ended {
        if self.repaired.get(name) == Some(&uid) {
            tracing::debug!(%name, uid, "programmed already; its validation is to come");
            return Ended::Done;
        }
        if pod.facts.host_network {
            tracing::warn!(%name, uid, "a pod in the host's network is never programmed");
            return Ended::Done;
        }
        let (agent, copy) = (Arc::clone(&self.agent), pod.clone());
        let done = blocking(move || agent.capture_running(&copy)).await;
        match done {
            Ok(proof) => {
                self.count(Outcome::Success);
                tracing::warn!(%name, uid, proof, "programmed a pod that started without rules");
                self.agent.say(&pod.facts, State::Well);
                self.early.remove(&uid);
                self.repaired.insert(name.clone(), uid);
                Ended::Done
            }
            Err(reason) => {
                self.count(Outcome::Fail);
                tracing::error!(%name, uid, reason, "cannot program a pod that started without rules");
                self.agent.say(&pod.facts, State::Stuck(Trouble::Rules, reason));
                Ended::Again
            }
        }
    }

    /// A pod that was there before the agent, once.
    async fn treat_early(&mut self, name: &PodName, pod: &NodePod, uid: String) -> Ended {
        // One without an address has no sandbox: its ADD is to come.
        let is_early = self.early.contains(&uid) && !pod.addresses.is_empty();
        if !is_early || pod.facts.host_network || !self.settings.signs.is_injected(pod) {
            return Ended::Done;
        }
        let namespace = self.kubernetes.namespace(&name.namespace);
        let (agent, copy) = (Arc::clone(&self.agent), pod.clone());
        match blocking(move || agent.capture_early(&copy, namespace.as_ref())).await {
            Ok(None) => {}
            Ok(Some(proof)) => {
                self.metrics.early(Outcome::Success);
                self.agent.say(&pod.facts, State::Well);
                tracing::warn!(%name, uid, proof, "programmed a pod that was started before the agent and ran uncaptured");
            }
            Err(reason) => {
                self.metrics.early(Outcome::Fail);
                tracing::error!(%name, uid, reason, "cannot find out or mend whether a pod from before the agent runs uncaptured");
                self.agent.say(&pod.facts, State::Stuck(Trouble::Rules, reason));
                return Ended::Again;
            }
        }
        self.early.remove(&uid);
        Ended::Done
    }
}

/// Work that blocks; its errors as one line.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RunningError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| crate::failure::causes(&error)),
        Err(error) => Err(format!("the work panicked: {error}")),
    }
}
