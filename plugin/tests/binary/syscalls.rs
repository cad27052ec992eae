//! What the plugin asks of the kernel, watched by strace.

use crate::stand::{Call, Sandbox, answer, config};

#[test]
fn no_tcp_socket_no_program_no_other_peer() {
    let sandbox = Sandbox::new();
    let fake = answer("200 OK", r#"{"decision":"sidecar","reason":""}"#);
    let trace = fake.run_dir().to_owned() + "/trace";
    let stdin =
        config("1.0.0", fake.run_dir(), r#","prevResult":{"ips":[{"address":"10.0.0.5/24"}]}"#);
    let outcome = Call::new("ADD", &sandbox.path(), stdin)
        .under(&["strace", "-f", "-qq", "-o", &trace])
        .run();
    outcome.success();
    fake.seen();
    let trace = std::fs::read_to_string(&trace).expect("strace's output");
    let calls = |name: &str| -> Vec<&str> {
        // "PID name(...": strace -f -o puts the pid first.
        trace
            .lines()
            .filter(|l| {
                l.split_once(' ')
                    .is_some_and(|(_, c)| c.trim_start().starts_with(&format!("{name}(")))
            })
            .collect()
    };
    assert_eq!(calls("execve").len(), 1, "the plugin itself\n{trace}");
    assert!(calls("execveat").is_empty() && calls("fork").is_empty() && calls("vfork").is_empty());
    assert!(
        calls("clone").is_empty() && calls("clone3").is_empty(),
        "no thread, no child\n{trace}"
    );
    let sockets = calls("socket");
    assert!(sockets.len() == 1 && sockets[0].contains("AF_UNIX"), "{sockets:?}");
    let connects = calls("connect");
    assert_eq!(connects.len(), 1);
    assert!(connects[0].contains(&format!("{}/pluginevent.sock", fake.run_dir())), "{connects:?}");
    assert!(calls("setns").is_empty() && calls("unshare").is_empty() && calls("mount").is_empty());
    assert!(calls("bind").is_empty() && calls("socketpair").is_empty());
    // Nothing is written to a file either.
    let writable =
        |l: &str| l.contains("O_WRONLY") || l.contains("O_RDWR") || l.contains("O_CREAT");
    assert!(!calls("openat").into_iter().any(writable), "{trace}");
}

#[test]
fn a_pod_that_passes_through_opens_no_socket_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let outcome = Call::new("ADD", "/nonexistent", config("1.0.0", "/nonexistent", ""))
        .set("CNI_ARGS", "")
        .under(&["strace", "-f", "-qq", "-o", trace.to_str().unwrap()])
        .run();
    outcome.success();
    let trace = std::fs::read_to_string(&trace).unwrap();
    assert!(!trace.contains("socket(") && trace.contains("exit_group(0)"), "{trace}");
}
