//! What the kernel holds, as the tools list it, in a form that two listings can
//! be compared in: matches of a rule as a set, redundant matches and counters
//! gone, chains by name; the order of the rules in a chain is kept.

use crate::lab::Namespace;
use crate::rules::Tool;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Rules by chain; a chain is named `family table chain (what it is)`.
pub type Listing = BTreeMap<String, Vec<String>>;

/// Lists all of a namespace.
///
/// # Errors
/// When a tool fails or its output is not understood.
pub fn list(pod: &Namespace, tool: Tool) -> Result<Listing> {
    let mut listing = Listing::new();
    match tool {
        Tool::Nft => {
            nft(&pod.program("nft").args(["-j", "list", "ruleset"]).check()?, &mut listing)?
        }
        Tool::Iptables | Tool::Legacy => {
            for program in ["iptables", "ip6tables"] {
                let save = format!("{program}-{}-save", tool.suffix());
                iptables(program, &pod.program(save).check()?, &mut listing);
            }
        }
    }
    Ok(listing)
}

/// What differs, one line each; `want` first.
#[must_use]
pub fn differences(want: &Listing, have: &Listing) -> Vec<String> {
    let chains: BTreeSet<_> = want.keys().chain(have.keys()).collect();
    let mut lines = Vec::new();
    for chain in chains {
        match (want.get(chain), have.get(chain)) {
            (Some(want), Some(have)) if want == have => {}
            (Some(want), Some(have)) => {
                lines.push(format!("chain {chain}:"));
                lines.extend(want.iter().map(|rule| format!("  want {rule}")));
                lines.extend(have.iter().map(|rule| format!("  have {rule}")));
            }
            (Some(_), None) => lines.push(format!("chain {chain} is missing")),
            _ => lines.push(format!("chain {chain} is unexpected")),
        }
    }
    lines
}

/// Rules of chains that start with `istio`, in any case, or that jump to them.
#[must_use]
pub fn rule_count(listing: &Listing) -> usize {
    listing.values().map(Vec::len).sum()
}

fn iptables(program: &str, text: &str, listing: &mut Listing) {
    let mut table = String::new();
    let mut names = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_owned();
            names.clear();
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let (name, policy) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let key = format!("{program} {table} {name} ({policy})");
            names.insert(name.to_owned(), key);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let key = names.get(chain).cloned().unwrap_or_else(|| chain.to_owned());
            listing.entry(key).or_default().push(options(rule));
        } else if line == "COMMIT" {
            // Empty chains of our own count too; empty built-in ones do not.
            let own = names.values().filter(|key| key.ends_with("(-)"));
            for key in own {
                listing.entry(key.clone()).or_default();
            }
        }
    }
}

/// A rule's options as a sorted list, each with its negation and arguments.
fn options(rule: &str) -> String {
    let mut options: Vec<Vec<String>> = Vec::new();
    let mut negated = false;
    for word in rule.split_whitespace() {
        if word == "!" {
            options.push(vec![word.to_owned()]);
            negated = true;
        } else if word.starts_with('-') && !std::mem::take(&mut negated) {
            options.push(vec![word.to_owned()]);
        } else if let Some(option) = options.last_mut() {
            option.push(sorted(word));
        }
    }
    let mut options: Vec<_> = options.into_iter().map(|words| words.join(" ")).collect();
    options.retain(|option| option != "-m tcp" && option != "-m udp");
    options.sort();
    options.dedup();
    options.join(" ")
}

/// Ports and states in a comma list are a set.
fn sorted(word: &str) -> String {
    let mut items: Vec<_> = word.split(',').collect();
    items.sort_unstable();
    items.join(",")
}

fn nft(text: &str, listing: &mut Listing) -> Result<()> {
    let value: Value = serde_json::from_str(text).context("nft's JSON")?;
    let items = value.get("nftables").and_then(Value::as_array).context("nft's JSON")?;
    let text = |object: &Value, key: &str| {
        let value = object.get(key).map(Value::to_string).unwrap_or_default();
        value.trim_matches('"').to_owned()
    };
    let mut names = BTreeMap::new();
    for chain in items.iter().filter_map(|item| item.get("chain")) {
        let place = ["family", "table", "name"].map(|key| text(chain, key)).join(" ");
        let what = ["type", "hook", "prio", "policy"].map(|key| text(chain, key)).join(" ");
        let key = format!("{place} ({})", what.trim());
        listing.entry(key.clone()).or_default();
        names.insert(place, key);
    }
    for rule in items.iter().filter_map(|item| item.get("rule")) {
        let place = ["family", "table", "chain"].map(|key| text(rule, key)).join(" ");
        let key = names.get(&place).context("a rule of no chain")?;
        let expressions = rule.get("expr").and_then(Value::as_array).context("a rule's expr")?;
        listing.entry(key.clone()).or_default().push(statements(expressions));
    }
    Ok(())
}

/// A rule's matches as a set, then its other statements in order.
fn statements(expressions: &[Value]) -> String {
    let mut matches = BTreeSet::new();
    let mut rest = Vec::new();
    for expression in expressions {
        match expression.get("match") {
            Some(found) => {
                matches.insert(unordered(found).to_string());
            }
            None if expression.get("counter").is_some() => {}
            None => rest.push(expression.to_string()),
        }
    }
    // `tcp dport 80` says it all.
    for protocol in ["tcp", "udp"] {
        let payload = format!("\"protocol\":\"{protocol}\"");
        if matches.iter().any(|found| found.contains(&payload)) {
            let implied = format!("\"right\":\"{protocol}\"");
            matches.retain(|found| !(found.contains("l4proto") && found.contains(&implied)));
        }
    }
    let matches: Vec<_> = matches.into_iter().collect();
    format!("{} => {}", matches.join(" "), rest.join(" "))
}

/// A match with the elements of its right side in one order.
fn unordered(found: &Value) -> Value {
    let mut found = found.clone();
    let right = found.pointer_mut("/right");
    let elements = match right {
        Some(Value::Array(elements)) => Some(elements),
        Some(Value::Object(set)) => set.get_mut("set").and_then(Value::as_array_mut),
        _ => None,
    };
    if let Some(elements) = elements {
        elements.sort_by_key(Value::to_string);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_redundancy_of_matches_do_not_count() {
        assert_eq!(
            options("-d 1.1.1.1/32 -p tcp -m tcp ! --dport 53 -m owner ! --uid-owner 3 -j RETURN"),
            options("-p tcp -m owner ! --uid-owner 3 -d 1.1.1.1/32 ! --dport 53 -j RETURN"),
        );
        assert_ne!(
            options("-p tcp ! --dport 53 -j RETURN"),
            options("-p tcp --dport 53 -j RETURN"),
        );
        assert_ne!(options("! -d ::1/128 -j RETURN"), options("-d ::1/128 -j RETURN"));
    }

    #[test]
    fn order_of_rules_and_names_of_chains_count() {
        let parse = |text: &str| {
            let mut listing = Listing::new();
            iptables("iptables", text, &mut listing);
            listing
        };
        let one = parse("*nat\n:A - [0:0]\n-A A -s 1.0.0.0/8 -j B\n-A A -j C\nCOMMIT\n");
        let two = parse("*nat\n:A - [0:0]\n-A A -j C\n-A A -s 1.0.0.0/8 -j B\nCOMMIT\n");
        let three =
            parse("*nat\n:A - [0:0]\n:E - [0:0]\n-A A -s 1.0.0.0/8 -j B\n-A A -j C\nCOMMIT\n");
        assert!(differences(&one, &one).is_empty());
        assert_eq!(differences(&one, &two).len(), 5);
        assert_eq!(differences(&one, &three), ["chain iptables nat E (-) is unexpected"]);
    }
}
