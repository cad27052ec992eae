//! The rules of one family that are wanted, table by table, as text to load and
//! in normalised form.

use super::spec::Spec;
use redirect::desired::Desired;
use redirect::iptables::{chain_name, chains, rule_spec, table_name};
use redirect::net::Family;

/// All tables of a family.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) tables: Vec<WantedTable>,
}

/// A table.
#[derive(Debug)]
pub(super) struct WantedTable {
    pub(super) name: &'static str,
    pub(super) chains: Vec<WantedChain>,
}

/// A chain and its rules in their order.
#[derive(Debug)]
pub(super) struct WantedChain {
    pub(super) name: &'static str,
    /// The kernel has it by itself.
    pub(super) built_in: bool,
    pub(super) rules: Vec<WantedRule>,
}

/// A rule.
#[derive(Debug)]
pub(super) struct WantedRule {
    /// What follows `-A CHAIN`.
    pub(super) text: String,
    pub(super) spec: Spec,
}

impl Wanted {
    /// The part of `desired` that is for a family.
    pub(super) fn of(desired: &Desired, family: Family) -> Self {
        if family == Family::V6 && !desired.ipv6 {
            return Self::default();
        }
        let tables = desired.tables.iter().map(|table| WantedTable {
            name: table_name(table.kind),
            chains: chains(table, family)
                .into_iter()
                .map(|chain| WantedChain {
                    name: chain_name(chain.kind),
                    built_in: chain.kind.is_hook(),
                    rules: chain
                        .rules
                        .iter()
                        .filter(|rule| rule.family.covers(family))
                        .map(|rule| {
                            let text = rule_spec(rule);
                            let spec = Spec::parse(&text);
                            WantedRule { text, spec }
                        })
                        .collect(),
                })
                .collect(),
        });
        Self { tables: tables.filter(|table| !table.chains.is_empty()).collect() }
    }

    pub(super) fn table(&self, name: &str) -> Option<&WantedTable> {
        self.tables.iter().find(|table| table.name == name)
    }
}

impl WantedTable {
    /// The chain of this name.
    pub(super) fn chain(&self, name: &str) -> Option<&WantedChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// True when the chain has this rule.
    pub(super) fn has(&self, chain: &str, spec: &Spec) -> bool {
        self.chain(chain).is_some_and(|chain| chain.rules.iter().any(|rule| rule.spec == *spec))
    }
}
