//! Says what is to be said, for as long as the agent runs.

use super::board::{State, Telling};
use super::event::{Event, post};
use super::{Notices, condition};
use crate::health::Beat;
use crate::source::Pods;
use crate::source::kubernetes::client::Api;
use crate::source::kubernetes::error::ApiError;
use crate::source::kubernetes::object::PodName;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who says it, in an Event.
const COMPONENT: &str = "sluice";

/// Pods in a row that something is said of, and how many a second after that. Each is two
/// requests at most.
const BURST: u32 = 20;
const PACE: Duration = Duration::from_millis(200);

/// How often it is looked whether pods are still there.
const LOOK: Duration = Duration::from_secs(1);

/// Sign of life when nothing happens.
const IDLE: Duration = Duration::from_secs(5);

/// After a failure that has to do with the server; doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Permissions do not come back soon.
const REFUSED: Duration = Duration::from_secs(300);

/// What the agent may write, by its role.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights {
    /// Events.
    pub(crate) events: bool,
    /// Conditions of pods.
    pub(crate) conditions: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    notices: Arc<Notices>,
    source: Pods,
    node: String,
    tokens: u32,
    filled: Instant,
    failures: u32,
    /// Nothing is written before: the server is not well.
    until: Instant,
    /// The same for Events, and for conditions, that are not permitted.
    events_from: Instant,
    conditions_from: Instant,
    rights: Rights,
}

impl Writer {
    /// Has said nothing yet.
    pub(crate) fn new(notices: Arc<Notices>, source: Pods, node: String, rights: Rights) -> Self {
        notices.board().conditions = rights.conditions;
        let now = Instant::now();
        Self {
            notices,
            source,
            node,
            tokens: BURST,
            filled: now,
            failures: 0,
            until: now,
            events_from: now,
            conditions_from: now,
            rights,
        }
    }

    /// Works until it is dropped.
    pub(crate) async fn run(mut self, beat: Arc<Beat>) {
        loop {
            beat.beat();
            let idle = self.notices.board().is_empty();
            let limit = if idle { IDLE } else { LOOK };
            // Either is a reason to look.
            let _ = tokio::time::timeout(limit, self.notices.changed.notified()).await;
            self.look();
            let Pods::Kubernetes(kubernetes) = &self.source else { continue };
            let api = Arc::clone(kubernetes.api());
            while let Some(telling) = self.next() {
                self.tell(&api, telling).await;
                beat.beat();
            }
        }
    }

    /// What there is no more needs no words.
    fn look(&self) {
        let now = Instant::now();
        let mut board = self.notices.board();
        board.retain(|subject| {
            let name = PodName { namespace: subject.namespace.clone(), name: subject.name.clone() };
            self.source
                .told(&name)
                .is_some_and(|told| told.facts().uid.as_deref().unwrap_or_default() == subject.uid)
        });
        board.tidy(now);
    }

    fn next(&mut self) -> Option<Telling> {
        let now = Instant::now();
        let earned = now.saturating_duration_since(self.filled).as_millis() / PACE.as_millis();
        if let Ok(earned @ 1..) = u32::try_from(earned) {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.filled = now;
        }
        if self.tokens == 0 || now < self.until {
            return None;
        }
        let mut board = self.notices.board();
        board.conditions = self.rights.conditions && now >= self.conditions_from;
        board.events = self.rights.events && now >= self.events_from;
        let telling = board.next(now)?;
        self.tokens -= 1;
        Some(telling)
    }

    async fn tell(&mut self, api: &Api, telling: Telling) {
        let (mut event, mut condition) = (false, false);
        let mut gone = false;
        if telling.event {
            let result = self.event(api, &telling).await;
            event = self.note("event", &telling, result, &mut gone);
        }
        if telling.condition && !gone {
            let result = condition::write(api, &telling.subject, &telling.state).await;
            condition = self.note("condition", &telling, result, &mut gone);
        }
        let mut board = self.notices.board();
        if gone {
            board.gone(&telling.subject);
        } else {
            board.said(&telling, event, condition, Instant::now());
        }
    }

    async fn event(&self, api: &Api, telling: &Telling) -> Result<(), ApiError> {
        let subject = &telling.subject;
        let (warning, reason, message) = match &telling.state {
            State::Stuck(trouble, error) => (true, trouble.reason(), trouble.message(error)),
            State::Well | State::Outside => {
                (false, "Captured", "the pod is captured as it must be again".to_owned())
            }
        };
        let event = Event {
            pod: (&subject.namespace, &subject.name),
            uid: &subject.uid,
            version: None,
            warning,
            reason,
            message: &message,
            component: COMPONENT,
            node: &self.node,
        };
        post(api, &event).await
    }

    /// Counts and logs; true when it was written.
    fn note(
        &mut self,
        what: &'static str,
        telling: &Telling,
        result: Result<(), ApiError>,
        gone: &mut bool,
    ) -> bool {
        self.notices.count(what, result.is_ok());
        let error = match result {
            Ok(()) => {
                self.failures = 0;
                return true;
            }
            Err(error) => error,
        };
        let now = Instant::now();
        if is_gone(&error) {
            *gone = true;
            return false;
        }
        let (ns, pod) = (&telling.subject.namespace, &telling.subject.name);
        if error.is_forbidden() {
            let from =
                if what == "event" { &mut self.events_from } else { &mut self.conditions_from };
            *from = now + REFUSED;
            tracing::warn!(ns, pod, what, reason = %error, "what is wrong with pods cannot be said in the cluster; log and metrics have it");
            return false;
        }
        let pause = PAUSES.0.saturating_mul(1 << self.failures.min(10)).min(PAUSES.1);
        self.failures = self.failures.saturating_add(1);
        self.until = now + error.retry_after().unwrap_or(pause).min(PAUSES.1);
        tracing::warn!(ns, pod, what, reason = %error, "what is wrong with a pod cannot be said in the cluster; tried again");
        false
    }
}

/// The pod, or its namespace, is gone or going, or it is another pod by now.
fn is_gone(error: &ApiError) -> bool {
    let ApiError::Refused { status, message, .. } = error else { return false };
    match status {
        404 => true,
        403 => message.contains("being terminated"),
        409 => message.contains("UID"),
        _ => false,
    }
}
