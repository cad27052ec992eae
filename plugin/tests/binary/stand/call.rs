//! One execution of the plugin.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No test waits longer for the plugin.
const HANG: Duration = Duration::from_secs(60);

/// What the plugin is called with.
pub(crate) struct Call {
    environment: Vec<(String, String)>,
    stdin: Vec<u8>,
    close_stdin: bool,
    is_read: bool,
    program: Vec<String>,
}

/// What it did.
pub(crate) struct Outcome {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

impl Call {
    /// A call as a runtime makes it for a Kubernetes pod.
    pub(crate) fn new(command: &str, netns: &str, stdin: impl Into<Vec<u8>>) -> Self {
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "0123abcd"),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u-1",
            ),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec();
        Self {
            environment,
            stdin: stdin.into(),
            close_stdin: true,
            is_read: true,
            program: vec![env!("CARGO_BIN_EXE_istio-cni").to_owned()],
        }
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self = self.unset(name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.environment.retain(|(k, _)| k != name);
        self
    }

    /// A runtime that is gone before it has its result.
    pub(crate) fn without_reader(mut self) -> Self {
        self.is_read = false;
        self
    }

    /// A runtime that forgets to close the pipe.
    pub(crate) fn with_open_stdin(mut self) -> Self {
        self.close_stdin = false;
        self
    }

    /// Runs under another program.
    pub(crate) fn under(mut self, wrapper: &[&str]) -> Self {
        self.program.splice(0..0, wrapper.iter().map(|&s| s.to_owned()));
        self
    }

    /// Runs another program.
    pub(crate) fn instead(mut self, program: Vec<String>) -> Self {
        self.program = program;
        self
    }

    #[expect(clippy::disallowed_methods, reason = "the tests' one place that executes the plugin")]
    pub(crate) fn run(self) -> Outcome {
        let argv = self.program;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let started = Instant::now();
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .env_clear()
            .env("PATH", path)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(if self.is_read { Stdio::piped() } else { nobody() })
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let mut stdin = child.stdin.take().unwrap();
        let (send, receive) = mpsc::channel();
        // Reads while the plugin writes: large results fill the pipe.
        let waiter = std::thread::spawn(move || {
            send.send((child.wait_with_output().unwrap(), Instant::now()))
        });
        // A plugin that does not want it all closes its end: no failure.
        let _ = stdin.write_all(&self.stdin);
        let held = (!self.close_stdin).then_some(stdin);
        let result = receive.recv_timeout(HANG);
        if result.is_err() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = waiter.join();
        drop(held);
        let (output, ended) = result.expect("the plugin hangs");
        Outcome {
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
            elapsed: ended - started,
        }
    }
}

/// A pipe without a reader.
fn nobody() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

impl Outcome {
    /// It succeeded; what it printed.
    #[track_caller]
    pub(crate) fn success(&self) -> &str {
        let stdout = std::str::from_utf8(&self.stdout).unwrap();
        assert_eq!(self.status, Some(0), "stdout {stdout}\nstderr {}", self.stderr);
        stdout
    }

    /// It failed as the specification says, with this code; message and details.
    #[track_caller]
    pub(crate) fn failure(&self, code: u32) -> (String, String) {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert_eq!(self.status, Some(1), "stdout {stdout}\nstderr {}", self.stderr);
        let object: Value = serde_json::from_str(&stdout).expect("an error object on stdout");
        assert_eq!(object["code"], code, "{object}");
        assert!(object["cniVersion"].is_string(), "{object}");
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let (msg, details) = (text("msg"), text("details"));
        assert!(!msg.is_empty() && !msg.contains('\n'), "one line of cause: {msg:?}");
        assert!(!details.is_empty(), "a next step: {object}");
        (msg, details)
    }

    /// The line on stderr.
    #[track_caller]
    pub(crate) fn log(&self) -> Value {
        assert_eq!(self.stderr.lines().count(), 1, "one line: {}", self.stderr);
        serde_json::from_str(&self.stderr).expect("a JSON line on stderr")
    }
}
