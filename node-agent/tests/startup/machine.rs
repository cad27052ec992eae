//! A node: a network namespace with the agent in it, and the host's directories.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};

/// Longest wait for something that must happen.
const LIMIT: Duration = Duration::from_secs(90);

/// The program by one of its names, with nothing in its environment.
pub(crate) fn program(name: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.arg0(name).env_clear().stdin(Stdio::null());
    command
}

/// A network's configuration as others leave it.
pub(crate) const PRIMARY: &str = "{\n  \"cniVersion\": \"1.0.0\", \"name\": \"pods\",\n  \"plugins\": [ {\"type\": \"bridge\"} ]\n}\n";

/// A node.
pub(crate) struct Machine {
    pub(crate) host: Netns,
    dir: tempfile::TempDir,
    agent: Option<Child>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let host = Netns::create().unwrap();
        within(&host, || {
            #[expect(clippy::disallowed_methods, reason = "a test's own tools, not the product's")]
            let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(status.success());
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin", "source", "pods"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let machine = Self { host, dir, agent: None };
        let plugin = machine.path("source").join("istio-cni");
        std::fs::write(&plugin, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(machine.path("net.d").join("10-pods.conflist"), PRIMARY).unwrap();
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Directories as the chart mounts them.
    pub(crate) fn directories(&self) -> Vec<String> {
        [
            ("--cni-agent-run-dir", "run"),
            ("--mounted-cni-net-dir", "net.d"),
            ("--mounted-cni-bin-dir", "bin"),
        ]
        .map(|(flag, name)| format!("{flag}={}", self.path(name).display()))
        .to_vec()
    }

    /// `install-cni` with these arguments, in the node's namespace, not started.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        within(&self.host, || {
            program("install-cni")
                .args(self.directories())
                .arg(format!("--plugin-dir={}", self.path("source").display()))
                .args(arguments)
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap()
        })
        .unwrap()
    }

    /// Starts it with pods from a directory, and waits until it is ready.
    pub(crate) fn start(&mut self, arguments: &[&str]) {
        let pods = format!("--pods={}", self.path("pods").display());
        let ports = ["--health-address=:8000", "--monitoring-port=15014"];
        self.begin(&[&[pods.as_str()], &ports[..], arguments].concat());
        self.until("ready", |m| m.get(8000, "/readyz").starts_with("HTTP/1.1 200"));
    }

    /// Starts it and does not wait.
    pub(crate) fn begin(&mut self, arguments: &[&str]) {
        assert!(self.agent.is_none());
        self.agent = Some(self.spawn(arguments));
    }

    /// A line of the agent's limits.
    pub(crate) fn limit(&self, name: &str) -> String {
        let limits = format!("/proc/{}/limits", self.agent.as_ref().unwrap().id());
        let limits = std::fs::read_to_string(limits).unwrap();
        limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
    }

    pub(crate) fn stop(&mut self, signal: Signal) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), signal).unwrap();
        agent.wait().unwrap().code()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// An answer, head and body; empty when nobody answers.
    pub(crate) fn get(&self, port: u16, path: &str) -> String {
        within(&self.host, || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
                return String::new();
            };
            talk(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
        })
        .unwrap()
    }

    /// Waits for something that must become true.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, check: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !check(self) {
            assert!(Instant::now() < end, "not in {LIMIT:?}: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The plugins' types of the list that a runtime would load.
    pub(crate) fn chain(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.path("net.d"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "conflist"))
            .collect();
        names.sort();
        let text = std::fs::read_to_string(&names[0]).unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    /// Says something on a socket of the run directory.
    pub(crate) fn say(&self, socket: &str, text: &str) -> String {
        let mut stream = UnixStream::connect(self.path("run").join(socket)).unwrap();
        talk(&mut stream, text)
    }
}

fn talk(stream: &mut (impl Read + Write), text: &str) -> String {
    let mut answer = Vec::new();
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// `cleanup` with a node's directories; its exit status and what it said.
pub(crate) fn cleanup(machine: &Machine, arguments: &[&str]) -> (Option<i32>, String) {
    let output = program("sluice")
        .arg("cleanup")
        .args(machine.directories())
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Mode of a file, without its type.
pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}
