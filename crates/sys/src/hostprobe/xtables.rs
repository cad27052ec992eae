//! The iptables form: one chain with one rule, a jump to it that stands first in
//! POSTROUTING, and an ipset a family.

use super::{HostError, Observed, ipset, picture};
use crate::iptables::{Iptables, Tool, Variant, Version};
use crate::process::{Command, Output, ProcessError};
use redirect::host::rules::{CHAIN, targets_set};
use redirect::host::text::{iptables, iptables_jump};
use redirect::host::{Change, HostRules, Target};
use redirect::net::Family;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// First version that knows `--wait` in all its programs.
const WAITS: Version = Version([1, 6, 2]);
/// NF_IP_PRI_NAT_SRC, where both variants' POSTROUTING hangs.
const SRCNAT: i32 = 100;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A program of a tool. Unlike a pod's, the host's rules have other writers, so
/// the legacy variant takes the lock that they take, /run/xtables.lock.
fn program<'a>(tool: &Tool, suffix: &str) -> Command<'a> {
    let mut path = tool.base.clone().into_os_string();
    path.push(suffix);
    let command = Command::new(PathBuf::from(path));
    match tool.variant {
        Variant::Legacy if tool.version >= WAITS => command.arg("--wait=10"),
        _ => command,
    }
}

fn restore(tool: &Tool, text: &str) -> Result<(), HostError> {
    program(tool, "-restore").arg("--noflush").stdin(text.as_bytes()).run()?;
    Ok(())
}

/// Lines of `-S chain`; none when there is no such chain.
fn lines(tool: &Tool, chain: &str) -> Result<Option<Vec<String>>, HostError> {
    let listed = program(tool, "").args(["-t", "nat", "-S", chain]).run();
    match listed {
        Ok(Output { stdout, .. }) => {
            let text = String::from_utf8_lossy(&stdout).replace('"', "");
            Ok(Some(text.lines().map(|line| line.trim_end().to_owned()).collect()))
        }
        Err(ProcessError::Failed { stderr, .. }) if names_no_chain(&stderr) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What both variants say of a chain or a table that is not there.
fn names_no_chain(stderr: &str) -> bool {
    ["No chain/target/match", "does not exist", "is incompatible, use 'nft' tool"]
        .iter()
        .any(|words| stderr.contains(words))
}

/// What one tool has of our rules.
#[derive(Debug, Default)]
struct Look {
    jumps: usize,
    first: bool,
    rules: Option<Vec<String>>,
}

impl Look {
    fn take(tool: &Tool) -> Result<Self, HostError> {
        let ours = |line: &&String| line.starts_with("-A ");
        let jump = iptables_jump();
        let there = lines(tool, "POSTROUTING")?.unwrap_or_default();
        let jumps = there.iter().filter(|line| **line == jump).count();
        let first = there.iter().find(ours).is_some_and(|line| *line == jump);
        let rules = lines(tool, CHAIN)?.map(|all| all.iter().filter(ours).cloned().collect());
        Ok(Self { jumps, first, rules })
    }

    fn is_absent(&self) -> bool {
        self.jumps == 0 && self.rules.is_none()
    }

    fn compare(&self, want: &str, tool: &Tool, found: &mut Observed) {
        let place = format!("{} nat", tool.base.display());
        found.present |= !self.is_absent();
        let diff = &mut found.diff;
        let want = want.replace('"', "");
        match self.rules.as_deref() {
            Some([rule]) if *rule == want => (),
            Some(rules) => {
                diff.unexpected
                    .extend(rules.iter().filter(|r| **r != want).map(|r| format!("{place} {r}")));
                if rules.iter().filter(|rule| **rule == want).count() != 1 {
                    diff.missing.push(format!("{place} {want}"));
                }
            }
            None => diff.missing.push(format!("{place} {want}")),
        }
        match (self.jumps, self.first) {
            (1, true) => (),
            (0, _) => diff.missing.push(format!("{place} {}", iptables_jump())),
            (1, false) => diff.misplaced.push(format!("{place} {}", iptables_jump())),
            (more, _) => diff.unexpected.push(format!("{place} {more} jumps to {CHAIN}")),
        }
    }
}

fn wanted(rules: &HostRules) -> impl Iterator<Item = (Family, String)> {
    FAMILIES.into_iter().filter_map(|family| Some((family, rules.iptables_rule(family)?)))
}

pub(super) fn observe(tools: &Iptables, rules: &HostRules) -> Result<Observed, HostError> {
    let mut found = Observed::default();
    for (family, rule) in wanted(rules) {
        let set = targets_set(family);
        match ipset::list(set)? {
            Some(elements) => found.elements.extend(elements),
            None => found.diff.missing.push(format!("ipset {set}")),
        }
        let tools = tools.host_tools(family);
        if let Some(tool) = tools.first() {
            Look::take(tool)?.compare(&rule, tool, &mut found);
        }
    }
    found.ahead = ahead(tools);
    Ok(found)
}

/// Chains of nf_tables that may come before the tables of iptables, which cannot be
/// helped from here. A kernel that cannot be asked has none.
fn ahead(tools: &Iptables) -> Vec<String> {
    let variant = tools.host_tools(Family::V4).first().map(|tool| tool.variant);
    let ours = |family: &str, table: &str, chain: &str| {
        variant == Some(Variant::Nft)
            && family != "inet"
            && (table, chain) == ("nat", "POSTROUTING")
    };
    picture::ahead(SRCNAT, ours).unwrap_or_default()
}

/// Puts sets, then rules in place. The sets are full before the first rule looks
/// into them.
pub(super) fn install(
    tools: &Iptables,
    rules: &HostRules,
    targets: &BTreeSet<Target>,
) -> Result<(), HostError> {
    for (family, _) in wanted(rules) {
        let set = targets_set(family);
        ipset::create(set, family)?;
        let there = ipset::list(set)?.unwrap_or_default();
        let of_family = |target: &&Target| Family::of(target.address) == family;
        let stale = there.iter().filter(|t| !targets.contains(*t)).copied().collect();
        let missing = targets.iter().filter(of_family).filter(|t| !there.contains(*t));
        ipset::change(set, family, &missing.copied().collect(), &stale)?;
        let tools = tools.host_tools(family);
        let Some((tool, others)) = tools.split_first() else { continue };
        let look = Look::take(tool)?;
        restore(tool, &iptables(rules, family, look.jumps))?;
        for other in others {
            remove_with(other)?;
        }
    }
    Ok(())
}

pub(super) fn update(rules: &HostRules, change: &Change) -> Result<bool, HostError> {
    for (family, _) in wanted(rules) {
        let changed = ipset::change(targets_set(family), family, &change.add, &change.remove);
        match changed {
            Err(HostError::Netlink(error)) if error.errno() == Some(nix::errno::Errno::ENOENT) => {
                return Ok(false);
            }
            other => other?,
        }
    }
    Ok(true)
}

fn remove_with(tool: &Tool) -> Result<(), HostError> {
    if tool.is_bare() {
        return Ok(());
    }
    let look = Look::take(tool)?;
    if look.is_absent() {
        return Ok(());
    }
    let jump = iptables_jump().replacen("-A", "-D", 1);
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
    for _ in 0..look.jumps {
        text.push_str(&jump);
        text.push('\n');
    }
    text.push_str(&format!("-X {CHAIN}\nCOMMIT\n"));
    restore(tool, &text)
}

/// Removes rules of all tools, then the sets; goes on past errors.
pub(super) fn remove(tools: &Iptables) -> Vec<HostError> {
    let mut errors = Vec::new();
    for family in FAMILIES {
        let tools = tools.host_tools(family);
        errors.extend(tools.iter().filter_map(|tool| remove_with(tool).err()));
        errors.extend(ipset::destroy(targets_set(family)).err());
    }
    errors
}
