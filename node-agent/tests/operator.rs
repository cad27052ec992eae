//! The operator's commands where no agent runs; with one they are in e2e/node.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn sluice(args: &[&str], run_dir: &Path) -> Output {
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(args)
        .env("SLUICE_RUN_DIR", run_dir)
        .env_remove("CNI_AGENT_RUN_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn says_what_was_tried_where_no_agent_is() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("operator.sock").display().to_string();
    for command in [&["status"][..], &["drain"]] {
        let output = sluice(command, dir.path());
        let (out, err) = said(&output);
        assert_eq!((output.status.code(), out.as_str()), (Some(1), ""), "{command:?}");
        assert!(err.contains(&socket) && err.contains("--run-dir"), "{err}");
    }
    let output = sluice(&["pods"], dir.path());
    let (out, err) = said(&output);
    assert!(output.status.code() == Some(1) && out.starts_with("POD "), "{out}");
    assert!(err.contains(&socket) && err.contains("records and the kernel"), "{err}");
    let (out, _) = said(&sluice(&["pods", "-o", "json"], dir.path()));
    let json: Value = serde_json::from_str(&out).unwrap();
    assert!(json["agent"]["answers"] == false && json["pods"].as_array().unwrap().is_empty());
    assert!(json["agent"]["error"].as_str().unwrap().contains(&socket), "{json}");
    let output = sluice(&["verify", "shop/web"], dir.path());
    assert!(!output.status.success());
    assert!(said(&output).1.contains("pod shop/web is not known on this node"));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is made");
}

#[test]
fn refuses_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["verify", "a/b/c"][..], "want [NAMESPACE/]NAME"),
        (&["verify"], "[NAMESPACE/]POD"),
        (&["pods", "--output", "yaml"], "table, json"),
        (&["status", "--timeout", "soon"], "want a number of seconds"),
        (&["drain", "shop"], "unexpected argument"),
    ] {
        let output = sluice(args, dir.path());
        let (out, err) = said(&output);
        assert!(!output.status.success() && out.is_empty(), "{args:?}: {out}");
        assert!(err.contains(part), "{args:?}: {err}");
    }
}
