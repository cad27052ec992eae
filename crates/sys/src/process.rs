//! The one place that starts a program: an argument vector (never a shell), an
//! environment that is given and not inherited, input from memory, bounded
//! output, a deadline, and errors that keep what was run and what it said.
//!
//! The program runs in the namespaces of the calling thread, so inside
//! [`crate::netns::within`] it is in that network namespace. A user namespace
//! cannot be entered by a thread of a process that has several (the kernel
//! refuses), so [`Command::user_namespace`] has the child enter it between fork
//! and exec.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time that a program has unless [`Command::timeout`] says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// Most bytes of standard output; more is an error, since half an output must
/// not be taken for a whole one.
pub const STDOUT_LIMIT: usize = 8 << 20;
/// Most bytes of standard error that are kept; the rest is read and dropped.
pub const STDERR_LIMIT: usize = 16 << 10;

/// How often a child is looked at where the kernel has no pidfd (before 5.3).
const STEP: Duration = Duration::from_millis(5);

/// A program to run.
#[derive(Debug, Clone)]
pub struct Command<'a> {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: &'a [u8],
    timeout: Duration,
    user_namespace: Option<BorrowedFd<'a>>,
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

    /// Runs the program and waits for its end. When this returns, the child is
    /// gone and reaped, whatever happened.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time (it is killed then), or
    /// ends with another status than 0.
    pub fn run(&self) -> Result<Output, ProcessError> {
        let deadline = Instant::now() + self.timeout;
        let mut child =
            self.spawn().map_err(|source| ProcessError::Start { argv: self.argv(), source })?;
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
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(fd) = self.user_namespace {
            let fd = fd.as_raw_fd();
            // SAFETY: the closure runs in the child between fork and exec; it
            // only makes system calls and allocates nothing. The descriptor is
            // borrowed for longer than this call.
            unsafe { command.pre_exec(move || become_root_of(fd)) };
        }
        command.spawn()
    }
}

/// Enters a user namespace and takes its root ids. Without ids of the new
/// namespace exec would drop the capabilities that entering gave.
///
/// Raw system calls: glibc's wrappers of the id calls signal all threads of the
/// process, which in a forked child are not there.
fn become_root_of(fd: RawFd) -> std::io::Result<()> {
    let check = |result: libc::c_long| Errno::result(result).map(drop);
    // SAFETY: these calls take numbers only (and a null pointer with length 0)
    // and write no memory of ours.
    unsafe {
        check(libc::setns(fd, libc::CLONE_NEWUSER).into())?;
        // The namespace may forbid setgroups(2); then there are none to drop.
        match check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>())) {
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
    }
    Ok(())
}

enum Ended {
    Exit(ExitStatus),
    Late,
    TooMuch,
}

struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    stdout_bytes: Vec<u8>,
    stderr: Option<ChildStderr>,
    stderr_bytes: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn of(child: &mut Child, input: &'a [u8]) -> Self {
        Self {
            stdin: child.stdin.take(),
            input,
            stdout: child.stdout.take(),
            stdout_bytes: Vec::new(),
            stderr: child.stderr.take(),
            stderr_bytes: Vec::new(),
        }
    }

    /// Moves bytes until the child ends. Its end is what counts, not the end of
    /// its output: a process of its own that it left behind may hold that open.
    fn pump(&mut self, child: &mut Child, deadline: Instant) -> std::io::Result<Ended> {
        let ends = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for fd in ends.into_iter().flatten() {
            // Our ends only: each end of a pipe has flags of its own.
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let pidfd = open_pidfd(child);
        loop {
            self.feed()?;
            let ended = child.try_wait()?;
            if !self.drain()? {
                return Ok(Ended::TooMuch);
            }
            if let Some(status) = ended {
                return Ok(Ended::Exit(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Ended::Late);
            }
            self.wait(pidfd.as_ref(), left)?;
        }
    }

    /// Waits until there is something to do, at most `left`.
    fn wait(&self, pidfd: Option<&OwnedFd>, left: Duration) -> std::io::Result<()> {
        let step = if pidfd.is_some() { left } else { left.min(STEP) };
        let mut fds = Vec::with_capacity(4);
        if let Some(end) = &self.stdin {
            fds.push(PollFd::new(end.as_fd(), PollFlags::POLLOUT));
        }
        if let Some(end) = &self.stdout {
            fds.push(PollFd::new(end.as_fd(), PollFlags::POLLIN));
        }
        if let Some(end) = &self.stderr {
            fds.push(PollFd::new(end.as_fd(), PollFlags::POLLIN));
        }
        if let Some(fd) = pidfd {
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        }
        // Rounded up: with the last millisecond cut off this would spin.
        let millis = step.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn feed(&mut self) -> std::io::Result<()> {
        while let Some(end) = &mut self.stdin {
            if self.input.is_empty() {
                self.stdin = None;
                break;
            }
            match end.write(self.input) {
                Ok(count) => self.input = &self.input[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It does not want more; its status says whether that is right.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.stdin = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there; false when standard output is over its limit.
    fn drain(&mut self) -> std::io::Result<bool> {
        let fits = read_some(&mut self.stdout, &mut self.stdout_bytes, STDOUT_LIMIT)?;
        read_some(&mut self.stderr, &mut self.stderr_bytes, STDERR_LIMIT)?;
        Ok(fits)
    }
}

/// Reads until there is nothing now; false when something went over the limit
/// and was dropped. Bounded: a child that writes without end is looked at again
/// by the caller, who minds the deadline.
fn read_some(
    end: &mut Option<impl Read>,
    bytes: &mut Vec<u8>,
    limit: usize,
) -> std::io::Result<bool> {
    let mut fits = true;
    let mut chunk = [0; 16 << 10];
    for _ in 0..64 {
        let Some(pipe) = end else { break };
        match pipe.read(&mut chunk) {
            Ok(0) => *end = None,
            Ok(count) => {
                let room = limit.saturating_sub(bytes.len());
                fits &= count <= room;
                bytes.extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(fits)
}

/// A descriptor that becomes readable when the child ends; `None` before Linux
/// 5.3.
fn open_pidfd(child: &Child) -> Option<OwnedFd> {
    // SAFETY: takes two numbers and returns a descriptor (close-on-exec) or -1.
    // The pid is our child's: it has not been reaped yet.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests;
