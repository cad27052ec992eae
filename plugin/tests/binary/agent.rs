//! Agents that are dead, slow, strangers or liars. None may start a pod
//! uncaptured, and none may hold one up for longer than the deadline.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use wire::code;

use crate::stand::{Call, Fake, Outcome, Sandbox, answer, answers, config, http};

/// `config` with a deadline in milliseconds.
fn within(ms: u32, run_dir: &str) -> String {
    let ours = format!("\"agent_timeout_ms\":{ms}");
    config("1.0.0", run_dir, "").replace("\"agent_timeout_ms\":15000", &ours)
}

/// For agents that never answer: long enough to get to where they keep it waiting.
fn impatient(run_dir: &str) -> String {
    within(3000, run_dir)
}

fn add(fake: &Fake) -> Outcome {
    let sandbox = Sandbox::new();
    Call::new("ADD", &sandbox.path(), config("1.0.0", fake.run_dir(), "")).run()
}

fn add_impatiently(fake: &Fake) -> Outcome {
    let sandbox = Sandbox::new();
    Call::new("ADD", &sandbox.path(), impatient(fake.run_dir())).run()
}

/// Loosely: the machine that runs the tests is busy with others.
#[track_caller]
fn in_time(outcome: &Outcome) {
    assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
}

/// Until the plugin is gone, or far beyond its deadline.
fn until_closed(stream: &mut UnixStream) {
    let _ = stream.read(&mut [0]);
}

#[test]
fn nobody_there() {
    let sandbox = Sandbox::new();
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().to_str().unwrap();
    let socket = directory.path().join("pluginevent.sock");
    let failure = |cause: &str| {
        let outcome = Call::new("ADD", &sandbox.path(), config("1.0.0", run_dir, "")).run();
        let (msg, details) = outcome.failure(code::AGENT_UNREACHABLE);
        assert!(msg.contains(cause) && msg.contains(socket.to_str().unwrap()), "{msg}");
        assert!(details.contains("kubectl -n istio-system get pods"), "{details}");
        // It does not try until its deadline.
        assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
    };
    failure("No such file");
    drop(UnixListener::bind(&socket).unwrap());
    failure("Connection refused");
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "").unwrap();
    failure("Connection refused");
}

#[test]
fn a_run_directory_too_long_for_a_socket() {
    let sandbox = Sandbox::new();
    let outcome =
        Call::new("ADD", &sandbox.path(), config("1.0.0", &format!("/{}", "x".repeat(120)), ""))
            .run();
    let (msg, _) = outcome.failure(code::INVALID_NETWORK_CONFIG);
    assert!(msg.contains("at most 107"), "{msg}");
}

#[test]
fn silent() {
    let outcome = add_impatiently(&Fake::serve(until_closed));
    let (msg, _) = outcome.failure(code::AGENT_TIMED_OUT);
    assert!(msg.contains("within 3s") && msg.contains("complete its answer"), "{msg}");
    in_time(&outcome);
}

#[test]
fn trickling() {
    let outcome = add_impatiently(&Fake::serve(|stream| {
        let started = Instant::now();
        let head = b"HTTP/1.1 200 OK\r\nX: ".iter().copied();
        for byte in head.chain(std::iter::repeat(b'a')) {
            if stream.write_all(&[byte]).is_err() || started.elapsed() > Duration::from_secs(30) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }));
    outcome.failure(code::AGENT_TIMED_OUT);
    in_time(&outcome);
}

#[test]
fn not_accepting() {
    let sandbox = Sandbox::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pluginevent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    fill_with_one(&listener);
    let held: Vec<UnixStream> = (0..2).map_while(|_| UnixStream::connect(&path).ok()).collect();
    let outcome =
        Call::new("ADD", &sandbox.path(), impatient(directory.path().to_str().unwrap())).run();
    let (msg, _) = outcome.failure(code::AGENT_TIMED_OUT);
    assert!(msg.contains("accept the connection"), "{msg}");
    in_time(&outcome);
    drop(held);
}

/// Shrinks the backlog, so that two connections fill it and the next one waits.
fn fill_with_one(listener: &UnixListener) {
    nix::sys::socket::listen(listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
}

#[test]
fn not_reading() {
    let sandbox = Sandbox::new();
    let directory = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(directory.path().join("pluginevent.sock")).unwrap();
    // More than a socket buffers, so the request cannot be written.
    let ips = format!("[{}]", vec![r#"{"address":"10.0.0.5/24"}"#; 9000].join(","));
    let stdin = impatient(directory.path().to_str().unwrap());
    let stdin = format!("{},\"prevResult\":{{\"ips\":{ips}}}}}", stdin.strip_suffix('}').unwrap());
    let outcome = Call::new("ADD", &sandbox.path(), stdin).run();
    let (msg, _) = outcome.failure(code::AGENT_TIMED_OUT);
    assert!(msg.contains("read the request"), "{msg}");
    in_time(&outcome);
}

#[test]
fn a_request_larger_than_allowed_is_not_sent() {
    let sandbox = Sandbox::new();
    let fake = answer("200 OK", r#"{"decision":"skip"}"#);
    let ips = format!("[{}]", vec![r#"{"address":"10.0.0.5/24"}"#; 20_000].join(","));
    let stdin = config("1.0.0", fake.run_dir(), &format!(",\"prevResult\":{{\"ips\":{ips}}}"));
    Call::new("ADD", &sandbox.path(), stdin).run().failure(code::INVALID_NETWORK_CONFIG);
    fake.unasked();
}

#[test]
fn closing() {
    let (msg, _) = add(&answers("")).failure(code::AGENT_UNREACHABLE);
    assert!(msg.contains("closed the connection without an answer"), "{msg}");
}

#[test]
fn lying() {
    let huge = "x".repeat((1 << 20) + 100);
    let decision = r#"{"decision":"sidecar","reason":""}"#;
    let cases: [(&str, String); 19] = [
        ("garbage", "SSH-2.0-OpenSSH_9.2\r\n".into()),
        ("NUL bytes", "\0".repeat(100)),
        ("HTTP/2", format!("HTTP/2 200\r\n\r\n{decision}")),
        ("no status", format!("HTTP/1.1 \r\n\r\n{decision}")),
        ("head only", "HTTP/1.1 200 OK\r\n".into()),
        ("endless head", format!("HTTP/1.1 200 OK\r\nX: {huge}")),
        ("body cut short", format!("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{decision}")),
        ("body too long", format!("HTTP/1.1 200 OK\r\n\r\n{huge}")),
        (
            "length too large",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n".into(),
        ),
        ("length negative", format!("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{decision}")),
        (
            "chunked",
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n22\r\n{decision}\r\n0\r\n\r\n"
            ),
        ),
        ("200 and nothing, as Istio's agent", http("200 OK", "")),
        ("200 and junk", http("200 OK", "captured, trust me")),
        ("200 and an empty object", http("200 OK", "{}")),
        ("200 and another decision", http("200 OK", r#"{"decision":"maybe"}"#)),
        ("200 and no decision", http("200 OK", r#"{"decision":"done"}"#)),
        ("200 and more than one", http("200 OK", &format!("{decision}{decision}"))),
        ("204", http("204 No Content", decision)),
        ("301", http("301 Moved", decision)),
    ];
    for (what, bytes) in cases {
        let outcome = add(&answers(bytes));
        let (msg, _) = outcome.failure(code::AGENT_ANSWERED_NONSENSE);
        assert!(msg.len() < 1000, "{what}: {msg}");
    }
}

#[test]
fn errors_that_are_none_are_quoted() {
    for (status, body) in [
        ("500 Internal", "pod shop/cart is unexpectedly not eligible for ambient enrollment\n"),
        ("404 Not Found", "404 page not found\n"),
        ("400 Bad Request", r#"{"code":0,"msg":"fine"}"#),
        ("503 Busy", r#"{"code":111,"msg":""}"#),
        ("503 Busy", ""),
    ] {
        let (msg, _) = add(&answer(status, body)).failure(code::AGENT_ANSWERED_NONSENSE);
        assert!(msg.contains(&format!("status {}", &status[..3])), "{msg}");
        assert!(body.len() < 10 || msg.contains(&body[..10]) || msg.contains("code"), "{msg}");
    }
}

#[test]
fn errors_of_the_agent_are_passed_on() {
    let body = r#"{"code":104,"msg":"annotation traffic.sidecar.istio.io/x","details":"use numbers \u00e9"}"#;
    for status in ["400 Bad Request", "500 Internal Server Error", "422 Unprocessable"] {
        let outcome = add(&answer(status, body));
        let (msg, details) = outcome.failure(104);
        assert_eq!(
            (msg.as_str(), details.as_str()),
            // The number is in the text too: libcni passes on nothing else.
            ("annotation traffic.sidecar.istio.io/x (code 104)", "use numbers \u{e9}")
        );
        assert_eq!(outcome.log()["code"], 104);
    }
}

#[test]
fn an_error_of_half_a_megabyte_is_cut() {
    let body = format!(r#"{{"code":106,"msg":"{0}","details":"{0}"}}"#, "\u{e9}".repeat(120_000));
    let outcome = add(&answer("500 Oops", &body));
    outcome.failure(106);
    assert!(outcome.stdout.len() < 10_000);
}

#[test]
fn an_agent_that_answers_before_it_has_read_is_heard() {
    let sandbox = Sandbox::new();
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("pluginevent.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let body = r#"{"code":111,"msg":"the agent is overloaded","details":"wait"}"#;
        stream.write_all(http("503 Busy", body).as_bytes()).unwrap();
    });
    let ips = format!("[{}]", vec![r#"{"address":"10.0.0.5/24"}"#; 9000].join(","));
    let run_dir = directory.path().to_str().unwrap();
    let stdin = config("1.0.0", run_dir, &format!(",\"prevResult\":{{\"ips\":{ips}}}"));
    let outcome = Call::new("ADD", &sandbox.path(), stdin).run();
    server.join().unwrap();
    outcome.failure(code::AGENT_OVERLOADED);
}

#[test]
fn a_stranger_is_not_asked() {
    let sandbox = Sandbox::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pluginevent.sock");
    let (ready, wait) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let listener = listen_as_nobody(&path);
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    });
    wait.recv().unwrap();
    let stdin = config("1.0.0", directory.path().to_str().unwrap(), "");
    let (msg, _) = Call::new("ADD", &sandbox.path(), stdin).run().failure(code::AGENT_UNREACHABLE);
    assert!(msg.contains("belongs to uid 65534"), "{msg}");
    assert!(server.join().unwrap().is_empty(), "not a byte, and no descriptor");
}

/// Who listens is who was the user of the thread that called listen(2).
fn listen_as_nobody(path: &std::path::Path) -> UnixListener {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    // SAFETY: setresuid takes three numbers and touches no memory. The raw
    // call, unlike glibc's, changes this thread alone, which ends with the test.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(changed, 0);
    listen(&fd, Backlog::new(1).unwrap()).unwrap();
    UnixListener::from(fd)
}

#[test]
fn the_deadline_is_held_between_its_bounds() {
    // 0 would be no time at all; a minute is the most.
    let sandbox = Sandbox::new();
    // It may be over before a busy machine has sent the request.
    let told = (0..30).find_map(|_| {
        let fake = Fake::serve(until_closed);
        let outcome = Call::new("ADD", &sandbox.path(), within(0, fake.run_dir())).run();
        let (msg, _) = outcome.failure(code::AGENT_TIMED_OUT);
        assert!(msg.contains("within 100ms"), "{msg}");
        Some(fake.heard()?.body["Sluice"]["DeadlineMs"].as_u64().unwrap())
    });
    assert!(told.unwrap() <= 100);
    let fake = answer("200 OK", r#"{"decision":"skip"}"#);
    let stdin = within(9_999_999, fake.run_dir());
    Call::new("ADD", &sandbox.path(), stdin).run().success();
    assert!(fake.seen().body["Sluice"]["DeadlineMs"].as_u64().unwrap() <= 60_000);
}
