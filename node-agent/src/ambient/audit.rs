//! The kernel is the truth: what is captured is looked at as soon as the kernel notifies
//! of a change, and in each period whether it does or not. A namespace whose rules
//! nobody wrote to since the last look costs one question for the generation of its
//! rules, and one for its routes where changes of those are not heard of. Legacy
//! iptables notifies nobody, and has no generation: there all is compared each time.

use super::driver::Input;
use super::jobs::{Held, Job, Jobs, Key, Kind, Work};
use super::node::{Node, id};
use super::subject::Subject;
use crate::attention::Attention;
use crate::backend::{generation, routing_of};
use crate::failure::causes;
use crate::metrics::figures::Why;
use crate::place::{self, Survey};
use ambient::event::{Failure, Place, Verdict};
use ambient::id::{NetnsId, OptionsHash, PodUid};
use redirect::ambient::Ipv6;
use redirect::desired::Routing;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;
use sys::netns::within_pods;
use sys::routing;
use sys::watch::Notice;

/// Every so many looks all is compared, whatever the generation says: an address family
/// that goes does not change it.
const THOROUGH: u32 = 10;

/// A pod that is to be looked at.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) uid: PodUid,
    pub(super) held: Held,
    pub(super) subject: Subject,
    pub(super) addresses: Vec<IpAddr>,
    /// When a change was heard of.
    pub(super) since: Option<Instant>,
}

/// What was seen of one.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) uid: PodUid,
    pub(super) netns: NetnsId,
    pub(super) verdict: Verdict,
    /// A namespace that it is in instead.
    pub(super) brought: Option<(NetnsId, Held)>,
    /// When a change was heard of.
    pub(super) since: Option<Instant>,
}

/// How a namespace was when all was well.
#[derive(Debug, Clone)]
struct Seen {
    netns: NetnsId,
    options: OptionsHash,
    well: Well,
    looks: u32,
    /// The runtime's name of it led there.
    named: bool,
    /// What is changed in it is heard of.
    watched: bool,
}

/// What is remembered from look to look.
#[derive(Debug)]
pub(super) struct Audits {
    results: Sender<Input>,
    seen: Arc<std::sync::Mutex<HashMap<PodUid, Seen>>>,
    attention: Attention<NetnsId>,
    running: bool,
}

impl Audits {
    /// Results go there.
    pub(super) fn new(results: Sender<Input>) -> Self {
        Self { results, seen: Arc::default(), attention: Attention::default(), running: false }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Seen>> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What was seen of a pod does not count any more.
    pub(super) fn forget(&self, uid: &PodUid) {
        self.seen().remove(uid);
    }

    /// Nobody is in a namespace any more.
    pub(super) fn released(&mut self, netns: NetnsId) {
        self.attention.forget(&netns);
    }

    /// A namespace was written to by us.
    pub(super) fn written(&mut self, netns: NetnsId) {
        self.attention.call_later(netns, Instant::now());
    }

    /// Something was heard of namespaces; these are held.
    pub(super) fn heard(&mut self, notice: Notice, held: &HashMap<NetnsId, Held>) {
        let now = Instant::now();
        match notice {
            Notice::Changed(netns) => {
                if held.contains_key(&id(netns)) {
                    self.attention.call(id(netns), now);
                }
            }
            Notice::Lost => held.keys().for_each(|netns| self.attention.suspect(*netns, now)),
            // None that is held dies.
            Notice::Dead(_) => {}
        }
    }

    /// When something is to be looked at of which something was heard.
    pub(super) fn due(&self) -> Option<Instant> {
        self.attention.due().filter(|_| !self.running)
    }

    /// What that is, and when it was heard of first.
    pub(super) fn take(&mut self) -> HashMap<NetnsId, Instant> {
        self.attention.take(Instant::now()).into_iter().collect()
    }

    /// A namespace is looked at in any case; when something was heard of it first.
    pub(super) fn take_one(&mut self, netns: NetnsId) -> Option<Instant> {
        self.attention.begin(&netns, Instant::now())
    }

    /// A look is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Looks at these pods. Only when no look is under way.
    pub(super) fn begin(
        &mut self,
        jobs: &mut Jobs,
        node: &Arc<Node>,
        checks: Vec<Check>,
        why: Why,
    ) {
        if checks.is_empty() {
            return;
        }
        self.running = true;
        let (node, results) = (Arc::clone(node), self.results.clone());
        let seen = Arc::clone(&self.seen);
        let work = Work::Thread(Box::new(move |_| {
            let begun = Instant::now();
            let known = seen.lock().map(|seen| seen.clone()).unwrap_or_default();
            let pods = checks.len();
            let (checked, now) = look(&node, checks, &known, why);
            if let Ok(mut seen) = seen.lock() {
                seen.extend(now);
            }
            tracing::debug!(pods, ?why, ms = begun.elapsed().as_millis(), "audited");
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
    why: Why,
) -> (Vec<Checked>, HashMap<PodUid, Seen>) {
    let mut checked = Vec::new();
    let mut visits = Vec::new();
    let mut places = Places::look(node, why);
    for check in checks {
        let netns = id(check.held.netns.id());
        let (since, last) = (check.since, known.get(&check.uid).filter(|s| s.netns == netns));
        if let Some((verdict, brought)) = places.leave(&check, last) {
            checked.push(Checked { uid: check.uid, netns, verdict, brought, since });
            continue;
        }
        let options = check.subject.hash(&node.options);
        let last = last.filter(|seen| seen.options == options);
        // First: what is changed while it is looked at is heard of.
        let watched = last.map_or_else(|| watch(node, &check.held), |seen| seen.watched);
        visits.push(Visit { check, last, options, watched });
    }
    let (seen, now) = visit(node, visits);
    checked.extend(seen);
    (checked, now)
}

/// A namespace that is to be entered.
struct Visit<'a> {
    check: Check,
    last: Option<&'a Seen>,
    options: OptionsHash,
    watched: bool,
}

/// Looks into all of them.
fn visit(node: &Node, visits: Vec<Visit<'_>>) -> (Vec<Checked>, HashMap<PodUid, Seen>) {
    let look = |visit: &Visit<'_>| inside(node, &visit.check, visit.last);
    let host = node.hosts.own();
    let found = within_pods(&visits, |visit| &visit.check.held.netns, host, look);
    let failed = found.as_ref().err().map(|error| causes(error));
    let mut found = found.into_iter().flatten();
    let (mut checked, mut now) = (Vec::new(), HashMap::new());
    for visit in visits {
        let found = found.next().map(|found| found.map_err(|error| causes(&error)));
        let found = found.unwrap_or_else(|| Err(failed.clone().unwrap_or_default()));
        let netns = id(visit.check.held.netns.id());
        let verdict = match found.flatten() {
            Ok((verdict, Some(well))) if verdict == Verdict::Fine => {
                let looks = visit.last.map_or(0, |seen| seen.looks + 1) % THOROUGH;
                let named =
                    visit.last.map_or_else(|| is_named(&visit.check.held), |seen| seen.named);
                let (options, watched) = (visit.options, visit.watched);
                let seen = Seen { netns, options, well, looks, named, watched };
                now.insert(visit.check.uid.clone(), seen);
                verdict
            }
            Ok((verdict, _)) => verdict,
            Err(why) => Verdict::Unreadable(Failure::Transient(why)),
        };
        let Check { uid, since, .. } = visit.check;
        checked.push(Checked { uid, netns, verdict, brought: None, since });
    }
    (checked, now)
}

/// What is changed in it is heard of from now on.
fn watch(node: &Node, held: &Held) -> bool {
    let Some(watch) = &node.watch else { return false };
    let watched = watch.add(&held.netns);
    watched
        .inspect_err(|error| {
            tracing::warn!(netns = %held.netns.id(), reason = %causes(error), "changes of a pod's namespace will not be heard of, it is looked at by the period");
        })
        .is_ok()
}

/// The runtime's name of it, where it can be seen, leads there.
fn is_named(held: &Held) -> bool {
    place::named(&held.path, held.netns.id()).is_some()
}

/// Where processes are; looked at by the period alone.
struct Places<'a> {
    node: &'a Node,
    /// Namespaces that have any; unknown when they cannot be listed.
    occupied: Option<HashSet<sys::netns::NetnsId>>,
    survey: Option<Option<Survey>>,
}

impl<'a> Places<'a> {
    fn look(node: &'a Node, why: Why) -> Self {
        let list = || {
            let occupied = place::occupied(&node.proc).inspect_err(|error| {
                tracing::error!(reason = %causes(&error), "cannot list processes for the audit");
            });
            occupied.ok()
        };
        let occupied = (why == Why::Period).then(list).flatten();
        Self { node, occupied, survey: None }
    }

    /// The pod is not where it was: its processes are elsewhere, or there are none and
    /// the runtime has taken its namespace down.
    fn leave(
        &mut self,
        check: &Check,
        last: Option<&Seen>,
    ) -> Option<(Verdict, Option<(NetnsId, Held)>)> {
        let own = check.held.netns.id();
        if self.occupied.as_ref().is_none_or(|all| all.contains(&own)) {
            return None;
        }
        let node = self.node;
        let survey = self
            .survey
            .get_or_insert_with(|| Survey::take(&node.proc, node.hosts.all()).ok())
            .as_ref();
        if let Some((place, held)) = survey.and_then(|survey| elsewhere(node, survey, check)) {
            let brought = Some((place.netns, held));
            return Some((Verdict::Elsewhere(place), brought));
        }
        // A name that never led there may be one that cannot be seen.
        let was_named = last.is_some_and(|seen| seen.named);
        (was_named && !is_named(&check.held)).then_some((Verdict::Gone, None))
    }
}

/// The pod's processes are in another namespace than it was captured in.
fn elsewhere(node: &Node, survey: &Survey, check: &Check) -> Option<(Place, Held)> {
    let uids = check.subject.uids();
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
#[derive(Debug, Clone)]
struct Well {
    generation: u32,
    routing: Arc<Routing>,
    ipv6: Ipv6,
}

/// In the pod's namespace: as it was, or as it must be, or not.
fn inside(
    node: &Node,
    check: &Check,
    last: Option<&Seen>,
) -> Result<(Verdict, Option<Well>), String> {
    // Where there is none, all is compared each time.
    let generation = generation();
    let known =
        last.filter(|seen| Some(seen.well.generation) == generation && seen.looks + 1 < THOROUGH);
    if let Some(seen) = known
        && !has_gained(seen.well.ipv6)?
    {
        let well = || Some(seen.well.clone());
        // A change of its routes would have been heard of.
        if seen.watched && check.since.is_none() {
            return Ok((Verdict::Fine, well()));
        }
        let missing = routing::missing(&seen.well.routing).map_err(|error| causes(&error))?;
        if missing.is_empty() {
            return Ok((Verdict::Fine, well()));
        }
        return Ok((Verdict::Broken { drift: missing.join("; ") }, None));
    }
    let ipv6 = routing::ipv6().map_err(|error| causes(&error))?;
    if check.subject.is_outdated(&node.options, node.backend.kind()) {
        return Ok((Verdict::Fine, None));
    }
    let (plan, _) = check.subject.plan(&node.options, ipv6);
    let diff = node.backend.observe(&plan)?;
    if diff.is_empty() {
        let well = |generation| Well { generation, routing: Arc::new(routing_of(&plan)), ipv6 };
        return Ok((Verdict::Fine, generation.map(well)));
    }
    let drift = diff.to_string().lines().collect::<Vec<_>>().join("; ");
    Ok((Verdict::Broken { drift }, None))
}

/// IPv6 that was off may have been switched on, which no generation tells: what has none
/// is asked each time. What has all of it can gain nothing.
fn has_gained(before: Ipv6) -> Result<bool, String> {
    if before == Ipv6::Present {
        return Ok(false);
    }
    Ok(routing::ipv6().map_err(|error| causes(&error))? != before)
}
