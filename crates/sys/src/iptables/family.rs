//! One family in the calling thread's namespace: looked at, written, taken back.

use super::detect::FamilyTools;
use super::diff;
use super::saved::Saved;
use super::tool::Tool;
use super::wanted::Wanted;
use super::{Error, ROUNDS};
use crate::backend::{BackendError, Diff};
use crate::routing;
use redirect::desired::{Desired, Routing};

/// What a family holds, and what it should.
pub(super) struct Look<'a> {
    pub(super) tool: &'a Tool,
    saved: Saved,
    wanted: Wanted,
    also: Option<Wanted>,
    /// Something of ours was there.
    pub(super) had_ours: bool,
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Somebody else changed the namespace since it was looked at. What is there
    /// is theirs and stays; look again.
    Overtaken(Error),
    /// Anything else. Nothing of the attempt is left.
    Final(BackendError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error.into())
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Final(error)
    }
}

impl<'a> Look<'a> {
    pub(super) fn take(
        tools: &'a FamilyTools,
        want: &Desired,
        also: Option<&Desired>,
    ) -> Result<Self, Error> {
        let tool = tools.choose();
        let wanted = Wanted::of(want, tool.family);
        let also = also.map(|also| Wanted::of(also, tool.family));
        let saved = read(tool)?;
        for table in &wanted.tables {
            if let Some(note) = saved.incompatible.get(table.name) {
                return Err(Error::Incompatible { note: note.clone() });
            }
        }
        let had_ours = saved.has_ours();
        Ok(Self { tool, saved, wanted, also, had_ours })
    }

    pub(super) fn diff(&self) -> Diff {
        diff::diff(&self.saved, &self.wanted, self.tool.family)
    }

    pub(super) fn holds_wanted(&self) -> bool {
        self.diff().is_empty()
    }

    pub(super) fn holds_also(&self) -> bool {
        let holds = |also| diff::diff(&self.saved, also, self.tool.family).is_empty();
        self.also.as_ref().is_some_and(holds)
    }

    /// True when the table that was refused is not as it was looked at: a table is
    /// written whole or not at all, so it was somebody else.
    fn was_overtaken(&self, error: &Error) -> bool {
        overtaken(self.tool, &self.saved, error)
    }
}

fn overtaken(tool: &Tool, saved: &Saved, error: &Error) -> bool {
    let Error::Restore { table, .. } = error else { return false };
    let Ok(now) = read(tool) else { return false };
    now.content(table) != saved.content(table)
}

/// What is loaded; nothing is run where the kernel says that there is nothing.
fn read(tool: &Tool) -> Result<Saved, Error> {
    if tool.is_bare() {
        return Ok(Saved::default());
    }
    tool.save()
}

/// Writes what differs; true when something was written.
pub(super) fn write(looks: &[Look<'_>]) -> Result<bool, Failure> {
    let mut wrote = false;
    for (at, look) in looks.iter().enumerate() {
        let text = diff::rewrite(&look.saved, &look.wanted, look.also.as_ref());
        if text.is_empty() {
            continue;
        }
        match look.tool.restore(&text) {
            Ok(()) => wrote = true,
            Err(error) if look.was_overtaken(&error) => return Err(Failure::Overtaken(error)),
            Err(error) => return Err(take_back(&looks[..=at], None, error.into()).into()),
        }
    }
    Ok(wrote)
}

/// Removes everything of ours that a tool can see; true when there was something.
pub(super) fn clean(tool: &Tool) -> Result<bool, Error> {
    let mut rounds = 1;
    loop {
        let saved = read(tool)?;
        let text = diff::rewrite(&saved, &Wanted::default(), None);
        if text.is_empty() {
            return Ok(false);
        }
        match tool.restore(&text) {
            Ok(()) => return Ok(true),
            Err(error) if rounds < ROUNDS && overtaken(tool, &saved, &error) => rounds += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes the families that did not exist before this attempt, and `routing`
/// when none did; returns the attempt's error with what went wrong meanwhile.
pub(super) fn take_back(
    looks: &[Look<'_>],
    routing: Option<&Routing>,
    cause: BackendError,
) -> BackendError {
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
