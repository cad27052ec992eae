//! A node's directories in a temporary one, with an installer that runs.

use crate::install::*;
use serde_json::Value;
use std::fs;
use std::io::PipeWriter;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Longest wait for something that must happen; most take a few milliseconds.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

pub(in crate::install) fn entry() -> PluginEntry {
    PluginEntry { pod_namespace: "istio-system".into(), ..PluginEntry::default() }
}

pub(in crate::install) struct Node {
    pub(super) dir: tempfile::TempDir,
    pub(in crate::install) settings: Settings,
    pub(super) entry: PluginEntry,
}

/// A running installer; dropped, it ends.
pub(super) struct Running {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
    pub(super) ready: watch::Receiver<Readiness>,
    pub(super) events: Arc<Mutex<Vec<InstallEvent>>>,
}

impl Node {
    pub(in crate::install) fn new(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["net.d", "bin", "source", "run"] {
            fs::create_dir(path(name)).unwrap();
        }
        let settings = Settings {
            net_dir: path("net.d"),
            bin_dir: path("bin"),
            binaries: path("source"),
            run_dir: path("run"),
            mode,
            ..Settings::new()
        };
        let node = Self { settings, entry: entry(), dir };
        node.new_binary("#!/bin/sh\nexit 0\n");
        node
    }

    pub(super) fn owned() -> Self {
        Self::new(Mode::of(None, None, None, None))
    }

    pub(super) fn new_binary(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.settings.binaries.join("istio-cni");
        // Renamed, so that what is installed from it is never half of it.
        let new = self.dir.path().join("new-binary");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(super) fn net(&self, name: &str) -> PathBuf {
        self.settings.net_dir.join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.net(name), text).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.net(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.settings.net_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What containerd would load: the first file, which must be valid.
    pub(super) fn loaded(&self) -> Result<Value, String> {
        let name = self.names().into_iter().find(|name| {
            [".conf", ".conflist", ".json"].iter().any(|extension| name.ends_with(extension))
        });
        let name = name.ok_or("nothing to load")?;
        let text = fs::read_to_string(self.net(&name)).map_err(|e| format!("{name}: {e}"))?;
        serde_json::from_str(&text).map_err(|e| format!("{name}: {e}: {text:?}"))
    }

    /// The plugins' types of what is loaded; a single configuration is one.
    pub(super) fn chain(&self) -> Vec<String> {
        let loaded = self.loaded().unwrap_or_default();
        let one = vec![loaded.clone()];
        let plugins = loaded["plugins"].as_array().unwrap_or(&one);
        plugins.iter().map(|p| p["type"].as_str().unwrap_or("?").to_owned()).collect()
    }

    pub(super) fn start(&self) -> Running {
        let installer = Installer::new(self.settings.clone(), self.entry.clone()).unwrap();
        let (sender, ready) = watch::channel(Readiness::starting());
        let (stopped, stop) = std::io::pipe().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let thread = std::thread::spawn(move || {
            installer.run(&stopped, &sender, |event| seen.lock().unwrap().push(event));
        });
        Running { stop: Some(stop), thread: Some(thread), ready, events }
    }

    /// Runs until ready and ends.
    pub(super) fn install(&self) {
        self.start().wait_ready();
    }

    /// A file's inode and change time: both stay when nothing is written.
    pub(super) fn stamp(&self, name: &str) -> (u64, i64, i64) {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(self.net(name)).unwrap();
        (meta.ino(), meta.ctime(), meta.ctime_nsec())
    }
}

impl Running {
    pub(super) fn wait_ready(&self) {
        until("ready", || self.ready.borrow().ready.then_some(()));
    }

    pub(super) fn wait_unready(&self) -> String {
        until("not ready", || {
            let now = self.ready.borrow();
            let starting = Readiness::starting().reason;
            (!now.ready && now.reason != starting).then(|| now.reason.clone())
        })
    }

    pub(super) fn count(&self, result: &str) -> usize {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event.result() == Some(result)).count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

/// Waits for something that must become true.
pub(super) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "not in {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
