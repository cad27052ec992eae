//! What is said of a pod is true: its annotation, its standing, reports.

use crate::node::{Node, pod, starting};
use ambient::action::{Cause, Standing};
use ambient::event::{Annotation, Event, Failure, PodState, Verdict, Wanted};
use ambient::id::{OptionsHash, RequestId};
use std::time::Duration;

#[test]
fn drift_exposes_the_pod_until_it_is_put_right_and_proved() {
    let mut node = Node::captured(&["a"]);
    let drift = "flushed".to_owned();
    let said = node.audit("a", 1, Verdict::Broken { drift });
    assert_eq!(said, ["report a: Drifted { drift: \"flushed\" }", "program a in 1 with 1"]);
    assert_eq!(node.stands("a"), Some(Standing::Exposed(Cause::Drifted)));
    // An audit that ran meanwhile is of no interest.
    assert_eq!(node.audit("a", 1, Verdict::Gone), [""; 0]);
    assert_eq!(node.fails("program a", "EPERM"), [""; 0], "nothing is put right yet");
    assert_eq!(node.ring(Duration::from_millis(100)), ["program a in 1 with 1"]);
    assert_eq!(node.done("program a"), ["report a: Repaired { drift: \"flushed\" }"]);
    assert_eq!(node.stands("a"), Some(Standing::Verified));
    assert_eq!(node.audit("a", 1, Verdict::Fine), [""; 0], "said once");
}

#[test]
fn drift_in_a_namespace_that_the_pod_has_left_is_not_put_right() {
    let mut node = Node::captured(&["a", "b"]);
    for (name, ns) in [("a", 1), ("b", 2)] {
        node.audit(name, ns, Verdict::Broken { drift: "flushed".into() });
    }
    node.end("program a", Err(Failure::NamespaceGone));
    node.tell(Event::Pod(PodState { wanted: Wanted::No, ..pod("b", 2) }));
    node.fails("program b", "EPERM");
    let pause = Duration::from_millis(100);
    let mut said = [node.ring(pause), node.ring(pause)].concat();
    said.extend([node.found("a", 3), node.settle(1)].concat());
    assert!(said.contains(&"unprogram b in 2".to_owned()), "{said:?}");
    assert!(!said.iter().any(|said| said.contains("Repaired")), "{said:?}");
}

#[test]
fn the_annotation_is_taken_back_when_repair_fails_for_long_and_not_before() {
    let mut node = Node::captured(&["a"]);
    node.audit("a", 1, Verdict::Broken { drift: "flushed".into() });
    for delay in [100, 200, 400, 800] {
        assert_eq!(node.fails("program a", "EPERM"), [""; 0]);
        node.ring(Duration::from_millis(delay));
    }
    assert_eq!(
        node.fails("program a", "EPERM"),
        ["report a: Stuck { stage: Rules, failures: 5, error: \"EPERM\" }", "annotate a Absent"]
    );
    node.done("annotate a");
    node.ring(Duration::from_millis(1600));
    assert_eq!(
        node.done("program a"),
        [
            "report a: Recovered(Rules)",
            "report a: Repaired { drift: \"flushed\" }",
            "annotate a Enabled"
        ]
    );
}

#[test]
fn a_refused_add_is_told_to_nobody_but_the_plugin_until_it_is_loud() {
    let mut node = Node::asked(7);
    node.settle_rules("a");
    let mut stuck = Vec::new();
    for delay in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000] {
        stuck.extend(node.nack(1, "AddrInUse"));
        node.ring(Duration::from_millis(delay));
    }
    assert_eq!(
        stuck,
        [
            "report a: Stuck { stage: Ztunnel, failures: 5, error: \"AddrInUse\" }",
            "annotate a Pending",
            "report a: Stuck { stage: Ztunnel, failures: 10, error: \"AddrInUse\" }",
        ],
        "said again when it has doubled, and tried for ever"
    );
}

#[test]
fn a_pod_stands_where_it_is_known_to_stand() {
    let mut node = Node::ready();
    // Labelled while it runs: until its rules are in, its traffic passes the mesh by.
    node.tell(Event::Pod(pod("a", 1)));
    assert_eq!(node.stands("a"), Some(Standing::Exposed(Cause::New)));
    node.found("a", 1);
    node.done("program a");
    assert_eq!(node.stands("a"), Some(Standing::Unverified(Cause::NotAccepted)), "blocked");
    node.ack(1);
    assert_eq!(node.stands("a"), Some(Standing::Verified));
    // Started by the plugin: nothing runs until it is captured.
    node.tell(starting("b"));
    node.add(2, "b", "s", 2);
    assert_eq!(node.stands("b"), Some(Standing::Unverified(Cause::New)));
    node.fails("program b", "EPERM");
    assert_eq!(node.stands("b"), Some(Standing::Unverified(Cause::NotProgrammed)));
    let mut state = pod("b", 2);
    state.wanted = Wanted::No;
    node.tell(Event::Pod(state));
    assert_eq!(node.stands("b"), Some(Standing::Outside));
}

#[test]
fn an_audit_that_cannot_look_is_loud_in_the_end_and_looks_in_another_way() {
    let mut node = Node::captured(&["a"]);
    let blind = || Verdict::Unreadable(Failure::Transient("EMFILE".into()));
    assert_eq!(node.audit("a", 1, blind()), [""; 0]);
    assert_eq!(node.stands("a"), Some(Standing::Unverified(Cause::Unreadable)));
    for _ in 0..3 {
        assert_eq!(node.audit("a", 1, blind()), [""; 0]);
    }
    let said = node.audit("a", 1, blind());
    assert_eq!(said[0], "report a: Stuck { stage: Rules, failures: 5, error: \"EMFILE\" }");
    assert!(said.contains(&"program a in 1 with 1".to_owned()));
    assert!(said.contains(&"annotate a Absent".to_owned()));
    node.done("annotate a");
    assert_eq!(node.done("program a"), ["report a: Recovered(Rules)", "annotate a Enabled"]);
}

#[test]
fn other_options_are_programmed_where_the_pod_is() {
    let mut node = Node::captured(&["a"]);
    let mut state = pod("a", 1);
    state.annotation = Annotation::Enabled;
    state.wanted = Wanted::Ambient(OptionsHash(2));
    assert_eq!(node.tell(Event::Pod(state)), ["program a in 1 with 2"]);
    assert_eq!(node.done("program a"), [""; 0], "no other step is needed");
}

#[test]
fn somebody_elses_annotation_is_corrected_with_one_write() {
    let mut node = Node::captured(&["a"]);
    let mut state = pod("a", 1);
    state.annotation = Annotation::Foreign;
    assert_eq!(node.tell(Event::Pod(state.clone())), ["annotate a Enabled"]);
    assert_eq!(node.tell(Event::Pod(state)), [""; 0], "the watch is behind the write");
    node.done("annotate a");
}

#[test]
fn timers_steps_and_answers_that_nobody_waits_for_do_no_harm() {
    let mut node = Node::captured(&["a"]);
    for n in 0..200 {
        let step = ambient::id::StepId(n);
        assert_eq!(node.tell(Event::Timer(ambient::id::TimerId(n))), [""; 0]);
        assert_eq!(node.tell(Event::Programmed { step, result: Ok(OptionsHash(9)) }), [""; 0]);
        assert_eq!(node.tell(Event::Unprogrammed { step, result: Ok(()) }), [""; 0]);
        assert_eq!(node.tell(Event::Annotated { step, result: Ok(()) }), [""; 0]);
        assert_eq!(node.tell(Event::ProbeDone { step, result: Ok(()) }), [""; 0]);
        assert_eq!(node.tell(Event::Expired(RequestId(n))), [""; 0]);
    }
    assert_eq!(node.machine.awaited(), (0, 0, false));
}
