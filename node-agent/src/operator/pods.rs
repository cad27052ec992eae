//! `sluice pods`: every pod of the mesh on the node, with what the records, the
//! machine and, now, the kernel say of it.

use super::answer::{Captured, Netns, Pod, Rules, Ztunnel};
use super::kernel::{self, Places};
use super::known::Known;
use crate::ambient::Look;
use crate::place::{self, Place, Survey, successor};
use crate::record::{Record, SandboxId};
use crate::source::Pods as Source;
use crate::source::kubernetes::object::PodName;
use ambient::action::Standing;
use ambient::machine::PodView;
use redirect::enroll::{Decision, decide};
use redirect::plan::{DNS_PORT, INBOUND_PORT, OUTBOUND_PORT};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use sys::netns::within;

/// Namespaces that are looked into at once.
const WORKERS: usize = 8;

/// How long all looks may take: a table that is not there helps nobody.
const LIMIT: Duration = Duration::from_secs(6);

/// Without an agent, what must be there is known only as far as the environment has its
/// settings.
pub(super) const UNKNOWN_SETTINGS: &str = "the agent's settings are not those of this environment (AMBIENT_*, ISTIO_OUTBOUND_*, ...), so what must be there is not known";

/// Of a pod that the agent has by its record alone.
const UNTOLD: &str = "the source of pods (the API server) has not told of it since the agent started; it is kept as its record says until it does";

/// Standings, as they are told.
pub(super) const VERIFIED: &str = "verified";
const UNVERIFIED: &str = "unverified";
const EXPOSED: &str = "exposed";
const LEAVING: &str = "leaving";

/// Where pods are asked for, by the agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live<'a> {
    pub(super) source: &'a Source,
    pub(super) look: Option<&'a Look>,
}

/// All pods, by namespace and name.
pub(super) fn pods(known: &Known, live: Option<Live<'_>>) -> Vec<Pod> {
    let (records, wrong) = known.recorded();
    for reason in wrong {
        tracing::warn!(reason, "a record cannot be read");
    }
    let records = latest(records);
    let mut rows = look_at_all(known, &records);
    if let Some(live) = live {
        let (places, survey) = (Places::new(), OnceCell::new());
        for ((_, record), row) in records.iter().zip(&mut rows) {
            judge(row, record, live);
            if record.ambient.is_none() && row.standing == UNVERIFIED {
                let look = || Survey::take(&place::root(), known.hosts.all()).ok();
                let survey = || survey.get_or_init(look).as_ref();
                elsewhere(row, known, record, live, &places, survey);
            }
        }
        let seen: HashSet<String> = records.iter().map(|(_, r)| r.key()).collect();
        rows.extend(unrecorded(known, live, &seen));
    }
    rows.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    rows
}

/// Of several sandboxes of a pod the one that is there, else any.
fn latest(records: Vec<(SandboxId, Record)>) -> Vec<(SandboxId, Record)> {
    let mut by_pod: BTreeMap<String, Vec<(SandboxId, Record)>> = BTreeMap::new();
    for found in records {
        by_pod.entry(found.1.key()).or_default().push(found);
    }
    let places = Places::new();
    by_pod.into_values().filter_map(|all| present(all, &places)).collect()
}

/// The record whose namespace is there, else any.
pub(super) fn present(
    mut all: Vec<(SandboxId, Record)>,
    places: &Places,
) -> Option<(SandboxId, Record)> {
    let is_there = |(_, record): &(SandboxId, Record)| places.open(record).is_ok();
    let place = if all.len() > 1 { all.iter().position(is_there) } else { None };
    (!all.is_empty()).then(|| all.swap_remove(place.unwrap_or(0)))
}

/// Rows by records and kernel alone.
fn look_at_all(known: &Known, records: &[(SandboxId, Record)]) -> Vec<Pod> {
    let places = Places::new();
    let end = Instant::now() + LIMIT;
    let next = AtomicUsize::new(0);
    let rows: Mutex<BTreeMap<usize, Pod>> = Mutex::default();
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((id, record)) = records.get(number) else { return };
            let row = row(known, &places, id, record, end);
            rows.lock().unwrap_or_else(PoisonError::into_inner).insert(number, row);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..WORKERS.min(records.len()) {
            // Fewer threads do the same, later.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    rows.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

fn row(known: &Known, places: &Places, id: &SandboxId, record: &Record, end: Instant) -> Pod {
    let mut row = Pod {
        namespace: record.pod.namespace.clone(),
        name: record.pod.name.clone(),
        uid: record.pod.uid.clone(),
        mode: mode(record).to_owned(),
        backend: Some(record.backend.clone()),
        standing: UNVERIFIED.to_owned(),
        rules: Some(Rules { hash: record.rules.clone(), generation: None }),
        netns: Some(Netns { dev: record.netns.dev, ino: record.netns.ino }),
        sandbox: (!id.is_of_found()).then(|| record.sandbox.clone()),
        addresses: record.addresses.iter().map(ToString::to_string).collect(),
        ..Pod::default()
    };
    if Instant::now() > end {
        row.reason = Some(format!("not looked at: others took {} s", LIMIT.as_secs()));
        return row;
    }
    let netns = match places.open(record) {
        Ok(netns) if known.hosts.contains(netns.id()) => {
            row.reason = Some(format!("its record names the host's namespace {}", netns.id()));
            return row;
        }
        Ok(netns) => netns,
        Err(why) => {
            row.reason = Some(why);
            return row;
        }
    };
    let backend = known.backend(record);
    let seen = within(&netns, || kernel::look(known, backend, record));
    match seen.map_err(|error| crate::failure::causes(&error)).and_then(|seen| seen) {
        Ok(seen) => {
            if let Some(rules) = &mut row.rules {
                rules.generation = seen.generation;
            }
            row.captured = seen.captured.map(|counts| {
                let of = |port: u16| counts.get(&port).copied().unwrap_or_default();
                Captured {
                    outbound: of(OUTBOUND_PORT),
                    inbound: of(INBOUND_PORT),
                    dns: of(DNS_PORT),
                }
            });
            if seen.diff.is_empty() {
                VERIFIED.clone_into(&mut row.standing);
                row.verified_seconds_ago = Some(0);
            } else if seen.same {
                EXPOSED.clone_into(&mut row.standing);
                row.reason = Some(format!("rules differ: {}", kernel::short(&seen.diff)));
            } else {
                row.reason = Some(UNKNOWN_SETTINGS.to_owned());
            }
        }
        Err(why) => row.reason = Some(format!("cannot be looked at: {why}")),
    }
    row
}

pub(super) fn mode(record: &Record) -> &'static str {
    if record.ambient.is_some() { "ambient" } else { "sidecar" }
}

/// Brings in what the agent knows of a pod with a record.
fn judge(row: &mut Pod, record: &Record, live: Live<'_>) {
    let name = PodName { namespace: row.namespace.clone(), name: row.name.clone() };
    let told = live.source.told(&name);
    let same = |told: &crate::source::follow::Told| {
        record.pod.uid.as_ref().is_none_or(|uid| told.uid() == *uid || told.uids().contains(uid))
    };
    let is_known = told.as_ref().is_some_and(same);
    let over = told.as_ref().and_then(|told| told.status()).is_some_and(|status| status.over);
    if over && row.standing != VERIFIED {
        UNVERIFIED.clone_into(&mut row.standing);
        row.reason = Some("the pod has ended".to_owned());
    }
    let view = live.look.and_then(|look| Some((look, look.pod(&record.key())?)));
    match view {
        Some((look, (view, since))) if record.ambient.is_some() => {
            ambient(row, view, *since, look);
        }
        None if record.ambient.is_some() && live.look.is_none() => {
            UNVERIFIED.clone_into(&mut row.standing);
            row.reason = Some("ambient mode is off, or does not answer".to_owned());
        }
        _ if !is_known => {
            let why = "the source of pods does not know it (any more)";
            row.reason = Some(match row.reason.take() {
                Some(other) => format!("{why}; {other}"),
                None => why.to_owned(),
            });
        }
        _ => {}
    }
}

/// A sidecar pod whose namespace is gone may run in another one.
fn elsewhere<'s>(
    row: &mut Pod,
    known: &Known,
    record: &Record,
    live: Live<'_>,
    places: &Places,
    survey: impl FnOnce() -> Option<&'s Survey>,
) {
    let name = PodName { namespace: row.namespace.clone(), name: row.name.clone() };
    let told = live.source.told(&name).filter(|told| successor::is_same(told, record));
    let Some(told) = told.filter(|told| told.status().is_none_or(|status| !status.over)) else {
        return;
    };
    if places.open(record).is_ok() {
        return;
    }
    let found = survey().map(|survey| successor::find(&told, record, survey, &known.hosts));
    let Some(Ok(Some(Place { netns, .. }))) = found else { return };
    let is_bare = within(&netns, || known.backend(record).is_bare());
    if matches!(is_bare, Ok(Ok(true))) {
        EXPOSED.clone_into(&mut row.standing);
    }
    let why = row.reason.take().unwrap_or_default();
    row.reason = Some(format!("it runs in {} now, which was not captured; {why}", netns.id()));
}

/// What the machine says counts where it is worse than what is seen in the kernel.
fn ambient(row: &mut Pod, view: &PodView, since: Option<Duration>, look: &Look) {
    row.since_seconds = since.map(|since| since.as_secs());
    let state = match (view.accepted_by.is_empty(), view.held) {
        (false, _) => "acked",
        (true, true) => "held",
        (true, false) => "waiting",
    };
    let trouble =
        view.trouble.as_ref().map(|(failures, error)| format!("{error} ({failures} times)"));
    let stage = view.waiting_for.map(|stage| format!("waits for {stage}"));
    row.ztunnel = Some(Ztunnel {
        state: state.to_owned(),
        sessions: view.accepted_by.iter().map(|session| session.0).collect(),
        error: (state != "acked").then(|| trouble.clone().or_else(|| stage.clone())).flatten(),
    });
    let (word, cause) = match view.standing {
        Standing::Verified => (VERIFIED, None),
        Standing::Unverified(cause) => (UNVERIFIED, Some(cause)),
        Standing::Exposed(cause) => (EXPOSED, Some(cause)),
        Standing::Outside => (LEAVING, None),
    };
    if word == VERIFIED || (row.standing == EXPOSED && word == UNVERIFIED) {
        return;
    }
    word.clone_into(&mut row.standing);
    row.verified_seconds_ago = None;
    let left = look.left.contains(&view.uid);
    let leaving = (word == LEAVING)
        .then(|| if left { "it is being un-enrolled" } else { "it is un-enrolled" }.to_owned());
    let cause = cause.map(|cause| cause.code().to_owned());
    let untold = (view.identity.is_none() && word != LEAVING).then(|| UNTOLD.to_owned());
    let all: Vec<String> =
        [leaving, untold, cause, stage, trouble, row.reason.take()].into_iter().flatten().collect();
    row.reason = Some(all.join("; "));
}

/// Pods that are to be captured, and of which nothing is written down.
fn unrecorded(known: &Known, live: Live<'_>, seen: &HashSet<String>) -> Vec<Pod> {
    let view = live.source.view(true);
    let mut rows = Vec::new();
    for pod in &view.pods {
        let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        let Some(told) = live.source.told(&name) else { continue };
        if seen.contains(&told.uid()) || told.uids().iter().any(|uid| seen.contains(uid)) {
            continue;
        }
        let namespace = live.source.namespace(&pod.namespace);
        let mode = match decide(pod, namespace.as_ref(), &known.policy) {
            Ok(Decision::Sidecar) => "sidecar",
            Ok(Decision::Ambient) => "ambient",
            Ok(Decision::Skip(_)) | Err(_) => continue,
        };
        if told.status().is_some_and(|status| status.over) {
            continue;
        }
        let runs = told.status().is_some_and(|status| !status.addresses.is_empty());
        let mut row = Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            mode: mode.to_owned(),
            standing: if runs { EXPOSED } else { UNVERIFIED }.to_owned(),
            reason: Some(if runs {
                "it has an address, and no sandbox of it was captured".to_owned()
            } else {
                "no sandbox of it was captured yet".to_owned()
            }),
            ..Pod::default()
        };
        match live.look.and_then(|look| Some((look, look.pod(&told.uid())?))) {
            // ztunnel's own pods, which are none.
            Some((look, (pod, _))) if mode == "ambient" && !pod.wanted && !look.draining => {
                continue;
            }
            Some((look, (pod, since))) if mode == "ambient" => ambient(&mut row, pod, *since, look),
            _ => {}
        }
        rows.push(row);
    }
    rows
}
