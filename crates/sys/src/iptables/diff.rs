//! How what is saved differs from what is wanted, and the input of
//! `iptables-restore` that makes it hold.

use super::saved::{Saved, SavedRule, SavedTable, is_ours};
use super::wanted::{Wanted, WantedChain, WantedTable};
use crate::backend::Diff;
use redirect::net::Family;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// One table of a family, as it is and as it should be.
struct Pair<'a> {
    name: &'a str,
    saved: Option<&'a SavedTable>,
    /// For each saved rule, whether it is ours.
    ours: Vec<bool>,
    wanted: Option<&'a WantedTable>,
}

/// All tables that are saved or wanted. `also` is another form of what is wanted:
/// its rules count as ours, too.
fn pairs<'a>(saved: &'a Saved, wanted: &'a Wanted, also: Option<&'a Wanted>) -> Vec<Pair<'a>> {
    let mut names: BTreeSet<&str> = saved.tables.keys().map(String::as_str).collect();
    names.extend(wanted.tables.iter().map(|table| table.name));
    let pair = |name| {
        let saved = saved.tables.get(name);
        let forms = [Some(wanted), also];
        let forms: Vec<_> = forms.iter().flatten().filter_map(|form| form.table(name)).collect();
        Pair {
            name,
            saved,
            ours: saved.map(|table| table.ours(&forms)).unwrap_or_default(),
            wanted: wanted.table(name),
        }
    };
    names.into_iter().map(pair).collect()
}

/// How `saved` differs from `wanted`. Strangers' rules do not count.
pub(super) fn diff(saved: &Saved, wanted: &Wanted, family: Family) -> Diff {
    let mut diff = Diff::default();
    for pair in pairs(saved, wanted, None) {
        pair.compare(family, &mut diff);
    }
    diff
}

/// Input of `iptables-restore --noflush` that turns `saved` into `wanted`; empty
/// when there is nothing to do.
///
/// Each table that differs is one transaction of the kernel: chains of ours are
/// flushed and filled, our rules in other chains are taken out and put back where
/// the first of them was, and chains that are no longer wanted are deleted. There
/// is no moment without rules, and strangers' rules keep their place.
pub(super) fn rewrite(saved: &Saved, wanted: &Wanted, also: Option<&Wanted>) -> String {
    let mut text = String::new();
    for pair in pairs(saved, wanted, also) {
        let mut found = Diff::default();
        // The family is for the text of the lines only, which nobody sees here.
        pair.compare(Family::V4, &mut found);
        if !found.is_empty() {
            pair.write(&mut text);
        }
    }
    text
}

impl<'a> Pair<'a> {
    /// Rules of a chain with whether each is ours.
    fn saved_of(&self, chain: &str) -> impl Iterator<Item = (&'a SavedRule, bool)> {
        let rules = self.saved.map_or(&[][..], |table| &table.rules);
        rules.iter().zip(self.ours.iter().copied()).filter(move |(rule, _)| rule.chain == chain)
    }

    fn saved_chains(&self) -> impl Iterator<Item = &'a str> {
        let chains = self.saved.map_or(&[][..], |table| &table.chains);
        chains.iter().map(String::as_str)
    }

    fn wanted_chains(&self) -> &'a [WantedChain] {
        self.wanted.map_or(&[], |table| &table.chains)
    }

    /// Every chain that has, or should have, something of ours.
    fn chains(&self) -> Vec<&'a str> {
        let mut names: Vec<&str> = self.wanted_chains().iter().map(|chain| chain.name).collect();
        for name in self.saved_chains() {
            let has = is_ours(name) || self.saved_of(name).any(|(_, ours)| ours);
            if has && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn compare(&self, family: Family, diff: &mut Diff) {
        let tool = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let table = self.name;
        for chain in self.chains() {
            let wanted = self.wanted.and_then(|table| table.chain(chain));
            let is_there = self.saved_chains().any(|name| name == chain);
            if is_ours(chain) && wanted.is_some() != is_there {
                let line = format!("{tool} -t {table} -N {chain}");
                if is_there {
                    diff.unexpected.push(line);
                } else {
                    diff.missing.push(line);
                }
            }
            let wanted = wanted.map_or(&[][..], |chain| &chain.rules);
            let have: Vec<&SavedRule> =
                self.saved_of(chain).filter_map(|(rule, ours)| ours.then_some(rule)).collect();
            // Rules that are there as often as they should be are struck off.
            let mut left: Vec<Option<&SavedRule>> = have.iter().copied().map(Some).collect();
            let mut complete = true;
            for rule in wanted {
                let found =
                    left.iter_mut().find(|slot| slot.is_some_and(|saved| saved.spec == rule.spec));
                if let Some(slot) = found {
                    *slot = None;
                } else {
                    complete = false;
                    let line = format!("{tool} -t {table} -A {chain} {}", rule.text);
                    diff.missing.push(line);
                }
            }
            for rule in left.into_iter().flatten() {
                complete = false;
                let line = format!("{tool} -t {table} -A {chain} {}", rule.text);
                diff.unexpected.push(line);
            }
            let specs = have.iter().map(|rule| &rule.spec);
            if complete && specs.ne(wanted.iter().map(|rule| &rule.spec)) {
                diff.misplaced.push(format!("{tool} -t {table} -S {chain}"));
            }
        }
    }

    fn write(&self, text: &mut String) {
        let stale: Vec<&str> = self
            .saved_chains()
            .filter(|name| is_ours(name))
            .filter(|name| self.wanted.is_none_or(|table| table.chain(name).is_none()))
            .collect();
        let _ = writeln!(text, "*{}", self.name);
        let own = self.wanted_chains().iter().filter(|chain| !chain.built_in);
        for chain in own.map(|chain| chain.name).chain(stale.iter().copied()) {
            if self.saved_chains().any(|name| name == chain) {
                let _ = writeln!(text, ":{chain} - [0:0]");
            } else {
                // Fails, and with it the table, when somebody else was faster: a
                // declaration would add our jumps to theirs.
                let _ = writeln!(text, "-N {chain}");
            }
        }
        for chain in self.saved_chains().filter(|name| !is_ours(name)) {
            for (rule, _) in self.saved_of(chain).filter(|(_, ours)| *ours) {
                let _ = writeln!(text, "-D {chain} {}", rule.text);
            }
        }
        for chain in self.wanted_chains() {
            match self.position(chain) {
                None => {
                    for rule in &chain.rules {
                        let _ = writeln!(text, "-A {} {}", chain.name, rule.text);
                    }
                }
                Some(first) => {
                    for (number, rule) in (first..).zip(&chain.rules) {
                        let _ = writeln!(text, "-I {} {number} {}", chain.name, rule.text);
                    }
                }
            }
        }
        for chain in stale {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
    }

    /// Number that the first of our rules has in a chain once our old ones are
    /// gone; `None` for the end of the chain. Rules that a stranger appended
    /// behind ours must not come to stand in front: an ACCEPT there would end
    /// capture.
    fn position(&self, chain: &WantedChain) -> Option<usize> {
        if !chain.built_in {
            return None;
        }
        let ours: Vec<bool> = self.saved_of(chain.name).map(|(_, ours)| ours).collect();
        let first = ours.iter().position(|ours| *ours)?;
        ours[first..].contains(&false).then_some(first + 1)
    }
}
