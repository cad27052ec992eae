//! An agent that says what it is told to say.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;
use tempfile::TempDir;

/// A request as the agent received it.
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: Value,
    /// Device and inode of each descriptor, with the number of bytes that had
    /// been read when it came.
    pub(crate) passed: Vec<(usize, (u64, u64))>,
}

/// The agent; its thread ends with the value.
pub(crate) struct Fake {
    directory: TempDir,
    seen: Receiver<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    /// Serves with `behave`, which gets the connection after the request.
    pub(crate) fn serve(behave: impl Fn(&mut UnixStream) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("pluginevent.sock")).unwrap();
        let (send, seen) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                serve_one(&mut stream, &send, &behave);
            }
        });
        Self { directory, seen, stop, thread: Some(thread) }
    }

    /// The run directory for the plugin's configuration.
    pub(crate) fn run_dir(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// The one request that came.
    #[track_caller]
    pub(crate) fn seen(&self) -> Seen {
        let seen = self.seen.recv_timeout(Duration::from_secs(60)).expect("a request");
        assert!(self.seen.try_recv().is_err(), "one request an invocation");
        seen
    }

    /// The request, if one came: of a plugin that has ended by now.
    pub(crate) fn heard(&self) -> Option<Seen> {
        self.seen.recv_timeout(Duration::from_secs(1)).ok()
    }

    /// Nobody asked.
    #[track_caller]
    pub(crate) fn unasked(&self) {
        assert!(self.seen.try_recv().is_err(), "the agent was asked");
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.directory.path().join("pluginevent.sock"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve_one(stream: &mut UnixStream, send: &Sender<Seen>, behave: &impl Fn(&mut UnixStream)) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    if let Some(seen) = receive(stream) {
        send.send(seen).unwrap();
        behave(stream);
    }
}

fn receive(stream: &UnixStream) -> Option<Seen> {
    let (mut bytes, mut passed) = (Vec::new(), Vec::new());
    loop {
        let mut chunk = [0_u8; 64 << 10];
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .ok()?;
        let n = message.bytes;
        for control in message.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(fds) = control else { continue };
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for us, and
                // nobody else knows its number.
                let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
                let metadata = file.metadata().unwrap();
                passed.push((bytes.len(), (metadata.dev(), metadata.ino())));
            }
        }
        if n == 0 {
            return None;
        }
        bytes.extend_from_slice(&chunk[..n]);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length: usize =
            head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
        if bytes.len() >= end + 4 + length {
            assert_eq!(bytes.len(), end + 4 + length, "nothing behind the body");
            let body = serde_json::from_slice(&bytes[end + 4..]).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            return Some(Seen { path, head, body, passed });
        }
    }
}

/// A whole answer.
pub(crate) fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An agent that gives this answer.
pub(crate) fn answers(bytes: impl Into<Vec<u8>>) -> Fake {
    let bytes = bytes.into();
    Fake::serve(move |stream| {
        // A plugin that has read enough closes its end.
        let _ = stream.write_all(&bytes);
    })
}

/// An agent with this status and body.
pub(crate) fn answer(status: &str, body: &str) -> Fake {
    answers(http(status, body))
}
