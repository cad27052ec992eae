//! The agent starts, and nobody lists the pods: what records say holds, and no more.

use crate::node::{Node, netns, pod, uid};
use ambient::action::{Cause, Standing};
use ambient::event::{Event, Failure, PodState, Verdict, Wanted};
use ambient::id::OptionsHash;
use std::time::Duration;

fn recorded(node: &mut Node, name: &str, ns: Option<u64>, options: Option<u64>) -> Vec<String> {
    node.tell(Event::Recorded {
        uid: uid(name),
        identity: Some(pod(name, 1).identity),
        sandbox: None,
        netns: ns.map(netns),
        options: options.map(OptionsHash),
    })
}

/// One whose rules were flushed, a ztunnel that waits.
fn flushed() -> Node {
    let mut node = Node::new();
    assert_eq!(recorded(&mut node, "a", Some(1), Some(1)), [""; 0], "rules may be in");
    assert_eq!(node.stands("a"), Some(Standing::Unverified(Cause::New)));
    assert_eq!(node.connect(1, 100), [""; 0]);
    let said = node.audit("a", 1, Verdict::Broken { drift: "flushed".into() });
    assert_eq!(said, ["report a: Drifted { drift: \"flushed\" }", "program a in 1 with 1"]);
    assert_eq!(node.stands("a"), Some(Standing::Exposed(Cause::Drifted)));
    node
}

#[test]
fn what_a_record_says_is_put_right_and_ztunnel_hears_nothing_of_it() {
    let mut node = flushed();
    assert_eq!(node.fails("program a", "EPERM"), [""; 0]);
    assert_eq!(node.stands("a"), Some(Standing::Exposed(Cause::NotProgrammed)));
    assert_eq!(node.ring(Duration::from_millis(100)), ["program a in 1 with 1"]);
    assert_eq!(node.done("program a"), ["report a: Repaired { drift: \"flushed\" }"]);
    assert_eq!(node.stands("a"), Some(Standing::Unverified(Cause::New)), "perhaps not wanted");
    assert_eq!(node.audit("a", 1, Verdict::Fine), [""; 0]);
    let again = node.audit("a", 1, Verdict::Broken { drift: "again".into() });
    assert_eq!(again.last().map(String::as_str), Some("program a in 1 with 1"));
    node.done("program a");

    assert_eq!(node.tell(Event::Pod(pod("a", 1))), ["exempt 10.0.0.1 of a"], "they are in");
    assert_eq!(node.tell(Event::Listed), ["to 1: add a in 1", "to 1: snapshot sent"]);
    node.settle(1);
    assert_eq!(node.stands("a"), Some(Standing::Verified));
}

#[test]
fn a_pod_that_has_changed_is_programmed_anew_once_it_is_told_of() {
    let mut node = flushed();
    node.done("program a");
    let wanted = Wanted::Ambient(OptionsHash(2));
    let said = node.tell(Event::Pod(PodState { wanted, ..pod("a", 1) }));
    assert!(said.contains(&"program a in 1 with 2".to_owned()), "{said:?}");
}

#[test]
fn a_pod_that_is_not_wanted_any_more_is_let_go_once_that_is_told() {
    let mut node = flushed();
    node.done("program a");
    assert_eq!(
        node.tell(Event::Pod(PodState { wanted: Wanted::No, ..pod("a", 1) })),
        ["unprogram a in 1"]
    );
    node.tell(Event::Listed);
    node.settle(1);
    assert_eq!(node.stands("a"), Some(Standing::Outside));
}

#[test]
fn a_pod_that_has_ended_meanwhile_is_forgotten() {
    let mut node = flushed();
    node.done("program a");
    let said = node.tell(Event::Listed);
    assert_eq!(said.first().map(String::as_str), Some("release 1"), "{said:?}");
    node.settle(1);
    assert_eq!(node.stands("a"), Some(Standing::Outside));
}

/// Its rules are out, or about to be, and a ztunnel need not have it any more.
#[test]
fn a_pod_that_was_being_let_go_is_not_captured_again() {
    let mut node = Node::new();
    recorded(&mut node, "a", Some(1), None);
    assert_eq!(node.audit("a", 1, Verdict::Broken { drift: "out".into() }), [""; 0]);
    assert_eq!(node.stands("a").unwrap_or(Standing::Outside), Standing::Outside);
}

#[test]
fn nobody_is_captured_while_the_node_is_drained() {
    let mut node = flushed();
    node.fails("program a", "EPERM");
    node.tell(Event::Drain);
    assert!(node.delays().is_empty(), "nothing is tried again");
    assert_eq!(node.audit("a", 1, Verdict::Broken { drift: "out".into() }), [""; 0]);
}

#[test]
fn a_pod_that_is_not_where_its_record_says_counts_as_well() {
    let mut node = Node::new();
    recorded(&mut node, "a", None, Some(1));
    assert_eq!(node.stands("a"), Some(Standing::Unverified(Cause::NotFound)));
    recorded(&mut node, "b", Some(2), Some(1));
    node.audit("b", 2, Verdict::Unreadable(Failure::Transient("EMFILE".into())));
    assert_eq!(node.stands("b"), Some(Standing::Unverified(Cause::Unreadable)));
    assert_eq!(node.audit("b", 2, Verdict::Gone).first().map(String::as_str), Some("release 2"));
    assert_eq!(node.stands("b"), Some(Standing::Unverified(Cause::NamespaceGone)));
}
