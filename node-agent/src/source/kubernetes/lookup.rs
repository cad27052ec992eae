//! One pod for one request: from the store, or asked for.

use super::Kubernetes;
use super::flight::{Flight, Outcome, Target};
use super::namespace;
use super::object::{self, Decoded, NodePod, Phase, PodName, Seen};
use super::store::{Inner, Store};
use crate::source::{Found, Missing, Wanted};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use wire::snapshot::INJECTED;

/// How long a pod that the API server says does not exist is waited for. A static
/// pod's sandbox comes before its mirror.
const ABSENT: Duration = Duration::from_secs(1);

/// How long a namespace is asked for that is known from before its watch broke.
const STALE: Duration = Duration::from_millis(500);

/// What the store says of a pod.
enum Known {
    /// This one.
    Pod(Arc<Seen>),
    /// Nothing that counts.
    No(Missing),
}

impl Kubernetes {
    /// The pod: at once when it is known, else asked for, until `until`.
    ///
    /// Blocks; must not be called on a thread that runs tasks.
    ///
    /// # Errors
    /// When there is no such pod, or when it could not be found out.
    pub(crate) fn wait(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        until: Instant,
    ) -> Result<Found, Missing> {
        let name = PodName { namespace: wanted.namespace.to_owned(), name: wanted.name.to_owned() };
        let inner = self.store.lock();
        // The name alone may be the pod's before: no answer from before this moment counts.
        let since = wanted.uid.is_empty().then(tokio::time::Instant::now);
        let mut fresh = false;
        let (mut inner, missing) = match known(&inner, &name, wanted.uid, fresh) {
            Known::Pod(pod) => return self.found(inner, &pod, until),
            Known::No(missing) => (inner, missing),
        };
        let asked = Target::Pod(name.clone());
        let outcome;
        (inner, outcome) = self.ask(inner, &asked, until, since, |inner| {
            matches!(known(inner, &name, wanted.uid, false), Known::Pod(_))
        });
        match outcome {
            // By now the store may have another one's older answer again.
            Some(Outcome::Found(Some(pod))) if since.is_some() => {
                return self.found(inner, &pod, until);
            }
            None | Some(Outcome::Found(_)) => fresh = true,
            Some(Outcome::Absent) => {}
            Some(Outcome::Failed(why)) => return Err(Missing::Unreachable(why)),
        }
        // What the server said is not what the runtime says: a moment for either to
        // catch up.
        let patience = until.min(Instant::now() + ABSENT);
        let mut last = missing;
        loop {
            match known(&inner, &name, wanted.uid, fresh) {
                Known::Pod(pod) => return self.found(inner, &pod, until),
                Known::No(missing) => last = if fresh { missing } else { last },
            }
            if Instant::now() >= patience {
                return Err(last);
            }
            inner = self.store.wait(inner, patience);
        }
    }

    /// The pod with its namespace, which is asked for only when it may decide.
    fn found<'a>(
        self: &'a Arc<Self>,
        mut inner: MutexGuard<'a, Inner>,
        seen: &Seen,
        until: Instant,
    ) -> Result<Found, Missing> {
        let pod = match seen {
            Seen::Usable(pod) => pod,
            Seen::Unusable { problem, .. } => return Err(Missing::Unusable(problem.clone())),
        };
        let name = pod.facts.namespace.as_str();
        let decides = self.namespace_labels
            && !pod.facts.host_network
            && pod.facts.annotation(INJECTED).is_none();
        if decides && (inner.namespace(name).is_none() || inner.namespaces_behind.is_some()) {
            inner = self.ask_for_namespace(inner, name, until);
        }
        let namespace = inner.namespace(name).map(|labels| labels.unpack(name));
        Ok(Found { pod: pod.facts.clone(), namespace, doubt: None })
    }

    /// Asks for a namespace that is not known, or may have other labels by now. Those
    /// that are known count when nobody answers: with the API server away a pod outside
    /// the mesh must start.
    fn ask_for_namespace<'a>(
        self: &'a Arc<Self>,
        inner: MutexGuard<'a, Inner>,
        name: &str,
        until: Instant,
    ) -> MutexGuard<'a, Inner> {
        let target = Target::Namespace(name.to_owned());
        let is_known = inner.namespace(name).is_some();
        let (inner, outcome) = if is_known {
            let since = Some(tokio::time::Instant::now());
            let until = until.min(Instant::now() + STALE);
            self.ask(inner, &target, until, since, |inner| inner.namespaces_behind.is_none())
        } else {
            self.ask(inner, &target, until, None, |inner| inner.namespace(name).is_some())
        };
        if let Some(Outcome::Failed(why)) = outcome {
            // Whether it decides is the caller's to say, who refuses one that is unknown.
            let what = if is_known { "may be out of date" } else { "are not known" };
            tracing::warn!(ns = name, reason = why, "labels of a namespace {what}");
        }
        inner
    }

    /// Asks the API server, together with everyone else who wants the same, or who
    /// does so `since` a moment. `None` when `enough` holds before there was an answer.
    fn ask<'a>(
        self: &'a Arc<Self>,
        mut inner: MutexGuard<'a, Inner>,
        target: &Target,
        until: Instant,
        since: Option<tokio::time::Instant>,
        enough: impl Fn(&Inner) -> bool,
    ) -> (MutexGuard<'a, Inner>, Option<Outcome>) {
        let begun = Instant::now();
        loop {
            let counts = |flight: &&Arc<Flight>| since.is_none_or(|since| flight.is_since(since));
            let (flight, own) = match inner.flights.get(target).filter(counts) {
                Some(flight) => (Arc::clone(flight), false),
                None => (self.launch(&mut inner, target.clone(), until), true),
            };
            let outcome = loop {
                if enough(&inner) {
                    return (inner, None);
                }
                if let Some(outcome) = flight.outcome() {
                    break outcome;
                }
                if Instant::now() >= until {
                    let ms = begun.elapsed().as_millis();
                    let why = format!("the API server did not answer within {ms} ms");
                    return (inner, Some(Outcome::Failed(why)));
                }
                inner = self.store.wait(inner, until);
            };
            // Somebody else's question, with less time or from before this pod was.
            if own || matches!(outcome, Outcome::Found(_)) || Instant::now() >= until {
                return (inner, Some(outcome));
            }
        }
    }

    fn launch(self: &Arc<Self>, inner: &mut Inner, target: Target, until: Instant) -> Arc<Flight> {
        let flight = Arc::new(Flight::new());
        inner.flights.insert(target.clone(), Arc::clone(&flight));
        let landing = Landing {
            store: Arc::clone(&self.store),
            target: target.clone(),
            flight: Arc::clone(&flight),
            outcome: Outcome::Failed("the agent gave the question up".to_owned()),
        };
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let mut landing = landing;
            landing.outcome = this.fetch(&target, until).await;
        });
        flight
    }

    async fn fetch(&self, target: &Target, until: Instant) -> Outcome {
        let json = match target.fetch(&self.api, until.into()).await {
            Ok(Some(json)) => json,
            Ok(None) => return Outcome::Absent,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        self.shared.nudge.notify_waiters();
        let Ok(json) = String::from_utf8(json) else {
            return Outcome::Failed("the API server's answer is not text".to_owned());
        };
        let unusable = |problem: &str| {
            Outcome::Failed(format!("the API server's answer cannot be used: {problem}"))
        };
        match target {
            Target::Pod(asked) => match object::pod(&json, &self.scope) {
                Decoded::Object((name, seen)) if name == *asked => {
                    Outcome::Found(Some(self.store.put_asked(name, seen)))
                }
                Decoded::Object((name, _)) => unusable(&format!("it is pod {name}")),
                Decoded::Foreign => unusable(&format!(
                    "it says that the pod is on another node than {}; look at NODE_NAME",
                    self.scope.node
                )),
                Decoded::Broken(problem) => unusable(&problem),
            },
            Target::Namespace(asked) => match namespace::read(&json) {
                Decoded::Object((name, labels)) if name == *asked => {
                    self.store.put_namespace(name, labels);
                    Outcome::Found(None)
                }
                Decoded::Object((name, _)) => unusable(&format!("it is namespace {name}")),
                Decoded::Foreign => unusable("it is of another node"),
                Decoded::Broken(problem) => unusable(&problem),
            },
        }
    }
}

/// Ends a flight, whatever ends its task.
struct Landing {
    store: Arc<Store>,
    target: Target,
    flight: Arc<Flight>,
    outcome: Outcome,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        // A later one may have taken its place.
        if inner.flights.get(&self.target).is_some_and(|last| Arc::ptr_eq(last, &self.flight)) {
            inner.flights.remove(&self.target);
        }
        self.flight.land(self.outcome.clone());
        drop(inner);
        self.store.wake();
    }
}

/// `fresh` when the server has just been asked.
fn known(inner: &Inner, name: &PodName, uid: &str, fresh: bool) -> Known {
    let Some(seen) = inner.pod(name) else { return Known::No(Missing::Unknown) };
    match &**seen {
        // Asked for once more, in case that it was cut off on its way.
        Seen::Unusable { .. } if fresh => Known::Pod(Arc::clone(seen)),
        Seen::Unusable { problem, .. } => Known::No(Missing::Unusable(problem.clone())),
        Seen::Usable(pod) if !uid.is_empty() && !pod.has_uid(uid) => {
            Known::No(Missing::OtherUid(pod.facts.uid.clone().unwrap_or_default()))
        }
        Seen::Usable(pod)
            if uid.is_empty()
                && !fresh
                && (inner.was_asked_for(name) || may_be_the_one_before(inner, pod)) =>
        {
            Known::No(Missing::Unknown)
        }
        Seen::Usable(_) => Known::Pod(Arc::clone(seen)),
    }
}

/// A pod that is known by its name alone, by a runtime or plugin that does not tell
/// uids, may have been replaced by one of the same name. One that has not had a
/// sandbox yet, seen by a watch that works, is the one that gets it now; all others
/// are asked for.
fn may_be_the_one_before(inner: &Inner, pod: &NodePod) -> bool {
    let begun = pod.phase != Phase::Pending || !pod.addresses.is_empty();
    inner.behind.is_some() || pod.deleting || begun
}
