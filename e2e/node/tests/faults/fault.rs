//! The table of faults: how each is brought about and ended, and what it leaves
//! possible.

use crate::pod::{Kind, Subject};
use crate::stage::Stage;
use e2e_node::api;
use e2e_node::host::PRIMARY;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    ApiDown,
    ApiForbidden,
    /// Every answer takes 20 s, longer than a runtime waits for ADD.
    ApiSlow,
    AgentKilled,
    /// Of the run directory, the CNI configuration and the plugins.
    DiskFull,
    RunWiped,
    /// Another product writes its own again and again, not always atomically.
    ConflistRewritten,
    ClockJump,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ApiDown => "api-down",
            Self::ApiForbidden => "api-403",
            Self::ApiSlow => "api-slow",
            Self::AgentKilled => "agent-killed",
            Self::DiskFull => "disk-full",
            Self::RunWiped => "run-wiped",
            Self::ConflistRewritten => "conflist-rewritten",
            Self::ClockJump => "clock-jump",
        }
    }

    /// Rules are made in one of two ways, of which this one is slower.
    pub(crate) fn backend(self) -> &'static str {
        match self {
            Self::ApiForbidden | Self::AgentKilled => "iptables",
            _ => "nftables",
        }
    }

    fn is_of_api(self) -> bool {
        matches!(self, Self::ApiDown | Self::ApiForbidden | Self::ApiSlow)
    }

    /// Brings it about. `running` are the pods that live through it.
    pub(crate) fn begin(self, stage: &Stage, running: &mut [Subject]) {
        match self {
            Self::ApiDown => stage.server.down().unwrap(),
            Self::ApiForbidden => {
                stage.server.fail(api::Fault::Status(403).into());
                stage.server.drop_watches();
            }
            Self::ApiSlow => {
                stage.server.fail(api::Fault::Slow(Duration::from_secs(20)).into());
                stage.server.drop_watches();
            }
            Self::AgentKilled => stage.kill(),
            Self::DiskFull => stage.disks.iter().for_each(|disk| disk.fill().unwrap()),
            Self::RunWiped => {
                wipe(&stage.run_dir());
                running.iter_mut().for_each(|subject| subject.record_lost = true);
            }
            Self::ConflistRewritten => {
                let rewriter = Rewriter::start(stage);
                *stage.rewriter.lock().unwrap() = Some(rewriter);
            }
            Self::ClockJump => stage.clock.as_ref().unwrap().set(10 * YEAR),
        }
    }

    /// While the agent is away it goes on.
    pub(crate) fn go_on(self, stage: &Stage) {
        match self {
            Self::RunWiped => wipe(&stage.run_dir()),
            Self::ClockJump => stage.clock.as_ref().unwrap().set(-20 * YEAR),
            Self::DiskFull => stage.disks.iter().for_each(|disk| disk.fill().unwrap()),
            _ => {}
        }
    }

    /// And under the agent that is there.
    pub(crate) fn strike_again(self, stage: &Stage) {
        if self == Self::ClockJump {
            stage.clock.as_ref().unwrap().set(-3 * HOUR);
        }
    }

    /// Ends it.
    pub(crate) fn end(self, stage: &Stage) {
        match self {
            Self::ApiDown => stage.server.up().unwrap(),
            Self::ApiForbidden | Self::ApiSlow => stage.server.heal(),
            Self::AgentKilled if !stage.has_agent() => stage.start(),
            Self::DiskFull => stage.disks.iter().for_each(|disk| disk.clear().unwrap()),
            Self::ConflistRewritten => {
                let mtu = stage.rewriter.lock().unwrap().take().unwrap().stop();
                stage.write_primary(mtu + 1);
            }
            Self::ClockJump => stage.clock.as_ref().unwrap().set(0),
            Self::AgentKilled | Self::RunWiped => {}
        }
    }

    /// Whether a pod must start at its first ADD. `away`: the agent is, or may be.
    pub(crate) fn starts_at_once(self, kind: Kind, away: bool) -> bool {
        let by_plugin = kind.is_certain();
        match self {
            _ if kind.mesh && away => false,
            // Known: no question.
            _ if self.is_of_api() => by_plugin || (kind.mesh && kind.known),
            Self::AgentKilled => by_plugin,
            // That it passes could not be written down.
            Self::DiskFull => !kind.mesh && !away,
            // Until the agent has noticed, nobody is there and nothing is known.
            Self::RunWiped => false,
            _ => !away || by_plugin,
        }
    }

    /// Whether it must start while the fault goes on, with the runtime's retries and
    /// the agent back. `restarted`: what the agent knew before is gone.
    pub(crate) fn starts_meanwhile(self, kind: Kind, restarted: bool) -> bool {
        match self {
            _ if self.is_of_api() => kind.is_certain() || (kind.mesh && kind.known && !restarted),
            Self::AgentKilled => kind.is_certain(),
            Self::DiskFull => !kind.mesh,
            _ => true,
        }
    }
}

/// An agent that runs may write at the same time.
pub(crate) fn wipe(directory: &Path) {
    for _ in 0..100 {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => return,
        }
    }
    panic!("{} cannot be emptied", directory.display());
}

/// Another product that writes its own configuration.
#[derive(Debug)]
pub(crate) struct Rewriter {
    ending: Arc<AtomicBool>,
    mtu: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Rewriter {
    fn start(stage: &Stage) -> Self {
        let (ending, mtu) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1300)));
        let path = stage.host.net.join(PRIMARY);
        let texts: Vec<(u64, String)> =
            (1300..1340).map(|mtu| (mtu, stage.primary_text(mtu))).collect();
        let (over, last) = (Arc::clone(&ending), Arc::clone(&mtu));
        let thread = std::thread::spawn(move || {
            for (number, (mtu, text)) in texts.iter().cycle().enumerate() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                write(&path, text, number);
                last.store(*mtu, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(7 + number as u64 % 40));
            }
        });
        Self { ending, mtu, thread: Some(thread) }
    }

    /// Ends it; what it wrote last.
    fn stop(mut self) -> u64 {
        self.join();
        self.mtu.load(Ordering::Relaxed)
    }

    fn join(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// As products do it: renamed into place, in place in two pieces, or removed first.
fn write(path: &Path, text: &str, number: usize) {
    match number % 3 {
        0 => {
            let part = path.with_extension("part");
            std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path)).unwrap();
        }
        1 => {
            let (head, tail) = text.split_at(text.len() / 2);
            std::fs::write(path, head).unwrap();
            std::thread::sleep(Duration::from_millis(3));
            use std::io::Write;
            let mut file = std::fs::File::options().append(true).open(path).unwrap();
            file.write_all(tail.as_bytes()).unwrap();
        }
        _ => {
            std::fs::remove_file(path).unwrap();
            std::thread::sleep(Duration::from_millis(3));
            std::fs::write(path, text).unwrap();
        }
    }
}
