//! Running pods come, go and move.

use crate::node::{Node, ip, netns, pod, starting, uid};
use ambient::action::{Cause, Stage, Standing};
use ambient::event::{Annotation, Event, Identity, Place, PodState, Verdict, Wanted};
use ambient::id::{OptionsHash, RequestId, SandboxId};
use std::time::Duration;

fn unlabelled(name: &str, last: u8) -> Event {
    let mut state = pod(name, last);
    state.wanted = Wanted::No;
    state.annotation = Annotation::Enabled;
    Event::Pod(state)
}

#[test]
fn a_running_pod_is_labelled_and_unlabelled_again() {
    let mut node = Node::ready();
    assert_eq!(node.tell(Event::Pod(pod("a", 1))), ["find a", "exempt 10.0.0.1 of a"]);
    assert_eq!(node.found("a", 1), ["program a in 1 with 1", "exempt 10.0.0.1 of a"][..1]);
    node.done("exempt");
    node.done("program a");
    assert_eq!(node.ack(1), ["annotate a Enabled", "report a: Enrolled"]);
    node.done("annotate a");

    // Peers stop to send to ztunnel, then traffic stops to go there, then ztunnel stops,
    // and last of all kubelet's probes lose their way around it.
    assert_eq!(node.tell(unlabelled("a", 1)), ["annotate a Absent", "unprogram a in 1"]);
    assert_eq!(node.done("unprogram a"), ["release 1", "clear 10.0.0.1", "to 1: del a"]);
    assert_eq!(node.ack(1), [""; 0]);
    assert_eq!(node.done("annotate a Absent"), [""; 0]);
    assert_eq!(node.done("clear"), ["forget a", "report a: Unenrolled"]);
}

#[test]
fn a_pod_that_is_labelled_again_before_it_has_left_stays() {
    let mut node = Node::captured(&["a"]);
    node.tell(unlabelled("a", 1));
    assert_eq!(node.tell(Event::Pod(pod("a", 1))), [""; 0], "one step at a time");
    node.done("annotate a Absent");
    assert_eq!(node.done("unprogram a"), ["program a in 1 with 1"]);
    assert_eq!(node.done("program a"), ["annotate a Enabled"], "ztunnel never let go of it");
}

#[test]
fn a_pod_without_an_address_is_not_looked_for() {
    let mut node = Node::ready();
    let mut state = pod("a", 1);
    state.ips.clear();
    assert_eq!(node.tell(Event::Pod(state)), [""; 0], "its ADD is to come");
    assert_eq!(node.tell(Event::Pod(pod("a", 1)))[0], "find a");
}

#[test]
fn a_job_that_has_ended_leaves_its_rules_to_die_with_it() {
    let mut node = Node::captured(&["a"]);
    let mut state = pod("a", 1);
    state.terminal = true;
    state.annotation = Annotation::Enabled;
    assert_eq!(
        node.tell(Event::Pod(state)),
        ["annotate a Absent", "release 1", "clear 10.0.0.1", "to 1: del a"]
    );
    assert!(node.settle(1).contains(&"forget a".to_owned()));
}

#[test]
fn a_pod_that_is_made_anew_under_its_name_is_another() {
    let mut node = Node::captured(&["a"]);
    let mut successor = pod("a", 1);
    successor.uid = uid("a2");
    // It is announced before the old one's end.
    successor.ips.clear();
    node.tell(Event::Pod(successor));
    node.add(2, "a2", "t", 2);
    assert!(node.settle(1).contains(&"answer 2: captured".to_owned()));
    let said = node.tell(Event::PodGone(uid("a")));
    assert_eq!(said, ["release 1", "clear 10.0.0.1", "to 1: del a"]);
    node.done("clear");
    assert_eq!(node.ack(1), ["forget a"]);
    assert_eq!(node.machine.pods().count(), 1);
}

#[test]
fn a_sandbox_is_made_anew_with_its_add() {
    let mut node = Node::captured(&["a"]);
    let said = node.tell(Event::SandboxGone { sandbox: SandboxId::new("sandbox-1") });
    assert_eq!(said, ["release 1", "clear 10.0.0.1", "to 1: del a"], "ztunnel pins the namespace");
    node.settle(1);
    assert_eq!(
        node.add(9, "a", "t", 2),
        ["program a in 2 with 1", "exempt 10.0.0.2 of a"],
        "the annotation is not touched in between"
    );
    let said = node.settle(1);
    assert!(said.contains(&"answer 9: captured".to_owned()));
    assert!(!said.iter().any(|s| s.starts_with("annotate")));
}

#[test]
fn a_sandbox_that_is_made_anew_without_add_is_found_by_the_audit() {
    let mut node = Node::captured(&["a"]);
    let place = Place { netns: netns(2), sandbox: Some(SandboxId::new("t")) };
    assert_eq!(
        node.audit("a", 1, Verdict::Elsewhere(place)),
        [
            "report a: Moved { from: NetnsId { dev: 4, ino: 1 }, to: Some(NetnsId { dev: 4, ino: 2 }) }",
            "release 1",
            "program a in 2 with 1",
            "exempt 10.0.0.1 of a",
        ],
        "what ztunnel runs in the old one ends when it starts in the new one"
    );
    let said = node.settle(1);
    assert!(said.contains(&"to 1: add a in 2".to_owned()));
    assert!(!said.iter().any(|s| s.starts_with("annotate")), "repaired before it was a lie");
}

#[test]
fn a_namespace_that_died_unseen_is_looked_for_at_once() {
    let mut node = Node::captured(&["a"]);
    let said = node.audit("a", 1, Verdict::Gone);
    assert_eq!(said[0], "release 1");
    assert_eq!(said[2..], ["find a", "clear 10.0.0.1", "to 1: del a"]);
    assert!(node.found("a", 2).contains(&"program a in 2 with 1".to_owned()));
}

#[test]
fn a_pod_under_another_name_is_deleted_from_ztunnel_first() {
    let mut node = Node::captured(&["a"]);
    let mut state = pod("a", 1);
    state.annotation = Annotation::Enabled;
    state.identity.service_account = "other".into();
    assert_eq!(node.tell(Event::Pod(state)), ["to 1: del a"]);
    assert_eq!(node.ack(1), ["to 1: add a in 1"]);
    assert_eq!(node.ack(1), [""; 0]);
}

#[test]
fn nobody_gets_a_namespace_by_a_search_that_has_an_owner() {
    let mut node = Node::captured(&["a"]);
    node.tell(Event::Pod(pod("b", 2)));
    assert_eq!(
        node.found("b", 1),
        ["report b: Conflict { netns: NetnsId { dev: 4, ino: 1 }, owner: PodUid(\"a\") }"]
    );
    assert_eq!(node.ring(Duration::from_millis(100)), ["find b"]);
}

#[test]
fn the_runtime_gives_a_namespace_to_another_pod() {
    let mut node = Node::captured(&["a"]);
    node.tell(Event::Pod(pod("b", 2)));
    let said = node.add(2, "b", "s", 1);
    assert_eq!(said[0], "report a: Moved { from: NetnsId { dev: 4, ino: 1 }, to: None }");
    assert!(said.contains(&"to 1: del a".to_owned()));
    // ztunnel must have let go of it before it hears of the new owner.
    assert_eq!(node.done("program b"), [""; 0]);
    assert_eq!(node.ack(1), ["to 1: add b in 1"]);
}

#[test]
fn the_mirror_of_a_static_pod_is_made_anew_in_the_same_sandbox() {
    let mut node = Node::captured(&["a"]);
    let mut mirror = pod("a", 1);
    mirror.uid = uid("a2");
    node.tell(Event::PodGone(uid("a")));
    node.tell(Event::Pod(mirror.clone()));
    node.settle(1);
    // It is found where the former one was; ztunnel was told of the former one's end.
    let said = node.tell(Event::Pod(mirror.clone()));
    assert_eq!(said, [""; 0]);
    node.ring(Duration::from_millis(100));
    assert_eq!(node.found("a2", 1), ["program a2 in 1 with 1"]);
    assert_eq!(node.done("program a2"), ["to 1: add a2 in 1"]);
}

#[test]
fn the_mirror_of_a_static_pod_is_rid_of_rules_that_it_inherited() {
    let mut node = Node::captured(&["a"]);
    let mut mirror = pod("a", 1);
    mirror.uid = uid("a2");
    mirror.wanted = Wanted::No;
    node.tell(Event::PodGone(uid("a")));
    assert!(node.tell(Event::Pod(mirror)).contains(&"find a2".to_owned()));
    assert!(node.found("a2", 1).contains(&"unprogram a2 in 1".to_owned()));
}

#[test]
fn an_address_goes_to_its_new_owner_and_a_late_end_takes_nothing_away() {
    let mut node = Node::captured(&["a"]);
    node.tell(starting("b"));
    let said = node.tell(Event::Add {
        request: RequestId(2),
        uid: uid("b"),
        sandbox: SandboxId::new("t"),
        netns: netns(2),
        ips: vec![ip(1)],
    });
    assert_eq!(said, ["program b in 2 with 1", "exempt 10.0.0.1 of b"]);
    node.settle(1);
    let said = node.tell(Event::PodGone(uid("a")));
    assert!(!said.contains(&"clear 10.0.0.1".to_owned()));
    // The set is flushed: only what is owned comes back.
    assert_eq!(node.tell(Event::ProbesLost), ["exempt 10.0.0.1 of b"]);
}

#[test]
fn a_restarted_agent_takes_up_what_its_records_say() {
    let mut node = Node::new();
    let identity = |name: &str| {
        let (namespace, service_account) = ("shop".into(), "default".into());
        Some(Identity { namespace, name: name.into(), service_account })
    };
    for (name, place) in [("a", Some(netns(1))), ("ended", None), ("unlabelled", Some(netns(3)))] {
        node.tell(Event::Recorded {
            uid: uid(name),
            identity: identity(name),
            sandbox: None,
            netns: place,
            options: Some(OptionsHash(1)),
        });
    }
    node.tell(Event::ProbeFound { ip: ip(1) });
    node.tell(Event::ProbeFound { ip: ip(9) });
    let mut state = pod("a", 1);
    state.annotation = Annotation::Enabled;
    assert_eq!(node.tell(Event::Pod(state)), ["program a in 1 with 1", "exempt 10.0.0.1 of a"]);
    assert_eq!(
        node.tell(unlabelled("unlabelled", 3)),
        ["annotate unlabelled Absent", "unprogram unlabelled in 3"]
    );
    assert_eq!(node.tell(Event::Listed), ["forget ended"]);
    assert_eq!(node.connect(1, 100), [""; 0], "the snapshot waits for the rules");
    assert_eq!(
        node.done("program a"),
        ["to 1: add a in 1", "to 1: keep unlabelled", "to 1: snapshot sent", "clear 10.0.0.9"],
        "what is being un-enrolled is kept until its rules are out"
    );
    node.done("exempt");
    node.ack(1);
    node.ack(1);
    node.ack(1);
    assert_eq!(node.done("unprogram"), ["release 3", "to 1: del unlabelled"]);
    let said = node.settle(1);
    assert!(said.contains(&"forget unlabelled".to_owned()));
    assert!(!said.iter().any(|s| s.starts_with("annotate a")), "it said so already");
}

#[test]
fn a_pod_that_an_earlier_agent_enrolled_is_found_to_be_rid_of_its_rules() {
    let mut node = Node::ready();
    assert_eq!(node.tell(unlabelled("a", 1)), ["find a"]);
    assert_eq!(node.found("a", 1), ["annotate a Absent", "unprogram a in 1"]);
    node.done("annotate a");
    assert_eq!(node.done("unprogram a"), ["release 1", "forget a"]);
}

/// Its rules may send its traffic to ztunnel, which must not let go of it before they are
/// out: it is looked for as long as it runs.
#[test]
fn a_pod_that_is_to_leave_and_is_not_found_keeps_its_proxy_until_it_is() {
    let mut node = Node::new();
    let identity = Some(pod("b", 2).identity);
    node.tell(Event::Recorded {
        uid: uid("b"),
        identity,
        sandbox: None,
        netns: None,
        options: None,
    });
    assert_eq!(node.tell(unlabelled("b", 2)), ["find b"]);
    node.tell(Event::Listed);
    assert_eq!(node.connect(1, 100), ["to 1: keep b", "to 1: snapshot sent"]);
    node.ack(1);
    node.ack(1);
    let mut said = node.fails("find b", "no process");
    assert_eq!(said, ["annotate b Pending"], "nobody is to take it for captured");
    node.done("annotate b");
    for delay in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
        node.ring(Duration::from_millis(delay));
        said.extend(node.fails("find b", "no process"));
    }
    let remain = |failures| {
        format!("report b: RulesMayRemain {{ failures: {failures}, error: \"no process\" }}")
    };
    assert_eq!(said[1..], [remain(5), remain(10)], "loud, and never given up");
    let view = node.machine.pod(&uid("b")).unwrap();
    assert_eq!((view.wanted, view.waiting_for), (false, Some(Stage::Namespace)));
    assert_eq!(view.trouble, Some((12, "no process".to_owned())));
    assert!(node.machine.left().any(|left| *left == uid("b")));

    // An agent that starts anew goes on by what the annotation says.
    let mut next = Node::ready();
    let Event::Pod(state) = unlabelled("b", 2) else { panic!("a pod") };
    let annotation = Annotation::Pending;
    assert_eq!(next.tell(Event::Pod(PodState { annotation, ..state })), ["find b"]);

    node.ring(Duration::from_secs(30));
    assert_eq!(node.found("b", 2), ["annotate b Absent", "unprogram b in 2"]);
    node.done("annotate b");
    assert_eq!(
        node.done("unprogram b"),
        ["report b: Recovered(Namespace)", "release 2", "to 1: del b"]
    );
    assert_eq!(node.ack(1), ["forget b"]);
    assert!(node.machine.left().next().is_none());
}

#[test]
fn a_pod_that_is_to_leave_and_is_not_found_is_let_go_when_it_ends() {
    let mut node = Node::ready();
    node.tell(unlabelled("a", 1));
    node.tell(unlabelled("b", 2));
    node.fails("find a", "no process");
    node.fails("find b", "no process");
    assert!(node.tell(Event::PodGone(uid("a"))).is_empty());
    let Event::Pod(state) = unlabelled("b", 2) else { panic!("a pod") };
    node.tell(Event::Pod(PodState { terminal: true, ..state }));
    node.settle(1);
    assert!(node.machine.left().next().is_none());
    assert!(node.delays().is_empty(), "nobody looks for them: {:?}", node.delays());
}

/// Two pods of a name, one after the other, end before anybody knows where they are, and
/// ztunnel has confirmed neither.
#[test]
fn two_of_one_name_that_ended_end() {
    let mut node = Node::new();
    let of = |name: &str, ns: u8| PodState { identity: pod("a", 1).identity, ..pod(name, ns) };
    for (name, ns) in [("a", 1), ("b", 2)] {
        let (uid, identity) = (uid(name), Some(pod("a", 1).identity));
        node.tell(Event::Recorded { uid, identity, sandbox: None, netns: None, options: None });
        node.tell(Event::Pod(of(name, ns)));
    }
    node.tell(Event::Listed);
    node.fails("find a", "no process");
    node.fails("find b", "no process");
    assert_eq!(node.connect(1, 100), ["to 1: keep a", "to 1: keep b", "to 1: snapshot sent"]);
    node.tell(Event::PodGone(uid("a")));
    node.tell(Event::PodGone(uid("b")));
    node.settle(1);
    assert!(node.machine.left().next().is_none());
}

#[test]
fn a_drain_ends_when_nothing_is_left() {
    let mut node = Node::captured(&["a", "b"]);
    let said = node.tell(Event::Drain);
    assert_eq!(
        said,
        ["annotate a Absent", "unprogram a in 1", "annotate b Absent", "unprogram b in 2"]
    );
    node.fails("unprogram a", "EBUSY");
    assert!(!node.settle(1).contains(&"drained".to_owned()), "a is not out");
    node.ring(Duration::from_millis(100));
    let said = node.settle(1);
    assert_eq!(said.last().map(String::as_str), Some("drained"));
    node.tell(Event::Pod(pod("c", 3)));
    assert!(node.settle(1).is_empty(), "nobody is enrolled any more");
}

/// Its manifest is broken, or its namespace is not known: what was captured stays so.
#[test]
fn a_captured_pod_that_cannot_be_decided_about_keeps_its_proxy() {
    let mut node = Node::new();
    let identity = || Some(pod("a", 1).identity);
    for (name, ns) in [("a", 1), ("b", 2), ("ended", 3)] {
        let place = Some(netns(ns));
        let (uid, identity) = (uid(name), identity());
        node.tell(Event::Recorded { uid, identity, sandbox: None, netns: place, options: None });
    }
    node.tell(Event::ProbeFound { ip: ip(1) });
    for name in ["a", "b"] {
        assert_eq!(node.tell(Event::Doubtful(uid(name))), [""; 0]);
    }
    node.tell(Event::Doubtful(uid("unknown")));
    assert_eq!(node.tell(Event::Listed), ["release 3", "forget ended"]);
    assert_eq!(node.connect(1, 100), ["to 1: keep a", "to 1: keep b", "to 1: snapshot sent"]);
    for _ in 0..3 {
        assert_eq!(node.ack(1), [""; 0], "its exemption stays, too");
    }
    assert_eq!(node.stands("a"), Some(Standing::Unverified(Cause::Unreadable)));

    assert_eq!(node.tell(Event::PodGone(uid("b"))), ["release 2", "to 1: del b"]);
    assert_eq!(node.ack(1), ["forget b"]);
    let mut state = pod("a", 1);
    state.annotation = Annotation::Enabled;
    assert_eq!(node.tell(Event::Pod(state)), ["program a in 1 with 1", "exempt 10.0.0.1 of a"]);
    node.settle(1);
    assert_eq!(node.stands("a"), Some(Standing::Verified));
}
