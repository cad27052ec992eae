//! The agent under test, and the manifests that it watches.

use crate::lab::{Namespace, Scratch};
use crate::process::{Program, Running, is_alive};
use crate::programs::Programs;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an agent may take until it serves.
const START: Duration = Duration::from_secs(60);

/// The directories an agent needs: manifests in, sockets and records out.
#[derive(Debug, Clone)]
pub struct Directories {
    /// Manifests of pods and namespaces.
    pub pods: PathBuf,
    /// `cni_agent_run_dir`.
    pub run: PathBuf,
}

impl Directories {
    /// The socket that ztunnel connects to.
    #[must_use]
    pub fn ztunnel(&self) -> PathBuf {
        self.run.with_extension("ztunnel.sock")
    }

    /// Makes them in the run's private directory.
    ///
    /// # Errors
    /// When that fails.
    pub fn create(scratch: &Scratch, name: &str) -> Result<Self> {
        Ok(Self {
            pods: scratch.dir(&format!("{name}-pods"))?,
            run: scratch.path().join(format!("{name}-run")),
        })
    }

    /// Puts a manifest where the agent sees it, complete at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish(&self, manifest: &Value) -> Result<()> {
        let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("manifest without a kind")?;
        let name = text("/metadata/name").context("manifest without a name")?;
        let namespace = text("/metadata/namespace").unwrap_or("");
        let file = format!("{kind}-{namespace}-{name}.json");
        let hidden = self.pods.join(format!(".{file}.part"));
        std::fs::write(&hidden, serde_json::to_vec_pretty(manifest)?)?;
        std::fs::rename(&hidden, self.pods.join(&file))
            .with_context(|| format!("publish {file} in {}", self.pods.display()))
    }
}

/// Runs the agent for as long as the shell's stdin is open, so that it ends with
/// a suite that was killed itself. Its process id is the first line.
const LEASH: &str = "\"$0\" \"$@\" </dev/null >>\"$SLUICE_E2E_LOG\" 2>&1 & \
    echo $!; read -r _; kill -9 $! 2>/dev/null; wait";

/// What the lab's node is called in a cluster.
pub const NODE_NAME: &str = "lab-node";

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// The shell around it.
    running: Running,
    pid: u32,
    directories: Directories,
}

impl Agent {
    /// Starts it in the node's namespace and waits until it serves.
    ///
    /// # Errors
    /// When it ends or does not serve in time.
    pub fn start(
        programs: &Programs,
        host: &Namespace,
        directories: &Directories,
        backend: &str,
    ) -> Result<Self> {
        Self::launch(programs, host, directories, &["--backend", backend])
    }

    /// [`Self::start`] with any arguments.
    ///
    /// # Errors
    /// The same.
    pub fn launch(
        programs: &Programs,
        host: &Namespace,
        directories: &Directories,
        args: &[&str],
    ) -> Result<Self> {
        let pods = directories.pods.display().to_string();
        Self::run(programs, host, directories, &[&["--pods", &pods], args].concat())
    }

    /// [`Self::launch`] with pods from an API server instead of a directory, as the
    /// node [`NODE_NAME`].
    ///
    /// # Errors
    /// The same.
    pub fn follow(
        programs: &Programs,
        host: &Namespace,
        directories: &Directories,
        api: &str,
        args: &[&str],
    ) -> Result<Self> {
        let source = ["--api-url", api, "--node-name", NODE_NAME];
        Self::run(programs, host, directories, &[&source, args].concat())
    }

    fn run(
        programs: &Programs,
        host: &Namespace,
        directories: &Directories,
        args: &[&str],
    ) -> Result<Self> {
        // A killed agent leaves its socket behind: that is not a new one's.
        std::fs::remove_file(directories.run.join("pluginevent.sock")).ok();
        let agent = Self::begin(programs, host, directories, &[&["agent"], args].concat(), &[])?;
        agent.await_serving()?;
        Ok(agent)
    }

    /// Starts it in the node's namespace with a command, its arguments and variables,
    /// and does not wait for it: some faults keep it from serving.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn begin(
        programs: &Programs,
        host: &Namespace,
        directories: &Directories,
        args: &[&str],
        variables: &[(&str, String)],
    ) -> Result<Self> {
        let log = directories.run.with_extension("log");
        let mut program = Program::new("sh")
            .args(["-c", LEASH])
            .arg(&programs.sluice)
            .args(args.iter().copied())
            .arg("--run-dir")
            .arg(&directories.run)
            .env("SLUICE_E2E_LOG", &log)
            // Of ambient mode, which would else be the whole machine's.
            .env("ZTUNNEL_UDS_ADDRESS", directories.ztunnel())
            .within(host.netns());
        for (name, value) in variables {
            program = program.env(name, value);
        }
        let mut running = program.start()?;
        let pid = running.line()?.context("no process id from the shell")?;
        let pid = pid.parse().with_context(|| format!("process id {pid:?}"))?;
        Ok(Self { running, pid, directories: directories.clone() })
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it ends or does not serve in time.
    pub fn await_serving(&self) -> Result<()> {
        let socket = self.directories.run.join("pluginevent.sock");
        let end = Instant::now() + START;
        while !accepts(&socket) {
            if !self.is_alive() {
                bail!("the agent ended, it said:\n{}", self.log());
            }
            if Instant::now() > end {
                bail!("the agent does not serve after {START:?}, it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        is_alive(self.pid)
    }

    /// All that this agent, and others before it in these directories, logged.
    #[must_use]
    pub fn log(&self) -> String {
        let path = self.directories.run.with_extension("log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Kills it as the kernel's out-of-memory killer would.
    ///
    /// # Errors
    /// When it does not die.
    pub fn kill(self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Ends it as the kubelet does, and waits until it has.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let end = Instant::now() + START;
        while self.is_alive() {
            if Instant::now() > end {
                bail!("{signal} did not end the agent, it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // The shell waits for it before it ends itself.
        self.running.close_input();
        self.running.wait(START)?;
        Ok(())
    }

    /// Until the shell ends, the process id is no other's.
    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid)?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("send {signal} to the agent"))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails only for one that was killed and waited for.
        if self.running.is_running() {
            self.signal(Signal::SIGKILL).ok();
        }
    }
}

fn accepts(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// A pod as the injector leaves it: an application and a sidecar.
#[must_use]
pub fn sidecar_pod(
    namespace: &str,
    name: &str,
    annotations: &Value,
    env: &[(&str, &str)],
) -> Value {
    let env: Vec<Value> =
        env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mut all = json!({
        "sidecar.istio.io/status": "{\"initContainers\":[\"istio-validation\"]}",
    });
    if let (Some(all), Some(annotations)) = (all.as_object_mut(), annotations.as_object()) {
        all.extend(annotations.clone());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": format!("uid-of-{name}"),
            "annotations": all,
        },
        "spec": {
            "initContainers": [{"name": "istio-validation"}],
            "containers": [
                {"name": "app"},
                {
                    "name": "istio-proxy",
                    "args": ["proxy", "sidecar"],
                    "env": env,
                    "securityContext": {"runAsUser": 1337, "runAsGroup": 1337},
                },
            ],
        },
    })
}

/// A pod without a sidecar.
#[must_use]
pub fn plain_pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": format!("uid-of-{name}"),
        },
        "spec": {"containers": [{"name": "app"}]},
    })
}

/// A namespace's manifest.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}
