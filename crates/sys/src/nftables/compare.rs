//! Compares what is wanted with what the kernel has, by meaning: counters do not
//! count, conditions of a rule have no order, and what a condition depends on may
//! be written or implied.

use super::kernel::{Chain as KernelChain, Picture, Table as KernelTable};
use crate::backend::Diff;
use redirect::desired::{Is, Proto};
use redirect::net::Family;
use redirect::nft::{Chain, Rule, Ruleset, Statement};

/// A rule by its meaning.
#[derive(Debug, Clone)]
struct Meaning {
    conditions: Vec<Statement>,
    actions: Vec<Statement>,
}

impl PartialEq for Meaning {
    fn eq(&self, other: &Self) -> bool {
        let within = |a: &[Statement], b: &[Statement]| a.iter().all(|s| b.contains(s));
        self.actions == other.actions
            && within(&self.conditions, &other.conditions)
            && within(&other.conditions, &self.conditions)
    }
}

impl Meaning {
    fn of(statements: &[Statement]) -> Self {
        let mut meaning = Self { conditions: Vec::new(), actions: Vec::new() };
        for statement in statements {
            match statement {
                Statement::Counter => (),
                Statement::DestinationPortNotIn(ports) => {
                    let each = ports.iter().map(|p| Statement::DestinationPort(Is::Not(*p)));
                    meaning.conditions.extend(each);
                }
                Statement::Syn => {
                    meaning.conditions.push(Statement::L4proto(Proto::Tcp));
                    meaning.conditions.push(Statement::Syn);
                }
                Statement::Source(cidr) => meaning.address(cidr.family(), statement),
                Statement::Destination(is) => meaning.address(is.parts().0.family(), statement),
                condition if is_condition(condition) => meaning.conditions.push(condition.clone()),
                action => meaning.actions.push(action.clone()),
            }
        }
        meaning
    }

    fn address(&mut self, family: Family, statement: &Statement) {
        self.conditions.push(Statement::Nfproto(family));
        self.conditions.push(statement.clone());
    }
}

fn is_condition(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Nfproto(_)
            | Statement::L4proto(_)
            | Statement::InName(_)
            | Statement::OutName(_)
            | Statement::Source(_)
            | Statement::Destination(_)
            | Statement::SourcePort(_)
            | Statement::DestinationPort(_)
            | Statement::DestinationPortNotIn(_)
            | Statement::SkUid(_)
            | Statement::SkGid(_)
            | Statement::State(_)
            | Statement::Mark(_)
            | Statement::CtMark(_)
            | Statement::Syn
    )
}

/// How `found` differs from `want`.
pub(super) fn compare(want: &Ruleset, found: &Picture) -> Diff {
    let mut diff = Diff::default();
    for table in &want.tables {
        let Some(there) = found.tables.iter().find(|t| t.name == table.name) else {
            diff.missing.push(format!("table inet {}", table.name));
            continue;
        };
        if there.dormant {
            let line = format!("table inet {} {{ flags dormant }}", there.name);
            diff.unexpected.push(line);
        }
        for chain in &table.chains {
            let here = there.chains.iter().find(|c| c.name == chain.name);
            compare_chain(&mut diff, table.name, chain, here);
        }
        unexpected_chains(&mut diff, &table.chains, there);
    }
    for there in &found.tables {
        if !want.tables.iter().any(|table| table.name == there.name) {
            diff.unexpected.push(format!("table inet {}", there.name));
        }
    }
    diff
}

fn unexpected_chains(diff: &mut Diff, want: &[Chain], there: &KernelTable) {
    for chain in &there.chains {
        // Istio flushes chains that it no longer needs and leaves them there. That
        // is harmless unless a base chain's policy is to drop.
        let accepts = |hook: &String| hook.ends_with("policy accept");
        let idle = chain.rules.is_empty() && chain.hook.as_ref().is_none_or(accepts);
        if !idle && !want.iter().any(|wanted| wanted.name == chain.name) {
            let line = format!("chain inet {} {}", there.name, chain.name);
            diff.unexpected.push(line);
        }
    }
}

fn compare_chain(diff: &mut Diff, table: &str, want: &Chain, found: Option<&KernelChain>) {
    let place = format!("inet {table} {}", want.name);
    let Some(found) = found else {
        diff.missing.push(format!("chain {place}"));
        return;
    };
    let hook = want.hook.map(|hook| format!("{hook} ; policy accept"));
    if hook != found.hook {
        let line = |hook: &Option<String>| {
            let hook = hook.as_deref().unwrap_or("no hook");
            format!("chain {place} {{ {hook} }}")
        };
        diff.missing.push(line(&hook));
        diff.unexpected.push(line(&found.hook));
    }
    let wanted: Vec<Meaning> = want.rules.iter().map(|r| Meaning::of(&r.statements)).collect();
    // Those wanted rules that no rule of the kernel has been matched with yet.
    let mut open: Vec<usize> = (0..wanted.len()).collect();
    let mut in_order = wanted.len() == found.rules.len();
    for (position, rule) in found.rules.iter().enumerate() {
        let statements = match rule {
            Ok(statements) => statements,
            Err(foreign) => {
                in_order = false;
                diff.unexpected.push(format!("rule {place}: {}", foreign.0));
                continue;
            }
        };
        let meaning = Meaning::of(statements);
        match open.iter().position(|n| wanted[*n] == meaning) {
            Some(at) => in_order &= open.remove(at) == position,
            None => {
                in_order = false;
                diff.unexpected.push(format!("rule {place} {}", shown(statements)));
            }
        }
    }
    let complete = open.is_empty();
    for n in open {
        diff.missing.push(format!("rule {place} {}", want.rules[n]));
    }
    if complete && !in_order && found.rules.len() == want.rules.len() {
        diff.misplaced.push(format!("chain {place}"));
    }
}

fn shown(statements: &[Statement]) -> Rule {
    Rule { statements: statements.to_vec(), why: "" }
}
