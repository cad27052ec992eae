//! The fake as a test holds it: a process that ends with the value.

use super::control::{Command, Status, tell};
use super::fault::Faults;
use super::{Config, Workload};
use crate::lab::Namespace;
use crate::process::{Program, Running};
use crate::programs::own_dir;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A fake ztunnel at work.
#[derive(Debug)]
pub struct Ztunnel {
    running: Running,
    control: PathBuf,
}

impl Ztunnel {
    /// Starts one, in a namespace of its own or in the caller's. It connects to the
    /// agent when there is one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(config: &Config, within: Option<&Namespace>) -> Result<Self> {
        let path = own_dir()?.join("ztunnel");
        if !path.is_file() {
            bail!("{} is not there: `cargo build -p e2e-node`", path.display());
        }
        let program = match within {
            Some(namespace) => namespace.program(path),
            None => Program::new(path),
        };
        let mut line = serde_json::to_string(config)?;
        line.push('\n');
        let mut running = program.input(line).start()?;
        running.wait_ready()?;
        Ok(Self { running, control: config.control.clone() })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Tells it something; how it is then.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&self, command: &Command) -> Result<Status> {
        tell(&self.control, command)
    }

    /// How it is, without what it was asked and what ran through it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn glance(&self) -> Result<Status> {
        self.tell(&Command::Glance)
    }

    /// How it is.
    ///
    /// # Errors
    /// When it has ended.
    pub fn status(&self) -> Result<Status> {
        self.tell(&Command::Look)
    }

    /// What it is to do wrong from now on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn fail(&self, faults: Faults) -> Result<()> {
        self.tell(&Command::Fail(faults)).map(drop)
    }

    /// What XDS says from now on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn know(&self, workloads: Vec<Workload>) -> Result<()> {
        self.tell(&Command::Know(Some(workloads))).map(drop)
    }

    /// Waits until it is as it should be.
    ///
    /// # Errors
    /// When it is not within two minutes; the message says how it is instead.
    pub fn wait(&self, what: &str, is: impl Fn(&Status) -> bool) -> Result<Status> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let status = self.status().with_context(|| format!("wait for {what}"))?;
            if is(&status) {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("the fake ztunnel waits in vain for {what}: {status:#?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// When it has ended.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.running.pid())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("end the fake ztunnel")
    }

    /// Waits for its end; its exit status, or None after a signal.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<Option<i32>> {
        Ok(self.running.wait(timeout)?.code())
    }
}
