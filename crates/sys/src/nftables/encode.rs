//! Writes a ruleset as one batch of nf_tables messages.

use super::abi::*;
use super::compat::CompatObject;
use super::expression::{Expressions, SET_TEMPLATE, set_of, value};
use crate::backend::BackendError;
use crate::netlink::{Batch, Buffer};
use redirect::net::Owner;
use redirect::nft::{Chain, Hook, HookPoint, HookType, Rule, Ruleset, Statement, Table};
use std::fmt;

/// What a message of a batch does, for the error that names it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Delete(&'a str),
    Compat(&'a CompatObject),
    Table(&'a Table),
    Chain(&'a Table, &'a Chain),
    Set(&'a Table, &'a Chain, &'a Rule),
    Rule(&'a Table, &'a Chain, &'a Rule),
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete(table) => write!(f, "delete table inet {table}"),
            Self::Compat(object) => write!(f, "delete {object}"),
            Self::Table(table) => write!(f, "create table inet {}", table.name),
            Self::Chain(table, chain) => {
                write!(f, "create chain inet {} {}", table.name, chain.name)
            }
            Self::Set(table, chain, rule) => {
                let (table, chain) = (table.name, chain.name);
                write!(f, "create set for rule inet {table} {chain} {rule}")
            }
            Self::Rule(table, chain, rule) => {
                write!(f, "create rule inet {} {} {rule}", table.name, chain.name)
            }
        }
    }
}

/// A batch and what each of its messages does.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    pub(super) batch: Batch,
    pub(super) steps: Vec<Step<'a>>,
    sets: u32,
}

impl<'a> Transaction<'a> {
    /// Deletes tables and what iptables left, then creates the tables of `ruleset`,
    /// which must not exist by then: the kernel refuses the whole batch if one does, or if its rules are of
    /// another generation than those that were looked at.
    ///
    /// # Errors
    /// When an owner is still a name: leaving the condition out would make the
    /// rule hold for everybody.
    pub(super) fn new(
        generation: u32,
        delete: &'a [String],
        compat: &'a [CompatObject],
        ruleset: &'a Ruleset,
    ) -> Result<Self, BackendError> {
        refuse_names(ruleset)?;
        let mut transaction =
            Self { batch: Batch::new(generation), steps: Vec::with_capacity(64), sets: 0 };
        for name in delete {
            transaction.batch.deletes();
            transaction.push(Step::Delete(name), DELTABLE, 0, |b| b.text(TABLE_NAME, name));
        }
        for object in compat {
            transaction.compat(object);
        }
        for table in &ruleset.tables {
            transaction.table(table);
        }
        Ok(transaction)
    }

    fn push(&mut self, step: Step<'a>, kind: u16, flags: u16, body: impl FnOnce(&mut Buffer)) {
        self.push_of(NFPROTO_INET, step, kind, flags, body);
    }

    fn push_of(
        &mut self,
        family: u8,
        step: Step<'a>,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Buffer),
    ) {
        self.steps.push(step);
        self.batch.push(kind, flags, |b| {
            b.raw(&nfgenmsg(family));
            body(b);
        });
    }

    fn compat(&mut self, object: &'a CompatObject) {
        self.batch.deletes();
        let (family, step) = (object.family(), Step::Compat(object));
        match object {
            CompatObject::Jump { table, chain, handle, .. } => {
                self.push_of(family, step, DELRULE, 0, |b| {
                    b.text(RULE_TABLE, table);
                    b.text(RULE_CHAIN, chain);
                    b.attribute(RULE_HANDLE, &handle.to_be_bytes());
                });
            }
            CompatObject::Rules { table, chain, .. } => {
                self.push_of(family, step, DELRULE, 0, |b| {
                    b.text(RULE_TABLE, table);
                    b.text(RULE_CHAIN, chain);
                });
            }
            CompatObject::Chain { table, chain, .. } => {
                self.push_of(family, step, DELCHAIN, 0, |b| {
                    b.text(CHAIN_TABLE, table);
                    b.text(CHAIN_NAME, chain);
                });
            }
        }
    }

    fn table(&mut self, table: &'a Table) {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        self.push(Step::Table(table), NEWTABLE, new, |b| {
            b.text(TABLE_NAME, table.name);
        });
        for chain in &table.chains {
            self.push(Step::Chain(table, chain), NEWCHAIN, new, |b| {
                b.text(CHAIN_TABLE, table.name);
                b.text(CHAIN_NAME, chain.name);
                if let Some(hook) = chain.hook {
                    write_hook(b, hook);
                }
            });
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                let sets = self.sets(table, chain, rule);
                let append = NLM_F_CREATE | NLM_F_APPEND;
                self.push(Step::Rule(table, chain, rule), NEWRULE, append, |b| {
                    b.text(RULE_TABLE, table.name);
                    b.text(RULE_CHAIN, chain.name);
                    b.nested(RULE_EXPRESSIONS, |b| Expressions::write(b, rule, &sets));
                });
            }
        }
    }

    /// Anonymous sets of a rule, in the order in which it looks them up.
    fn sets(&mut self, table: &'a Table, chain: &'a Chain, rule: &'a Rule) -> Vec<u32> {
        let mut ids = Vec::new();
        for statement in &rule.statements {
            let Some(ports) = set_of(statement) else {
                continue;
            };
            self.sets += 1;
            let id = self.sets;
            ids.push(id);
            let step = Step::Set(table, chain, rule);
            let size = u32::try_from(ports.len()).unwrap_or(u32::MAX);
            self.push(step, NEWSET, NLM_F_CREATE, |b| {
                b.text(SET_TABLE, table.name);
                b.text(SET_NAME, SET_TEMPLATE);
                b.be32(SET_FLAGS, SET_F_ANONYMOUS_CONSTANT);
                b.be32(SET_KEY_TYPE, TYPE_INET_SERVICE);
                b.be32(SET_KEY_LEN, 2);
                b.be32(SET_ID, id);
                b.nested(SET_DESC, |b| b.be32(SET_DESC_SIZE, size));
            });
            self.push(step, NEWSETELEM, NLM_F_CREATE, |b| {
                b.text(ELEM_LIST_TABLE, table.name);
                b.text(ELEM_LIST_SET, SET_TEMPLATE);
                b.be32(ELEM_LIST_SET_ID, id);
                b.nested(ELEM_LIST_ELEMENTS, |b| {
                    for port in ports {
                        b.nested(LIST_ELEM, |b| value(b, ELEM_KEY, &port.to_be_bytes()));
                    }
                });
            });
        }
        ids
    }
}

fn refuse_names(ruleset: &Ruleset) -> Result<(), BackendError> {
    let chains = ruleset.tables.iter().flat_map(|table| &table.chains);
    let rules = chains.flat_map(|chain| &chain.rules);
    for statement in rules.flat_map(|rule| &rule.statements) {
        if let Statement::SkUid(is) | Statement::SkGid(is) = statement
            && let (Owner::Name(name), _) = is.parts()
        {
            let name = name.clone();
            return Err(BackendError::OwnerName { name });
        }
    }
    Ok(())
}

fn write_hook(b: &mut Buffer, hook: Hook) {
    b.nested(CHAIN_HOOK, |b| {
        let number = match hook.point {
            HookPoint::Prerouting => PREROUTING,
            HookPoint::Output => OUTPUT,
        };
        b.be32(HOOK_NUMBER, number);
        b.attribute(HOOK_PRIORITY, &hook.priority.to_be_bytes());
    });
    b.be32(CHAIN_POLICY, ACCEPT);
    let kind = match hook.kind {
        HookType::Nat => "nat",
        HookType::Filter => "filter",
        HookType::Route => "route",
    };
    b.text(CHAIN_TYPE, kind);
}
