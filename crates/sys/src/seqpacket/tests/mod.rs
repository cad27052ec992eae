//! Real sockets. Nothing here needs a namespace or a capability.

mod listener;
mod server;

use super::*;
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What no step takes, on whatever machine.
const LONG: Duration = Duration::from_secs(30);

/// A directory that goes with the value.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-seqpacket-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("z.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + LONG)
}

#[test]
fn a_packet_arrives_whole_with_its_descriptor() {
    let (here, there) = Connection::pair().unwrap();
    let file = File::open("/proc/self/ns/net").unwrap();
    here.send(b"add", Some(file.as_fd())).unwrap();
    here.send(b"del", None).unwrap();

    let mut buffer = [0; 64];
    let add = there.receive_with_descriptors(&mut buffer, soon()).unwrap().unwrap();
    assert_eq!((&buffer[..add.len], add.truncated), (&b"add"[..], false));
    let [fd] = &add.descriptors[..] else {
        panic!("{} descriptors", add.descriptors.len());
    };
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    let got = File::from(fd.try_clone().unwrap()).metadata().unwrap();
    let want = file.metadata().unwrap();
    assert_eq!((got.dev(), got.ino()), (want.dev(), want.ino()));

    let del = there.receive(&mut buffer).unwrap().unwrap();
    assert_eq!((&buffer[..del.len], del.stray), (&b"del"[..], false));
    assert_eq!(there.receive(&mut buffer).unwrap_err(), Errno::EAGAIN);
    drop(here);
    assert!(there.receive(&mut buffer).unwrap().is_none());
}

#[test]
fn an_empty_packet_is_never_sent_as_it_would_be_the_end() {
    let (here, there) = Connection::pair().unwrap();
    assert_eq!(here.send(b"", None), Err(Errno::EINVAL));
    assert_eq!(there.receive(&mut [0; 8]).unwrap_err(), Errno::EAGAIN);
    // What another program may do: the kernel makes no difference.
    nix::sys::socket::send(here.socket_fd(), b"", nix::sys::socket::MsgFlags::empty()).unwrap();
    assert!(there.receive(&mut [0; 8]).unwrap().is_none());
}

#[test]
fn a_packet_that_was_cut_off_says_so_and_its_rest_is_lost() {
    let (here, there) = Connection::pair().unwrap();
    here.send(&[7; 1025], None).unwrap();
    here.send(&[8; 1024], None).unwrap();
    let mut buffer = [0; 1024];
    let first = there.receive(&mut buffer).unwrap().unwrap();
    assert_eq!((first.len, first.truncated), (1024, true));
    let second = there.receive_with_descriptors(&mut buffer, soon()).unwrap().unwrap();
    assert_eq!((second.len, second.truncated, buffer[0]), (1024, false, 8));
}

#[test]
fn a_packet_beyond_the_senders_buffer_is_not_sent() {
    let (here, there) = Connection::pair().unwrap();
    assert_eq!(here.send(&vec![0; 8 << 20], None), Err(Errno::EMSGSIZE));
    here.send(b"x", None).unwrap();
    assert_eq!(there.receive(&mut [0; 8]).unwrap().unwrap().len, 1);
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let (here, there) = Connection::pair().unwrap();
    let (read, write) = std::io::pipe().unwrap();
    here.send(b"ack", Some(write.as_fd())).unwrap();
    drop(write);
    let packet = there.receive(&mut [0; 8]).unwrap().unwrap();
    assert!(packet.stray && packet.descriptors.is_empty());
    // Nobody has the other end any more: not the sender, not the packet, not us.
    assert_eq!({ read }.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_full_buffer_is_told_and_can_be_waited_for() {
    let (here, there) = Connection::pair().unwrap();
    let mut sent = 0;
    while here.send(&[1; 100], None).is_ok() {
        sent += 1;
        assert!(sent < 100_000, "the buffer never fills");
    }
    println!("{sent} packets of 100 bytes fit");
    assert!(sent > 64, "fewer than a server's window");
    assert_eq!(here.send(b"x", None), Err(Errno::EAGAIN));
    let brief = Instant::now() + Duration::from_millis(20);
    assert_eq!(here.send_by(b"x", None, brief), Err(Errno::ETIMEDOUT));
    std::thread::scope(|scope| {
        scope.spawn(|| here.send_by(b"last", None, Instant::now() + LONG).unwrap());
        let mut buffer = [0; 128];
        while there.receive_by(&mut buffer, soon()).unwrap().unwrap().len != 4 {}
    });
}

#[test]
fn a_wait_ends_in_time() {
    let (_here, there) = Connection::pair().unwrap();
    let start = Instant::now();
    let end = start + Duration::from_millis(30);
    assert_eq!(there.receive_by(&mut [0; 8], Some(end)).unwrap_err(), Errno::ETIMEDOUT);
    assert_eq!(
        there.receive_with_descriptors(&mut [0; 8], Some(end)).unwrap_err(),
        Errno::ETIMEDOUT
    );
    assert!(start.elapsed() >= Duration::from_millis(30) && start.elapsed() < LONG);
}

#[test]
fn what_a_peer_said_before_it_closed_can_be_read_after_the_reset() {
    let (here, there) = Connection::pair().unwrap();
    here.send(b"never read", None).unwrap();
    there.send(b"answer", None).unwrap();
    drop(there);
    let mut buffer = [0; 16];
    assert_eq!(here.receive(&mut buffer).unwrap_err(), Errno::ECONNRESET);
    assert_eq!(here.receive(&mut buffer).unwrap().unwrap().len, 6);
    assert!(here.receive(&mut buffer).unwrap().is_none());
    assert_eq!(here.send(b"x", None), Err(Errno::EPIPE));
}

#[test]
fn closing_wakes_who_waits() {
    let (here, _there) = Connection::pair().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| here.receive_by(&mut [0; 8], None).unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
        here.close();
        assert!(waiting.join().unwrap());
    });
}

impl Connection {
    fn socket_fd(&self) -> i32 {
        self.as_fd().as_raw_fd()
    }
}

fn connect(path: &Path) -> Connection {
    let end = Instant::now() + LONG;
    loop {
        match Connection::connect(path) {
            Ok(connection) => return connection,
            // More of them wait than the listener has room for.
            Err(Errno::EAGAIN) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => panic!("connect to {}: {errno}", path.display()),
        }
    }
}
