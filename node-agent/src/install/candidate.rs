//! What each file of the CNI directory is to us.

use super::conflist::{Conf, ConflistError, List};
use super::entry::{Marker, TYPE};
use serde_json::Value;
use std::collections::BTreeMap;

/// Files of the directory that a runtime looks at, in the order in which it does:
/// byte order of their names.
pub(crate) type Snapshot = BTreeMap<String, File>;

/// Extensions that runtimes load. Istio's installer overlooks `.json`.
pub(crate) const EXTENSIONS: [&str; 3] = [".conf", ".conflist", ".json"];

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Its text, or why it cannot be read.
    pub(crate) content: Result<String, String>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// User and group.
    pub(crate) owner: (u32, u32),
    /// It is a symbolic link: never replaced.
    pub(crate) link: bool,
    /// The folder from which libcni 1.3 loads more plugins of this list, if it has any.
    pub(crate) folder: Option<String>,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A network of another product.
    Primary(Primary),
    /// A file of ours as a whole, or Istio's of the same kind; with what it was made from.
    Owned(Option<Primary>),
    /// Another product's file with a chain of ours inside (multus does this): it
    /// runs us, and a chain made from it would hold itself.
    Derived,
    /// Our plugin alone, as for multus.
    Standalone,
    /// A runtime cannot use it.
    Invalid(String),
}

/// A network that can be chained to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Primary {
    /// A list, or a single configuration.
    pub(crate) form: Form,
    /// The network's name.
    pub(crate) network: String,
    /// Its text without us.
    pub(crate) text: String,
    /// We, or Istio, are in its text.
    pub(crate) carries: bool,
    /// What we noted in it.
    pub(crate) marker: Option<Marker>,
}

/// How a primary is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A list of plugins.
    List,
    /// One plugin.
    Conf,
}

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    /// Ours or Istio's, whatever somebody made of its content.
    Reserved,
    /// The user's for our file: it is that when we are in it.
    Asked,
    /// Anybody's.
    Free,
}

/// Says what a file is.
pub(crate) fn classify(name: &str, file: &File, meaning: Name) -> Kind {
    match kind_of(name, file, meaning) {
        Kind::Primary(primary) if meaning == Name::Reserved => Kind::Owned(Some(primary)),
        Kind::Invalid(_) | Kind::Standalone if meaning == Name::Reserved => Kind::Owned(None),
        other => other,
    }
}

fn kind_of(name: &str, file: &File, meaning: Name) -> Kind {
    let text = match &file.content {
        Ok(text) => text,
        Err(reason) => return Kind::Invalid(reason.clone()),
    };
    let kind = if name.ends_with(".conflist") {
        of_list(text, file.folder.as_deref(), meaning)
    } else {
        of_conf(text)
    };
    kind.unwrap_or_else(|error| Kind::Invalid(error.to_string()))
}

fn of_conf(text: &str) -> Result<Kind, ConflistError> {
    let conf = Conf::parse(text)?;
    if conf.is_ours() {
        return Ok(Kind::Standalone);
    }
    if holds_chain_of_ours(text) {
        return Ok(Kind::Derived);
    }
    Ok(Kind::Primary(Primary {
        form: Form::Conf,
        network: conf.name().to_owned(),
        text: text.to_owned(),
        carries: false,
        marker: None,
    }))
}

fn of_list(text: &str, folder: Option<&str>, meaning: Name) -> Result<Kind, ConflistError> {
    let list = List::parse(text)?;
    let marker = list.marker().cloned();
    let is_owned = marker.as_ref().is_some_and(|m| m.primary.is_some())
        || (list.carries() && meaning != Name::Free);
    let pristine = match list.pristine() {
        Err(ConflistError::OnlyOurs) => {
            return Ok(if is_owned { Kind::Owned(None) } else { Kind::Standalone });
        }
        other => other?,
    };
    if !is_owned && list.foreign().any(holds_chain_of_ours) {
        return Ok(Kind::Derived);
    }
    let primary = Primary {
        form: Form::List,
        network: list.name().to_owned(),
        text: pristine,
        carries: list.carries(),
        marker,
    };
    if is_owned {
        return Ok(Kind::Owned(Some(primary)));
    }
    // libcni would run these after ours, which must be the last.
    if let Some(folder) = folder.filter(|_| !list.inlined_only()) {
        return Err(ConflistError::Json(format!(
            "its plugins in the folder {folder} would run after istio-cni: put them into its `plugins` and set `loadOnlyInlinedPlugins`"
        )));
    }
    Ok(Kind::Primary(primary))
}

/// True when somewhere inside there is an entry that we marked as of an owned file.
fn holds_chain_of_ours(text: &str) -> bool {
    fn search(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(search),
            Value::Object(members) => {
                let ours = members.get("type").is_some_and(|kind| kind == TYPE)
                    && members.get(Marker::KEY).is_some_and(|m| m.get("primary").is_some());
                ours || members.values().any(search)
            }
            _ => false,
        }
    }
    text.contains(TYPE) && serde_json::from_str(text).is_ok_and(|value| search(&value))
}

#[cfg(test)]
mod tests;
