//! What goes wrong, and for whom.

use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A bad moment of an API server.
#[derive(Clone)]
pub enum Fault {
    /// Refuses with this HTTP status, as Kubernetes words it.
    Status(u16),
    /// 429, come back in so many seconds.
    TooMany(u64),
    /// Takes its time, then answers.
    Slow(Duration),
    /// Does what is asked, and takes its time to say so.
    Late(Duration),
    /// Never answers.
    Hang,
    /// Closes the connection instead of answering.
    Close,
    /// Closes it after so many bytes of the answer's body.
    Cut(usize),
    /// 200, and no JSON.
    Garbage,
    /// A proxy's error page.
    Page,
    /// Answers with something else, or changes each object that it gives.
    Lie(Arc<dyn Fn(&mut Value) + Send + Sync>),
}

impl Fault {
    /// A lie.
    #[must_use]
    pub fn lie(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Lie(Arc::new(change))
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "Status({status})"),
            Self::TooMany(seconds) => write!(f, "TooMany({seconds})"),
            Self::Slow(time) => write!(f, "Slow({time:?})"),
            Self::Late(time) => write!(f, "Late({time:?})"),
            Self::Hang => f.write_str("Hang"),
            Self::Close => f.write_str("Close"),
            Self::Cut(bytes) => write!(f, "Cut({bytes})"),
            Self::Garbage => f.write_str("Garbage"),
            Self::Page => f.write_str("Page"),
            Self::Lie(_) => f.write_str("Lie"),
        }
    }
}

/// A fault and the requests that it befalls.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// Only to this verb: get, list, watch, create, patch, delete.
    pub verb: Option<String>,
    /// Only to this resource: pods, namespaces, ...
    pub resource: Option<String>,
    /// Only to this object.
    pub name: Option<String>,
    /// So many times; for ever if absent.
    pub times: Option<usize>,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self { fault, verb: None, resource: None, name: None, times: None }
    }
}

impl Rule {
    /// Only for a verb.
    #[must_use]
    pub fn on(self, verb: &str) -> Self {
        Self { verb: Some(verb.to_owned()), ..self }
    }

    /// Only for a resource.
    #[must_use]
    pub fn of(self, resource: &str) -> Self {
        Self { resource: Some(resource.to_owned()), ..self }
    }

    /// Only for an object.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// So many times only.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times: Some(times), ..self }
    }

    pub(super) fn befalls(&self, verb: &str, resource: &str, name: &str) -> bool {
        let is = |want: &Option<String>, have: &str| want.as_deref().is_none_or(|w| w == have);
        self.times != Some(0)
            && is(&self.verb, verb)
            && is(&self.resource, resource)
            && is(&self.name, name)
    }
}
