//! The fake does wrong what a test wants it to.

use crate::scripted::{LONG, Stage, listeners};
use e2e_node::ztunnel::Faults;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use zds::{Request, Response};

fn del(stage: &Stage) {
    stage.agent.say(&Request::Del { uid: "u1".to_owned() }.encode().unwrap(), &[]);
}

#[test]
fn silence() {
    let stage = Stage::set(|config| config.faults.silent = true);
    del(&stage);
    stage.agent.hears_nothing();
    let heard = |s: &e2e_node::ztunnel::Status| s.requests == ["del of uid u1: not answered"];
    stage.ztunnel.wait("the request", heard).unwrap();
    // What was not answered never is.
    stage.ztunnel.fail(Faults::default()).unwrap();
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    stage.agent.hears_nothing();
}

#[test]
fn deafness_that_passes() {
    let stage = Stage::set(|config| config.faults.deaf = true);
    for _ in 0..3 {
        del(&stage);
    }
    stage.agent.hears_nothing();
    assert!(stage.status().requests.is_empty());
    stage.ztunnel.fail(Faults::default()).unwrap();
    for _ in 0..3 {
        assert_eq!(stage.agent.hear(), Response::Ack);
    }
}

#[test]
fn a_late_answer() {
    let delay_ms = [("u1".to_owned(), 300)].into();
    let stage = Stage::set(|config| config.faults.delay_ms = delay_ms);
    let start = Instant::now();
    assert_eq!(stage.agent.del("u1"), Response::Ack);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(stage.agent.del("u2"), Response::Ack);
}

#[test]
fn an_error_with_a_stack_trace() {
    let stage = Stage::set(|config| {
        config.faults.long_errors = true;
        config.faults.refuse = [("*".to_owned(), 1)].into();
    });
    let pod = stage.pod("a");
    let add = Request::Add { uid: "u1".to_owned(), info: crate::scripted::info("a", "a") };
    stage.agent.say(&add.encode().unwrap(), &[pod.netns().as_fd()]);
    let packet = stage.agent.hear_packet();
    assert_eq!(packet.len(), 12_307);
    let Response::Nack(text) = Response::decode(&packet).unwrap() else {
        panic!("acknowledged");
    };
    assert!(text.starts_with("failure to start proxy : injected\n  0: "), "{text}");
}

#[test]
fn a_connection_that_ends_in_the_middle() {
    let mut stage = Stage::set(|config| config.faults.close_at = Some(2));
    del(&stage);
    del(&stage);
    assert_eq!(stage.agent.hear(), Response::Ack);
    stage.agent.hears_the_end();
    // Once only.
    stage.agent.accept();
    for _ in 0..3 {
        assert_eq!(stage.agent.del("u1"), Response::Ack);
    }
}

#[test]
fn a_process_that_ends_in_the_middle() {
    let mut stage = Stage::set(|config| config.faults.exit_at = Some(2));
    del(&stage);
    del(&stage);
    assert_eq!(stage.agent.hear(), Response::Ack);
    stage.agent.hears_the_end();
    assert_eq!(stage.ztunnel.wait_end(LONG).unwrap(), Some(1));
}

#[test]
fn a_connection_without_a_hello() {
    let stage = Stage::set(|config| config.faults.no_hello = true);
    let connection = stage.agent.accept_silently();
    let end = Instant::now() + Duration::from_millis(100);
    let heard = connection.receive_by(&mut [0; 64], Some(end));
    assert_eq!(heard.unwrap_err(), nix::errno::Errno::ETIMEDOUT);
}

#[test]
fn an_ack_with_nothing_behind_it() {
    let stage = Stage::set(|config| config.faults.lying = true);
    let pod = stage.pod("a");
    assert_eq!(stage.agent.add("u1", &pod), Response::Ack);
    assert_eq!(stage.agent.snapshot_sent(), Response::Ack);
    assert_eq!(listeners(&pod), Vec::<String>::new());
}

#[test]
fn a_connection_that_it_gives_up() {
    let mut stage = Stage::set(|_| {});
    stage.ztunnel.tell(&e2e_node::ztunnel::control::Command::HangUp).unwrap();
    stage.agent.hears_the_end();
    stage.agent.accept();
    assert_eq!(stage.status().connections, 2);
}
