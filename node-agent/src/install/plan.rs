//! What is to be done to the CNI directory. Pure: a snapshot in, actions out.

use super::Mode;
use super::action::{Action, Permissions};
use super::candidate::{Form, Kind, Primary, Snapshot, classify};
use super::conflist::{Conf, ConflistError, List};
use super::entry::{Marker, PluginEntry};
use super::name::{OwnedName, meaning, owned_name};
use super::select::{Known, Selection, select};
use std::collections::BTreeMap;
use std::time::Duration;

/// Name of the configuration that stands alone; Istio's.
const STANDALONE_NAME: &str = "YYY-istio-cni.conf";

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Want {
    /// Where our entry goes.
    pub(crate) mode: Mode,
    /// The primary's file name, where it is given.
    pub(crate) conf_name: Option<String>,
    /// Mode of the files that we make.
    pub(crate) file_mode: u32,
    /// Our entry.
    pub(crate) entry: PluginEntry,
}

/// What is remembered from pass to pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The primary that is followed.
    pub(crate) known: Option<Known>,
    /// For how long its file has been gone.
    pub(crate) absent_for: Duration,
}

/// How things stand once the actions are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// As they should.
    Complete,
    /// Our chain is in place, made of the last good copy of a primary that is gone
    /// or broken.
    Kept(String),
    /// Nothing to chain to.
    Waiting(String),
    /// Our chain is in place, but a file that the user's name for it does not come
    /// before is the one that runtimes load.
    Preempted(String),
}

/// The outcome of looking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In this order: at no time is there less of us than before.
    pub(crate) actions: Vec<Action>,
    /// How things stand then.
    pub(crate) state: State,
    /// The primary to remember.
    pub(crate) known: Option<Known>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Our entry cannot go into the primary.
    #[error("add istio-cni to {name}")]
    Chain {
        /// The primary.
        name: String,
        /// Why.
        source: ConflistError,
    },
    /// The list that a single configuration would become is another's.
    #[error(
        "make {list} of {conf}: {list} is there already, and not ours: remove one of them, or set ISTIO_OWNED_CNI_CONFIG=true"
    )]
    Occupied {
        /// The primary.
        conf: String,
        /// The other file.
        list: String,
    },
    /// It would have to be changed in place, which a link cannot be.
    #[error(
        "{0} is a symbolic link, which is not changed in place: set ISTIO_OWNED_CNI_CONFIG=true"
    )]
    Link(String),
    /// The name that is given for our file is another's.
    #[error(
        "{setting}: {name} is another product's file, which is not overwritten: choose another name"
    )]
    Foreign {
        /// What is wrong.
        setting: &'static str,
        /// Its value.
        name: String,
    },
    /// Taking our entry out again would not give the same bytes.
    #[error("{0} could not be restored exactly: set ISTIO_OWNED_CNI_CONFIG=true")]
    NotReversible(String),
}

/// The directory, each file with what it is.
pub(super) struct Directory<'a> {
    pub(super) files: &'a Snapshot,
    pub(super) kinds: BTreeMap<&'a str, Kind>,
}

impl<'a> Directory<'a> {
    pub(super) fn new(files: &'a Snapshot, mode: &Mode) -> Self {
        let asked = match mode {
            Mode::Owned { file_name } => file_name.as_deref(),
            Mode::InPlace | Mode::Standalone => None,
        };
        let kind = |name: &str, file| classify(name, file, meaning(name, asked));
        let kinds = files.iter().map(|(name, file)| (name.as_str(), kind(name, file))).collect();
        Self { files, kinds }
    }

    pub(super) fn primaries(&self) -> impl Iterator<Item = (&'a str, &Primary)> {
        self.kinds.iter().filter_map(|(name, kind)| match kind {
            Kind::Primary(primary) => Some((*name, primary)),
            _ => None,
        })
    }

    pub(super) fn primary(&self, name: &str) -> Option<&Primary> {
        match self.kinds.get(name) {
            Some(Kind::Primary(primary)) => Some(primary),
            _ => None,
        }
    }

    pub(super) fn owned(&self) -> impl Iterator<Item = (&'a str, Option<&Primary>)> {
        self.kinds.iter().filter_map(|(name, kind)| match kind {
            Kind::Owned(from) => Some((*name, from.as_ref())),
            _ => None,
        })
    }

    /// What a file holds; empty when it cannot be read.
    fn text(&self, name: &str) -> &'a str {
        self.files.get(name).and_then(|file| file.content.as_deref().ok()).unwrap_or_default()
    }

    fn permissions(&self, name: &str) -> Option<Permissions> {
        let file = self.files.get(name)?;
        Some(Permissions { mode: file.mode, owner: Some(file.owner) })
    }

    /// Removes a file, while it is as it was seen; one of ours as it is.
    pub(super) fn removal(&self, name: &str) -> Action {
        let ours = matches!(self.kinds.get(name), Some(Kind::Owned(_)));
        let old = (!ours).then(|| self.text(name).to_owned());
        Action::Remove { name: name.to_owned(), old }
    }

    /// Fails when another product's file would be overwritten.
    fn check_free(&self, name: &str, setting: &'static str) -> Result<(), PlanError> {
        match self.kinds.get(name) {
            Some(Kind::Primary(_) | Kind::Derived) => {
                Err(PlanError::Foreign { setting, name: name.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Takes us out of a primary: the list without us, or the single configuration
    /// that it was made of. Links are left.
    pub(super) fn undo(&self, name: &str, primary: &Primary) -> Result<Vec<Action>, PlanError> {
        let Some(permissions) = self.permissions(name) else { return Ok(Vec::new()) };
        if !primary.carries || self.files.get(name).is_some_and(|file| file.link) {
            return Ok(Vec::new());
        }
        let chain = |source| PlanError::Chain { name: name.to_owned(), source };
        let converted = primary.marker.as_ref().and_then(|marker| marker.converted.as_deref());
        let Some(conf) = converted.filter(|conf| is_plain_name(conf) && *conf != name) else {
            let (name, old) = (name.to_owned(), self.text(name).to_owned());
            return Ok(vec![Action::Replace {
                name,
                old,
                text: primary.text.clone(),
                permissions,
            }]);
        };
        let mut actions = Vec::new();
        // Where its owner wrote it again, that one is newer.
        if !self.files.contains_key(conf) {
            let text = List::parse(&primary.text).and_then(|list| list.unwrapped());
            let text = text.map_err(chain)?;
            actions.push(Action::Create { name: conf.to_owned(), text, permissions });
        }
        actions.push(self.removal(name));
        Ok(actions)
    }
}

/// A name out of a marker is used as a file's name: only one in this directory.
fn is_plain_name(name: &str) -> bool {
    !name.contains('/') && (name.ends_with(".conf") || name.ends_with(".json"))
}

/// Looks at the directory and says what to do.
pub(crate) fn plan(files: &Snapshot, want: &Want, memory: &Memory) -> Result<Plan, PlanError> {
    let directory = Directory::new(files, &want.mode);
    match &want.mode {
        Mode::Standalone => standalone(&directory, want),
        Mode::InPlace => in_place(&directory, want, memory),
        Mode::Owned { file_name } => owned(&directory, want, memory, file_name.as_deref()),
    }
}

fn standalone(directory: &Directory<'_>, want: &Want) -> Result<Plan, PlanError> {
    let name = want.conf_name.as_deref().unwrap_or(STANDALONE_NAME);
    directory.check_free(name, "CNI_CONF_NAME")?;
    let mut actions = write(directory, name, want.entry.standalone(), want.file_mode);
    actions
        .extend(directory.owned().filter(|(n, _)| *n != name).map(|(n, _)| directory.removal(n)));
    Ok(Plan { actions, state: State::Complete, known: None })
}

fn owned(
    directory: &Directory<'_>,
    want: &Want,
    memory: &Memory,
    asked: Option<&str>,
) -> Result<Plan, PlanError> {
    directory.check_free(asked.unwrap_or_default(), "ISTIO_OWNED_CNI_CONFIG_FILENAME")?;
    let known = memory.known.clone().or_else(|| recalled(directory));
    let (known, kept) = match select(directory, want.conf_name.as_deref(), known, memory.absent_for)
    {
        Selection::Take(known) => (known, None),
        Selection::Keep(known, why) => (known, Some(why)),
        Selection::Wait(why) => {
            return Ok(Plan { actions: Vec::new(), state: State::Waiting(why), known: None });
        }
    };
    let text = chain(
        &known,
        &want.entry,
        Marker { primary: Some(known.name.clone()), ..Marker::default() },
    )?;
    let existing: Vec<&str> = directory.owned().map(|(name, _)| name).collect();
    let foreign = directory.kinds.iter().filter_map(|(name, kind)| {
        (!matches!(kind, Kind::Owned(_) | Kind::Derived)).then_some(*name)
    });
    let OwnedName { name, behind } = owned_name(asked, &existing, foreign);
    let mut actions = write(directory, &name, text, want.file_mode);
    actions.extend(existing.iter().filter(|n| **n != name).map(|n| directory.removal(n)));
    // Istio's entry in the primary, or ours of another mode, would run as well
    // whenever our file is away.
    if let Some(primary) = directory.primary(&known.name) {
        actions.extend(directory.undo(&known.name, primary)?);
    }
    let state = match (behind, kept) {
        (Some(other), _) => State::Preempted(format!(
            "{other} comes before {name}, so runtimes load it, without istio-cni: leave ISTIO_OWNED_CNI_CONFIG_FILENAME empty, or choose a name that comes first in byte order"
        )),
        (None, Some(why)) => State::Kept(why),
        (None, None) => State::Complete,
    };
    Ok(Plan { actions, state, known: Some(known) })
}

/// After a restart: what the file of ours was made from.
fn recalled(directory: &Directory<'_>) -> Option<Known> {
    directory.owned().find_map(|(_, from)| {
        let primary = from?;
        // Istio's own file does not say; its copy is what can be kept.
        let name = primary.marker.as_ref().and_then(|m| m.primary.clone()).unwrap_or_default();
        Some(Known { name, primary: primary.clone() })
    })
}

fn in_place(directory: &Directory<'_>, want: &Want, memory: &Memory) -> Result<Plan, PlanError> {
    let known = memory.known.clone();
    let known = match select(directory, want.conf_name.as_deref(), known, memory.absent_for) {
        Selection::Take(known) => known,
        Selection::Keep(known, why) => {
            let state = State::Waiting(why);
            return Ok(Plan { actions: Vec::new(), state, known: Some(known) });
        }
        Selection::Wait(why) => {
            return Ok(Plan { actions: Vec::new(), state: State::Waiting(why), known: None });
        }
    };
    let name = known.name.as_str();
    if directory.files.get(name).is_some_and(|file| file.link) {
        return Err(PlanError::Link(name.to_owned()));
    }
    let marker = known.primary.marker.clone().unwrap_or_default();
    let (mut actions, known) = match known.primary.form {
        Form::List => {
            let marker = Marker { converted: marker.converted, ..Marker::default() };
            let text = chain(&known, &want.entry, marker)?;
            let old = directory.text(name);
            let mut actions = Vec::new();
            if text != old {
                reversible(&text, &known)?;
                let permissions = permissions(directory, name, want.file_mode);
                let (name, old) = (name.to_owned(), old.to_owned());
                actions.push(Action::Replace { name, old, text, permissions });
            }
            (actions, known)
        }
        Form::Conf => convert(directory, want, &known)?,
    };
    actions.extend(directory.owned().map(|(name, _)| directory.removal(name)));
    Ok(Plan { actions, state: State::Complete, known: Some(known) })
}

/// A single configuration becomes a list beside it, which is there before the
/// other goes; the other comes first in order for as long as it is there.
fn convert(
    directory: &Directory<'_>,
    want: &Want,
    known: &Known,
) -> Result<(Vec<Action>, Known), PlanError> {
    let conf = known.name.clone();
    let list = format!("{}.conflist", stem(&conf));
    // Only what was made of this very file before may be overwritten.
    let is_ours = directory.primary(&list).is_some_and(|other| {
        other.marker.as_ref().is_some_and(|marker| marker.converted.as_ref() == Some(&conf))
    });
    if directory.files.contains_key(&list) && !is_ours {
        return Err(PlanError::Occupied { conf, list });
    }
    let text =
        chain(known, &want.entry, Marker { converted: Some(conf.clone()), ..Marker::default() })?;
    reversible(&text, known)?;
    let permissions = permissions(directory, &conf, want.file_mode);
    let actions = vec![
        Action::Write { name: list.clone(), text: text.clone(), permissions },
        directory.removal(&conf),
    ];
    let primary = List::parse(&text).and_then(|parsed| {
        Ok(Primary {
            form: Form::List,
            network: known.primary.network.clone(),
            text: parsed.pristine()?,
            carries: true,
            marker: parsed.marker().cloned(),
        })
    });
    let primary = primary.map_err(|source| PlanError::Chain { name: list.clone(), source })?;
    Ok((actions, Known { name: list, primary }))
}

/// A name without its extension.
pub(super) fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The primary's text with our entry.
fn chain(known: &Known, entry: &PluginEntry, marker: Marker) -> Result<String, PlanError> {
    let primary = &known.primary;
    let text = match primary.form {
        Form::List => List::parse(&primary.text).and_then(|list| list.chained(entry, marker)),
        Form::Conf => Conf::parse(&primary.text)
            .and_then(|conf| conf.wrapped())
            .and_then(|list| List::parse(&list).and_then(|list| list.chained(entry, marker))),
    };
    text.map_err(|source| PlanError::Chain { name: known.name.clone(), source })
}

/// Proves that removal will restore the primary byte for byte, before it is changed.
fn reversible(text: &str, known: &Known) -> Result<(), PlanError> {
    let primary = &known.primary;
    let back = List::parse(text).and_then(|list| match primary.form {
        Form::List => list.pristine(),
        Form::Conf => list.unwrapped(),
    });
    match back {
        Ok(back) if back == primary.text => Ok(()),
        _ => Err(PlanError::NotReversible(known.name.clone())),
    }
}

fn permissions(directory: &Directory<'_>, like: &str, default: u32) -> Permissions {
    directory.permissions(like).unwrap_or(Permissions { mode: default, owner: None })
}

/// A file of ours: nothing when it is as it should be.
fn write(directory: &Directory<'_>, name: &str, text: String, mode: u32) -> Vec<Action> {
    let name = name.to_owned();
    match directory.files.get(&name) {
        Some(file) if !file.link && file.content.as_deref() == Ok(text.as_str()) => {
            if file.mode == mode { Vec::new() } else { vec![Action::Chmod { name, mode }] }
        }
        _ => {
            let permissions = Permissions { mode, owner: None };
            vec![Action::Write { name, text, permissions }]
        }
    }
}

#[cfg(test)]
mod tests;
