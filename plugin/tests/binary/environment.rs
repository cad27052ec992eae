//! Variables that are missing or wrong, and namespaces that are none.

use wire::code;

use crate::stand::{Call, Sandbox, answer, config, own_netns};

fn call(command: &str) -> Call {
    Call::new(command, "/nonexistent", config("1.1.0", "/nonexistent", ""))
}

#[test]
fn each_missing_variable_is_named() {
    for command in ["ADD", "CHECK"] {
        for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
            for outcome in
                [call(command).unset(variable).run(), call(command).set(variable, "").run()]
            {
                let (msg, _) = outcome.failure(code::INVALID_ENVIRONMENT);
                assert!(msg.contains(variable) && msg.matches("CNI_").count() == 1, "{msg}");
            }
        }
    }
    let outcome = call("ADD").unset("CNI_NETNS").unset("CNI_PATH").run();
    let (msg, _) = outcome.failure(code::INVALID_ENVIRONMENT);
    assert!(msg.ends_with("CNI_NETNS, CNI_PATH"), "all of them at once: {msg}");
}

#[test]
fn an_unknown_command_is_an_error() {
    for word in ["UPDATE", "add", "ADD ", "\u{e9}"] {
        let (msg, _) = call(word).run().failure(code::INVALID_ENVIRONMENT);
        assert!(msg.contains("CNI_COMMAND"), "{msg}");
    }
}

#[test]
fn without_a_command_it_says_what_it_is() {
    for outcome in [call("").run(), call("ADD").unset("CNI_COMMAND").run()] {
        assert_eq!(outcome.success(), "");
        assert!(outcome.stderr.starts_with("CNI plugin istio-cni "), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", outcome.stderr);
    }
}

#[test]
fn descriptors_that_are_closed_are_nobody_elses() {
    let (sandbox, fake) = (Sandbox::new(), answer("200 OK", r#"{"decision":"skip"}"#));
    let add = || Call::new("ADD", &sandbox.path(), config("1.0.0", fake.run_dir(), ""));
    let closing = |which: &str| format!("exec \"$0\" {which}");
    // Else the pod's namespace or the agent's socket would be its standard output.
    let outcome = add().under(&["sh", "-c", &closing(">&- 2>&-")]).run();
    assert_eq!(outcome.status, Some(0), "{}", outcome.stderr);
    assert_eq!(fake.seen().body["PodName"], "cart");
    let (msg, _) =
        add().under(&["sh", "-c", &closing("<&-")]).run().failure(code::DECODING_FAILURE);
    assert!(msg.contains("network configuration"), "{msg}");
}

#[test]
fn a_result_that_nobody_reads_is_a_status_and_no_signal() {
    let call = Call::new("VERSION", "", config("1.0.0", "/nonexistent", ""));
    assert_eq!(call.without_reader().run().status, Some(1));
}

#[test]
fn malformed_values_are_named() {
    for (variable, values) in [
        ("CNI_CONTAINERID", &["../x", "-a", "a b", "\u{e9}", "a/b"][..]),
        ("CNI_IFNAME", &[".", "..", "a/b", "a:b", "a b", "sixteen-letters-"]),
        (
            "CNI_ARGS",
            &["nonsense", "A", "Some=thing", "K8S_POD_NAME=a;Other=1", "IgnoreUnknown=maybe"],
        ),
    ] {
        for value in values {
            let (msg, _) =
                call("ADD").set(variable, value).run().failure(code::INVALID_ENVIRONMENT);
            assert!(msg.contains(variable), "{variable}={value}: {msg}");
        }
    }
}

#[test]
fn what_runtimes_really_set_is_accepted() {
    let sandbox = Sandbox::new();
    for args in [
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=u",
        "IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;New=a=b;",
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart",
    ] {
        let fake = answer("200 OK", r#"{"decision":"skip"}"#);
        let stdin = config("1.0.0", fake.run_dir(), "");
        Call::new("ADD", &sandbox.path(), stdin).set("CNI_ARGS", args).run().success();
        assert_eq!(fake.seen().body["PodName"], "cart");
    }
}

#[test]
fn a_namespace_that_is_none_is_refused_before_the_agent_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(own_netns(), &link).unwrap();
    let uts = format!("/proc/{}/ns/uts", std::process::id());
    for (path, cause) in [
        ("/nonexistent/netns", "No such file"),
        (file.to_str().unwrap(), "not a network namespace"),
        (fifo.to_str().unwrap(), "not a network namespace"),
        (directory.path().to_str().unwrap(), "not a network namespace"),
        ("/dev/null", "not a network namespace"),
        (&uts, "not a network namespace"),
        (&own_netns(), "the network namespace of the host"),
        (link.to_str().unwrap(), "the network namespace of the host"),
    ] {
        for command in ["ADD", "CHECK"] {
            let fake = answer("200 OK", r#"{"decision":"skip"}"#);
            let outcome = Call::new(command, path, config("1.0.0", fake.run_dir(), "")).run();
            let (msg, _) = outcome.failure(code::INVALID_NETNS);
            assert!(msg.contains(cause) && msg.contains(path), "{msg}");
            fake.unasked();
        }
    }
}

#[test]
fn the_own_namespace_is_refused_whoever_insists() {
    for word in ["0", "1", "true"] {
        let fake = answer("200 OK", r#"{"decision":"skip"}"#);
        let stdin = config("1.0.0", fake.run_dir(), "");
        let call = Call::new("ADD", &own_netns(), stdin).set("CNI_NETNS_OVERRIDE", word);
        call.run().failure(code::INVALID_NETNS);
        fake.unasked();
    }
}
