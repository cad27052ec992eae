//! The pipes of a child, served by one thread until the child ends.

use super::{STDERR_LIMIT, STDOUT_LIMIT};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::time::{Duration, Instant};

/// How often a child is looked at where the kernel has no pidfd (before 5.3).
const STEP: Duration = Duration::from_millis(5);

/// Why serving stopped.
pub(super) enum Ended {
    Exit(ExitStatus),
    Late,
    TooMuch,
}

/// Our ends, and what came through.
pub(super) struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    pub(super) stdout_bytes: Vec<u8>,
    stderr: Option<ChildStderr>,
    pub(super) stderr_bytes: Vec<u8>,
}

impl<'a> Pipes<'a> {
    pub(super) fn of(child: &mut Child, input: &'a [u8]) -> Self {
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
    pub(super) fn pump(&mut self, child: &mut Child, deadline: Instant) -> std::io::Result<Ended> {
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
