//! What becomes of rules that somebody else has changed.

use super::{apply, listing, observe, plans};
use crate::backend::{Applied, Backend};
use crate::lab::{fresh, nft, run};
use crate::netns::{Netns, within};
use crate::nftables::{Nftables, generation, iptables_residue};
use crate::process::Command;
use crate::routing;
use redirect::desired::{Action, ChainKind, Desired, Match, RuleFamily};

fn plan(name: &str) -> Desired {
    let name = format!("{name}, ours");
    let (_, want) = plans::compiled().into_iter().find(|(n, _)| *n == name).unwrap();
    want
}

/// Applies, lets `change` loose, and returns what is observed then; proves that
/// the next round repairs it.
fn drifted(want: &Desired, change: impl FnOnce() + Send) -> String {
    fresh(|| {
        apply(want);
        let right = listing();
        change();
        assert_ne!(listing(), right, "nothing was changed");
        let diff = observe(want);
        assert_eq!(apply(want), Applied::Replaced, "{diff}");
        assert_eq!(listing(), right);
        assert_eq!(observe(want), "");
        diff
    })
}

/// Handle of the first rule of a chain that contains a text.
fn handle(chain: &str, rule: &str) -> String {
    let listed = run(&format!("nft -a list chain inet istio-proxy-nat {chain}"), "");
    let line = listed.lines().find(|line| line.contains(rule)).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn deleted_rule() {
    let diff = drifted(&plan("dual"), || {
        let handle = handle("istio-output", "meta skuid 1337 counter");
        nft(&format!("delete rule inet istio-proxy-nat istio-output handle {handle}"));
    });
    assert_eq!(diff.lines().count(), 1, "{diff}");
    assert!(diff.starts_with("- rule inet istio-proxy-nat istio-output "), "{diff}");
    assert!(diff.contains("meta skuid 1337"), "{diff}");
}

#[test]
fn flushed_chain() {
    let want = plan("dual");
    let diff = drifted(&want, || nft("flush chain inet istio-proxy-nat istio-inbound"));
    assert!(diff.lines().all(|l| l.starts_with("- rule inet istio-proxy-nat istio-inbound ")));
    assert!(diff.lines().count() > 3, "{diff}");
}

#[test]
fn other_order() {
    let want = plan("dual");
    let mut other = want.clone();
    let rules = |desired: &mut Desired| {
        let chains = &mut desired.tables[0].chains;
        let chain = chains.iter_mut().find(|c| c.kind == ChainKind::Output).unwrap();
        chain.rules.swap(0, 3);
    };
    rules(&mut other);
    fresh(|| {
        apply(&other);
        assert_eq!(observe(&want), "~ chain inet istio-proxy-nat istio-output");
        assert_eq!(apply(&want), Applied::Replaced);
        assert_eq!(observe(&want), "");
    });
}

#[test]
fn foreign_rules_in_our_chains() {
    for (rule, shown) in [
        ("tcp dport 1 accept", "meta l4proto tcp tcp dport 1 accept"),
        ("log prefix \"x\"", "log that Sluice and Istio do not write"),
        ("meta mark and 0xff == 1 drop", "meta mark & 0xff == 0x1 drop"),
        ("meta mark and 0xf == 0x10 drop", "cmp that Sluice and Istio do not write"),
        ("ct mark and 0xff != 1 drop", "cmp that Sluice and Istio do not write"),
        ("ct mark set ct mark xor 1", "ct that Sluice and Istio do not write"),
        ("counter ip ttl 3", "cmp that Sluice and Istio do not write"),
        ("tcp sport != 7 return", "cmp that Sluice and Istio do not write"),
        ("tcp dport { 1, 2 } return", "lookup that Sluice and Istio do not write"),
        ("tcp dport != 1-9 return", "range that Sluice and Istio do not write"),
        ("counter goto istio-redirect", "immediate that Sluice and Istio do not write"),
        ("meta l4proto tcp redirect to :1-2", "redir that Sluice and Istio do not write"),
        ("meta l4proto tcp redirect to :1 random", "redir that Sluice and Istio do not write"),
        ("ct direction original", "cmp that Sluice and Istio do not write"),
    ] {
        let diff = drifted(&plan("dual"), || {
            nft(&format!("insert rule inet istio-proxy-nat output {rule}"));
        });
        let expected = format!("+ rule inet istio-proxy-nat output{shown}");
        assert_eq!(diff.replace("output: ", "output").replace("output ", "output"), expected);
    }
}

#[test]
fn changed_chains_and_tables() {
    for (script, expected) in [
        ("add table inet istio-proxy-nat { flags dormant ; }", "flags dormant"),
        ("add chain inet istio-proxy-nat output { policy drop ; }", "policy drop"),
        (
            "add chain inet istio-proxy-nat mine { type filter hook input priority 0 ; policy drop ; }",
            "+ chain inet istio-proxy-nat mine",
        ),
        (
            "add chain inet istio-proxy-nat mine\nadd rule inet istio-proxy-nat mine drop",
            "+ chain inet istio-proxy-nat mine",
        ),
        ("delete table inet istio-proxy-raw", "- table inet istio-proxy-raw"),
        (
            "flush chain inet istio-proxy-raw prerouting\n\
             delete chain inet istio-proxy-raw prerouting\n\
             add chain inet istio-proxy-raw prerouting { type filter hook prerouting priority 300 ; }",
            "priority 300",
        ),
    ] {
        let diff = drifted(&plan("dns dual"), || nft(script));
        assert!(diff.contains(expected), "{script}: {diff}");
    }
}

#[test]
fn empty_chains_that_istio_leaves_are_no_drift() {
    let want = plan("dual");
    fresh(|| {
        apply(&want);
        nft("add chain inet istio-proxy-nat istio-output-dns");
        assert_eq!(apply(&want), Applied::Unchanged);
    });
}

#[test]
fn comments_and_counters_are_no_drift() {
    let want = plan("dual");
    fresh(|| {
        let text = redirect::nft::render(&want);
        let text = text.replace("counter return", "counter packets 7 bytes 9 return comment \"x\"");
        assert!(text.contains("comment"));
        nft(&text);
        routing::ensure(&want.routing).unwrap();
        assert_eq!(apply(&want), Applied::Unchanged);
    });
}

#[test]
fn stale_tables_go() {
    let tproxy = plan("tproxy dual");
    let want = plan("basic");
    fresh(|| {
        apply(&tproxy);
        assert_eq!(listing().matches("table inet istio-proxy-").count(), 3);
        assert_eq!(apply(&want), Applied::Replaced);
        assert_eq!(listing().matches("table inet istio-proxy-").count(), 1);
        let all = routing::everything();
        assert_eq!(routing::missing(&all).unwrap().len(), 9, "the old marks' routes too");
    });
    // Only stale ones, so that creating ours would not collide.
    fresh(|| {
        nft("add table inet istio-proxy-raw\nadd chain inet istio-proxy-raw output \
             { type filter hook output priority -300 ; policy drop ; }");
        assert_eq!(apply(&want), Applied::Replaced);
        assert!(!listing().contains("istio-proxy-raw"));
    });
    // And all of them, when nothing is wanted.
    fresh(|| {
        apply(&want);
        assert_eq!(apply(&Desired::default()), Applied::Replaced);
        assert_eq!(listing(), "");
        assert_eq!(apply(&Desired::default()), Applied::Unchanged);
    });
}

/// A rule that the kernel refuses: its chain is not there.
fn broken() -> Desired {
    let mut want = plan("dns dual");
    let last = want.tables.last_mut().unwrap();
    let mut rule = last.chains[0].rules[0].clone();
    rule.action = Action::Jump(ChainKind::Divert);
    last.chains[0].rules.push(rule);
    want
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let broken = broken();
    fresh(|| {
        let error = Nftables::new().apply(&broken, None).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("create rule inet istio-proxy-raw "), "{text}");
        assert!(text.contains("jump istio-divert"), "{text}");
        assert_eq!(listing(), "");

        let before = plan("dual");
        apply(&before);
        let (rules, number) = (listing(), generation().unwrap());
        Nftables::new().apply(&broken, None).unwrap_err();
        assert_eq!(listing(), rules, "what held before still does");
        assert_eq!(generation().unwrap(), number);
    });
}

#[test]
fn many_rules_fit_into_one_batch() {
    let mut want = plan("dual");
    let chain = want.tables[0].chains.iter_mut().find(|c| c.kind == ChainKind::Output).unwrap();
    let template = chain.rules[0].clone();
    for n in 0..4000u32 {
        let cidr = format!("10.{}.{}.{}/32", n >> 16, (n >> 8) & 255, n & 255).parse().unwrap();
        let mut rule = template.clone();
        rule.family = RuleFamily::V4;
        rule.matches = vec![Match::Source(cidr)];
        chain.rules.push(rule);
    }
    fresh(|| {
        assert_eq!(apply(&want), Applied::Created);
        assert_eq!(apply(&want), Applied::Unchanged);
        // Thousands of refusals do not hide the first.
        let mut bad = want.clone();
        bad.tables[0].chains.retain(|c| c.kind != ChainKind::Output);
        let error = Nftables::new().apply(&bad, None).unwrap_err().to_string();
        assert!(error.contains("jump istio-output"), "{error}");
    });
}

#[test]
fn many_at_once_agree() {
    let plans = [plan("basic"), plan("dns dual"), plan("tproxy dual")];
    for _ in 0..20 {
        let ns = Netns::create().unwrap();
        std::thread::scope(|scope| {
            for n in 0..6 {
                let (ns, want) = (&ns, &plans[n % plans.len()]);
                scope.spawn(move || {
                    for _ in 0..3 {
                        within(ns, || Nftables::new().apply(want, None)).unwrap().unwrap();
                    }
                });
            }
        });
        // Whoever was last, its rules hold and no table of another's is beside them.
        within(&ns, || {
            let holds = |want: &&Desired| {
                let diff = Nftables::new().observe(want).unwrap();
                let mut lines = diff.missing.iter().chain(&diff.unexpected);
                !lines.any(|line| line.contains("inet")) && diff.misplaced.is_empty()
            };
            assert_eq!(plans.iter().filter(holds).count(), 1, "{}", listing());
        })
        .unwrap();
    }
}

#[test]
fn sees_rules_of_iptables() {
    fresh(|| {
        assert!(iptables_residue().unwrap().is_empty());
        nft("add table ip nat\nadd chain ip nat ISTIO_OUTPUT\nadd chain ip nat OTHER\n\
             add table ip6 raw\nadd chain ip6 raw ISTIO_INBOUND\n\
             add table inet nat\nadd chain inet nat ISTIO_OUTPUT");
        let found = iptables_residue().unwrap().nft_chains;
        assert_eq!(found, ["ip nat ISTIO_OUTPUT", "ip6 raw ISTIO_INBOUND"]);
    });
    fresh(|| {
        // Its lock is the whole machine's, where other tests run.
        let legacy = Command::new("/usr/sbin/iptables-legacy");
        let legacy = legacy.args(["-w", "60", "-t", "mangle", "-S"]);
        legacy.run().unwrap();
        let found = iptables_residue().unwrap();
        assert_eq!(found.legacy_tables, ["ip mangle"]);
        assert!(!found.is_empty());
    });
}
