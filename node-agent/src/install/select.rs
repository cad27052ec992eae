//! Which file is the primary.

use super::candidate::{Kind, Primary};
use super::plan::{Directory, stem};
use std::time::Duration;

/// How long a primary may be gone before another network is taken for it. Long
/// enough for a plugin that removes its file and writes it again when it
/// restarts: to switch a node's network for a moment breaks pods.
pub(crate) const GONE: Duration = Duration::from_secs(30);

/// The primary that is followed, with its last good content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its file; empty when only a copy by Istio is known.
    pub(crate) name: String,
    /// What it held.
    pub(crate) primary: Primary,
}

/// What to chain to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// This, as it is now.
    Take(Known),
    /// The last good copy, and why.
    Keep(Known, String),
    /// Nothing yet, and why.
    Wait(String),
}

/// Chooses. Without a given name it is the first valid file, as for a runtime; but
/// a primary that is broken or gone for a moment is waited for.
pub(super) fn select(
    directory: &Directory<'_>,
    named: Option<&str>,
    known: Option<Known>,
    absent_for: Duration,
) -> Selection {
    let taken = |name: &str, primary: &Primary| {
        Selection::Take(Known { name: name.to_owned(), primary: primary.clone() })
    };
    if let Some(named) = named {
        let (name, why) = match found(directory, named) {
            None => (named, format!("{named} is not there")),
            Some(name) => match directory.primary(name) {
                Some(primary) => return taken(name, primary),
                None => (name, format!("{name} cannot be used: {}", reason(directory, name))),
            },
        };
        // Nothing of another file is kept for the one that is asked for.
        let known = known.filter(|known| stem(&known.name) == stem(name));
        return known.map_or(Selection::Wait(why.clone()), |known| Selection::Keep(known, why));
    }
    let mut primaries = directory.primaries();
    let first = primaries.next();
    let Some(known) = known else {
        return first.map_or_else(|| nothing(directory), |(name, primary)| taken(name, primary));
    };
    let there = directory.kinds.contains_key(known.name.as_str());
    if let Some((name, primary)) = first {
        let is_gone_for_good = absent_for >= GONE || known.name.is_empty();
        // Before the known one, or that itself.
        if name <= known.name.as_str() || (!there && is_gone_for_good) {
            return taken(name, primary);
        }
        let network = &known.primary.network;
        let renamed = directory.primaries().find(|(_, primary)| primary.network == *network);
        if let Some((name, primary)) = renamed.filter(|_| !there) {
            return taken(name, primary);
        }
    }
    let why = match (there, known.name.as_str()) {
        (true, name) => format!("{name} cannot be used: {}", reason(directory, name)),
        (false, "") => "the primary is gone".to_owned(),
        (false, name) => format!("{name} is gone"),
    };
    Selection::Keep(known, why)
}

/// The named file, or its twin of the other extension.
fn found<'a>(directory: &Directory<'a>, named: &'a str) -> Option<&'a str> {
    let there = |name: &str| directory.kinds.get_key_value(name).map(|(name, _)| *name);
    let twin = if named.ends_with(".conflist") { "conf" } else { "conflist" };
    let twin = format!("{}.{twin}", stem(named));
    let name = there(named).or_else(|| there(&twin))?;
    // A list of ours whose original its owner has written again.
    let original = directory.primary(name).and_then(|p| p.marker.as_ref()?.converted.as_deref());
    original.and_then(there).or(Some(name))
}

fn reason(directory: &Directory<'_>, name: &str) -> String {
    match directory.kinds.get(name) {
        Some(Kind::Invalid(reason)) => reason.clone(),
        Some(Kind::Standalone) => "it has no plugin but istio-cni".to_owned(),
        Some(_) => "it is made from a file of ours".to_owned(),
        None => "it is not there".to_owned(),
    }
}

fn nothing(directory: &Directory<'_>) -> Selection {
    let mut why = "no network is configured yet".to_owned();
    for (name, kind) in &directory.kinds {
        if let Kind::Invalid(reason) = kind {
            why.push_str(&format!("; {name} cannot be used: {reason}"));
        }
    }
    Selection::Wait(why)
}
