//! What is said about a pod to those who look at it in the cluster: that it is stuck and
//! why, and that it is well again, as an Event and, where the agent may write to the
//! pod's status, as a condition. Log and metrics say it without an API server too.
//!
//! [`board`] decides what is to be said, [`writer`] says it, slowly: 500 pods that are
//! stuck for one reason are no reason for 500 requests at once. [`event`] is every Event
//! of the agent, [`condition`] the pod's condition.

mod board;
mod condition;
pub(crate) mod event;
pub(crate) mod request;
mod samples;
mod writer;

pub(crate) use board::{State, Subject, Trouble};
pub(crate) use condition::{CONDITION, Captured};
pub(crate) use samples::Samples;
pub(crate) use writer::{Rights, Writer};

use crate::source::follow::Told;
use board::Board;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is known to be wrong, and what was said of it.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    board: Mutex<Board>,
    /// Somebody has something to say.
    changed: tokio::sync::Notify,
    said: Mutex<BTreeMap<(&'static str, bool), u64>>,
}

impl Notices {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod stands so from now on.
    pub(crate) fn set(&self, pod: &Told, state: State) {
        if self.board().set(subject(pod), state, Instant::now()) {
            self.changed.notify_one();
        }
    }

    /// Pods that are stuck, by what they are stuck in.
    pub(crate) fn stuck(&self) -> BTreeMap<Trouble, i64> {
        self.board().stuck()
    }

    fn count(&self, what: &'static str, done: bool) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        *said.entry((what, done)).or_default() += 1;
    }

    fn said(&self) -> BTreeMap<(&'static str, bool), u64> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn subject(pod: &Told) -> Subject {
    let facts = pod.facts();
    let status = pod.status();
    Subject {
        namespace: facts.namespace.clone(),
        name: facts.name.clone(),
        uid: facts.uid.clone().unwrap_or_default(),
        over: status.is_some_and(|status| status.over || status.deleting),
        condition: status.and_then(|status| status.captured),
    }
}
