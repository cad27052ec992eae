//! ztunnels come, go, are slow, and say no.

use crate::node::{Node, netns, pod, starting, uid};
use ambient::config::Config;
use ambient::event::{Event, Wanted};
use ambient::id::SessionId;
use std::collections::VecDeque;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(2);

#[test]
fn a_snapshot_waits_for_pods_but_not_for_ever() {
    let mut node = Node::new();
    node.tell(Event::Pod(pod("a", 1)));
    node.tell(Event::Pod(pod("b", 2)));
    node.connect(1, 100);
    assert_eq!(node.tell(Event::Listed), [""; 0], "both are being looked for");
    node.found("a", 1);
    assert_eq!(node.done("program a"), [""; 0]);
    assert_eq!(
        node.ring(Duration::from_secs(2)),
        ["to 1: add a in 1", "to 1: keep b", "to 1: snapshot sent"],
        "what it runs for b is not stopped"
    );
    // Found at last: an Add, after the snapshot.
    node.found("b", 2);
    assert_eq!(node.done("program b"), [""; 0], "one message a pod");
    node.ack(1);
    assert_eq!(node.ack(1), ["to 1: add b in 2"]);
}

#[test]
fn additions_go_to_the_newest_ztunnel_and_deletions_to_all() {
    let mut node = Node::captured(&["a"]);
    assert_eq!(node.connect(2, 200), ["to 2: add a in 1", "to 2: snapshot sent"]);
    node.ack(2);
    node.ack(2);
    node.tell(starting("b"));
    node.add(9, "b", "s", 2);
    assert_eq!(node.done("program b"), ["to 2: add b in 2"]);
    node.ack(2);
    let said = node.tell(Event::PodGone(uid("a")));
    assert_eq!(said[said.len() - 2..], ["to 1: del a", "to 2: del a"]);
    node.ack(1);
    node.done("clear");
    node.done("exempt");
    assert_eq!(node.ack(2), ["forget a"], "gone when all have confirmed");
    // The newest goes: the older one gets what it has not.
    assert_eq!(node.tell(Event::Disconnected(SessionId(2))), ["to 1: add b in 2"]);
}

#[test]
fn a_deletion_is_said_until_it_is_confirmed() {
    let mut node = Node::captured(&["a"]);
    node.tell(Event::PodGone(uid("a")));
    node.done("clear");
    assert_eq!(node.nack(1, "busy"), [""; 0]);
    assert_eq!(node.ring(Duration::from_millis(100)), ["to 1: del a"]);
    assert_eq!(node.ack(1), ["forget a"]);
}

#[test]
fn a_ztunnel_that_connects_again_changes_nothing_for_its_pods() {
    let mut node = Node::captured(&["a"]);
    assert_eq!(node.tell(Event::Disconnected(SessionId(1))), [""; 0]);
    assert_eq!(node.connect(2, 100), ["to 2: add a in 1", "to 2: snapshot sent"]);
    assert_eq!(node.ack(2), [""; 0]);
    assert_eq!(node.ack(2), [""; 0]);
}

#[test]
fn no_ztunnel_for_a_minute_is_a_loss_and_is_said_once() {
    let mut node = Node::captured(&["a"]);
    node.tell(Event::Disconnected(SessionId(1)));
    // Connections that come to nothing are no ztunnel.
    node.connect(2, 100);
    node.tell(Event::Disconnected(SessionId(2)));
    assert_eq!(
        node.ring(Duration::from_secs(60)),
        ["report node: NoZtunnel", "annotate a Pending"],
        "its traffic is blocked"
    );
    node.done("annotate a");
    node.connect(3, 100);
    assert_eq!(node.ack(3), ["annotate a Enabled"]);
    assert_eq!(node.ack(3), ["report node: ZtunnelBack"]);
}

#[test]
fn a_process_that_connects_twice_has_one_session() {
    let mut node = Node::captured(&["a"]);
    assert_eq!(
        node.connect(2, 100),
        ["close 1", "to 2: add a in 1", "to 2: snapshot sent"],
        "the end of the first was not seen yet"
    );
    assert_eq!(node.tell(Event::Disconnected(SessionId(1))), [""; 0]);
}

#[test]
fn silence_ends_a_session_and_the_pod_that_met_it_comes_last_the_next_time() {
    let mut node = Node::captured(&["b"]);
    node.tell(starting("a"));
    node.add(9, "a", "s", 2);
    node.done("program a");
    assert_eq!(
        node.ring(TIMEOUT),
        ["report node: Silent { session: SessionId(1) }", "close 1"],
        "a late ack would be taken for the next one's"
    );
    assert_eq!(node.tell(Event::Response { session: SessionId(1), error: None }), [""; 0]);
    assert_eq!(node.connect(2, 100), ["to 2: add b in 1", "to 2: keep a", "to 2: snapshot sent"]);
    for _ in 0..3 {
        node.ack(2);
    }
    assert_eq!(node.ring(Duration::from_millis(100)), ["to 2: add a in 2"]);
    // ztunnel had it all the time.
    node.done("exempt");
    assert_eq!(node.ack(2)[0], "annotate a Enabled");
}

#[test]
fn a_slow_ztunnel_gets_more_time_each_time() {
    let mut node = Node::captured(&["a"]);
    node.tell(Event::Disconnected(SessionId(1)));
    for (session, seconds) in [(2, 2), (3, 4), (4, 8), (5, 16), (6, 16)] {
        node.connect(session, 100);
        node.ring(Duration::from_secs(seconds));
        assert_eq!(node.unanswered(session), 0, "closed");
    }
    node.connect(7, 100);
    node.settle(7);
    node.tell(Event::PodGone(uid("a")));
    assert!(node.delays().contains(&TIMEOUT), "it has answered a snapshot: forgiven");
}

/// One that needs 10 s must get through some time, and keep nobody waiting for that.
#[test]
fn a_pod_that_ztunnel_was_silent_about_has_ever_more_time_while_nobody_waits_behind_it() {
    let mut node = Node::captured(&["b"]);
    node.tell(starting("a"));
    node.add(9, "a", "s", 2);
    node.done("program a");
    let mut before = 2;
    for (session, patience) in [(2, 4), (3, 8), (4, 16), (5, 16)] {
        node.ring(Duration::from_secs(before));
        before = patience;
        node.connect(session, 100);
        node.settle(session);
        let pause = Duration::from_millis(100 << (session - 2));
        assert_eq!(node.ring(pause), [format!("to {session}: add a in 2")]);
        assert!(node.delays().contains(&Duration::from_secs(patience)), "{:?}", node.delays());
    }
    node.tell(starting("c"));
    node.add(10, "c", "s", 3);
    assert_eq!(node.done("program c"), ["to 5: add c in 3"]);
    assert!(node.delays().contains(&TIMEOUT), "somebody waits: {:?}", node.delays());
}

#[test]
fn a_pod_that_ztunnel_was_silent_about_comes_when_no_other_is_on_its_way() {
    let mut node = Node::captured(&["b"]);
    for (request, name) in [(9, "a"), (10, "c"), (11, "d")] {
        node.tell(starting(name));
        node.add(request, name, "s", request);
    }
    node.done("program a");
    node.ring(TIMEOUT);
    node.connect(2, 100);
    while node.unanswered(2) > 0 {
        node.ack(2);
    }
    assert_eq!(node.ring(Duration::from_millis(100)), [""; 0], "c and d are being programmed");
    assert_eq!(node.done("program c"), ["to 2: add c in 10"]);
    assert_eq!(node.ack(2), [""; 0]);
    node.fails("program d", "no");
    assert!(node.unanswered(2) == 1, "d may fail for ever");
}

/// Of 500 pods one gets no ack. A ztunnel that acks the others at once: all of them are
/// done within one time-out, not after the slow one.
#[test]
fn one_slow_ack_costs_the_other_499_one_time_out_at_most() {
    let mut node = Node::ready();
    let slow = "pod-007";
    for n in 0..500_u16 {
        let name = format!("pod-{n:03}");
        let mut state = pod(&name, 1);
        state.probe_ports.clear();
        node.tell(Event::Pod(state));
        node.add(u64::from(n), &name, &name, 1000 + u64::from(n));
    }
    let (mut session, mut inbox, mut silences) = (1_u64, VecDeque::new(), 0);
    let mut captured = 0;
    for n in 0..500 {
        inbox.extend(node.done(&format!("program pod-{n:03}")));
    }
    while silences < 2 && captured < 499 {
        let Some(next): Option<String> = inbox.pop_front() else { panic!("{captured} captured") };
        let Some(message) = next.strip_prefix(&format!("to {session}: ")) else {
            captured += usize::from(next.ends_with(": captured"));
            let annotated = next.strip_prefix("annotate ").map(|_| node.done(&next));
            inbox.extend(annotated.into_iter().flatten());
            continue;
        };
        if message.starts_with(&format!("add {slow}")) {
            // In order: nothing behind it is answered on this connection.
            silences += 1;
            let closed = node.ring(TIMEOUT);
            assert!(closed.contains(&format!("close {session}")));
            session += 1;
            inbox.retain(|m| !m.starts_with("to "));
            inbox.extend(node.connect(session, 100));
        } else {
            inbox.extend(node.ack(session));
        }
    }
    assert_eq!((captured, silences), (499, 1));
}

#[test]
fn messages_about_different_pods_do_not_wait_for_each_other() {
    let mut node = Node::with(Config { window: 2, ..Config::default() });
    node.tell(Event::Listed);
    node.connect(1, 100);
    node.ack(1);
    for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
        node.tell(starting(name));
        node.add(n, name, name, n);
    }
    assert_eq!(node.done("program a"), ["to 1: add a in 1"]);
    assert_eq!(node.done("program b"), ["to 1: add b in 2"]);
    assert_eq!(node.done("program c"), [""; 0], "but for a limit");
    node.done("exempt 10.0.0.1");
    let said = node.nack(1, "AddrInUse");
    assert_eq!(said, ["to 1: add c in 3"], "one refusal holds up nobody");
    node.done("exempt 10.0.0.2");
    assert_eq!(node.ack(1)[0], "annotate b Enabled");
}

#[test]
fn a_pod_that_changes_during_a_snapshot_is_put_right_after_it() {
    let mut node = Node::with(Config { window: 1, ..Config::default() });
    node.tell(Event::Listed);
    for (name, n) in [("a", 1), ("b", 2)] {
        node.tell(starting(name));
        node.add(n, name, name, n);
        node.done("program");
    }
    assert_eq!(node.connect(1, 100), ["to 1: add a in 1"]);
    node.tell(Event::PodGone(uid("a")));
    let mut state = pod("b", 2);
    state.wanted = Wanted::No;
    node.tell(Event::Pod(state));
    assert_eq!(node.ack(1), ["to 1: keep b"], "its rules are not out yet");
    assert_eq!(node.ack(1), ["to 1: snapshot sent"]);
    node.done("unprogram b");
    assert_eq!(node.ack(1), ["to 1: del a"], "a Del before the end would stop nothing");
    assert_eq!(node.ack(1), ["to 1: del b"]);
}

#[test]
fn what_a_ztunnel_may_still_run_is_not_added_to() {
    // It runs a in namespace 1, and is away while 1 becomes b's, and a is renamed c's.
    let mut node = Node::captured(&["a"]);
    node.tell(Event::Disconnected(SessionId(1)));
    node.tell(Event::PodGone(uid("a")));
    node.settle(1);
    node.tell(starting("b"));
    node.add(2, "b", "s", 1);
    node.done("program b");
    assert_eq!(node.connect(2, 100), ["to 2: snapshot sent"], "which stops a");
    assert_eq!(node.ack(2), ["to 2: add b in 1"]);
    // Another process never heard of a.
    assert_eq!(node.connect(3, 300), ["to 3: add b in 1", "to 3: snapshot sent"]);
}

/// The kernel does not name processes of other pid namespaces. What a record said at the
/// start does not count against whoever has that number of a namespace now.
#[test]
fn a_nameless_ztunnel_that_connects_again_is_told_of_all_in_its_snapshot() {
    let mut node = Node::new();
    let (identity, netns) = (Some(pod("a", 1).identity), Some(netns(1)));
    node.tell(Event::Recorded { uid: uid("a"), identity, sandbox: None, netns, options: None });
    node.tell(Event::Pod(pod("a", 1)));
    node.tell(Event::Listed);
    node.settle_rules("a");
    assert_eq!(node.connect(1, 0), ["to 1: add a in 1", "to 1: snapshot sent"]);
    node.settle(1);
    node.tell(Event::PodGone(uid("a")));
    node.settle(1);
    node.tell(starting("b"));
    node.add(2, "b", "s", 1);
    node.settle(1);
    node.tell(Event::Disconnected(SessionId(1)));
    assert_eq!(node.connect(2, 0), ["to 2: add b in 1", "to 2: snapshot sent"]);
}

#[test]
fn a_ztunnel_that_says_what_it_was_not_asked_is_not_understood() {
    let mut node = Node::captured(&["a"]);
    assert_eq!(node.ack(1), ["report node: Unasked { session: SessionId(1) }", "close 1"]);
}
