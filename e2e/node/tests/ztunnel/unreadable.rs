//! What ztunnel cannot read: it says so, closes the connection and comes back at once.
//! zds.md, "FD rules" and "Transport".

use crate::scripted::{Stage, info};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use zds::{Request, Response};

/// Adds a request's bytes and descriptors, and the complaint.
fn is_unreadable(bytes: &[u8], fds: &[BorrowedFd<'_>], why: &str) {
    let mut stage = Stage::set(|_| {});
    stage.agent.say(bytes, fds);
    let Response::Nack(text) = stage.agent.hear() else {
        panic!("acknowledged");
    };
    assert!(text.starts_with(&format!("failure to read message : {why}")), "{text}");
    stage.agent.hears_the_end();
    // It is back, and as good as new.
    stage.agent.accept();
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    let status = stage.status();
    assert_eq!((status.connections, status.active()), (2, 0));
}

fn add() -> Vec<u8> {
    Request::Add { uid: "u1".to_owned(), info: info("a", "a") }.encode().unwrap()
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

#[test]
fn an_add_without_a_descriptor() {
    is_unreadable(&add(), &[], "No control message");
}

#[test]
fn an_add_with_two() {
    let null = null();
    is_unreadable(&add(), &[null.as_fd(); 2], "Expected 1 FD, got 2");
}

#[test]
fn an_add_with_more() {
    let null = null();
    is_unreadable(&add(), &[null.as_fd(); 3], "ENOBUFS");
    is_unreadable(&add(), &[null.as_fd(); 100], "ENOBUFS");
}

#[test]
fn other_requests_with_a_descriptor() {
    let null = null();
    let uid = || "u1".to_owned();
    for request in
        [Request::Del { uid: uid() }, Request::Keep { uid: uid() }, Request::SnapshotSent]
    {
        let bytes = request.encode().unwrap();
        is_unreadable(&bytes, &[null.as_fd()], "Unexpected control message");
    }
}

#[test]
fn what_is_no_protobuf() {
    is_unreadable(b"\xff\xff", &[], "failed to decode Protobuf message");
}

#[test]
fn a_request_of_a_newer_version() {
    is_unreadable(b"\x32\x04\x0a\x02u1", &[], "no payload");
}

#[test]
fn more_than_a_kilobyte() {
    let null = null();
    // One that would be fine if it were shorter: an unknown field pads it.
    let mut long = add();
    long.extend(b"\x7a\xf0\x07");
    long.resize(1025, b'x');
    is_unreadable(&long, &[null.as_fd()], "received truncated message");
}

#[test]
fn a_kilobyte_is_read() {
    let stage = Stage::set(|_| {});
    let pod = stage.pod("a");
    let account = "s".repeat(1024 - 22);
    let request = Request::Add { uid: "u1".to_owned(), info: info("a", &account) };
    let bytes = request.encode().unwrap();
    assert_eq!(bytes.len(), 1024);
    stage.agent.say(&bytes, &[pod.netns().as_fd()]);
    assert_eq!(stage.agent.hear(), Response::Ack);
}

#[test]
fn an_empty_packet_is_the_end() {
    let mut stage = Stage::set(|_| {});
    stage.agent.say(b"", &[]);
    stage.agent.hears_the_end();
    stage.agent.accept();
}

#[test]
fn descriptors_that_came_in_vain_are_closed() {
    let mut stage = Stage::set(|_| {});
    let (read, write) = std::io::pipe().unwrap();
    stage.agent.say(b"\xff", &[write.as_fd(); 3]);
    drop(write);
    assert!(matches!(stage.agent.hear(), Response::Nack(_)));
    assert_eq!(std::io::copy(&mut { read }, &mut std::io::sink()).unwrap(), 0);
    stage.agent.hears_the_end();
}
