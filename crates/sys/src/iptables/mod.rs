//! The iptables backend: one execution of `iptables-restore` a family, for
//! machines without nf_tables or where it is asked for.
//!
//! A family is looked at first, without running anything where the kernel says
//! that there is no table yet, and by one `iptables-save` otherwise. What is
//! loaded is compared rule by rule ([`spec`]), not as text; nothing is written
//! when it is as wanted. What has to change goes through one `iptables-restore`
//! whose unit of atomicity is the table ([`diff::rewrite`]).
//!
//! Both families are looked at before either is written. When the second cannot
//! be written, or routing fails, the families that this call created are removed
//! again: nothing is half captured. `iptables-restore --test` in front would not
//! help: it does not ask the kernel, which is who refuses. A family that was there
//! before and was rewritten stays: it holds what is wanted, and the error says that
//! the other does not; taking rules from a running pod would let traffic escape.
//!
//! [`saved::SavedTable::ours`] says which rules are ours. [`detect`] owns which of
//! the installed tools is used, [`tool`] how it is run, [`userns`] pods with a user
//! namespace.

mod detect;
mod diff;
mod saved;
mod spec;
mod tool;
mod userns;
mod wanted;

pub use detect::{DetectError, Search};
pub use tool::{Tool, Variant, Version};

use crate::backend::{Applied, Backend, BackendError, BackendKind, Diff};
use crate::process::ProcessError;
use crate::routing;
use detect::{FamilyTools, Tools};
use nix::errno::Errno;
use redirect::desired::{Desired, Is, Match, Routing};
use redirect::net::{Family, Owner};
use saved::Saved;
use wanted::Wanted;

/// Why rules could not be read or written by iptables.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// IPv6 is wanted, and there is no ip6tables that works.
    #[error("IPv6 rules are wanted: {why}")]
    NoIpv6Tool {
        /// What was tried.
        why: String,
    },
    /// A program could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Rules were not taken.
    #[error("load {} rules{}", family_name(*.family), at_line(.line))]
    Restore {
        /// Family of the rules.
        family: Family,
        /// The line that was refused, when the tool named one.
        line: String,
        /// How the tool ended.
        source: ProcessError,
    },
    /// The output of iptables-save has a line that is none.
    #[error("iptables-save printed '{line}', which is no table, chain or rule")]
    Unreadable {
        /// The line.
        line: String,
    },
    /// A table that another tool made, which iptables cannot write.
    #[error("nf_tables table that iptables cannot handle: {note}; use the nftables backend")]
    Incompatible {
        /// What iptables-save says.
        note: String,
    },
    /// The user namespace of the pod could not be found.
    #[error("{what}")]
    UserNamespace {
        /// The step.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// Writing failed, and so did taking back what had been written.
    #[error("take back the rules of a failed attempt ({undo})")]
    HalfDone {
        /// Why the attempt failed.
        #[source]
        cause: Box<BackendError>,
        /// Why it could not be taken back.
        undo: String,
    },
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn at_line(line: &str) -> String {
    if line.is_empty() { String::new() } else { format!(" at '{line}'") }
}

impl Error {
    /// True when the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Process(error) | Self::Restore { source: error, .. } => match error {
                ProcessError::TimedOut { .. } => true,
                ProcessError::Failed { stderr, .. } => stderr.contains("xtables lock"),
                _ => false,
            },
            Self::HalfDone { cause, .. } => cause.is_transient(),
            _ => false,
        }
    }
}

/// The backend. Cheap to share; it holds no descriptor and no namespace.
#[derive(Debug)]
pub struct Iptables {
    tools: Tools,
}

/// One family in the calling thread's namespace.
struct Look<'a> {
    tool: &'a Tool,
    family: Family,
    saved: Saved,
    wanted: Wanted,
    also: Option<Wanted>,
    /// Something of ours was there.
    had_ours: bool,
}

impl Iptables {
    /// [`Self::detect_with`] in the usual directories, any kind.
    ///
    /// # Errors
    /// As there.
    pub fn detect() -> Result<Self, DetectError> {
        Self::detect_with(&Search::default())
    }

    /// Finds the installed tools and tries them in a namespace made for it; takes
    /// some 50 ms, so once a process.
    ///
    /// # Errors
    /// When there is none for IPv4 that works. Without one for IPv6 only those
    /// namespaces fail that want IPv6.
    pub fn detect_with(search: &Search) -> Result<Self, DetectError> {
        let tools = detect::detect(search)?;
        Ok(Self { tools })
    }

    /// The tools, for people: those for namespaces without legacy rules.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.tools.v6 {
            Ok(v6) => format!("{}, {}", self.tools.v4.default, v6.default),
            Err(why) => format!("{}; no IPv6: {why}", self.tools.v4.default),
        }
    }

    fn tools(&self, family: Family) -> Option<&FamilyTools> {
        match family {
            Family::V4 => Some(&self.tools.v4),
            Family::V6 => self.tools.v6.as_ref().ok(),
        }
    }

    /// Looks at both families. IPv6 is looked at, and cleaned, when it is not
    /// wanted too: an earlier generation may have wanted it.
    fn look(&self, want: &Desired, also: Option<&Desired>) -> Result<Vec<Look<'_>>, Error> {
        let mut looks = Vec::with_capacity(2);
        for family in [Family::V4, Family::V6] {
            let tools = match (family, &self.tools.v6) {
                (Family::V4, _) => &self.tools.v4,
                (Family::V6, Ok(tools)) => tools,
                (Family::V6, Err(why)) if want.ipv6 => {
                    let why = why.clone();
                    return Err(Error::NoIpv6Tool { why });
                }
                (Family::V6, Err(_)) => continue,
            };
            let tool = tools.choose();
            let wanted = Wanted::of(want, family);
            let also = also.map(|also| Wanted::of(also, family));
            let saved = read(tool)?;
            for table in &wanted.tables {
                if let Some(note) = saved.incompatible.get(table.name) {
                    let note = note.clone();
                    return Err(Error::Incompatible { note });
                }
            }
            let forms: Vec<&Wanted> = std::iter::once(&wanted).chain(also.as_ref()).collect();
            looks.push(Look {
                tool,
                family,
                had_ours: saved.has_ours(&forms),
                saved,
                wanted,
                also,
            });
        }
        Ok(looks)
    }

    /// Writes what differs; true when something was written.
    fn write(looks: &[Look<'_>]) -> Result<bool, BackendError> {
        let mut wrote = false;
        for (at, look) in looks.iter().enumerate() {
            let text = look.rewrite();
            if text.is_empty() {
                continue;
            }
            if let Err(error) = look.tool.restore(&text) {
                return Err(take_back(&looks[..=at], None, error.into()));
            }
            wrote = true;
        }
        Ok(wrote)
    }

    /// Removes what the tool that is not used here left in its own tables: both
    /// kinds of tables are in effect at once.
    fn sweep(&self, looks: &[Look<'_>]) -> Result<bool, BackendError> {
        let mut wrote = false;
        for look in looks {
            let tools = self.tools(look.family);
            let others = tools.into_iter().flat_map(FamilyTools::all);
            for other in others.filter(|other| other.variant != look.tool.variant) {
                wrote |= clean(other)?;
            }
        }
        Ok(wrote)
    }
}

impl Look<'_> {
    fn holds(&self, form: &Wanted) -> bool {
        diff::diff(&self.saved, form, None, self.family).is_empty()
    }

    fn rewrite(&self) -> String {
        diff::rewrite(&self.saved, &self.wanted, self.also.as_ref())
    }
}

/// What is loaded; nothing is run where the kernel says that there is nothing.
fn read(tool: &Tool) -> Result<Saved, Error> {
    if tool.is_bare() {
        return Ok(Saved::default());
    }
    tool.save()
}

/// Removes everything of ours that a tool can see; true when there was something.
fn clean(tool: &Tool) -> Result<bool, Error> {
    let text = diff::rewrite(&read(tool)?, &Wanted::default(), None);
    if text.is_empty() {
        return Ok(false);
    }
    tool.restore(&text)?;
    Ok(true)
}

/// Removes the families that did not exist before this attempt, and `routing`
/// when none did; returns the attempt's error with what went wrong meanwhile.
fn take_back(looks: &[Look<'_>], routing: Option<&Routing>, cause: BackendError) -> BackendError {
    let mut undone: Vec<BackendError> = Vec::new();
    for look in looks.iter().filter(|look| !look.had_ours) {
        undone.extend(clean(look.tool).err().map(BackendError::from));
    }
    if let Some(routing) = routing.filter(|_| looks.iter().all(|look| !look.had_ours)) {
        undone.extend(routing::remove(routing).err().into_iter().flatten());
    }
    if undone.is_empty() {
        return cause;
    }
    let undo: Vec<String> = undone.iter().map(ToString::to_string).collect();
    BackendError::Iptables(Error::HalfDone { cause: Box::new(cause), undo: undo.join("; ") })
}

/// What an earlier plan may have added and this one does not want: a mark that
/// nobody sets any more would still be delivered locally.
fn stale(want: &Routing) -> Routing {
    let mut stale = routing::everything();
    stale.loopback.retain(|cidr| !want.loopback.contains(cidr));
    stale.marks.retain(|mark| !want.marks.contains(mark));
    stale
}

/// A name would be looked up by the tool, in the agent's user database and not in
/// the pod's.
fn refuse_names(desired: &Desired) -> Result<(), BackendError> {
    let rules = desired.tables.iter().flat_map(|table| &table.chains);
    let matches = rules.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.matches);
    for condition in matches {
        if let Match::Uid(is) | Match::Gid(is) = condition
            && let Is::Eq(Owner::Name(name)) | Is::Not(Owner::Name(name)) = is
        {
            return Err(BackendError::OwnerName { name: name.clone() });
        }
    }
    Ok(())
}

impl Backend for Iptables {
    fn kind(&self) -> BackendKind {
        BackendKind::Iptables
    }

    fn apply(&self, want: &Desired, also: Option<&Desired>) -> Result<Applied, BackendError> {
        refuse_names(want)?;
        let looks = self.look(want, also)?;
        let holds = looks.iter().all(|look| look.holds(&look.wanted))
            || looks.iter().all(|look| look.also.as_ref().is_some_and(|also| look.holds(also)));
        let mut wrote = !holds && Self::write(&looks)?;
        let had_ours = looks.iter().any(|look| look.had_ours);
        if wrote
            && had_ours
            && let Err(errors) = routing::remove(&stale(&want.routing))
            && let Some(error) = errors.into_iter().next()
        {
            return Err(error);
        }
        wrote |= match routing::ensure(&want.routing) {
            Ok(changed) => changed,
            Err(error) => return Err(take_back(&looks, Some(&want.routing), error)),
        };
        // New rules first, then the old ones of the other kind.
        let swept = self.sweep(&looks)?;
        Ok(match (wrote || swept, had_ours || swept) {
            (false, _) => Applied::Unchanged,
            (true, false) => Applied::Created,
            (true, true) => Applied::Replaced,
        })
    }

    fn observe(&self, want: &Desired) -> Result<Diff, BackendError> {
        let mut all = Diff::default();
        for look in self.look(want, None)? {
            let found = diff::diff(&look.saved, &look.wanted, None, look.family);
            all.missing.extend(found.missing);
            all.unexpected.extend(found.unexpected);
            all.misplaced.extend(found.misplaced);
        }
        all.missing.extend(routing::missing(&want.routing)?);
        Ok(all)
    }

    fn remove(&self) -> Result<(), Vec<BackendError>> {
        let mut errors: Vec<BackendError> = Vec::new();
        for family in [Family::V4, Family::V6] {
            let tools = self.tools(family).into_iter().flat_map(FamilyTools::all);
            for tool in tools {
                if let Err(error) = clean(tool) {
                    errors.push(error.into());
                }
            }
        }
        if let Err(more) = routing::remove(&routing::everything()) {
            errors.extend(more);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests;
