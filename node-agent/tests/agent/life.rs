//! Starting, stopping, dying, and many at once.

use crate::lab::{Lab, Pod, exists};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::json;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wire::code;
use wire::request::Endpoint;

#[test]
fn stops_cleanly_and_leaves_the_rules() {
    let mut lab = Lab::with_agent(&["--log-format", "json"]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    lab.add(&pod).decision();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        assert_eq!(lab.stop(signal), Some(0), "{}", lab.log());
        assert!(!exists(&lab.socket()));
        assert!(pod.nft().contains("istio-proxy-nat"));
        lab.start();
        lab.check(&pod).decision();
    }
    for line in lab.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    let captured = lab.log().lines().filter(|l| l.contains("\"captured\"")).count();
    assert_eq!(captured, 1, "one line a change: {}", lab.log());
}

#[test]
fn finishes_what_is_under_way_when_told_to_stop() {
    let mut lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    // Half a second of work: the proof waits for a connection that is dropped.
    pod.load("table inet other { chain c { type filter hook output priority -400; ip daddr 192.0.2.1 drop; }\n }");
    let socket = lab.socket();
    let answer = std::thread::scope(|scope| {
        let request = wire::http::request(Endpoint::Add, pod.request().to_string().as_bytes());
        let waiting = scope.spawn({
            let pod = &pod;
            move || ask(&socket, &request, pod)
        });
        // It is being proved when its rules are in.
        let end = Instant::now() + Duration::from_secs(60);
        while !pod.nft().contains("istio-proxy-nat") {
            assert!(Instant::now() < end, "{}", lab.log());
        }
        assert_eq!(lab.stop(Signal::SIGTERM), Some(0));
        waiting.join().unwrap()
    });
    assert!(answer.contains("capture is not proved"), "{answer}");
}

/// What an agent answers before it ends; it may not get that far.
fn ask(socket: &std::path::Path, request: &[u8], pod: &Pod) -> String {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Read};
    use std::os::fd::AsRawFd;
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else {
        return String::new();
    };
    let fds = [pod.ns.as_fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let _ = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(request)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn one_agent_a_directory() {
    let mut lab = Lab::with_agent(&[]);
    let mut second = lab.spawn();
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert!(lab.log().contains("another agent serves"), "{}", lab.log());
    assert_eq!(lab.ask(Endpoint::Status, &json!({}), None).status, 200);
    lab.stop(Signal::SIGKILL);
    assert!(exists(&lab.socket()), "nobody cleaned up");
    lab.start();
    lab.stop(Signal::SIGTERM);
    std::fs::write(lab.socket(), "not a socket").unwrap();
    assert_eq!(lab.spawn().wait().unwrap().code(), Some(1));
    assert!(lab.log().contains("is no socket"), "{}", lab.log());
}

#[test]
fn a_directory_that_is_open_to_others_is_closed() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let mut lab = Lab::new(&[]);
    let run = lab.run_dir();
    std::fs::create_dir(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).unwrap();
    lab.start();
    assert_eq!(std::fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
    lab.stop(Signal::SIGTERM);
    chown(&run, Some(1000), None).unwrap();
    assert_eq!(lab.spawn().wait().unwrap().code(), Some(1));
    assert!(lab.log().contains("belongs to user 1000"), "{}", lab.log());
    std::fs::remove_dir_all(&run).unwrap();
    symlink("/nonexistent/dir", &run).unwrap();
    assert_eq!(lab.spawn().wait().unwrap().code(), Some(1));
}

#[test]
fn says_why_it_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str], uid: u32| {
        #[expect(clippy::disallowed_methods, reason = "the program under test")]
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"))
            .arg("agent")
            .args(args)
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            .uid(uid)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run(&["--pods", "/tmp"], 1000).contains("as root"));
    assert!(run(&["--pods", "/nonexistent"], 0).contains("/nonexistent"));
    assert!(run(&["--pods", "/tmp", "--backend", "ebpf"], 0).contains("nftables"));
    assert!(
        run(&["--pods", "/tmp", "--outbound-owner-groups", "nosuchgroup"], 0)
            .contains("nosuchgroup")
    );
    assert!(run(&["--pods", "/tmp", "--log-level", "a=b=c"], 0).contains("log level"));
}

#[test]
fn killed_in_the_middle_and_tried_again() {
    let mut lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pods: Vec<Pod> = (0..12).map(|_| lab.pod("p")).collect();
    for (i, pod) in pods.iter().enumerate() {
        let socket = lab.socket();
        std::thread::scope(|scope| {
            let request = wire::http::request(Endpoint::Add, pod.request().to_string().as_bytes());
            scope.spawn(move || ask(&socket, &request, pod));
            std::thread::sleep(Duration::from_micros(400 * i as u64));
            lab.stop(Signal::SIGKILL);
        });
        lab.start();
        assert_eq!(lab.add(pod).decision().0, "sidecar", "{i}");
        lab.check(pod).decision();
    }
    let mut names = lab.records();
    names.retain(|name| !name.ends_with(".json"));
    assert!(names.is_empty(), "{names:?}");
}

/// A file system that is full.
struct Full(PathBuf);

impl Drop for Full {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_fails_the_add_and_leaves_nothing() {
    let mut lab = Lab::new(&[]);
    let records = lab.run_dir().join("sandboxes");
    std::fs::create_dir_all(&records).unwrap();
    mount(Some("tmpfs"), &records, Some("tmpfs"), MsFlags::empty(), Some("size=4k,mode=0700"))
        .unwrap();
    let full = Full(records.clone());
    lab.start();
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    let filler = records.join("filler");
    std::fs::write(&filler, [0; 4096]).unwrap();
    let answer = lab.add(&pod);
    let msg = answer.failure(code::RECORD_NOT_WRITTEN);
    assert!(msg.to_lowercase().contains("no space"), "{msg}");
    assert_eq!(lab.records(), ["filler"]);
    assert!(pod.nft().contains("istio-proxy-nat"), "captured, and not started");
    std::fs::remove_file(filler).unwrap();
    lab.add(&pod).decision();
    assert_eq!(lab.records(), [format!("{}.json", pod.id)]);
    lab.del(&pod).decision();
    drop(full);
}

#[test]
fn two_at_once_for_one_sandbox() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    std::thread::scope(|scope| {
        let adds: Vec<_> = (0..8).map(|_| scope.spawn(|| lab.add(&pod))).collect();
        for add in adds {
            assert_eq!(add.join().unwrap().decision().0, "sidecar");
        }
    });
    assert_eq!(lab.log().matches("applied=created").count(), 1, "{}", lab.log());
    assert_eq!(lab.records().len(), 1);
    lab.check(&pod).decision();
}

#[test]
fn a_slow_pod_delays_no_other() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    // Each needs 0.4 s: one after the other, they would keep the others for 13 s.
    let stalled: Vec<Pod> = (0..32).map(|_| lab.pod("p")).collect();
    for pod in &stalled {
        pod.load("table inet other { chain c { type filter hook output priority -400; ip daddr 192.0.2.1 drop; }\n }");
    }
    let others: Vec<Pod> = (0..6).map(|_| lab.pod("p")).collect();
    std::thread::scope(|scope| {
        let ghost = lab.bare_pod("ghost");
        let lab = &lab;
        let slow: Vec<_> = stalled.iter().map(|pod| scope.spawn(|| lab.add(pod))).collect();
        let unknown = scope.spawn(move || lab.add(&ghost));
        std::thread::sleep(Duration::from_millis(30));
        for pod in &others {
            let answer = lab.add(pod);
            answer.decision();
            assert!(answer.took < Duration::from_secs(10), "{answer:?}");
        }
        for add in slow {
            let answer = add.join().unwrap();
            answer.failure(code::CAPTURE_NOT_PROVED);
            assert!(answer.took >= Duration::from_millis(350), "{answer:?}");
        }
        unknown.join().unwrap().failure(code::UNKNOWN_POD);
    });
}

#[test]
fn keeps_the_deadline_it_is_given() {
    let lab = Lab::with_agent(&[]);
    lab.sidecar("p", &[], &[]);
    let pod = lab.pod("p");
    pod.load("table inet other { chain c { type filter hook output priority -400; ip daddr 192.0.2.1 drop; }\n }");
    let mut request = pod.request();
    request["Sluice"]["DeadlineMs"] = json!(150);
    let answer = lab.ask(Endpoint::Add, &request, Some(pod.ns.as_fd()));
    answer.failure(code::AGENT_TIMED_OUT);
    // The one that was given up still has its turn; the next waits for it.
    let answer = lab.add(&pod);
    answer.failure(code::CAPTURE_NOT_PROVED);
    assert!(lab.records().is_empty());
}

#[test]
fn status_is_tried() {
    let lab = Lab::with_agent(&[]);
    let answer = lab.ask(Endpoint::Status, &json!({"Sluice": {"Version": 1}}), None);
    assert_eq!(answer.decision().0, "done");
}
