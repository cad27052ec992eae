//! A CNI configuration file as text.
//!
//! The file belongs to the plugin that made it. So it is never printed from a
//! parsed value, which would lose number formats, escapes, order and repeated
//! keys: our entry is spliced into the text, and taken out again, and what is not
//! ours stays byte for byte. Taking out is exactly the inverse of putting in.

use super::entry::{Marker, PluginEntry, TYPE};
use super::json::{Object, range, string};
use serde_json::value::RawValue;
use std::ops::Range;
use wire::cni::Version;

/// Version of a chain whose primary names none, or one that is too old for
/// chains; every plugin that can be chained speaks it.
const OLDEST_CHAINED: &str = "0.3.1";
/// Name of a chain whose primary has none; Istio's.
const FALLBACK_NAME: &str = "k8s-pod-network";

/// Why a text is not a configuration that a runtime would take, or that we can extend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConflistError {
    /// Not JSON, or not the right kind of it.
    #[error("{0}")]
    Json(String),
    /// A key that must be there.
    #[error("{0} is missing or empty")]
    Missing(&'static str),
    /// A key of the wrong type.
    #[error("{0} is not {1}")]
    Type(&'static str, &'static str),
    /// A protocol version that our plugin cannot speak.
    #[error("cniVersion {0:?} is not one that istio-cni speaks: want one of {list}", list = Version::list())]
    Version(String),
    /// Nothing is left without istio-cni.
    #[error("it has no plugin but istio-cni")]
    OnlyOurs,
}

/// A network configuration list (`.conflist`).
#[derive(Debug)]
pub(crate) struct List<'a> {
    text: &'a str,
    name: String,
    version: Option<&'a RawValue>,
    /// What is between the brackets of `plugins`.
    inner: Range<usize>,
    plugins: Vec<Plugin<'a>>,
    inlined_only: bool,
}

/// One entry of `plugins`.
#[derive(Debug)]
struct Plugin<'a> {
    raw: &'a RawValue,
    ours: bool,
    marker: Option<Marker>,
}

impl<'a> List<'a> {
    /// Reads a list as libcni does: a name, and at least one plugin with a type.
    pub(crate) fn parse(text: &'a str) -> Result<Self, ConflistError> {
        let object = Object::parse(text)?;
        let version = object.get("cniVersion");
        if let Some(raw) = version {
            string(raw).ok_or(ConflistError::Type("cniVersion", "a string"))?;
        }
        if let Some(raw) = object.get("cniVersions") {
            serde_json::from_str::<Vec<String>>(raw.get())
                .map_err(|_| ConflistError::Type("cniVersions", "a list of strings"))?;
        }
        let name = object
            .get("name")
            .and_then(string)
            .filter(|name| !name.is_empty())
            .ok_or(ConflistError::Missing("name"))?;
        let array = object.get("plugins").ok_or(ConflistError::Missing("plugins"))?;
        let items: Vec<&RawValue> = serde_json::from_str(array.get())
            .map_err(|_| ConflistError::Type("plugins", "a list"))?;
        if items.is_empty() {
            return Err(ConflistError::Missing("plugins"));
        }
        let plugins = items.into_iter().map(Plugin::parse).collect::<Result<_, _>>()?;
        let outer = range(text, array.get());
        let inlined_only = object.get("loadOnlyInlinedPlugins").is_some_and(|v| v.get() == "true");
        Ok(Self {
            text,
            name,
            version,
            inner: outer.start + 1..outer.end - 1,
            plugins,
            inlined_only,
        })
    }

    /// The network's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True when the runtime does not look for more plugins in a folder.
    pub(crate) fn inlined_only(&self) -> bool {
        self.inlined_only
    }

    /// True when an entry is of our type, whoever wrote it.
    pub(crate) fn carries(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.ours)
    }

    /// What we noted when we put our entry in; `None` when we did not.
    pub(crate) fn marker(&self) -> Option<&Marker> {
        self.plugins.iter().find_map(|plugin| plugin.marker.as_ref())
    }

    /// The entries that are not of our type.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &'a str> {
        self.plugins.iter().filter(|plugin| !plugin.ours).map(|plugin| plugin.raw.get())
    }

    /// The text without entries of our type and without what we changed for them.
    pub(crate) fn pristine(&self) -> Result<String, ConflistError> {
        let mut edits = vec![(self.inner.clone(), self.inner_with(None)?)];
        if let Some(was) = self.marker().and_then(|marker| marker.version_was.as_deref()) {
            edits.extend(self.version_back(was));
        }
        Ok(apply(self.text, edits))
    }

    /// Of a list that was made of a single configuration: that configuration, with
    /// the white space around it.
    pub(crate) fn unwrapped(&self) -> Result<String, ConflistError> {
        self.inner_with(None)
    }

    /// The text with `entry` as the last plugin. `self` must be pristine.
    pub(crate) fn chained(
        &self,
        entry: &PluginEntry,
        mut marker: Marker,
    ) -> Result<String, ConflistError> {
        let mut edits = Vec::new();
        if let Some(version) = chain_version(self.version.and_then(string).as_deref())? {
            let (place, was) = match self.version {
                Some(raw) => (range(self.text, raw.get()), raw.get()),
                None => (self.opening(), ""),
            };
            let text = if was.is_empty() { absent(version) } else { quoted(version) };
            edits.push((place, text));
            marker.version_was = Some(was.to_owned());
        }
        edits.push((self.inner.clone(), self.inner_with(Some((entry, &marker)))?));
        Ok(apply(self.text, edits))
    }

    /// The content of `plugins` without ours, and with `entry` at the end.
    fn inner_with(&self, entry: Option<(&PluginEntry, &Marker)>) -> Result<String, ConflistError> {
        let places: Vec<Range<usize>> =
            self.plugins.iter().map(|plugin| range(self.text, plugin.raw.get())).collect();
        let mut out = String::new();
        // What comes before each entry: white space, and after the first a comma.
        let mut from = self.inner.start;
        let mut first = None;
        let mut space = "";
        for (plugin, place) in self.plugins.iter().zip(&places) {
            let before = &self.text[from..place.start];
            let lead = *first.get_or_insert(before);
            from = place.end;
            if plugin.ours {
                continue;
            }
            space = if out.is_empty() { lead } else { before };
            out.push_str(space);
            out.push_str(plugin.raw.get());
        }
        if out.is_empty() {
            return Err(ConflistError::OnlyOurs);
        }
        if let Some((entry, marker)) = entry {
            let space = space.rsplit(',').next().unwrap_or_default();
            out.push(',');
            out.push_str(&self.laid_out(space, entry, marker));
        }
        out.push_str(&self.text[from..self.inner.end]);
        Ok(out)
    }

    /// Our entry as its neighbours are laid out.
    fn laid_out(&self, space: &str, entry: &PluginEntry, marker: &Marker) -> String {
        let lines = if space.contains('\n') {
            space
        } else if self.text.trim_end().contains('\n') {
            "\n    "
        } else {
            return format!("{space}{}", entry.compact(marker));
        };
        let indent = lines.rsplit('\n').next().unwrap_or_default();
        format!("{lines}{}", entry.pretty(marker).replace('\n', &format!("\n{indent}")))
    }

    /// Just behind the list's opening brace.
    fn opening(&self) -> Range<usize> {
        let at = self.text.find('{').map_or(0, |at| at + 1);
        at..at
    }

    /// The edit that takes back a version of ours, when it still stands there.
    fn version_back(&self, was: &str) -> Option<(Range<usize>, String)> {
        if was.is_empty() {
            let ours = absent(OLDEST_CHAINED);
            let at = self.opening().start;
            let there = self.text[at..].starts_with(&ours);
            return there.then(|| (at..at + ours.len(), String::new()));
        }
        let raw = self.version?;
        let there = string(raw).as_deref() == Some(OLDEST_CHAINED);
        there.then(|| (range(self.text, raw.get()), was.to_owned()))
    }
}

impl<'a> Plugin<'a> {
    fn parse(raw: &'a RawValue) -> Result<Self, ConflistError> {
        let object = Object::parse(raw.get())?;
        let kind = object.get("type").and_then(string).filter(|kind| !kind.is_empty());
        let ours = kind.ok_or(ConflistError::Missing("type of a plugin"))? == TYPE;
        let marker = if ours { object.get(Marker::KEY) } else { None };
        // A marker that somebody changed is none.
        let marker = marker.and_then(|raw| serde_json::from_str(raw.get()).ok());
        Ok(Self { raw, ours, marker })
    }
}

/// A single configuration (`.conf`, or `.json` as runtimes take it).
#[derive(Debug)]
pub(crate) struct Conf<'a> {
    text: &'a str,
    name: String,
    kind: String,
    version: Option<String>,
}

impl<'a> Conf<'a> {
    /// Reads a configuration as libcni does: it needs a type, nothing else.
    pub(crate) fn parse(text: &'a str) -> Result<Self, ConflistError> {
        let object = Object::parse(text)?;
        let kind = object
            .get("type")
            .and_then(string)
            .filter(|kind| !kind.is_empty())
            .ok_or(ConflistError::Missing("type"))?;
        let version = match object.get("cniVersion") {
            None => None,
            Some(raw) => Some(string(raw).ok_or(ConflistError::Type("cniVersion", "a string"))?),
        };
        let name = object.get("name").and_then(string).filter(|name| !name.is_empty());
        Ok(Self { text, name: name.unwrap_or_else(|| FALLBACK_NAME.to_owned()), kind, version })
    }

    /// The network's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True when the configuration is our plugin alone.
    pub(crate) fn is_ours(&self) -> bool {
        self.kind == TYPE
    }

    /// The list that a runtime would make of it, the text whole inside: its
    /// `cniVersion` and `name` there are overridden by the list's.
    pub(crate) fn wrapped(&self) -> Result<String, ConflistError> {
        let raised = chain_version(self.version.as_deref())?;
        let version = raised.or(self.version.as_deref()).unwrap_or(OLDEST_CHAINED);
        Ok(format!(
            "{{\n  \"cniVersion\": {},\n  \"name\": {},\n  \"plugins\": [{}]\n}}\n",
            quoted(version),
            quoted(&self.name),
            self.text,
        ))
    }
}

/// The version that a chain must have instead of `version`; `None` when that is fine.
fn chain_version(version: Option<&str>) -> Result<Option<&'static str>, ConflistError> {
    match version.unwrap_or_default() {
        "" | "0.1.0" | "0.2.0" => Ok(Some(OLDEST_CHAINED)),
        known if Version::ALL.iter().any(|v| v.as_str() == known) => Ok(None),
        other => Err(ConflistError::Version(other.to_owned())),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What is put behind the opening brace of a list that has no version.
fn absent(version: &str) -> String {
    format!("\"cniVersion\": {}, ", quoted(version))
}

/// Applies edits, which do not overlap, to a text.
fn apply(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(place, _)| place.start);
    let mut out = String::with_capacity(text.len() + 1024);
    let mut from = 0;
    for (place, new) in edits {
        out.push_str(&text[from..place.start]);
        out.push_str(&new);
        from = place.end;
    }
    out.push_str(&text[from..]);
    out
}

#[cfg(test)]
mod tests;
