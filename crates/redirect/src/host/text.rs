//! The rules as text, for people: `nft -f` loads the one, `iptables-restore
//! --noflush` and `ipset restore` the other two.

use super::kubelet::Caller;
use super::rules::{
    CHAIN, FLOW_MS, FLOWS, HostRules, PRIORITY, Point, Set, TABLE, Term, flows_set, targets_set,
};
use super::targets::Target;
use crate::net::Family;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

/// What `nft -f` loads. With `mount` (cgroup2's mount below /sys/fs/cgroup, often
/// empty) the cgroup's path is as nft wants it.
#[must_use]
pub fn nft(rules: &HostRules, targets: &BTreeSet<Target>, mount: &str) -> String {
    let mut text = format!("table inet {TABLE} {{\n");
    for set in rules.sets() {
        write_set(&mut text, set, targets);
    }
    for chain in rules.chains() {
        let point = match chain.point {
            Point::Output => "output",
            Point::Postrouting => "postrouting",
        };
        let _ = writeln!(text, "\tchain {} {{", chain.name());
        let _ = writeln!(text, "\t\ttype nat hook {point} priority {PRIORITY}; policy accept;");
        for rule in &chain.rules {
            let words: Vec<String> =
                rule.iter().map(|term| words(*term, &rules.caller, mount)).collect();
            let _ = writeln!(text, "\t\t{}", words.join(" "));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

fn write_set(text: &mut String, set: Set, targets: &BTreeSet<Target>) {
    let address = match set.family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let _ = writeln!(text, "\tset {} {{", set.name);
    if set.flows {
        let _ = writeln!(text, "\t\ttype {address} . inet_service . {address} . inet_service");
        let _ = writeln!(text, "\t\tsize {FLOWS}\n\t\tflags dynamic,timeout");
        let _ = writeln!(text, "\t\ttimeout {FLOW_MS}ms\n\t\tgc-interval 1s");
    } else {
        let _ = writeln!(text, "\t\ttype {address} . inet_service");
        let of_family = |target: &&Target| Family::of(target.address) == set.family;
        let elements: Vec<String> = targets
            .iter()
            .filter(of_family)
            .map(|Target { address, port }| format!("{address} . {port}"))
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
        }
    }
    text.push_str("\t}\n");
}

fn words(term: Term, caller: &Caller, mount: &str) -> String {
    let ip = |family: Family| match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let flow = |family: Family| {
        let ip = ip(family);
        format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport")
    };
    match term {
        Term::Tcp(Family::V4) => "meta nfproto ipv4 meta l4proto tcp".to_owned(),
        Term::Tcp(Family::V6) => "meta nfproto ipv6 meta l4proto tcp".to_owned(),
        Term::ToTarget(family) => {
            format!("{} daddr . tcp dport @{}", ip(family), targets_set(family))
        }
        Term::Cgroup { level, .. } => {
            let path = match caller {
                Caller::Cgroup { path, .. } => path.as_str(),
                Caller::Uid(_) => "",
            };
            let slash = if mount.is_empty() { "" } else { "/" };
            format!("socket cgroupv2 level {level} \"{mount}{slash}{path}\"")
        }
        Term::Uid(uid) => format!("meta skuid {uid}"),
        Term::Counter => "counter".to_owned(),
        Term::Remember(family) => {
            format!("add @{} {{ {} }}", flows_set(family), flow(family))
        }
        Term::Known(family) => format!("{} @{}", flow(family), flows_set(family)),
        Term::Forget(family) => {
            format!("delete @{} {{ {} }}", flows_set(family), flow(family))
        }
        Term::Snat(source @ IpAddr::V4(_)) => format!("snat ip to {source}"),
        Term::Snat(source @ IpAddr::V6(_)) => format!("snat ip6 to {source}"),
    }
}

/// The jump that stands first in POSTROUTING, as `iptables -S` says it back.
#[must_use]
pub fn iptables_jump() -> String {
    format!("-A POSTROUTING -p tcp -j {CHAIN}")
}

/// What `iptables-restore --noflush` (or ip6tables-restore) loads to put our chain
/// in place, whether it was there or not. `jumps` is how many jumps to our chain
/// are there already: they go, and one comes first.
#[must_use]
pub fn iptables(rules: &HostRules, family: Family, jumps: usize) -> String {
    let Some(rule) = rules.iptables_rule(family) else {
        return String::new();
    };
    // Naming the chain so empties it, all in the one transaction of the table.
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n{rule}\n");
    for _ in 0..jumps {
        let _ = writeln!(text, "-D POSTROUTING -p tcp -j {CHAIN}");
    }
    let _ = writeln!(text, "-I POSTROUTING 1 -p tcp -j {CHAIN}\nCOMMIT");
    text
}

/// What `ipset restore` loads for a family.
#[must_use]
pub fn ipset(family: Family, targets: &BTreeSet<Target>) -> String {
    let set = targets_set(family);
    let inet = match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    let mut text = format!("create {set} hash:ip,port family {inet}\n");
    for Target { address, port } in targets.iter().filter(|t| Family::of(t.address) == family) {
        let _ = writeln!(text, "add {set} {address},tcp:{port}");
    }
    text
}
