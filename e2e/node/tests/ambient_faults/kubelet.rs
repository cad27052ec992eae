//! A process that plays kubelet, in a cgroup of its own.

use crate::stage::Stage;
use e2e_node::process::{Program, Running, is_alive};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What the host makes of kubelet's source, of either family.
pub(crate) const SOURCES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127)),
    IpAddr::V6(Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff)),
];

/// A cgroup of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let (mount, _) = line.split_once(" - cgroup2 ")?;
            mount.split(' ').nth(4)
        });
        let mount = Path::new(mount.unwrap());
        for entry in std::fs::read_dir(mount).unwrap().flatten() {
            // Left by a run that was killed.
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid = name.strip_prefix("sluice-e2e-").and_then(|rest| rest.split('-').next());
            if pid.and_then(|pid| pid.parse().ok()).is_some_and(|pid: u32| !is_alive(pid)) {
                std::fs::remove_dir(entry.path()).ok();
            }
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = mount.join(format!("sluice-e2e-{}-{next}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// It connects to what it is told, and tells what it hears.
pub(crate) struct Kubelet {
    // Before the cgroup that it is in.
    running: Running,
    fifo: PathBuf,
    cgroup: Cgroup,
}

impl Kubelet {
    /// Starts it on the node.
    pub(crate) fn start(stage: &Stage) -> Self {
        let host = &stage.cluster.node.host;
        let fifo = host.scratch().path().join("fifo");
        let cgroup = Cgroup::create();
        let program = fifo.with_file_name("kubelet");
        // Not by ourselves: a child that another test forks just then would have it open.
        Program::new("cp").arg("/bin/bash").arg(program.as_os_str()).check().unwrap();
        Program::new("mkfifo").arg(fifo.as_os_str()).check().unwrap();
        let inner = "exec 3<>/dev/tcp/$0/$1 && read -r -t 15 line <&3 && echo \"$line\"";
        // Open for good: what is opened anew for each line ends with whatever child of
        // another test has it open just then.
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec 4<>{}; echo ready; \
             while read -r -t 240 to port <&4; do \
             timeout 20 bash -c '{inner}' $to $port 2>/dev/null || echo failed; done",
            cgroup.0.display(),
            fifo.display(),
        );
        let program = host.program(program).args(["-c", script.as_str()]);
        let mut running = program.timeout(Duration::from_secs(240)).start().unwrap();
        running.wait_ready().unwrap();
        Self { running, fifo, cgroup }
    }

    /// Waits until the agent knows it, by its cgroup.
    #[track_caller]
    pub(crate) fn await_known(&self, stage: &Stage) {
        let own = self.cgroup.0.file_name().unwrap().to_string_lossy().into_owned();
        stage.eventually("kubelet is known by its cgroup", |stage| {
            stage.cluster.agent_log().contains(&own)
        });
    }

    /// What it hears from there: a line of who answers, with the source that it sees.
    pub(crate) fn probe(&mut self, to: SocketAddr) -> String {
        // Fails when nobody reads.
        let mut options = OpenOptions::new();
        let mut fifo = options.write(true).custom_flags(libc::O_NONBLOCK).open(&self.fifo).unwrap();
        fifo.write_all(format!("{} {}\n", to.ip(), to.port()).as_bytes()).unwrap();
        drop(fifo);
        self.running.line().unwrap().unwrap()
    }

    /// It reaches the application past ztunnel.
    pub(crate) fn passes(&mut self, to: SocketAddr) -> bool {
        let line = self.probe(to);
        let source = SOURCES[usize::from(to.is_ipv6())];
        line.contains(&format!("\"{source}\"")) && line.contains("\"app\"")
    }
}
