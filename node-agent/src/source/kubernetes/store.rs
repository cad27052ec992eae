//! What the agent knows of the API: this node's pods, all namespaces' labels, and
//! which requests for one of them are under way.
//!
//! One lock, held for moments only and never across a request. Lists are marked by
//! generation: what a finished list did not name is gone, except what a direct
//! request has found since the list began.

use super::changes::{Changes, Queue};
use super::flight::{Flight, Target};
use super::namespace::Labels;
use super::object::{NodePod, PodName, Seen};
use redirect::pod::Namespace;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Store {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// See [`Store`]; reached through [`Store::lock`].
#[derive(Debug, Default)]
pub(super) struct Inner {
    pods: Table<PodName, Arc<Seen>>,
    namespaces: Table<Box<str>, Labels>,
    /// Direct requests that are under way.
    pub(super) flights: HashMap<Target, Arc<Flight>>,
    /// Pods that are as a direct request found them; the watch has not told since.
    asked: HashSet<PodName>,
    /// Why the watch of pods is not up to date; `None` while it is.
    pub(super) behind: Option<String>,
    /// The same of namespaces: their labels may be others by now.
    pub(super) namespaces_behind: Option<String>,
    queues: Vec<Follower>,
}

/// Who is told names.
#[derive(Debug)]
struct Follower {
    queue: Weak<Queue>,
    /// It is told of pods whose namespace changed, too.
    namespaces: bool,
}

/// Objects by name, each with the list that last had it.
#[derive(Debug)]
struct Table<K, V> {
    objects: HashMap<K, (V, u64)>,
    generation: u64,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { objects: HashMap::new(), generation: 0 }
    }
}

impl<K: std::hash::Hash + Eq + Clone, V: PartialEq> Table<K, V> {
    /// True when that changed something.
    fn put(&mut self, key: K, value: V) -> bool {
        let old = self.objects.get_mut(&key);
        let generation = self.generation;
        match old {
            Some((known, seen)) => {
                *seen = generation;
                let differs = *known != value;
                *known = value;
                differs
            }
            None => {
                self.objects.insert(key, (value, generation));
                true
            }
        }
    }

    /// Ends a list: the keys that it did not have.
    fn sweep(&mut self) -> Vec<K> {
        let generation = self.generation;
        let old = self.objects.iter().filter(|(_, (_, seen))| *seen < generation);
        let gone: Vec<K> = old.map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.objects.remove(key);
        }
        self.objects.shrink_to_fit();
        gone
    }
}

impl Inner {
    /// A pod by name.
    pub(super) fn pod(&self, name: &PodName) -> Option<&Arc<Seen>> {
        self.pods.objects.get(name).map(|(seen, _)| seen)
    }

    /// What is known of the pod is not from the watch.
    pub(super) fn was_asked_for(&self, name: &PodName) -> bool {
        self.asked.contains(name)
    }

    /// A namespace's labels.
    pub(super) fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.objects.get(name).map(|(labels, _)| labels)
    }

    fn announce(&mut self, name: &PodName) {
        self.queues.retain(|follower| match follower.queue.upgrade() {
            Some(queue) => {
                queue.push(name.clone());
                true
            }
            None => false,
        });
    }

    /// A namespace is another than it was.
    fn announce_pods_of(&self, namespace: &str) {
        let mut queues = self.queues.iter().filter(|follower| follower.namespaces);
        let queues: Vec<Arc<Queue>> =
            queues.by_ref().filter_map(|follower| follower.queue.upgrade()).collect();
        if queues.is_empty() {
            return;
        }
        for name in self.pods.objects.keys().filter(|name| name.namespace == namespace) {
            queues.iter().for_each(|queue| queue.push(name.clone()));
        }
    }
}

impl Store {
    /// The state.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole: a panic elsewhere leaves no half state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most until `until`.
    pub(super) fn wait<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        until: Instant,
    ) -> MutexGuard<'a, Inner> {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(inner, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes those who wait for a change.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Numbers of pods and of namespaces.
    pub(super) fn count(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.pods.objects.len(), inner.namespaces.objects.len())
    }

    /// A pod by name.
    pub(super) fn pod(&self, name: &PodName) -> Option<Arc<Seen>> {
        self.lock().pod(name).cloned()
    }

    /// All pods that can be decided about.
    pub(super) fn usable(&self) -> Vec<NodePod> {
        let inner = self.lock();
        let all = inner.pods.objects.values();
        all.filter_map(|(seen, _)| match &**seen {
            Seen::Usable(pod) => Some((**pod).clone()),
            Seen::Unusable { .. } => None,
        })
        .collect()
    }

    /// All namespaces.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        let inner = self.lock();
        let all = inner.namespaces.objects.iter();
        all.map(|(name, (labels, _))| labels.unpack(name)).collect()
    }

    /// Names of pods that change from now on, those that are known first; with
    /// `namespaces`, also those whose namespace changes.
    pub(super) fn changes(&self, namespaces: bool) -> Changes {
        let (changes, queue) = Changes::new();
        let mut inner = self.lock();
        for name in inner.pods.objects.keys() {
            queue.push(name.clone());
        }
        inner.queues.push(Follower { queue: Arc::downgrade(&queue), namespaces });
        changes
    }

    /// A list of pods begins.
    pub(super) fn begin_pods(&self) {
        self.lock().pods.generation += 1;
    }

    /// A pod is so, by the watch.
    pub(super) fn put_pod(&self, name: PodName, seen: Seen) {
        let mut inner = self.lock();
        let confirmed = inner.asked.remove(&name);
        self.put(inner, name, Arc::new(seen), confirmed);
    }

    /// A pod was so when it was asked for; how it is as far as is known.
    pub(super) fn put_asked(&self, name: PodName, seen: Seen) -> Arc<Seen> {
        let seen = Arc::new(seen);
        let mut inner = self.lock();
        // The watch may have told of a change while the answer was on its way.
        if let Some(known) = inner.pod(&name).filter(|known| is_newer(known, &seen)) {
            return Arc::clone(known);
        }
        inner.asked.insert(name.clone());
        self.put(inner, name, Arc::clone(&seen), false);
        seen
    }

    fn put(&self, mut inner: MutexGuard<'_, Inner>, name: PodName, seen: Arc<Seen>, tell: bool) {
        let changed = inner.pods.put(name.clone(), seen);
        if changed {
            inner.announce(&name);
        }
        drop(inner);
        if changed || tell {
            self.wake();
        }
    }

    /// A pod is gone. Its name may have been taken by the next one already.
    pub(super) fn remove_pod(&self, name: &PodName, seen: &Seen) {
        let mut inner = self.lock();
        let same = inner.pod(name).is_some_and(|known| uid(known) == uid(seen));
        if same {
            inner.pods.objects.remove(name);
            inner.asked.remove(name);
            inner.announce(name);
        }
    }

    /// A list of pods is complete.
    pub(super) fn end_pods(&self) {
        let mut inner = self.lock();
        for name in inner.pods.sweep() {
            inner.asked.remove(&name);
            inner.announce(&name);
        }
    }

    /// A list of namespaces begins.
    pub(super) fn begin_namespaces(&self) {
        self.lock().namespaces.generation += 1;
    }

    /// A namespace has these labels.
    pub(super) fn put_namespace(&self, name: String, labels: Labels) {
        let mut inner = self.lock();
        if inner.namespaces.put(name.as_str().into(), labels) {
            inner.announce_pods_of(&name);
            drop(inner);
            self.wake();
        }
    }

    /// A namespace is gone.
    pub(super) fn remove_namespace(&self, name: &str) {
        self.lock().namespaces.objects.remove(name);
    }

    /// A list of namespaces is complete.
    pub(super) fn end_namespaces(&self) {
        self.lock().namespaces.sweep();
    }
}

/// One is a later state of the same pod.
fn is_newer(one: &Seen, other: &Seen) -> bool {
    let version = |seen: &Seen| match seen {
        Seen::Usable(pod) => pod.version.parse::<u64>().ok(),
        Seen::Unusable { .. } => None,
    };
    let versions = version(one).zip(version(other));
    uid(one) == uid(other) && versions.is_some_and(|(one, other)| one > other)
}

fn uid(seen: &Seen) -> &str {
    match seen {
        Seen::Usable(pod) => pod.facts.uid.as_deref().unwrap_or_default(),
        Seen::Unusable { uid, .. } => uid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PodName {
        PodName { namespace: "n".into(), name: text.into() }
    }

    fn seen(uid: &str, problem: &str) -> Seen {
        Seen::Unusable { uid: uid.into(), problem: problem.into() }
    }

    #[test]
    fn a_list_removes_what_it_lacks_but_not_what_was_found_meanwhile() {
        let store = Store::default();
        store.begin_pods();
        for pod in ["a", "b"] {
            store.put_pod(name(pod), seen(pod, ""));
        }
        store.end_pods();
        store.begin_pods();
        store.put_pod(name("b"), seen("b", ""));
        // By a direct request.
        store.put_pod(name("c"), seen("c", ""));
        store.end_pods();
        assert!(store.pod(&name("a")).is_none());
        assert!(store.pod(&name("b")).is_some() && store.pod(&name("c")).is_some());
    }

    #[test]
    fn an_answer_that_the_watch_overtook_undoes_nothing() {
        use super::super::object::{Decoded, Scope, pod};
        let scope = Scope { node: "node".into(), annotations: Vec::new() };
        let at = |uid: &str, version: &str| {
            let text = serde_json::json!({
                "metadata": {"name": "a", "namespace": "n", "uid": uid, "resourceVersion": version},
                "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
                "status": {},
            });
            match pod(&text.to_string(), &scope) {
                Decoded::Object((_, seen @ Seen::Usable(_))) => seen,
                other => panic!("{other:?}"),
            }
        };
        let version = |seen: &Seen| match seen {
            Seen::Usable(pod) => (pod.facts.uid.clone().unwrap(), pod.version.to_string()),
            Seen::Unusable { .. } => unreachable!("a pod that can be used"),
        };
        let store = Store::default();
        let known = || version(&store.pod(&name("a")).unwrap());
        store.put_pod(name("a"), at("1", "10"));
        assert_eq!(version(&store.put_asked(name("a"), at("1", "9"))), ("1".into(), "10".into()));
        assert_eq!(known(), ("1".into(), "10".into()));
        assert!(!store.lock().was_asked_for(&name("a")));
        store.put_asked(name("a"), at("1", "11"));
        assert_eq!(known(), ("1".into(), "11".into()));
        // Of another pod a number says nothing; nor does a text.
        for (uid, version) in [("2", "5"), ("2", "x"), ("2", "4")] {
            store.put_asked(name("a"), at(uid, version));
            assert_eq!(known(), (uid.into(), version.into()));
        }
    }

    #[test]
    fn the_end_of_a_pod_is_not_the_end_of_the_next() {
        let store = Store::default();
        store.put_pod(name("a"), seen("2", ""));
        store.remove_pod(&name("a"), &seen("1", ""));
        assert!(store.pod(&name("a")).is_some());
        store.remove_pod(&name("a"), &seen("2", ""));
        assert!(store.pod(&name("a")).is_none());
    }

    #[test]
    fn a_namespace_that_changes_is_told_by_its_pods() {
        let labels = |text: &str| match super::super::namespace::read(text) {
            super::super::object::Decoded::Object((_, labels)) => labels,
            other => panic!("{other:?}"),
        };
        let store = Store::default();
        store.put_pod(name("a"), seen("1", ""));
        let (mut all, mut pods) = (store.changes(true), store.changes(false));
        assert_eq!((all.try_next(), pods.try_next()), (Some(name("a")), Some(name("a"))));
        let (plain, ambient) =
            (r#"{"metadata":{"name":"n"}}"#, r#"{"metadata":{"name":"n","labels":{"a":"b"}}}"#);
        store.put_namespace("n".into(), labels(plain));
        assert_eq!(all.try_next(), Some(name("a")));
        store.put_namespace("n".into(), labels(plain));
        assert_eq!(all.try_next(), None);
        store.put_namespace("n".into(), labels(ambient));
        store.put_namespace("other".into(), labels(ambient));
        assert_eq!((all.try_next(), all.try_next()), (Some(name("a")), None));
        assert_eq!(pods.try_next(), None);
    }

    #[tokio::test]
    async fn changes_are_told_once_and_the_known_first() {
        let store = Store::default();
        store.put_pod(name("a"), seen("1", ""));
        let mut changes = store.changes(false);
        for problem in ["x", "y", "y"] {
            store.put_pod(name("b"), seen("2", problem));
        }
        assert_eq!(changes.next().await, name("a"));
        assert_eq!(changes.next().await, name("b"));
        store.put_pod(name("b"), seen("2", "y"));
        store.begin_pods();
        store.put_pod(name("a"), seen("1", ""));
        store.end_pods();
        assert_eq!(changes.next().await, name("b"), "it is gone");
        let more = tokio::time::timeout(std::time::Duration::from_millis(20), changes.next());
        assert!(more.await.is_err());
    }
}
