//! The plugin asks.

use crate::node::{Node, ip, netns, pod, starting, uid};
use ambient::event::{Annotation, Event, Failure, Wanted};
use ambient::id::{OptionsHash, RequestId, SandboxId};
use std::time::Duration;

#[test]
fn an_add_is_answered_when_rules_ack_probes_and_annotation_are_in_place() {
    let mut node = Node::ready();
    node.tell(starting("a"));
    assert_eq!(
        node.add(7, "a", "s", 1),
        ["program a in 1 with 1", "exempt 10.0.0.1 of a"],
        "what the ack does not depend on starts at once"
    );
    assert!(node.done("exempt").is_empty());
    assert_eq!(node.done("program a"), ["to 1: add a in 1"], "rules first, then ztunnel");
    assert_eq!(node.ack(1), ["annotate a Enabled", "report a: Enrolled"]);
    assert_eq!(node.done("annotate a"), ["answer 7: captured"]);
}

#[test]
fn an_add_finds_its_way_whatever_comes_first() {
    // The plugin is faster than the list, and than ztunnel.
    let mut node = Node::new();
    node.tell(starting("a"));
    assert_eq!(node.connect(1, 100), [""; 0], "no snapshot before the list");
    node.add(7, "a", "s", 1);
    node.done("program a");
    node.done("exempt");
    assert_eq!(node.tell(Event::Listed), ["to 1: add a in 1", "to 1: snapshot sent"]);
    assert_eq!(node.ack(1), ["annotate a Enabled", "report a: Enrolled"]);
    node.ack(1);
    assert_eq!(node.done("annotate a"), ["answer 7: captured"]);
}

#[test]
fn an_api_that_fails_does_not_fail_a_captured_pod() {
    let mut node = Node::asked(7);
    node.settle_rules("a");
    node.ack(1);
    assert_eq!(node.fails("annotate a", "503"), ["answer 7: captured"]);
    assert_eq!(node.ring(Duration::from_millis(100)), ["annotate a Enabled"], "tried again");
    assert_eq!(node.done("annotate a"), [""; 0]);
}

#[test]
fn an_api_that_hangs_holds_an_answer_for_a_second() {
    let mut node = Node::asked(7);
    node.settle_rules("a");
    node.ack(1);
    assert_eq!(node.ring(Duration::from_secs(1)), ["answer 7: captured"]);
    assert_eq!(node.done("annotate a"), [""; 0], "the write ends some time, and is not repeated");
}

#[test]
fn without_a_ztunnel_an_add_fails_at_its_deadline_and_says_so() {
    let mut node = Node::listed();
    node.tell(starting("a"));
    node.add(7, "a", "s", 1);
    node.done("exempt");
    assert_eq!(node.done("program a"), [""; 0]);
    assert_eq!(
        node.tell(Event::Expired(RequestId(7))),
        ["answer 7: not done in time: waiting for a ztunnel to connect", "annotate a Pending"],
        "the rules stay: its traffic is blocked, and everybody may know"
    );
    assert_eq!(node.tell(Event::Expired(RequestId(7))), [""; 0], "answered once");
    node.done("annotate a");
    // The runtime throws the sandbox away, and makes another.
    let gone = Event::SandboxGone { sandbox: SandboxId::new("s") };
    assert_eq!(node.tell(gone), ["release 1", "clear 10.0.0.1"]);
    node.done("clear");
    node.connect(1, 100);
    node.ack(1);
    node.add(8, "a", "s2", 2);
    let said = node.settle(1);
    assert!(said.contains(&"annotate a Enabled".to_owned()));
    assert!(said.contains(&"answer 8: captured".to_owned()));
}

#[test]
fn a_refusal_of_ztunnel_is_tried_again_and_its_words_are_in_the_answer() {
    let mut node = Node::asked(7);
    node.settle_rules("a");
    assert_eq!(node.nack(1, "AddrInUse"), [""; 0], "no hot loop");
    assert_eq!(node.ring(Duration::from_millis(100)), ["to 1: add a in 1"]);
    node.nack(1, "AddrInUse");
    assert_eq!(
        node.tell(Event::Expired(RequestId(7)))[0],
        "answer 7: not done in time: waiting for ztunnel's ack, last error: AddrInUse"
    );
    assert_eq!(node.ring(Duration::from_millis(200)), ["to 1: add a in 1"], "ever more slowly");
    node.done("annotate a Pending");
    assert_eq!(node.ack(1), ["annotate a Enabled", "report a: Enrolled"], "and never given up");
}

#[test]
fn what_cannot_get_better_fails_at_once() {
    let mut node = Node::asked(7);
    let refused = Failure::Refused("dns-capture: maybe".into());
    assert_eq!(
        node.end("program a", Err(refused)),
        ["answer 7: rules and their proof: dns-capture: maybe"]
    );
    // Somebody corrects the annotation.
    let mut state = pod("a", 1);
    state.wanted = Wanted::Ambient(OptionsHash(2));
    assert_eq!(node.tell(Event::Pod(state)), ["program a in 1 with 2"]);
}

#[test]
fn a_request_for_what_is_not_to_be_captured_is_refused_at_once() {
    let mut node = Node::ready();
    assert_eq!(
        node.add(1, "a", "s", 1),
        ["release 1", "answer 1: the pod is not known, or deleted by now"]
    );
    let mut state = pod("a", 1);
    state.wanted = Wanted::No;
    node.tell(Event::Pod(state.clone()));
    assert_eq!(
        node.add(2, "a", "s", 1),
        ["release 1", "answer 2: the pod is not to be captured any more"]
    );
    state.wanted = Wanted::Ambient(OptionsHash(1));
    state.terminal = true;
    node.tell(Event::Pod(state));
    assert_eq!(node.add(3, "a", "s", 1), ["release 1", "answer 3: the pod has ended"]);
    node.tell(Event::Drain);
    node.tell(Event::Pod(pod("b", 2)));
    assert_eq!(
        node.add(4, "b", "s", 2),
        ["release 2", "answer 4: ambient capture is being drained from this node"]
    );
}

#[test]
fn a_pod_that_is_deleted_while_its_rules_are_written_is_refused() {
    let mut node = Node::asked(7);
    assert_eq!(
        node.tell(Event::PodGone(uid("a"))),
        ["answer 7: the pod is not known, or deleted by now", "release 1"]
    );
    // The steps end, whether or not somebody waits for them.
    assert_eq!(node.done("program a"), [""; 0]);
    assert_eq!(node.done("exempt"), ["clear 10.0.0.1"]);
    assert_eq!(node.done("clear"), ["forget a"]);
    assert_eq!(node.machine.pods().count(), 0);
}

#[test]
fn the_newest_of_two_sandboxes_of_a_pod_counts() {
    let mut node = Node::ready();
    node.tell(starting("a"));
    node.add(1, "a", "old", 1);
    assert_eq!(
        node.add(2, "a", "new", 2),
        [
            "answer 1: a newer sandbox of the pod, new, has taken its place",
            "release 1",
            "program a in 2 with 1",
            "exempt 10.0.0.2 of a",
        ],
        "the new one does not wait for a step in the old one"
    );
    assert_eq!(node.done("program a in 1"), [""; 0]);
    assert_eq!(node.done("program a in 2"), ["to 1: add a in 2"]);
    // The end of the old one changes nothing.
    assert_eq!(node.tell(Event::SandboxGone { sandbox: SandboxId::new("old") }), [""; 0]);
    assert!(node.settle(1).contains(&"answer 2: captured".to_owned()));
}

#[test]
fn two_requests_for_one_sandbox_are_answered_both() {
    let mut node = Node::asked(1);
    assert_eq!(node.add(2, "a", "s", 1), [""; 0]);
    let said = node.settle(1);
    assert!(said.contains(&"answer 1: captured".to_owned()));
    assert!(said.contains(&"answer 2: captured".to_owned()));
    // A third one, long after: the rules are proved once more.
    assert_eq!(node.add(3, "a", "s", 1), ["program a in 1 with 1"]);
    assert_eq!(node.done("program a"), ["answer 3: captured"]);
}

#[test]
fn a_sandbox_that_is_taken_down_ends_its_request() {
    let mut node = Node::asked(1);
    assert_eq!(
        node.tell(Event::SandboxGone { sandbox: SandboxId::new("s") })[..2],
        ["answer 1: the sandbox was taken down meanwhile", "release 1"]
    );
    node.add(2, "a", "t", 2);
    assert_eq!(
        node.end("program a in 2", Err(Failure::NamespaceGone))[..2],
        ["answer 2: the sandbox was taken down meanwhile", "release 2"]
    );
}

#[test]
fn the_chains_addresses_count_until_the_status_has_new_ones() {
    let mut node = Node::captured(&["a"]);
    // A new sandbox with another address; the status still has the old one.
    node.tell(Event::SandboxGone { sandbox: SandboxId::new("sandbox-1") });
    node.settle(1);
    let said = node.tell(Event::Add {
        request: RequestId(9),
        uid: uid("a"),
        sandbox: SandboxId::new("t"),
        netns: netns(2),
        ips: vec![ip(2)],
    });
    assert_eq!(said, ["program a in 2 with 1", "exempt 10.0.0.2 of a"]);
    let said = node.settle(1);
    assert!(said.contains(&"answer 9: captured".to_owned()));
    let mut state = pod("a", 2);
    state.annotation = Annotation::Enabled;
    assert_eq!(node.tell(Event::Pod(state.clone())), [""; 0]);
    state.ips = vec![ip(3), ip(4)];
    assert_eq!(
        node.tell(Event::Pod(state)),
        ["clear 10.0.0.2", "exempt 10.0.0.3 of a", "exempt 10.0.0.4 of a"]
    );
}
