//! Which pods changed, for whoever looks after them: names only, each once until it
//! is taken, so that a slow reader holds no memory and misses nothing.

use super::object::PodName;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Names that wait to be taken.
#[derive(Debug, Default)]
pub(super) struct Queue {
    names: Mutex<BTreeSet<PodName>>,
    filled: Notify,
}

impl Queue {
    /// A pod changed.
    pub(super) fn push(&self, name: PodName) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        self.filled.notify_one();
    }
}

/// The reader's end. What became of a pod, or that it is gone, is asked of
/// [`super::Kubernetes::pod`].
#[derive(Debug)]
pub(crate) struct Changes {
    queue: Arc<Queue>,
}

impl Changes {
    /// Both ends.
    pub(super) fn new() -> (Self, Arc<Queue>) {
        let queue = Arc::new(Queue::default());
        (Self { queue: Arc::clone(&queue) }, queue)
    }

    /// The next of those that wait.
    pub(crate) fn try_next(&mut self) -> Option<PodName> {
        self.queue.names.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// The next pod that was added, changed or deleted.
    pub(crate) async fn next(&mut self) -> PodName {
        loop {
            match self.try_next() {
                Some(name) => return name,
                None => self.queue.filled.notified().await,
            }
        }
    }
}
