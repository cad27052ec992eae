//! What each request does: zds.md, "Semantics of requests".

use crate::scripted::{LONG, Stage, full, info, listeners, wait_listeners};
use e2e_node::ztunnel::Status;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use zds::{Request, Response};

fn is_up(uid: &str) -> impl Fn(&Status) -> bool {
    move |status| status.workloads.get(uid).is_some_and(|view| view.up)
}

fn nack(answer: Response) -> String {
    match answer {
        Response::Nack(text) => text,
        Response::Ack => panic!("acknowledged"),
    }
}

#[test]
fn the_ack_of_an_add_means_that_it_listens_with_the_mark() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    assert_eq!(listeners(&pod), Vec::<String>::new());
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(listeners(&pod), full());
    let view = &stage.status().workloads["u1"];
    assert_eq!((view.up, view.pod.as_str()), (true, "shop/u1"));
    assert_eq!(view.identity, "spiffe://cluster.local/ns/shop/sa/default");
    let id = pod.netns().id();
    assert_eq!(view.netns, Some((id.dev, id.ino)));
}

#[test]
fn the_same_pod_by_another_path_changes_nothing_not_even_its_name() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    let again = File::open(pod.path()).unwrap();
    let other = info("other", "other");
    assert_eq!(stage.agent.add_as("u1", &other, again.as_fd()), Response::Ack);
    let status = stage.status();
    assert_eq!((status.workloads["u1"].pod.as_str(), status.started), ("shop/u1", 1));
    assert_eq!(listeners(&pod), full());
    // To be somebody else it must go first.
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert_eq!(stage.agent.del("u1"), Response::Ack);
    assert_eq!(stage.agent.add_as("u1", &other, again.as_fd()), Response::Ack);
    assert_eq!(stage.status().workloads["u1"].pod, "shop/other");
}

#[test]
fn the_same_pod_in_another_namespace_moves() {
    let stage = Stage::set(|_| {});
    let (old, new) = (stage.pod("old"), stage.pod("new"));
    assert_eq!(stage.agent.add("u1", &old), Response::Ack);
    assert_eq!(stage.agent.add("u1", &new), Response::Ack);
    assert_eq!(listeners(&new), full());
    wait_listeners(&old, &[]);
    assert_eq!((stage.status().started, stage.status().stopped), (2, 1));
}

#[test]
fn two_pods_in_one_namespace_share_its_connections() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.add("u2", &pod), Response::Ack);
    assert_eq!(listeners(&pod).len(), 2 * full().len());
}

#[test]
fn a_port_that_is_taken_is_tried_again_and_nobody_is_told() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    let taken = sys::netns::within(pod.netns(), || std::net::TcpListener::bind("[::]:15008"));
    let taken = taken.unwrap().unwrap();
    let text = nack(stage.agent.add("u1", &pod));
    assert!(text.starts_with("failure to start proxy : Bind([::]:15008, "), "{text}");
    assert!(text.contains("AddrInUse"), "{text}");
    let status = stage.status();
    assert_eq!((status.active(), status.pending(), status.connected), (0, 1, true));
    // The connection is as good as ever.
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert!(!stage.status().ready, "it is still pending");
    drop(taken);
    let status = stage.ztunnel.wait("the proxy", is_up("u1")).unwrap();
    assert!(status.ready && status.connections == 1);
    stage.agent.hears_nothing();
    assert_eq!(listeners(&pod), full());
}

#[test]
fn a_pending_pod_is_replaced_by_an_add_and_cleared_by_a_del() {
    let stage = Stage::set(|config| {
        config.retry_ms = 3_600_000;
        config.faults.refuse = [("u1".to_owned(), 1), ("u2".to_owned(), 1)].into();
    });
    let pod = stage.pod("a");
    assert_eq!(nack(stage.agent.add("u1", &pod)), "failure to start proxy : injected");
    assert_eq!(nack(stage.agent.add("u2", &pod)), "failure to start proxy : injected");
    assert_eq!(stage.status().pending(), 2);
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.del("u2"), Response::Ack);
    let status = stage.status();
    assert_eq!((status.active(), status.pending()), (1, 0));
}

#[test]
fn what_is_no_namespace_fails_at_the_first_socket() {
    let stage = Stage::set(|_| {});
    let null = File::open("/dev/null").unwrap();
    let text = nack(stage.agent.add_as("u1", &info("a", "a"), null.as_fd()));
    assert_eq!(text, "failure to start proxy : Bind(127.0.0.1:15053, EINVAL)");
    let pod = stage.pod("a");
    let path = open(pod.path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    let text = nack(stage.agent.add_as("u2", &info("a", "a"), path.as_fd()));
    assert_eq!(text, "failure to start proxy : Bind(127.0.0.1:15053, EBADF)");
    assert_eq!(stage.status().pending(), 2);
}

#[test]
fn an_add_without_information_ends_the_process() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    stage.agent.say(b"\x0a\x04\x0a\x02u1", &[pod.netns().as_fd()]);
    let answer = stage.agent.hear();
    stage.ends_fatally(answer, "NoWorkloadInfo");
}

#[test]
fn a_del_of_nobody_is_acknowledged() {
    let stage = Stage::set(|_| {});
    assert_eq!(stage.agent.del("nobody"), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert_eq!(stage.agent.del("nobody"), Response::Ack);
    assert!(stage.status().ready);
}

#[test]
fn a_del_ends_the_proxy_and_lets_the_namespace_go() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let inode = std::fs::metadata(pod.path()).unwrap().ino();
    let holds = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", stage.ztunnel.pid())).unwrap();
        let name = format!("net:[{inode}]");
        fds.flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == &*name))
    };
    assert!(holds(), "it pins the namespace");
    assert_eq!(stage.agent.del("u1"), Response::Ack);
    wait_listeners(&pod, &[]);
    let end = Instant::now() + LONG;
    while holds() {
        assert!(Instant::now() < end, "it still pins the namespace");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A new connection, with one proxy running from the one before.
fn reconnected(stage: &mut Stage, pod: &e2e_node::lab::Namespace) {
    assert_eq!(stage.agent.add("u1", pod), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert!(stage.status().ready);
    stage.agent.hang_up();
    stage.agent.accept();
}

#[test]
fn a_del_before_the_snapshot_only_takes_effect_with_it() {
    let mut stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    reconnected(&mut stage, &pod);
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.del("u1"), Response::Ack);
    assert_eq!(listeners(&pod), full());
    assert_eq!(stage.status().active(), 1);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    wait_listeners(&pod, &[]);
}

#[test]
fn a_keep_saves_what_runs_and_starts_nothing() {
    let mut stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    reconnected(&mut stage, &pod);
    assert_eq!(stage.agent.keep("u1"), Response::Ack);
    assert_eq!(stage.agent.keep("nobody"), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let status = stage.status();
    assert_eq!((status.active(), status.started, status.stopped), (1, 1, 0));
    assert!(status.ready);
    assert_eq!(listeners(&pod), full());
}

#[test]
fn a_snapshot_ends_whom_it_does_not_name() {
    let mut stage = Stage::set(|_| {});
    let (pod, other) = (stage.pod("a"), stage.pod("b"));
    reconnected(&mut stage, &pod);
    assert_eq!(stage.agent.add("u2", &other), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    wait_listeners(&pod, &[]);
    assert_eq!(listeners(&other), full());
    // An empty one ends all.
    stage.agent.hang_up();
    stage.agent.accept();
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    wait_listeners(&other, &[]);
    assert!(stage.status().ready);
}

#[test]
fn a_keep_after_the_snapshot_ends_the_process() {
    let stage = Stage::set(|_| {});
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let answer = stage.agent.keep("u1");
    stage.ends_fatally(answer, "keep");
}

#[test]
fn a_second_snapshot_ends_the_process() {
    let stage = Stage::set(|_| {});
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let answer = stage.agent.snapshot_sent();
    stage.ends_fatally(answer, "twice");
}

#[test]
fn requests_in_a_row_are_answered_in_order() {
    let stage = Stage::set(|config| config.faults.refuse = [("bad".to_owned(), 1)].into());
    let pod = stage.pod("a");
    let add = |uid: &str| {
        let request = Request::Add { uid: uid.to_owned(), info: info(uid, "a") };
        stage.agent.say(&request.encode().unwrap(), &[pod.netns().as_fd()]);
    };
    let del = |uid: &str| {
        let request = Request::Del { uid: uid.to_owned() };
        stage.agent.say(&request.encode().unwrap(), &[]);
    };
    for _ in 0..10 {
        add("good");
        del("nobody");
    }
    add("bad");
    stage.agent.say(&Request::SnapshotSent.encode().unwrap(), &[]);
    for _ in 0..20 {
        assert_eq!(stage.agent.hear_packet(), b"\x0a\x00");
    }
    assert_eq!(nack(stage.agent.hear()), "failure to start proxy : injected");
    assert_eq!(stage.agent.hear(), Response::Ack);
    stage.agent.hears_nothing();
}

#[test]
fn without_dns_there_is_no_listener_for_it() {
    let stage = Stage::set(|config| config.dns = false);
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    let want = ["*:15001 0x539", "*:15006 0x539", "*:15008 0x539"];
    assert_eq!(listeners(&pod), want);
}

#[test]
fn without_ipv6_on_lo_the_wildcards_work_all_the_same() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    pod.sysctl("ipv6/conf/all/disable_ipv6", "1").unwrap();
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    let mut want = full();
    want.retain(|line| !line.contains("::1"));
    assert_eq!(listeners(&pod), want);
}

/// ztunnel leaves IPV6_V6ONLY alone, and acknowledges what does not work.
#[test]
fn where_sockets_are_of_one_family_ipv4_is_not_listened_to() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    pod.sysctl("ipv6/bindv6only", "1").unwrap();
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    let connect = |to: &'static str| {
        sys::netns::within(pod.netns(), || std::net::TcpStream::connect(to)).unwrap().is_ok()
    };
    assert!(connect("[::1]:15008") && !connect("127.0.0.1:15008"));
}
