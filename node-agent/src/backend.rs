//! Which backend programs this node's pods, and what it does with a pod that the
//! other one programmed before.

use crate::failure::causes;
use redirect::ambient::AmbientPlan;
use redirect::compile::{ambient, compile};
use redirect::desired::{Desired, Dialect, Form, Routing, RuleSet};
use redirect::net::Family;
use redirect::plan::Plan;
use std::sync::{Arc, OnceLock};
use sys::backend::{Applied, Backend, BackendError, BackendKind, Diff, clear, convert};
use sys::conntrack::{Queries, flush_dns};
use sys::hostprobe::Programmer;
use sys::iptables::{DetectError, Iptables, Search};
use sys::nftables::{self, Nftables, iptables_residue, legacy_tables, remove_compat};
use sys::probe::{ScratchError, scratch};

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// nftables if it works here, else iptables.
    Auto,
    /// nftables or nothing.
    Nftables,
    /// iptables or nothing.
    Iptables,
}

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChoiceError {
    /// The one that was asked for does not work.
    #[error("backend {kind} does not work on this node: {why}")]
    Unusable {
        /// Which one.
        kind: BackendKind,
        /// What failed, on one line.
        why: String,
    },
    /// None does.
    #[error("no backend works on this node: nftables: {nftables}; iptables: {iptables}")]
    Nothing {
        /// Why not nftables.
        nftables: String,
        /// Why not iptables.
        iptables: String,
    },
}

/// The node's backend.
#[derive(Debug)]
pub(crate) struct NodeBackend {
    kind: BackendKind,
    nftables: Nftables,
    /// Looking for the tools takes about 100 ms: on first need.
    iptables: OnceLock<Result<Arc<Iptables>, DetectError>>,
    search: Search,
}

/// Intent that rules are made of.
pub(crate) trait Rules {
    /// The rules of a form.
    fn rules(&self, form: Form) -> Desired;

    /// Istio's own rules for it do as well as ours, and are left where they are.
    fn takes_istios(&self) -> bool;
}

impl Rules for Plan {
    fn rules(&self, form: Form) -> Desired {
        compile(self, form)
    }

    fn takes_istios(&self) -> bool {
        true
    }
}

impl Rules for AmbientPlan {
    fn rules(&self, form: Form) -> Desired {
        ambient(self, form)
    }

    /// They let kubelet's address pass to any port, and redirect a running connection
    /// that conntrack has forgotten.
    fn takes_istios(&self) -> bool {
        false
    }
}

/// What was done to a namespace.
#[derive(Debug)]
pub(crate) struct Programmed {
    /// Whose rules hold there.
    pub(crate) kind: BackendKind,
    /// What was written.
    pub(crate) applied: Applied,
    /// Why it is another backend than the node's, or what was converted.
    pub(crate) note: Option<&'static str>,
}

impl NodeBackend {
    /// Chooses, and proves the choice by sending a connection through it.
    ///
    /// # Errors
    ///
    /// When what was asked for, or everything, does not work.
    pub(crate) fn choose(choice: Choice, search: &Search) -> Result<Self, ChoiceError> {
        let with = |kind| Self::unproved(kind, search);
        let attempt = |kind| {
            let backend = with(kind);
            backend.prove().map(|()| backend)
        };
        let one = |kind| attempt(kind).map_err(|why| ChoiceError::Unusable { kind, why });
        match choice {
            Choice::Nftables => one(BackendKind::Nftables),
            Choice::Iptables => one(BackendKind::Iptables),
            Choice::Auto => match attempt(BackendKind::Nftables) {
                Ok(backend) => Ok(backend),
                Err(nftables) => match attempt(BackendKind::Iptables) {
                    Ok(backend) => {
                        tracing::warn!(
                            reason = nftables,
                            "nftables does not work on this node, iptables does"
                        );
                        Ok(backend)
                    }
                    Err(iptables) => Err(ChoiceError::Nothing { nftables, iptables }),
                },
            },
        }
    }

    /// One of a kind, to look at what is there.
    pub(crate) fn unproved(kind: BackendKind, search: &Search) -> Self {
        let (nftables, iptables) = (Nftables::new(), OnceLock::new());
        Self { kind, nftables, iptables, search: search.clone() }
    }

    /// Which one it is.
    pub(crate) fn kind(&self) -> BackendKind {
        self.kind
    }

    /// The programs behind it, for people.
    pub(crate) fn describe(&self) -> String {
        match (self.kind, self.iptables.get()) {
            (BackendKind::Iptables, Some(Ok(iptables))) => iptables.describe(),
            (BackendKind::Iptables, _) => "iptables".to_owned(),
            (BackendKind::Nftables, _) => "nf_tables over netlink".to_owned(),
        }
    }

    /// Programs a scratch namespace and sends a connection through it.
    ///
    /// # Errors
    ///
    /// What failed, on one line.
    pub(crate) fn prove(&self) -> Result<(), String> {
        let proof =
            |backend: &dyn Backend| scratch(backend).map_err(|error: ScratchError| causes(&error));
        match self.kind {
            BackendKind::Nftables => proof(&self.nftables),
            BackendKind::Iptables => proof(self.iptables()?),
        }
    }

    /// What programs the host's rules for kubelet's probes.
    ///
    /// # Errors
    ///
    /// When iptables is wanted and not here; the text is one line.
    pub(crate) fn programmer(&self) -> Result<Programmer, String> {
        Ok(match self.kind {
            BackendKind::Nftables => Programmer::Nftables,
            BackendKind::Iptables => Programmer::Iptables(Arc::clone(self.tools()?)),
        })
    }

    fn iptables(&self) -> Result<&Iptables, String> {
        self.tools().map(Arc::as_ref)
    }

    /// The tools of iptables, whether they are the backend or not.
    ///
    /// # Errors
    ///
    /// When there are none; the text is one line.
    pub(crate) fn tools(&self) -> Result<&Arc<Iptables>, String> {
        self.iptables
            .get_or_init(|| Iptables::detect_with(&self.search).map(Arc::new))
            .as_ref()
            .map_err(|error| causes(error))
    }

    /// Makes a plan's rules hold in the calling thread's namespace.
    ///
    /// Where the other backend, or Istio with its tool, programmed the namespace
    /// before: rules of the same plan are left as they are, Istio's where they do as
    /// well ([`Rules::takes_istios`]). Others are converted:
    /// ours go in first, then theirs go, so that no connection finds none. (A
    /// TPROXY pod's routing is shared by both and missing for the moment between.)
    ///
    /// # Errors
    ///
    /// When the namespace cannot be programmed; the text is one line.
    pub(crate) fn program(&self, plan: &dyn Rules) -> Result<Programmed, String> {
        let want = plan.rules(Form::Sluice);
        let (own, other): (&dyn Backend, Option<&dyn Backend>) = match self.kind {
            BackendKind::Nftables => (&self.nftables, self.beside(want.set)?),
            BackendKind::Iptables => (self.iptables()?, self.nftables_in_use()),
        };
        let also = plan.takes_istios().then(|| plan.rules(Form::Istio(dialect(own.kind()))));
        let apply = || own.apply(&want, also.as_ref()).map_err(|error| causes(&error));
        let Some(other) = other else {
            let applied = apply()?;
            return Ok(Programmed { kind: own.kind(), applied, note: None });
        };
        if holds(other, plan).map_err(|error| causes(&error))? {
            let note = Some("rules of the same plan were there already and are left as they are");
            return Ok(Programmed { kind: other.kind(), applied: Applied::Unchanged, note });
        }
        convert(own, Some(other), &want)
            .map_err(|errors| format!("remove what {} left: {}", other.kind(), all(&errors)))?;
        let note = Some("rules that the other backend left were replaced");
        Ok(Programmed { kind: own.kind(), applied: Applied::Replaced, note })
    }

    /// How the calling thread's namespace differs from a plan; empty when the rules
    /// of a form of it hold that may stay.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked; the text is one line.
    pub(crate) fn observe(&self, plan: &dyn Rules) -> Result<Diff, String> {
        let own: &dyn Backend = match self.kind {
            BackendKind::Nftables => &self.nftables,
            BackendKind::Iptables => self.iptables()?,
        };
        let one_line = |error: BackendError| causes(&error);
        if holds(own, plan).map_err(one_line)? {
            return Ok(Diff::default());
        }
        let want = plan.rules(Form::Sluice);
        let other = match self.kind {
            BackendKind::Nftables => self.beside(want.set)?,
            BackendKind::Iptables => self.nftables_in_use(),
        };
        if let Some(other) = other
            && holds(other, plan).map_err(one_line)?
        {
            return Ok(Diff::default());
        }
        own.observe(&want).map_err(one_line)
    }

    /// Takes all rules of ours and of Istio's out of the calling thread's namespace,
    /// their routes, and what the kernel remembers of captured queries.
    ///
    /// # Errors
    ///
    /// When something is left; the text is one line.
    pub(crate) fn clear(&self) -> Result<(), String> {
        let (own, other): (&dyn Backend, Option<&dyn Backend>) = match self.kind {
            BackendKind::Nftables => {
                remove_compat().map_err(|error| causes(&error))?;
                (&self.nftables, self.iptables_in_use()?)
            }
            BackendKind::Iptables => (self.iptables()?, self.nftables_in_use()),
        };
        let backends: Vec<&dyn Backend> = std::iter::once(own).chain(other).collect();
        clear(&backends).map_err(|errors| all(&errors))?;
        flush_dns(Queries::Captured).map_err(|error| causes(&error))?;
        if self.is_bare()? {
            Ok(())
        } else {
            Err("rules are still in the namespace after they were removed".to_owned())
        }
    }

    /// True when the calling thread's namespace has no rules of ours or Istio's.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked; the text is one line.
    pub(crate) fn is_bare(&self) -> Result<bool, String> {
        if self.nftables_in_use().is_some() {
            return Ok(false);
        }
        let Some(iptables) = self.iptables_in_use()? else { return Ok(true) };
        let diff = iptables.observe(&Desired::default()).map_err(|error| causes(&error))?;
        Ok(diff.is_empty())
    }

    /// iptables, when the namespace has rules of it that nftables cannot replace: with
    /// those for ztunnel its own transaction takes out what iptables-nft wrote.
    fn beside(&self, set: RuleSet) -> Result<Option<&dyn Backend>, String> {
        if set == RuleSet::Ambient && legacy_tables().map_err(|error| causes(&error))?.is_empty() {
            return Ok(None);
        }
        self.iptables_in_use()
    }

    /// iptables, when the namespace has anything of it.
    fn iptables_in_use(&self) -> Result<Option<&dyn Backend>, String> {
        let residue = iptables_residue().map_err(|error| causes(&error))?;
        if residue.is_empty() {
            return Ok(None);
        }
        match self.iptables() {
            Ok(iptables) => Ok(Some(iptables)),
            // Chains of Istio's would go on capturing beside ours.
            Err(why) if !residue.nft_chains.is_empty() => Err(format!(
                "iptables rules are in the namespace ({}) and no iptables is here to look at them: {why}",
                residue.nft_chains.join(", ")
            )),
            Err(_) => Ok(None),
        }
    }

    /// nftables, when the namespace has tables of our names.
    fn nftables_in_use(&self) -> Option<&dyn Backend> {
        // A kernel without nf_tables cannot be asked, and has none.
        let diff = self.nftables.observe(&Desired::default()).ok()?;
        (!diff.is_empty()).then_some(&self.nftables as &dyn Backend)
    }
}

/// All errors on one line.
fn all(errors: &[BackendError]) -> String {
    errors.iter().map(|error| causes(error)).collect::<Vec<_>>().join("; ")
}

/// FNV-1a of the rules as text: tells one set of rules from another in a record,
/// the same in every build.
pub(crate) fn rules_hash(plan: &dyn Rules) -> String {
    let desired = plan.rules(Form::Sluice);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |text: &str| {
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for family in [Family::V4, Family::V6] {
        add(&redirect::iptables::render(&desired, family));
    }
    add(&format!("{:?}", desired.routing));
    format!("{hash:016x}")
}

/// A number that changes whenever rules of the calling thread's namespace are written.
/// `None` where that cannot be told: without nf_tables, and where legacy iptables has
/// tables, which nobody counts.
pub(crate) fn generation() -> Option<u32> {
    if !legacy_tables().ok()?.is_empty() {
        return None;
    }
    nftables::generation().ok()
}

/// The routing of a plan, the same in every form.
pub(crate) fn routing_of(plan: &dyn Rules) -> Routing {
    plan.rules(Form::Sluice).routing
}

/// True when a form of the plan that may stay holds in the backend's own dialect.
fn holds(backend: &dyn Backend, plan: &dyn Rules) -> Result<bool, BackendError> {
    let istios = plan.takes_istios().then(|| Form::Istio(dialect(backend.kind())));
    for form in std::iter::once(Form::Sluice).chain(istios) {
        if backend.observe(&plan.rules(form))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn dialect(kind: BackendKind) -> Dialect {
    match kind {
        BackendKind::Nftables => Dialect::Nftables,
        BackendKind::Iptables => Dialect::Iptables,
    }
}

#[cfg(test)]
mod tests;
