//! Which iptables to use (reference 3.8).
//!
//! An image may hold two: one that writes to ip_tables (legacy) and one that
//! writes to nf_tables, each usable or not with the kernel at hand. The probe
//! writes a rule, so it runs once, at start, in a namespace made for it. What
//! differs from pod to pod is only whether legacy rules are there already, which
//! the kernel tells without a program being run.

use super::tool::{Tool, Variant, Version, legacy_tables, sibling};
use crate::netns::{Netns, NetnsError, within};
use crate::process::{Command, Output, ProcessError};
use redirect::net::Family;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to look for tools, and which kind is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Directories, first match wins.
    pub dirs: Vec<PathBuf>,
    /// `FORCE_IPTABLES_BINARY`: this kind or an error.
    pub force: Option<Variant>,
}

impl Default for Search {
    fn default() -> Self {
        let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        Self { dirs: dirs.map(PathBuf::from).to_vec(), force: None }
    }
}

/// Why no iptables can be used.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// No namespace could be made for the probe.
    #[error("netns for the iptables probe")]
    Netns(#[from] NetnsError),
    /// A value of FORCE_IPTABLES_BINARY.
    #[error("iptables binary \"{0}\" unsupported: want \"legacy\" or \"nft\"")]
    Unsupported(String),
    /// No candidate works.
    #[error("no usable {tool}: {}", .tried.join("; "))]
    Nothing {
        /// `iptables` or `ip6tables`.
        tool: &'static str,
        /// Each candidate with why not.
        tried: Vec<String>,
    },
}

impl FromStr for Variant {
    type Err = DetectError;

    /// Reads a value of FORCE_IPTABLES_BINARY.
    fn from_str(text: &str) -> Result<Self, DetectError> {
        match text {
            "legacy" => Ok(Self::Legacy),
            "nft" => Ok(Self::Nft),
            other => Err(DetectError::Unsupported(other.to_owned())),
        }
    }
}

/// Tools of both families.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) v4: FamilyTools,
    /// The error says why not, in words.
    pub(super) v6: Result<FamilyTools, String>,
}

/// Tools of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FamilyTools {
    /// Used unless the namespace has legacy rules.
    pub(super) default: Tool,
    /// Used when it has; `None` where another kind was asked for.
    pub(super) legacy: Option<Tool>,
}

impl FamilyTools {
    /// The tool for the calling thread's namespace.
    pub(super) fn choose(&self) -> &Tool {
        match &self.legacy {
            // Not known (no /proc) counts as none: nft is what reference 3.8
            // falls back to.
            Some(legacy) if legacy_tables(legacy.family).unwrap_or(false) => legacy,
            _ => &self.default,
        }
    }

    /// All tools, one a kernel interface.
    pub(super) fn all(&self) -> impl Iterator<Item = &Tool> {
        let legacy = self.legacy.as_ref();
        let other = legacy.filter(|legacy| legacy.variant != self.default.variant);
        std::iter::once(&self.default).chain(other)
    }
}

/// Finds the tools, in a namespace made for it.
pub(super) fn detect(search: &Search) -> Result<Tools, DetectError> {
    let scratch = Netns::create()?;
    within(&scratch, || {
        let v4 = family_tools(search, Family::V4)?;
        let v6 = family_tools(search, Family::V6).map_err(|error| error.to_string());
        Ok(Tools { v4, v6 })
    })?
}

/// A usable candidate.
struct Candidate {
    tool: Tool,
    has_rules: bool,
}

pub(super) fn family_tools(search: &Search, family: Family) -> Result<FamilyTools, DetectError> {
    let name = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let mut tried = Vec::new();
    let mut attempt = |suffix: &str| {
        let name = format!("{name}{suffix}");
        let candidate = probe(search, family, &name);
        candidate.map_err(|why| tried.push(format!("{name}: {why}"))).ok()
    };
    let found = match search.force {
        Some(Variant::Legacy) => attempt("-legacy").map(|found| (found.tool, None)),
        Some(Variant::Nft) => attempt("-nft").map(|found| (found.tool, None)),
        None => {
            let legacy = attempt("-legacy");
            let prefer_legacy = legacy.as_ref().is_some_and(|found| found.has_rules);
            let legacy = legacy.map(|found| found.tool);
            let default = match &legacy {
                Some(tool) if prefer_legacy => Some(tool.clone()),
                _ => attempt("-nft").or_else(|| attempt("")).map(|found| found.tool),
            };
            default.map(|default| (default, legacy))
        }
    };
    match found {
        Some((default, legacy)) => Ok(FamilyTools { default, legacy }),
        None => Err(DetectError::Nothing { tool: name, tried }),
    }
}

/// Tries one candidate; the error says why it cannot be used.
fn probe(search: &Search, family: Family, name: &str) -> Result<Candidate, String> {
    let base = search
        .dirs
        .iter()
        .map(|dir| dir.join(name))
        .find(|base| sibling(base, "-save").exists())
        .ok_or_else(|| "not installed".to_owned())?;
    let save = sibling(&base, "-save");
    let saved = Command::new(&save).run().map_err(one_line)?;
    let (variant, version) = identify(Command::new(&save).arg("--version").run())?;
    let tool = Tool { base, family, variant, version };
    let rule = |flag| ["-t", "nat", flag, "INPUT", "-p", "255", "-j", "RETURN"];
    let added = tool.writing(Command::new(&tool.base).args(rule("-A"))).run().map_err(one_line)?;
    if added.stderr.contains("does not exist") {
        return Err(added.stderr);
    }
    tool.writing(Command::new(&tool.base).args(rule("-D"))).run().map_err(one_line)?;
    // A table that holds nothing takes three lines.
    let has_rules = saved.stdout.iter().filter(|byte| **byte == b'\n').count() >= 3;
    Ok(Candidate { tool, has_rules })
}

/// Kind and version from the answer to `--version`, which `-save` programs before
/// 1.6.1 do not know.
fn identify(answer: Result<Output, ProcessError>) -> Result<(Variant, Version), String> {
    let output = match answer {
        Ok(output) if !output.stderr.contains("unrecognized option") => output,
        Ok(_) | Err(ProcessError::Failed { .. }) => {
            return Ok((Variant::Legacy, Version([0, 0, 0])));
        }
        Err(error) => return Err(one_line(error)),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = Version::find(&text).ok_or_else(|| format!("no version in '{}'", text.trim()))?;
    let variant = if text.contains("nf_tables") { Variant::Nft } else { Variant::Legacy };
    Ok((variant, version))
}

/// An error and its causes in one line.
fn one_line(error: ProcessError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}
