//! The one place that starts a program: an argument vector (never a shell), an
//! environment that is given and not inherited, input from memory, bounded
//! output, a deadline, and errors that keep what was run and what it said.
//!
//! The program runs in the namespaces of the calling thread, so inside
//! [`crate::netns::within`] it is in that network namespace. A user namespace
//! cannot be entered by a thread of a process that has several (the kernel
//! refuses), and a mount namespace would be one more thing to restore, so
//! [`Command::user_namespace`] and [`Command::cover`] are done by the child
//! between fork and exec.

mod pipes;
mod sandbox;

use pipes::{Ended, Pipes};
use std::ffi::{CStr, OsStr, OsString};
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time that a program has unless [`Command::timeout`] says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// Most bytes of standard output; more is an error, since half an output must
/// not be taken for a whole one.
pub const STDOUT_LIMIT: usize = 8 << 20;
/// Most bytes of standard error that are kept; the rest is read and dropped.
pub const STDERR_LIMIT: usize = 16 << 10;

/// A program to run.
#[derive(Debug, Clone)]
pub struct Command<'a> {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: &'a [u8],
    timeout: Duration,
    user_namespace: Option<BorrowedFd<'a>>,
    cover: Option<(&'static CStr, &'static CStr)>,
}

/// What a program said; it ended with status 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The start of its standard error, at most [`STDERR_LIMIT`] bytes, trimmed.
    pub stderr: String,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exit(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It could not be started.
    #[error("start '{argv}'")]
    Start {
        /// Program and arguments, separated by spaces.
        argv: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("'{argv}': {status}: {}", said(.stderr))]
    Failed {
        /// Program and arguments, separated by spaces.
        argv: String,
        /// How it ended.
        status: Status,
        /// What it wrote to standard error, trimmed.
        stderr: String,
    },
    /// It did not end in time and was killed.
    #[error("'{argv}': killed after {} ms without an end: {}", .after.as_millis(), said(.stderr))]
    TimedOut {
        /// Program and arguments, separated by spaces.
        argv: String,
        /// The time it had.
        after: Duration,
        /// What it wrote to standard error, trimmed.
        stderr: String,
    },
    /// It wrote more than fits and was killed.
    #[error("'{argv}': killed after more than {limit} bytes of output")]
    TooMuchOutput {
        /// Program and arguments, separated by spaces.
        argv: String,
        /// Most bytes of standard output.
        limit: usize,
    },
    /// Talking to it failed; it was killed.
    #[error("talk to '{argv}'")]
    Talk {
        /// Program and arguments, separated by spaces.
        argv: String,
        /// What the system said.
        source: std::io::Error,
    },
}

fn said(stderr: &str) -> &str {
    if stderr.is_empty() { "it wrote no error message" } else { stderr }
}

impl<'a> Command<'a> {
    /// A program by its absolute path; no PATH is searched.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: &[],
            timeout: TIMEOUT,
            user_namespace: None,
            cover: None,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    /// An environment variable; the child has no others than these.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.env.push(pair);
        self
    }

    /// Standard input; without it, an empty one.
    #[must_use]
    pub fn stdin(mut self, bytes: &'a [u8]) -> Self {
        self.stdin = bytes;
        self
    }

    /// Time until the child is killed, [`TIMEOUT`] unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The child enters this user namespace and is root there.
    #[must_use]
    pub fn user_namespace(mut self, fd: BorrowedFd<'a>) -> Self {
        self.user_namespace = Some(fd);
        self
    }

    /// The child, and only it, sees the file `source` in the place of `target`.
    /// Where that cannot be had it sees `target` itself.
    #[must_use]
    pub fn cover(mut self, target: &'static CStr, source: &'static CStr) -> Self {
        self.cover = Some((target, source));
        self
    }

    /// Program and arguments for a message.
    #[must_use]
    pub fn argv(&self) -> String {
        let mut text = self.program.display().to_string();
        for arg in &self.args {
            text.push(' ');
            text.push_str(&arg.to_string_lossy());
        }
        text
    }

    /// The program's path.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn start_error(&self, source: std::io::Error) -> ProcessError {
        // The child says the error number of what failed, and not what it was.
        let argv = match self.user_namespace {
            None => self.argv(),
            Some(_) => format!("{} (as root of the pod's user namespace)", self.argv()),
        };
        ProcessError::Start { argv, source }
    }

    /// Runs the program and waits for its end. When this returns, the child is
    /// gone and reaped, whatever happened.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time (it is killed then), or
    /// ends with another status than 0.
    pub fn run(&self) -> Result<Output, ProcessError> {
        let deadline = Instant::now() + self.timeout;
        let mut child = self.spawn().map_err(|source| self.start_error(source))?;
        let mut pipes = Pipes::of(&mut child, self.stdin);
        let ended = pipes.pump(&mut child, deadline);
        if !matches!(ended, Ok(Ended::Exit(_))) {
            // By its pid, which is the child's own for sure: it is not reaped.
            // It may have ended meanwhile; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
        let stderr = String::from_utf8_lossy(&pipes.stderr_bytes).trim().to_owned();
        match ended {
            Ok(Ended::Exit(status)) if status.success() => {
                Ok(Output { stdout: pipes.stdout_bytes, stderr })
            }
            Ok(Ended::Exit(status)) => {
                Err(ProcessError::Failed { argv: self.argv(), status: status.into(), stderr })
            }
            Ok(Ended::Late) => {
                Err(ProcessError::TimedOut { argv: self.argv(), after: self.timeout, stderr })
            }
            Ok(Ended::TooMuch) => {
                Err(ProcessError::TooMuchOutput { argv: self.argv(), limit: STDOUT_LIMIT })
            }
            Err(source) => Err(ProcessError::Talk { argv: self.argv(), source }),
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        if !self.program.is_absolute() {
            let why = "want an absolute path";
            return Err(std::io::Error::new(ErrorKind::InvalidInput, why));
        }
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a program")]
        let mut command = std::process::Command::new(&self.program);
        // No directory of its own: std knows no posix_spawn with one in a static binary,
        // and a fork copies the page tables of an agent that serves 32 pods meanwhile.
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (cover, owner) = (self.cover, self.user_namespace.map(|fd| fd.as_raw_fd()));
        if cover.is_some() || owner.is_some() {
            let prepare = move || {
                if let Some((target, source)) = cover {
                    let _ = sandbox::mount_over(target, source);
                }
                owner.map_or(Ok(()), sandbox::become_root_of)
            };
            // SAFETY: the closure runs in the child between fork and exec; it
            // only makes system calls and allocates nothing. The descriptor is
            // borrowed for longer than this call, the paths live for ever.
            unsafe { command.pre_exec(prepare) };
        }
        command.spawn()
    }
}

#[cfg(test)]
mod tests;
