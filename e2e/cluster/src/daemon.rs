//! A program of the cluster. It is alone in a pid namespace whose first process ends
//! with the suite's end of a pipe: nothing of it outlives a run, however that ends.

use anyhow::{Context, Result};
use e2e_node::process::{Program, Running};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long all processes of a namespace may need to end.
const END: Duration = Duration::from_secs(60);

/// A program, or a whole node, that runs until this value is dropped.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
}

impl Daemon {
    /// Starts `argv` in the namespaces that `wrapper` enters, with a log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(wrapper: Program<'_>, argv: Vec<String>, log: &Path) -> Result<Self> {
        let wrapper = wrapper
            .args(["--pid", "--fork", "--kill-child", "--"])
            .args(["bash", "-c", include_str!("daemon.sh"), "daemon.sh"])
            .arg(log)
            .args(argv);
        Self::adopt(wrapper.start()?)
    }

    /// Takes one that says `ready` itself, and ends when its input does.
    ///
    /// # Errors
    /// When it says anything else.
    pub fn adopt(mut running: Running) -> Result<Self> {
        running.wait_ready()?;
        Ok(Self { running })
    }

    /// Process that was started: outside of the pid namespace, inside of the others.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.running.close_input();
        // When this is not enough, the value inside kills `unshare`, and the kernel its child.
        self.running.wait(END).ok();
    }
}

/// Log files of one run, by the name of what wrote them.
#[derive(Debug, Clone)]
pub struct Logs {
    dir: PathBuf,
}

impl Logs {
    /// Logs in a directory.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where something logs.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// The last lines of each log that say that something is wrong.
    #[must_use]
    pub fn complaints(&self, lines: usize) -> String {
        let mut text = String::new();
        let mut files: Vec<_> = self.files().unwrap_or_default();
        files.sort();
        for file in files {
            let all = std::fs::read_to_string(&file).unwrap_or_default();
            let wrong: Vec<_> = all.lines().filter(|line| complains(line)).collect();
            let last = &wrong[wrong.len().saturating_sub(lines)..];
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            text.push_str(&format!("-- {name}\n"));
            for line in last {
                let line: String = line.chars().take(400).collect();
                text.push_str(&format!("{line}\n"));
            }
        }
        text
    }

    /// Copies all of them to a directory that stays.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub fn keep(&self, into: &Path) -> Result<()> {
        std::fs::create_dir_all(into).with_context(|| format!("make {}", into.display()))?;
        for file in self.files()? {
            let to = into.join(file.file_name().unwrap_or_default());
            std::fs::copy(&file, &to).with_context(|| format!("write {}", to.display()))?;
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.dir)?;
        let paths = entries.map(|entry| Ok(entry?.path()));
        let paths: Result<Vec<PathBuf>> = paths.collect();
        Ok(paths?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "log")).collect())
    }
}

/// klog's errors and warnings, logrus' and etcd's.
fn complains(line: &str) -> bool {
    let klog = |level: char| {
        line.starts_with(level) && line.chars().nth(1).is_some_and(|c| c.is_ascii_digit())
    };
    klog('E')
        || klog('F')
        || ["level=error", "level=fatal", "\"level\":\"error\"", "panic:", "Error:", "error:"]
            .iter()
            .any(|word| line.contains(word))
}
