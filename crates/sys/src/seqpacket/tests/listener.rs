//! Who may have a path, and when.

use super::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use std::os::unix::fs::PermissionsExt;

fn inode(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn serves_its_path_for_root_only_and_removes_it() {
    let directory = Directory::create();
    let path = directory.socket();
    let listener = Listener::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(listener.accept().unwrap_err(), Errno::EAGAIN);

    let client = Connection::connect(&path).unwrap();
    let server = listener.accept().unwrap();
    let peer = server.credentials().unwrap();
    assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
    client.send(b"hello", None).unwrap();
    assert_eq!(server.receive_by(&mut [0; 8], soon()).unwrap().unwrap().len, 5);

    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 1, "nothing but the socket");
    drop(listener);
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0);
    assert_eq!(Connection::connect(&path).unwrap_err(), Errno::ENOENT);
}

#[test]
fn what_the_dead_left_is_replaced() {
    let directory = Directory::create();
    let path = directory.socket();
    let flags = SockFlag::SOCK_CLOEXEC;
    for kind in [SockType::SeqPacket, SockType::Stream] {
        // A socket that was bound and is gone, and a file of a start cut short.
        for name in [&path, &directory.0.join("z.sock~")] {
            let dead = socket(AddressFamily::Unix, kind, flags, None).unwrap();
            bind(dead.as_raw_fd(), &UnixAddr::new(name).unwrap()).unwrap();
        }
        let listener = Listener::bind(&path).unwrap();
        Connection::connect(&path).unwrap();
        listener.accept().unwrap();
    }
}

#[test]
fn a_living_listener_keeps_its_path() {
    let directory = Directory::create();
    let path = directory.socket();
    let first = Listener::bind(&path).unwrap();
    let before = inode(&path);
    let err = Listener::bind(&path).unwrap_err();
    let want = format!("another process listens at {}: it must end first", path.display());
    assert_eq!(err.to_string(), want);
    assert_eq!(inode(&path), before);
    // Full of those that wait, it lives all the same.
    let mut clients = Vec::new();
    loop {
        match Connection::connect(&path) {
            Ok(client) => clients.push(client),
            Err(errno) => break assert_eq!(errno, Errno::EAGAIN),
        }
        assert!(clients.len() < 1000, "the backlog never fills");
    }
    assert!(matches!(Listener::bind(&path), Err(ListenError::InUse { .. })));
    drop(first);
    Listener::bind(&path).unwrap();
}

#[test]
fn another_kind_of_living_socket_keeps_its_path_too() {
    let directory = Directory::create();
    let path = directory.socket();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::InUse { .. })));
}

#[test]
fn a_file_that_is_no_socket_is_not_removed() {
    let directory = Directory::create();
    let path = directory.socket();
    std::fs::write(&path, "precious").unwrap();
    let err = Listener::bind(&path).unwrap_err();
    assert_eq!(err.to_string(), format!("{} is no socket: remove it", path.display()));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn of_many_that_start_at_once_one_has_the_path() {
    let directory = Directory::create();
    let path = directory.socket();
    for _ in 0..20 {
        let won: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
        });
        let [listener] = &won[..] else {
            panic!("{} listeners", won.len());
        };
        Connection::connect(&path).unwrap();
        listener.accept().unwrap();
    }
}

#[test]
fn the_directory_is_not_made_and_the_path_must_fit() {
    let directory = Directory::create();
    let missing = directory.0.join("missing");
    let err = Listener::bind(&missing.join("z.sock")).unwrap_err();
    let want = format!("open the directory {} of the socket", missing.display());
    assert_eq!(err.to_string(), want);
    assert!(!missing.exists());

    let long = directory.0.join("n".repeat(100));
    let err = Listener::bind(&long).unwrap_err();
    assert!(err.to_string().starts_with("bind "), "{err}");
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0);
}

#[test]
fn a_file_of_somebody_else_stays() {
    let directory = Directory::create();
    let path = directory.socket();
    let listener = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = Listener::bind(&path).unwrap();
    drop(listener);
    Connection::connect(&path).unwrap();
    other.accept().unwrap();
}

#[test]
fn comes_back_when_its_file_or_directory_was_removed() {
    let directory = Directory::create();
    let path = directory.0.join("below").join("z.sock");
    std::fs::create_dir(directory.0.join("below")).unwrap();
    let mut listener = Listener::bind(&path).unwrap();
    assert!(!listener.keep().unwrap(), "nothing is to be done");
    for all in [false, true] {
        if all {
            std::fs::remove_dir_all(directory.0.join("below")).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(Connection::connect(&path).unwrap_err(), Errno::ENOENT);
        assert!(listener.keep().unwrap() && !listener.keep().unwrap());
        let _client = Connection::connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // Another agent's is not taken away, neither now nor at the end.
    std::fs::remove_file(&path).unwrap();
    let other = Listener::bind(&path).unwrap();
    assert!(matches!(listener.keep(), Err(ListenError::InUse { .. })));
    drop(listener);
    Connection::connect(&path).unwrap();
    drop(other);
    assert!(!path.exists());
}
