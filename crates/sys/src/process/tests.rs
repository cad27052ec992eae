//! Shells appear here as programs under test, with fixed text.

use super::*;
use std::fs;
use std::time::Instant;

fn sh(script: &str) -> Command<'static> {
    Command::new("/bin/sh").args(["-c", script])
}

/// True while a process of this id is there, also as a zombie.
fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn passes_input_and_returns_output() {
    let input = vec![b'x'; 3 << 20];
    let output = Command::new("/bin/cat").stdin(&input).run().unwrap();
    assert_eq!(output.stdout, input);
    assert_eq!(output.stderr, "");
}

#[test]
fn gives_no_environment_but_the_given_one() {
    let output =
        Command::new("/usr/bin/env").env("XTABLES_LOCKFILE", "/proc/self/ns/net").run().unwrap();
    assert_eq!(output.stdout, b"XTABLES_LOCKFILE=/proc/self/ns/net\n");
}

#[test]
fn arguments_are_no_shell_text() {
    let output = Command::new("/bin/echo").args(["$(id)", "a b", ";", "'"]).run().unwrap();
    assert_eq!(output.stdout, b"$(id) a b ; '\n");
}

#[test]
fn an_error_says_what_ran_and_what_it_said() {
    let err = sh("echo '  line 3 failed ' >&2; exit 4").run().unwrap_err();
    assert_eq!(
        err.to_string(),
        "'/bin/sh -c echo '  line 3 failed ' >&2; exit 4': exit status 4: line 3 failed"
    );
    let err = sh("kill -9 $$").run().unwrap_err();
    assert!(matches!(err, ProcessError::Failed { status: Status::Signal(9), .. }), "{err}");
    let err = Command::new("/nonexistent/tool").arg("-x").run().unwrap_err();
    assert_eq!(err.to_string(), "start '/nonexistent/tool -x'");
}

#[test]
fn a_name_is_not_looked_for() {
    let err = Command::new("true").run().unwrap_err();
    assert!(matches!(err, ProcessError::Start { .. }), "{err}");
}

#[test]
fn kills_and_reaps_what_does_not_end() {
    let start = Instant::now();
    let command = Command::new("/bin/sh")
        .args(["-c", "echo $$; echo slow >&2; exec sleep 30"])
        .timeout(Duration::from_secs(3));
    let mut child = command.spawn().unwrap();
    let mut pipes = Pipes::of(&mut child, &[]);
    let ended = pipes.pump(&mut child, Instant::now() + Duration::from_secs(3));
    assert!(matches!(ended, Ok(Ended::Late)));
    let pid = String::from_utf8(pipes.stdout_bytes).unwrap();
    assert!(exists(&pid));
    child.kill().unwrap();
    child.wait().unwrap();

    let err = command.run().unwrap_err();
    assert!(err.to_string().ends_with("killed after 3000 ms without an end: slow"), "{err}");
    assert!(start.elapsed() < Duration::from_secs(25));
}

#[test]
fn leaves_no_process_behind() {
    let dir = std::env::temp_dir().join(format!("sluice-process-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("pid");
    let script = format!("echo $$ > {}; exec sleep 30", file.display());
    sh(&script).timeout(Duration::from_secs(3)).run().unwrap_err();
    let pid = fs::read_to_string(&file).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert!(!exists(&pid), "{pid} is still there");
}

#[test]
fn does_not_wait_for_what_the_program_leaves_behind() {
    let start = Instant::now();
    let output = sh("sleep 20 & echo done").run().unwrap();
    assert_eq!(output.stdout, b"done\n");
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn input_that_is_not_read_is_no_error_of_its_own() {
    let input = vec![b'x'; 1 << 20];
    Command::new("/bin/true").stdin(&input).run().unwrap();
    let err = Command::new("/bin/false").stdin(&input).run().unwrap_err();
    assert!(matches!(err, ProcessError::Failed { status: Status::Exit(1), .. }), "{err}");
}

#[test]
fn output_is_bounded() {
    let err = Command::new("/bin/cat").arg("/dev/zero").run().unwrap_err();
    assert!(
        matches!(err, ProcessError::TooMuchOutput { limit, .. } if limit == STDOUT_LIMIT),
        "{err}"
    );
    let output = sh("head -c 1000000 /dev/zero | tr '\\0' e >&2")
        .env("PATH", "/usr/bin:/bin")
        .run()
        .unwrap();
    assert_eq!(output.stderr.len(), STDERR_LIMIT);
}

#[test]
fn a_covered_file_is_another_for_the_child_only() {
    let own = fs::read("/etc/hostname").unwrap_or_default();
    let seen = |command: Command<'_>| command.arg("/etc/hostname").run().unwrap().stdout;
    let cat = || Command::new("/bin/cat").cover(c"/etc/hostname", c"/proc/self/ns/../comm");
    assert_eq!(seen(cat()), b"cat\n");
    assert_eq!(fs::read("/etc/hostname").unwrap_or_default(), own);
    // Where it cannot be had, things are as they are.
    let cat = || Command::new("/bin/cat").cover(c"/nonexistent/file", c"/proc/self/comm");
    assert_eq!(seen(cat()), own);
}
