//! Rules as they come, by table and chain.

use crate::desired::{Action, Chain, ChainKind, Match, Rule, RuleFamily, Table, TableKind};

/// A table and a chain of it.
pub(super) type Place = (TableKind, ChainKind);

/// Chains in order of first appearance.
#[derive(Debug, Default)]
pub(super) struct Chains(Vec<(Place, Vec<Rule>)>);

impl Chains {
    /// The rules of a chain, which exists from then on.
    pub(super) fn chain(&mut self, place: Place) -> &mut Vec<Rule> {
        let at = self.0.iter().position(|(k, _)| *k == place).unwrap_or_else(|| {
            self.0.push((place, Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Inserts before the rule at `index`; appends when there is none.
    pub(super) fn insert(
        &mut self,
        index: usize,
        place: Place,
        family: RuleFamily,
        matches: Vec<Match>,
        action: Action,
        why: &'static str,
    ) {
        let rules = self.chain(place);
        let at = index.min(rules.len());
        rules.insert(at, Rule { family, matches, action, why });
    }

    /// Tables in the order nat, mangle, raw; a chain that is only jumped to exists
    /// too, without rules.
    pub(super) fn into_tables(self) -> Vec<Table> {
        let mut tables = Vec::new();
        for kind in [TableKind::Nat, TableKind::Mangle, TableKind::Raw] {
            let mut chains: Vec<Chain> = Vec::new();
            for ((table, chain), rules) in &self.0 {
                if *table == kind {
                    chains.push(Chain { kind: *chain, rules: rules.clone() });
                }
            }
            let targets: Vec<ChainKind> = chains
                .iter()
                .flat_map(|c| &c.rules)
                .filter_map(|r| match r.action {
                    Action::Jump(to) => Some(to),
                    _ => None,
                })
                .collect();
            for target in targets {
                if !chains.iter().any(|c| c.kind == target) {
                    chains.push(Chain { kind: target, rules: Vec::new() });
                }
            }
            if !chains.is_empty() {
                tables.push(Table { kind, chains });
            }
        }
        tables
    }
}
