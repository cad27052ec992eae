//! The kernel is the truth: what is captured is looked at again and again. A namespace
//! whose rules nobody wrote to since the last look costs one question for the
//! generation of its rules and one for its routes.

use super::driver::Input;
use super::jobs::{Held, Job, Jobs, Key, Kind, Work};
use super::node::{Node, id};
use super::subject;
use crate::backend::routing_of;
use crate::failure::causes;
use crate::repair::place::{self, Survey};
use crate::source::follow::Told;
use ambient::event::{Failure, Place, Verdict};
use ambient::id::{NetnsId, OptionsHash, PodUid};
use redirect::desired::Routing;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;
use sys::netns::within_pod;
use sys::{nftables, routing};

/// Every so many looks all is compared, whatever the generation says: legacy iptables
/// does not change it, nor does an address family that comes or goes.
const THOROUGH: u32 = 10;

/// A pod that is to be looked at.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) uid: PodUid,
    pub(super) held: Held,
    pub(super) told: Told,
    pub(super) addresses: Vec<IpAddr>,
}

/// What was seen of one.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) uid: PodUid,
    pub(super) netns: NetnsId,
    pub(super) verdict: Verdict,
    /// A namespace that it is in instead.
    pub(super) brought: Option<(NetnsId, Held)>,
}

/// How a namespace was when all was well.
#[derive(Debug, Clone)]
struct Seen {
    netns: NetnsId,
    options: OptionsHash,
    generation: u32,
    routing: Arc<Routing>,
    looks: u32,
}

/// What is remembered from look to look.
#[derive(Debug)]
pub(super) struct Audits {
    results: Sender<Input>,
    seen: Arc<std::sync::Mutex<HashMap<PodUid, Seen>>>,
    running: bool,
}

impl Audits {
    /// Results go there.
    pub(super) fn new(results: Sender<Input>) -> Self {
        Self { results, seen: Arc::default(), running: false }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Seen>> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What was seen of a pod does not count any more.
    pub(super) fn forget(&self, uid: &PodUid) {
        self.seen().remove(uid);
    }

    /// Looks at these pods, unless a look is still under way.
    pub(super) fn begin(&mut self, jobs: &mut Jobs, node: &Arc<Node>, checks: Vec<Check>) {
        if self.running || checks.is_empty() {
            return;
        }
        self.running = true;
        let (node, results) = (Arc::clone(node), self.results.clone());
        let seen = Arc::clone(&self.seen);
        let work = Work::Thread(Box::new(move |_| {
            let begun = Instant::now();
            let known = seen.lock().map(|seen| seen.clone()).unwrap_or_default();
            let pods = checks.len();
            let (checked, now) = look(&node, checks, &known);
            if let Ok(mut seen) = seen.lock() {
                seen.extend(now);
            }
            tracing::debug!(pods, ms = begun.elapsed().as_millis(), "audited");
            // Nobody listens at the end of the process.
            drop(results.send(Input::Audited(checked)));
            Vec::new()
        }));
        jobs.push(Job { key: Key::Audit, kind: Kind::Find, steps: Vec::new(), work });
    }

    /// The look is over.
    pub(super) fn end(&mut self, checked: Vec<Checked>) -> Vec<Checked> {
        self.running = false;
        checked
    }
}

fn look(
    node: &Node,
    checks: Vec<Check>,
    known: &HashMap<PodUid, Seen>,
) -> (Vec<Checked>, HashMap<PodUid, Seen>) {
    // Which namespaces have processes; unknown when they cannot be listed.
    let occupied: Option<HashSet<sys::netns::NetnsId>> = place::occupied(&node.proc)
        .inspect_err(|error| {
            tracing::error!(reason = %causes(error), "cannot list processes for the audit");
        })
        .ok();
    let mut survey: Option<Option<Survey>> = None;
    let (mut checked, mut now) = (Vec::new(), HashMap::new());
    for check in checks {
        let netns = id(check.held.netns.id());
        let is_empty = occupied.as_ref().is_some_and(|all| !all.contains(&check.held.netns.id()));
        if is_empty {
            let survey = survey
                .get_or_insert_with(|| Survey::take(&node.proc, node.hosts.all()).ok())
                .as_ref();
            if let Some((place, held)) = survey.and_then(|survey| elsewhere(node, survey, &check)) {
                let brought = Some((place.netns, held));
                let verdict = Verdict::Elsewhere(place);
                checked.push(Checked { uid: check.uid, netns, verdict, brought });
                continue;
            }
        }
        let options = subject::hash(&check.told, &node.options);
        let last = known.get(&check.uid);
        let last = last.filter(|seen| seen.netns == netns && seen.options == options);
        let verdict = match inside(node, &check, last) {
            Ok((verdict, Some((generation, routing)))) if verdict == Verdict::Fine => {
                let looks = last.map_or(0, |seen| seen.looks + 1) % THOROUGH;
                let seen = Seen { netns, options, generation, routing, looks };
                now.insert(check.uid.clone(), seen);
                verdict
            }
            Ok((verdict, _)) => verdict,
            Err(why) => Verdict::Unreadable(Failure::Transient(why)),
        };
        checked.push(Checked { uid: check.uid, netns, verdict, brought: None });
    }
    (checked, now)
}

/// The pod's processes are in another namespace than it was captured in.
fn elsewhere(node: &Node, survey: &Survey, check: &Check) -> Option<(Place, Held)> {
    let uids = check.told.uids();
    let wanted = place::Wanted {
        uids: &uids,
        addresses: &check.addresses,
        recorded: &[],
        hosts: node.hosts.all(),
    };
    let found = survey.find(&wanted).ok()?.netns;
    if found.id() == check.held.netns.id() {
        return None;
    }
    let netns = id(found.id());
    let held = Held { netns: found, path: String::new(), interface: String::new(), sandbox: None };
    Some((Place { netns, sandbox: None }, held))
}

/// What is worth to be remembered of a namespace in which all is well.
type Well = Option<(u32, Arc<Routing>)>;

/// In the pod's namespace: as it was, or as it must be, or not.
fn inside(node: &Node, check: &Check, last: Option<&Seen>) -> Result<(Verdict, Well), String> {
    within_pod(&check.held.netns, node.hosts.own(), || {
        // A kernel without nf_tables has none, and is compared each time.
        let generation = nftables::generation().ok();
        let known =
            last.filter(|seen| Some(seen.generation) == generation && seen.looks + 1 < THOROUGH);
        if let Some(seen) = known {
            let missing = routing::missing(&seen.routing).map_err(|error| causes(&error))?;
            if missing.is_empty() {
                let routing = Arc::clone(&seen.routing);
                return Ok((Verdict::Fine, Some((seen.generation, routing))));
            }
            return Ok((Verdict::Broken { drift: missing.join("; ") }, None));
        }
        let ipv6 = routing::ipv6().map_err(|error| causes(&error))?;
        let (plan, _) = subject::plan(&check.told, &node.options, ipv6);
        let diff = node.backend.observe(&plan)?;
        if diff.is_empty() {
            let routing = || Arc::new(routing_of(&plan));
            return Ok((Verdict::Fine, generation.map(|generation| (generation, routing()))));
        }
        let drift = diff.to_string().lines().collect::<Vec<_>>().join("; ");
        Ok((Verdict::Broken { drift }, None))
    })
    .map_err(|error| causes(&error))?
}
