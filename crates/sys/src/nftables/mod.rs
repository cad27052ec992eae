//! The nftables backend: rules go to the kernel over netlink in one batch that it
//! takes whole or not at all. No program is executed.

pub(crate) mod abi;
mod compare;
mod compat;
mod counters;
mod decode;
mod encode;
mod expression;
pub(crate) mod kernel;
mod residue;

#[cfg(test)]
mod tests;

pub use counters::captured;
pub use residue::{Residue, iptables_residue, legacy_tables};

use crate::backend::{Applied, Backend, BackendError, BackendKind, Diff};
use crate::netlink::{NetlinkError, Protocol, Rejected, Socket};
use crate::routing;
use compare::compare;
use encode::Transaction;
use kernel::Picture;
use nix::errno::Errno;
use redirect::desired::{Desired, RuleSet};
use redirect::nft::{Ruleset, lower};

/// Somebody else changes rules of the namespace at the same time; after this many
/// rounds it is an error.
const ROUNDS: u32 = 16;

/// The kernel compares with no generation then.
const ANY_GENERATION: u32 = 0;

/// Programs rules over netlink. It has no state: every call looks at the kernel.
///
/// Callers that want different plans for one namespace at once get the rules of
/// one of them, whole; its routing may be missing then until the next round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nftables;

impl Nftables {
    /// The backend.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

/// Generation of the rules in the calling thread's namespace: a number that every
/// nf_tables transaction there changes, whoever makes it. Equal numbers mean that
/// nothing was written in between, so an audit of an unchanged namespace costs
/// this one question.
///
/// # Errors
/// When the kernel cannot be asked, for example because it has no nf_tables.
pub fn generation() -> Result<u32, BackendError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    Ok(kernel::generation(&mut socket)?)
}

impl Backend for Nftables {
    fn kind(&self) -> BackendKind {
        BackendKind::Nftables
    }

    fn apply(&self, want: &Desired, also: Option<&Desired>) -> Result<Applied, BackendError> {
        // Routing first: an address without rules does nothing, and where it fails
        // the rules are as they were.
        let routed = routing::ensure(&want.routing)?;
        let applied = apply_rules(want.set, &lower(want), || also.map(lower))?;
        if applied == Applied::Replaced
            && let Err(errors) = routing::remove(&routing::stale(&want.routing))
            && let Some(error) = errors.into_iter().next()
        {
            return Err(error);
        }
        Ok(match applied {
            Applied::Unchanged if routed => Applied::Replaced,
            other => other,
        })
    }

    fn observe(&self, want: &Desired) -> Result<Diff, BackendError> {
        let mut diff = compare(&lower(want), &Picture::take()?);
        if want.set == RuleSet::Ambient {
            let mut socket = Socket::open(Protocol::Netfilter)?;
            let left = compat::find(&mut socket, compat::PREFIX, |_| true)?;
            diff.unexpected.extend(left.iter().map(ToString::to_string));
        }
        diff.missing.extend(routing::missing(&want.routing)?);
        Ok(diff)
    }

    fn remove_rules(&self) -> Result<(), Vec<BackendError>> {
        let mut errors = Vec::new();
        let tables = Socket::open(Protocol::Netfilter)
            .and_then(|mut socket| kernel::our_tables(&mut socket));
        match tables {
            // Each by itself: one that cannot be deleted does not keep the others.
            Ok(tables) => {
                for (name, _) in tables {
                    match delete_table(name) {
                        Ok(()) => (),
                        Err(error) => errors.push(error),
                    }
                }
            }
            Err(error) => errors.push(error.into()),
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// Removes what iptables-nft wrote for ztunnel, or left of it, without iptables:
/// chains named `ISTIO_...` and the jumps to them. True when there was something.
///
/// # Errors
/// When the kernel cannot be asked or refuses; nothing was removed then.
pub fn remove_compat() -> Result<bool, BackendError> {
    remove_chains(compat::PREFIX, |_| true)
}

/// The same of the one chain that has this name, in whatever table of iptables-nft.
pub(crate) fn remove_compat_chain(name: &str) -> Result<bool, BackendError> {
    remove_chains(name, |chain| chain == name)
}

fn remove_chains(prefix: &str, theirs: impl Fn(&str) -> bool) -> Result<bool, BackendError> {
    let nothing = Ruleset::default();
    for _ in 0..ROUNDS {
        let mut socket = Socket::open(Protocol::Netfilter)?;
        let generation = kernel::generation(&mut socket)?;
        let found = compat::find(&mut socket, prefix, &theirs)?;
        if found.is_empty() {
            return Ok(false);
        }
        let transaction = Transaction::new(generation, &[], &found, &nothing)?;
        match commit(socket, transaction)? {
            Ok(()) => return Ok(true),
            Err((errno, _)) if was_overtaken(errno) => (),
            Err((_, error)) => return Err(error.into()),
        }
    }
    let object = format!("remove chains {prefix}*");
    Err(NetlinkError::Interrupted { object, tries: ROUNDS }.into())
}

fn apply_rules(
    set: RuleSet,
    want: &Ruleset,
    also: impl Fn() -> Option<Ruleset>,
) -> Result<Applied, BackendError> {
    let mut rounds = 0;
    loop {
        rounds += 1;
        let mut socket = Socket::open(Protocol::Netfilter)?;
        // What is looked at from here on must be what the batch replaces: a table
        // that somebody adds meanwhile would stay beside ours.
        let generation = kernel::generation(&mut socket)?;
        let present: Vec<String> =
            kernel::our_tables(&mut socket)?.into_iter().map(|(name, _)| name).collect();
        let compat = match set {
            RuleSet::Ambient => compat::find(&mut socket, compat::PREFIX, |_| true)?,
            RuleSet::Sidecar => Vec::new(),
        };
        let bare = present.is_empty() && compat.is_empty();
        if !present.is_empty() && compat.is_empty() {
            let picture = Picture::take()?;
            let holds = |rules: &Ruleset| compare(rules, &picture).is_empty();
            if holds(want) || also().as_ref().is_some_and(holds) {
                return Ok(Applied::Unchanged);
            }
        }
        let transaction = Transaction::new(generation, &present, &compat, want)?;
        if transaction.batch.is_empty() {
            return Ok(Applied::Unchanged);
        }
        match commit(socket, transaction)? {
            Ok(()) if bare => return Ok(Applied::Created),
            Ok(()) => return Ok(Applied::Replaced),
            Err((errno, _)) if was_overtaken(errno) && rounds < ROUNDS => (),
            Err((_, error)) => return Err(error.into()),
        }
    }
}

/// Sends a transaction. The outer error is one of the socket, the inner one, with
/// its number, the kernel's refusal of the whole.
fn commit(
    socket: Socket,
    transaction: Transaction<'_>,
) -> Result<Result<(), (Errno, NetlinkError)>, NetlinkError> {
    let Transaction { batch, steps, .. } = transaction;
    let refused = socket.transact(batch)?;
    Ok(refused.map_err(|rejected| {
        let Rejected { message, errno, detail } = rejected;
        let step = message.and_then(|n| steps.get(n));
        let object = step.map_or_else(|| "nf_tables batch".to_owned(), ToString::to_string);
        let refused = NetlinkError::Refused { object, detail, source: errno };
        (errno, refused)
    }))
}

/// True when the rules changed between the look and the batch: by generation, and
/// where the kernel does not heed that, because a table came or went.
fn was_overtaken(errno: Errno) -> bool {
    matches!(errno, Errno::ERESTART | Errno::EEXIST | Errno::ENOENT)
}

fn delete_table(name: String) -> Result<(), BackendError> {
    let tables = [name];
    let nothing = Ruleset::default();
    let transaction = Transaction::new(ANY_GENERATION, &tables, &[], &nothing)?;
    match commit(Socket::open(Protocol::Netfilter)?, transaction)? {
        // Gone is what was wanted.
        Ok(()) | Err((Errno::ENOENT, _)) => Ok(()),
        Err((_, error)) => Err(error.into()),
    }
}
