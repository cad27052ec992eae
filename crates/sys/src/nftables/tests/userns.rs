//! A pod with users of its own (`hostUsers: false`): its network namespace belongs
//! to a user namespace below ours, and is programmed from ours.

use super::apply;
use crate::netns::{Netns, within};
use crate::routing;
use nix::unistd::Pid;
use redirect::desired::{
    Action, Chain, ChainKind, Desired, Is, Match, Proto, Rule, RuleFamily, Table, TableKind,
};
use redirect::net::Owner;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const NOBODY_LISTENS: u16 = 9999;
const PROXY: u16 = 15001;
/// An id inside; outside it is 100000 more.
const CAPTURED: u32 = 1337;

/// Kills and reaps the child whatever happens.
struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(self.0, None);
    }
}

/// What the child does; it may only make system calls, since other threads held
/// locks when it was forked. Says a byte when it is in its namespaces, waits for
/// one, then connects as two users and says for each whether that worked.
fn child(pipe: RawFd) -> ! {
    // SAFETY: system calls with arguments on this stack, all of valid size; no
    // memory is allocated and no lock taken. The process ends here.
    unsafe {
        let mut byte = [0u8; 1];
        let entered = libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET);
        byte[0] = u8::from(entered == 0);
        libc::write(pipe, byte.as_ptr().cast(), 1);
        libc::read(pipe, byte.as_mut_ptr().cast(), 1);
        for uid in [5, CAPTURED] {
            let mut said = 2u8;
            if libc::syscall(libc::SYS_setresuid, 0, uid, 0) == 0 {
                let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
                let to = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: NOBODY_LISTENS.to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
                    sin_zero: [0; 8],
                };
                let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                said = u8::from(libc::connect(fd, (&raw const to).cast(), len) == 0);
            }
            libc::write(pipe, (&raw const said).cast(), 1);
            libc::syscall(libc::SYS_setresuid, 0, 0, 0);
        }
        libc::_exit(0)
    }
}

fn redirect_of_one_user() -> Desired {
    let rule = Rule {
        family: RuleFamily::Any,
        matches: vec![
            Match::Uid(Is::Eq(Owner::Id(CAPTURED))),
            Match::Proto(Proto::Tcp),
            Match::DestinationPort(Is::Eq(NOBODY_LISTENS)),
        ],
        action: Action::Redirect(PROXY),
        why: "test",
    };
    let chain = Chain { kind: ChainKind::OutputHook, rules: vec![rule] };
    let table = Table { kind: TableKind::Nat, chains: vec![chain] };
    Desired { tables: vec![table], ..Desired::default() }
}

#[test]
fn matches_the_users_of_the_namespace() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // SAFETY: the child makes system calls only until it exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(theirs.as_raw_fd());
    }
    assert!(pid > 0);
    let _child = Child(Pid::from_raw(pid));
    drop(theirs);

    let mut byte = [0];
    ours.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [1], "the child could not make its namespaces");
    fs::write(format!("/proc/{pid}/uid_map"), "0 100000 65536").unwrap();
    fs::write(format!("/proc/{pid}/gid_map"), "0 100000 65536").unwrap();
    let ns = Netns::open(Path::new(&format!("/proc/{pid}/ns/net"))).unwrap();
    let listener = within(&ns, || {
        routing::bring_loopback_up().unwrap();
        apply(&redirect_of_one_user());
        TcpListener::bind(("127.0.0.1", PROXY)).unwrap()
    })
    .unwrap();

    ours.write_all(&[1]).unwrap();
    let mut said = [9; 2];
    ours.read_exact(&mut said).unwrap();
    assert_eq!(said, [0, 1], "user 5 meets no listener, user 1337 is taken to ours");
    drop(listener);
}
