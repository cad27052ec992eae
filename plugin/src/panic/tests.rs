//! The hook ends the process, so it runs in a child: this test binary again,
//! with one of the ignored tests below. The shipped binary has no trigger.

use std::process::{Command, Output};

use super::*;

#[expect(clippy::disallowed_methods, reason = "a test that has to watch a process end")]
fn child(test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("panic::tests::{test}"),
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap()
}

#[test]
fn a_panic_is_an_error_object_and_status_1() {
    let output = child("panics_in_add");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    // libtest's own lines stand before it.
    let object = &stdout[stdout.find('{').unwrap()..];
    let error: Error = serde_json::from_str(object).unwrap();
    assert_eq!(error.code, code::INTERNAL);
    assert_eq!(error.cni_version.as_deref(), Some("1.1.0"));
    assert!(
        error.msg.contains("index out of bounds") && error.msg.contains("tests.rs"),
        "{}",
        error.msg
    );
    assert!(!error.details.is_empty());
}

#[test]
fn a_panic_in_del_is_success_without_a_result() {
    let output = child("panics_in_del");
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8(output.stdout).unwrap().contains("cniVersion"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("index out of bounds"));
}

fn index_out_of_bounds(quiet: bool) {
    // Not for `--include-ignored`: it ends the process.
    if !std::env::args().any(|argument| argument == "--exact") {
        return;
    }
    install(quiet);
    let empty: Vec<u8> = std::hint::black_box(Vec::new());
    let index = std::hint::black_box(7);
    assert_eq!(empty[index], 0);
}

#[test]
#[ignore = "ends the process: run by the tests above"]
fn panics_in_add() {
    index_out_of_bounds(false);
}

#[test]
#[ignore = "ends the process: run by the tests above"]
fn panics_in_del() {
    index_out_of_bounds(true);
}
