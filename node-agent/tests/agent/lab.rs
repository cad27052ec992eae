//! An agent in a "host" of its own, and pods wired to it: network namespaces that
//! nothing else on this machine sees, gone when the value is.

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};
use wire::http;
use wire::request::Endpoint;

/// A program of the machine, run in a namespace.
pub(crate) fn run(ns: &Netns, program: &str, args: &[&str], input: &str) -> String {
    let output = within(ns, || {
        #[expect(clippy::disallowed_methods, reason = "a test's own tools, not the product's")]
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    })
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}{text}\n{input}");
    text
}

/// A new interface drops what is sent by it until the kernel's link watch has run,
/// which a busy machine puts off; the first packet lost is an ARP request, repeated
/// only after a second.
fn wait_until_up(ns: &Netns, interface: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !run(ns, "ip", &["-o", "link", "show", "dev", interface], "").contains("state UP") {
        assert!(Instant::now() < end, "{interface} does not come up");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the machine reaches a sandbox: the neighbour answers, and an IPv6 address
/// has the local route that comes from a work queue.
fn wait_until_reached(host: &Netns, address: &str) {
    // Nobody listens on the port, so an answer is a refusal.
    let target = std::net::SocketAddr::new(address.parse().unwrap(), 9);
    let end = Instant::now() + Duration::from_secs(60);
    let answers = || {
        let dialled = std::net::TcpStream::connect_timeout(&target, Duration::from_secs(3));
        dialled.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    while !within(host, answers).unwrap() {
        assert!(Instant::now() < end, "the machine does not reach {address}");
    }
}

/// The machine's network, its agent's directories, and the agent when it runs.
pub(crate) struct Lab {
    pub(crate) host: Netns,
    dir: tempfile::TempDir,
    agent: Option<Child>,
    next: AtomicU32,
    args: Vec<String>,
}

/// A pod's sandbox.
pub(crate) struct Pod {
    pub(crate) ns: Netns,
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) address: String,
}

impl Lab {
    /// A machine whose agent does not run yet.
    pub(crate) fn new(args: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let host = Netns::create().unwrap();
        run(&host, "ip", &["link", "set", "lo", "up"], "");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self { host, dir, agent: None, next: AtomicU32::new(1), args }
    }

    /// A machine with an agent that serves.
    pub(crate) fn with_agent(args: &[&str]) -> Self {
        let mut lab = Self::new(args);
        lab.start();
        lab
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.dir.path().join("pods")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("pluginevent.sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts the agent, without waiting for it.
    pub(crate) fn spawn(&self) -> Child {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log"));
        let log = log.unwrap();
        within(&self.host, || {
            #[expect(clippy::disallowed_methods, reason = "the program under test")]
            Command::new(env!("CARGO_BIN_EXE_sluice"))
                .args(["agent", "--pods"])
                .arg(self.pods_dir())
                .arg("--run-dir")
                .arg(self.run_dir())
                .args(&self.args)
                .env("ZTUNNEL_UDS_ADDRESS", self.dir.path().join("ztunnel.sock"))
                .env_remove("SLUICE_BACKEND")
                .env_remove("NATIVE_NFTABLES")
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap()
        })
        .unwrap()
    }

    pub(crate) fn start(&mut self) {
        assert!(self.agent.is_none());
        self.agent = Some(self.spawn());
        let end = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < end, "the agent does not serve:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal and waits for the end; its exit status.
    pub(crate) fn stop(&mut self, signal: Signal) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), signal).unwrap();
        agent.wait().unwrap().code()
    }

    /// A sandbox with an interface but no address.
    pub(crate) fn bare_pod(&self, name: &str) -> Pod {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ns = Netns::create().unwrap();
        // A number on `run`'s command line: the path of the descriptor in this process.
        let path = format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd());
        let batch = format!(
            "link add v{number} type veth peer name eth0 netns {path}\nlink set v{number} up\naddress add 10.9.{number}.1/24 dev v{number}\naddress add fd09:{number}::1/64 dev v{number} nodad\n"
        );
        run(&self.host, "ip", &["-batch", "-"], &batch);
        run(&ns, "ip", &["-batch", "-"], "link set lo up\nlink set eth0 up\n");
        wait_until_up(&self.host, &format!("v{number}"));
        wait_until_up(&ns, "eth0");
        Pod {
            ns,
            name: name.to_owned(),
            id: format!("{name}-{number}"),
            address: format!("10.9.{number}.2"),
        }
    }

    /// A sandbox as a bridge plugin leaves it, IPv4 only.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        let pod = self.bare_pod(name);
        let number = pod.address.split('.').nth(2).unwrap();
        let batch = format!(
            "address add {}/24 dev eth0\nroute add default via 10.9.{number}.1\n",
            pod.address
        );
        run(&pod.ns, "ip", &["-batch", "-"], &batch);
        wait_until_reached(&self.host, &pod.address);
        pod
    }

    /// The same with IPv6 beside it.
    pub(crate) fn dual_pod(&self, name: &str) -> Pod {
        let pod = self.pod(name);
        let number = pod.address.split('.').nth(2).unwrap();
        let batch = format!(
            "address add fd09:{number}::2/64 dev eth0 nodad\nroute add default via fd09:{number}::1\n"
        );
        run(&pod.ns, "ip", &["-batch", "-"], &batch);
        wait_until_reached(&self.host, &format!("fd09:{number}::2"));
        pod
    }

    /// Writes a manifest the way a careful tool does.
    pub(crate) fn manifest(&self, name: &str, text: &str) {
        let temporary = self.pods_dir().join(format!(".{name}"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.pods_dir().join(format!("{name}.yaml"))).unwrap();
    }

    /// A pod with an injected sidecar.
    pub(crate) fn sidecar(&self, name: &str, annotations: &[(&str, &str)], env: &[(&str, &str)]) {
        let mut all = json!({"sidecar.istio.io/status": "{}"});
        for (key, value) in annotations {
            all[key] = json!(value);
        }
        let env: Vec<Value> = env.iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
        let pod = json!({"kind": "Pod", "metadata": {"name": name, "namespace": "demo", "annotations": all},
            "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar"], "env": env}]}});
        self.manifest(name, &pod.to_string());
    }

    pub(crate) fn ask(
        &self,
        endpoint: Endpoint,
        body: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Answer {
        self.raw(&http::request(endpoint, body.to_string().as_bytes()), fd)
    }

    /// Sends bytes, the first with a descriptor, and reads the answer.
    pub(crate) fn raw(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Answer {
        let begun = Instant::now();
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let fds: Vec<i32> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &control };
        let first = [IoSlice::new(&bytes[..1])];
        sendmsg::<()>(stream.as_raw_fd(), &first, control, MsgFlags::empty(), None).unwrap();
        // It may be refused, and closed, before all is sent.
        let _ = stream.write_all(&bytes[1..]);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let took = begun.elapsed();
        match http::response(&answer, true) {
            Ok(Some(response)) => Answer {
                status: response.status,
                body: serde_json::from_slice(response.body).unwrap_or(Value::Null),
                took,
            },
            other => panic!("{other:?}: {:?}\n{}", String::from_utf8_lossy(&answer), self.log()),
        }
    }

    pub(crate) fn add(&self, pod: &Pod) -> Answer {
        self.ask(Endpoint::Add, &pod.request(), Some(pod.ns.as_fd()))
    }

    /// Asks for a pod until the answer is this one: a manifest that was written just now
    /// need not have been read yet.
    #[track_caller]
    pub(crate) fn add_until(&self, pod: &Pod, what: &str, is: impl Fn(&Answer) -> bool) -> Answer {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.add(pod);
            if is(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "never: {what}; {answer:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn check(&self, pod: &Pod) -> Answer {
        self.ask(Endpoint::Check, &pod.request(), Some(pod.ns.as_fd()))
    }

    pub(crate) fn del(&self, pod: &Pod) -> Answer {
        self.ask(Endpoint::Del, &pod.request(), None)
    }

    pub(crate) fn record(&self, pod: &Pod) -> PathBuf {
        self.run_dir().join("sandboxes").join(format!("{}.json", pod.id))
    }

    /// Names in the directory of records.
    pub(crate) fn records(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.run_dir().join("sandboxes")).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Lab {
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

impl Pod {
    pub(crate) fn request(&self) -> Value {
        json!({"Netns": "/var/run/netns/none", "PodName": self.name, "PodNamespace": "demo", "IPs": null,
            "Sluice": {"Version": 1, "ContainerID": self.id, "IfName": "eth0", "PodUID": "", "DeadlineMs": 30_000}})
    }

    pub(crate) fn nft(&self) -> String {
        run(&self.ns, "nft", &["-s", "list", "ruleset"], "")
    }

    pub(crate) fn load(&self, script: &str) {
        run(&self.ns, "nft", &["-f", "-"], script);
    }
}

/// The agent's answer and how long it took.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) took: Duration,
}

impl Answer {
    /// The decision of a 200, and its reason.
    #[track_caller]
    pub(crate) fn decision(&self) -> (&str, &str) {
        assert_eq!(self.status, 200, "{self:?}");
        (self.body["decision"].as_str().unwrap(), self.body["reason"].as_str().unwrap())
    }

    /// The message of a failure of this code.
    #[track_caller]
    pub(crate) fn failure(&self, code: u32) -> &str {
        assert_ne!(self.status, 200, "{self:?}");
        assert_eq!(self.body["code"], code, "{self:?}");
        let msg = self.body["msg"].as_str().unwrap();
        assert!(!msg.is_empty() && !msg.contains('\n'), "{self:?}");
        assert!(!self.body["details"].as_str().unwrap().is_empty(), "{self:?}");
        msg
    }
}

/// Whether a path is a socket file now.
pub(crate) fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
