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
mod error;
mod family;
mod saved;
mod spec;
mod tool;
pub(crate) mod userns;
mod wanted;

pub use detect::{DetectError, Search};
pub use error::Error;
pub use tool::{Tool, Variant, Version};

use crate::backend::{Applied, Backend, BackendError, BackendKind, Diff};
use crate::routing;
use detect::{FamilyTools, Tools};
use family::{Failure, Look};
use redirect::desired::{Desired, Is, Match};
use redirect::net::{Family, Owner};

/// Somebody else writes the same namespace at the same time; after this many
/// rounds it is an error.
const ROUNDS: u32 = 4;

/// The backend. Cheap to share; it holds no descriptor and no namespace.
#[derive(Debug)]
pub struct Iptables {
    tools: Tools,
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

    /// The tool for a family's rules in the calling thread's namespace, and then the
    /// other ones whose rules may be there.
    pub(crate) fn host_tools(&self, family: Family) -> Vec<&Tool> {
        let Some(tools) = self.tools(family) else { return Vec::new() };
        let chosen = tools.choose();
        let others = tools.all().filter(|tool| tool.variant != chosen.variant);
        std::iter::once(chosen).chain(others).collect()
    }

    /// Looks at both families. IPv6 is looked at, and cleaned, when it is not
    /// wanted too: an earlier generation may have wanted it.
    fn look(&self, want: &Desired, also: Option<&Desired>) -> Result<Vec<Look<'_>>, Error> {
        let mut looks = vec![Look::take(&self.tools.v4, want, also)?];
        match &self.tools.v6 {
            Ok(tools) => match Look::take(tools, want, also) {
                Ok(look) => looks.push(look),
                Err(error) if want.ipv6 => return Err(error),
                // Tables of somebody else that cannot be read are no reason to
                // refuse a pod that has no IPv6.
                Err(_) => (),
            },
            Err(why) if want.ipv6 => return Err(Error::NoIpv6Tool { why: why.clone() }),
            Err(_) => (),
        }
        Ok(looks)
    }

    fn attempt(&self, want: &Desired, also: Option<&Desired>) -> Result<Applied, Failure> {
        let looks = self.look(want, also)?;
        let holds = looks.iter().all(Look::holds_wanted) || looks.iter().all(Look::holds_also);
        let mut wrote = !holds && family::write(&looks)?;
        let had_ours = looks.iter().any(|look| look.had_ours);
        if wrote
            && had_ours
            && let Err(errors) = routing::remove(&routing::stale(&want.routing))
            && let Some(error) = errors.into_iter().next()
        {
            return Err(error.into());
        }
        wrote |= match routing::ensure(&want.routing) {
            Ok(changed) => changed,
            Err(error) => {
                return Err(family::take_back(&looks, Some(&want.routing), error).into());
            }
        };
        // New rules first, then the old ones of the other kind.
        let swept = match self.sweep(&looks) {
            Ok(swept) => swept,
            Err(error) => {
                return Err(family::take_back(&looks, Some(&want.routing), error.into()).into());
            }
        };
        Ok(match (wrote || swept, had_ours || swept) {
            (false, _) => Applied::Unchanged,
            (true, false) => Applied::Created,
            (true, true) => Applied::Replaced,
        })
    }

    /// Removes what the tool that is not used here left in its own tables: both
    /// kinds of tables are in effect at once.
    fn sweep(&self, looks: &[Look<'_>]) -> Result<bool, Error> {
        let mut wrote = false;
        for look in looks {
            let tools = self.tools(look.tool.family);
            let others = tools.into_iter().flat_map(FamilyTools::all);
            for other in others.filter(|other| other.variant != look.tool.variant) {
                wrote |= family::clean(other)?;
            }
        }
        Ok(wrote)
    }
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
        let mut rounds = 1;
        loop {
            match self.attempt(want, also) {
                Ok(applied) => return Ok(applied),
                Err(Failure::Overtaken(_)) if rounds < ROUNDS => rounds += 1,
                Err(Failure::Overtaken(error)) => return Err(error.into()),
                Err(Failure::Final(error)) => return Err(error),
            }
        }
    }

    fn observe(&self, want: &Desired) -> Result<Diff, BackendError> {
        let mut all = Diff::default();
        for look in self.look(want, None)? {
            let found = look.diff();
            all.missing.extend(found.missing);
            all.unexpected.extend(found.unexpected);
            all.misplaced.extend(found.misplaced);
        }
        all.missing.extend(routing::missing(&want.routing)?);
        Ok(all)
    }

    fn remove_rules(&self) -> Result<(), Vec<BackendError>> {
        let mut errors: Vec<BackendError> = Vec::new();
        for family in [Family::V4, Family::V6] {
            let tools = self.tools(family).into_iter().flat_map(FamilyTools::all);
            for tool in tools {
                if let Err(error) = family::clean(tool) {
                    errors.push(error.into());
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests;
