//! The agent's side: answers what an operator asks.

use super::answer::{
    Agent, Ambient as AmbientAnswer, Backend, Check, Drain, HostRules, Left, Name, Pods, Session,
    Source as SourceAnswer, Status,
};
use super::known::Known;
use super::pods::{self, Live};
use super::verify::{Asked, verify};
use crate::agent::Escaped;
use crate::ambient::{Ambient, Look};
use crate::backend::NodeBackend;
use crate::health::Health;
use crate::metrics::figures::Figures;
use crate::responder::Page;
use crate::source::Pods as Source;
use ambient::action::Standing;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use sys::hostprobe;

/// How long the driver of ambient capture may take to say how things are.
const LOOK: Duration = Duration::from_secs(5);

/// And the keeper of the host's rules.
const RULES: Duration = Duration::from_secs(5);

/// How many pods have escaped.
type Count = Box<dyn Fn() -> Escaped + Send + Sync>;

/// See the module.
pub(crate) struct Desk {
    pub(crate) known: Known,
    pub(crate) source: Source,
    pub(crate) backend: Arc<NodeBackend>,
    pub(crate) health: Arc<Health>,
    pub(crate) ambient: Option<Arc<Ambient>>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) escaped: Count,
    pub(crate) started: Instant,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Desk {
    /// Answers a request. Blocks.
    pub(super) fn answer(&self, method: &str, path: &str, body: &[u8]) -> Page {
        match (method, path) {
            ("GET", "/v1/pods") => json(&self.pods()),
            ("GET", "/v1/status") => json(&self.status()),
            ("POST", "/v1/verify") => match serde_json::from_slice::<Name>(body) {
                Ok(name) => self.verify(&name),
                Err(error) => Page::text(400, &format!("request body is not valid: {error}")),
            },
            ("GET", "/v1/drain") => json(&self.drain()),
            ("POST", "/v1/drain") => {
                if let Some(ambient) = &self.ambient
                    && !ambient.drain()
                {
                    return Page::text(503, "ambient capture has ended: look in the agent's log");
                }
                json(&self.drain())
            }
            (_, "/v1/pods" | "/v1/status" | "/v1/verify" | "/v1/drain") => Page::text(
                405,
                &format!("method {method:?} on {path}: GET, or POST for /v1/verify"),
            ),
            _ => Page::text(
                404,
                &format!(
                    "no such path {path:?}: want /v1/pods, /v1/status, /v1/verify or /v1/drain"
                ),
            ),
        }
    }

    fn look(&self) -> Option<Look> {
        self.ambient.as_ref()?.look(LOOK)
    }

    fn pods(&self) -> Pods {
        let look = self.look();
        let live = Live { source: &self.source, look: look.as_ref() };
        let agent = Agent { answers: true, error: None };
        Pods { agent, pods: pods::pods(&self.known, Some(live)) }
    }

    fn verify(&self, name: &Name) -> Page {
        let look = self.look();
        let live = Live { source: &self.source, look: look.as_ref() };
        let exemption = || self.exemption();
        match verify(&self.known, Some(&Asked { live, exemption: &exemption }), name) {
            Ok(found) => json(&super::answer::Verify {
                agent: Agent { answers: true, error: None },
                ..found
            }),
            Err(error) => Page::text(404, &error.to_string()),
        }
    }

    /// Asked on a thread that may be left behind: the keeper has no end in time.
    fn exemption(&self) -> Result<hostprobe::Status, String> {
        let ambient = self.ambient.as_ref().ok_or("ambient mode is off")?;
        let (sender, answer) = sync_channel(1);
        let asked = Arc::clone(ambient);
        let ask = move || drop(sender.send(asked.exemption()));
        let thread = std::thread::Builder::new().name("exemption".to_owned()).spawn(ask);
        thread.map_err(|error| format!("start a thread: {error}"))?;
        let late = |_| {
            format!("the keeper of the host's rules does not answer within {} s", RULES.as_secs())
        };
        answer.recv_timeout(RULES).map_err(late)?
    }

    fn status(&self) -> Status {
        let conditions = checks(self.health.conditions());
        let loops = checks(self.health.loops());
        let escaped = (self.escaped)();
        let proof = self.backend.prove();
        let backend = Backend {
            name: self.backend.kind().to_string(),
            with: self.backend.describe(),
            proof: proof.is_ok().then(|| {
                "a connection in a scratch namespace was captured by its rules, now".to_owned()
            }),
            error: proof.err(),
        };
        let well = |checks: &[Check]| checks.iter().all(|check| check.ok);
        let ambient = self.ambient.as_ref().map(|ambient| self.ambient_status(ambient));
        let ready = well(&conditions)
            && well(&loops)
            && backend.error.is_none()
            && ambient.as_ref().is_none_or(|ambient| ambient.ready && !ambient.draining);
        Status {
            ready,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            up_seconds: self.started.elapsed().as_secs(),
            conditions,
            loops,
            backend,
            source: self.source_status(),
            ambient,
            unverified: self.unverified(),
            records: number(self.known.records.ids().len()),
            escaped_total: escaped.total,
            escaped_now: number(escaped.uncaptured),
        }
    }

    fn unverified(&self) -> BTreeMap<String, u64> {
        let all = self.figures.unverified().into_iter().filter(|(_, count)| *count > 0);
        all.map(|(cause, count)| (cause.code().to_owned(), u64::try_from(count).unwrap_or(0)))
            .collect()
    }

    fn source_status(&self) -> SourceAnswer {
        let (pods, namespaces) = self.source.count();
        let (name, complete, behind) = match &self.source {
            Source::Directory(_) => ("manifests", true, None),
            Source::Kubernetes(kubernetes) => {
                ("kubernetes", kubernetes.synced().borrow().is_complete(), kubernetes.behind())
            }
        };
        SourceAnswer {
            name: name.to_owned(),
            pods: number(pods),
            namespaces: number(namespaces),
            complete,
            behind,
        }
    }

    fn ambient_status(&self, ambient: &Ambient) -> AmbientAnswer {
        let rules = self.exemption();
        let mut answer = AmbientAnswer::default();
        if let Some(look) = ambient.look(LOOK) {
            answer.ready = look.ready;
            answer.draining = look.draining;
            answer.drained = look.drained;
            let wanted = || look.pods.iter().filter(|(pod, _)| pod.wanted);
            answer.pods = number(wanted().count());
            let is_verified = |standing| standing == Standing::Verified;
            answer.verified = number(wanted().filter(|(p, _)| is_verified(p.standing)).count());
            answer.ztunnels = look.sessions.iter().map(session).collect();
        }
        match rules {
            Ok(status) => answer.host_rules = Some(host_rules(status)),
            Err(why) => answer.host_rules_error = Some(why),
        }
        answer
    }

    fn drain(&self) -> Drain {
        let sidecars = self.known.recorded().0.iter().filter(|(_, r)| r.ambient.is_none()).count();
        let mut answer = Drain { sidecars: number(sidecars), ..Drain::default() };
        let Some(ambient) = &self.ambient else { return answer };
        answer.ambient = true;
        let Some(look) = ambient.look(LOOK) else { return answer };
        answer.draining = look.draining;
        answer.drained = look.drained;
        answer.left = look
            .pods
            .iter()
            .filter(|(pod, _)| look.left.contains(&pod.uid))
            .map(|(pod, _)| {
                let name = pod.identity.as_ref().map(|i| format!("{}/{}", i.namespace, i.name));
                let trouble = pod.trouble.as_ref().map(|(n, error)| format!("{error} ({n} times)"));
                let what = match (pod.netns, &trouble) {
                    (_, Some(error)) => error.clone(),
                    (Some(netns), None) => format!("rules and ztunnel to let {netns} go"),
                    (None, None) => "ztunnel, its probes or its annotation".to_owned(),
                };
                Left { pod: name.unwrap_or_else(|| pod.uid.as_str().to_owned()), waits_for: what }
            })
            .collect();
        answer.left.sort_by(|a, b| a.pod.cmp(&b.pod));
        answer
    }
}

fn session(view: &::ambient::machine::SessionView) -> Session {
    Session {
        session: view.session.0,
        pid: view.peer.0,
        live: view.live,
        newest: view.newest,
        unanswered: number(view.unanswered),
        taken: number(view.taken),
        refused: number(view.refused),
    }
}

fn host_rules(status: hostprobe::Status) -> HostRules {
    HostRules {
        hold: status.holds,
        kubelet: status.kubelet.word().to_owned(),
        kubelet_is: status.kubelet.to_string(),
        elements: number(status.elements),
        repairs: status.repairs,
        ahead: status.ahead,
        istio: status.upstream,
    }
}

fn checks(all: Vec<(&'static str, Option<String>)>) -> Vec<Check> {
    let check = |(name, error): (&str, Option<String>)| Check {
        name: name.to_owned(),
        ok: error.is_none(),
        error,
    };
    all.into_iter().map(check).collect()
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn json(answer: &impl Serialize) -> Page {
    match serde_json::to_string(answer) {
        Ok(body) => Page { status: 200, kind: "application/json", body },
        Err(error) => Page::text(500, &format!("the agent's own defect: {error}")),
    }
}
