//! Disks that are full or read-only, binaries that run, permissions, installers
//! that were killed.

use super::node::{Node, Running, until};
use crate::install::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"main"}]}"#;
const OWNED: &str = "02-istio-cni.conflist";

/// A small file system on a directory, gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` where this process may not mount, which is said in CI.
    fn on(path: &Path, size: &str) -> Option<Self> {
        match mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(size)) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(errno) => {
                let required = std::env::vars_os().any(|(k, v)| k == "REQUIRE_NETNS" && v == "1");
                assert!(!required, "mount: {errno}");
                None
            }
        }
    }

    fn remount(&self, flags: MsFlags) {
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)
            .unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn leftovers(directory: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name.starts_with(".sluice-")).collect()
}

fn settled(node: &Node) -> Running {
    let running = node.start();
    running.wait_ready();
    running
}

#[test]
fn a_full_disk_breaks_nothing_and_is_retried() {
    let node = Node::owned();
    let Some(_disk) = Tmpfs::on(&node.settings.net_dir, "size=64k") else { return };
    node.write("10-net.conflist", LIST);
    let running = settled(&node);
    let right = node.read(OWNED);
    let big = node.net("filler");
    let _ = fs::write(&big, vec![0; 1 << 20]);
    node.write("10-net.conflist", LIST); // Room for one page, in place.
    let changed = LIST.replace("main", "changed");
    fs::OpenOptions::new()
        .write(true)
        .open(node.net("10-net.conflist"))
        .and_then(|mut file| {
            use std::io::Write;
            file.write_all(changed.as_bytes())
        })
        .unwrap();
    let _ = fs::write(node.net("filler2"), vec![0; 1 << 20]);
    let reason = running.wait_unready();
    assert!(reason.contains("No space left"), "{reason}");
    assert!(running.count("CREATE_CNI_CONFIG_FAILURE") > 0);
    assert_eq!(node.read(OWNED), right, "the old one is whole");
    assert_eq!(leftovers(&node.settings.net_dir), Vec::<String>::new());
    fs::remove_file(big).unwrap();
    let _ = fs::remove_file(node.net("filler2"));
    running.wait_ready();
    assert_eq!(node.chain(), ["changed", "istio-cni"]);
}

#[test]
fn a_full_binary_directory_does_not_stop_the_configuration() {
    let node = Node::owned();
    let Some(_disk) = Tmpfs::on(&node.settings.bin_dir, "size=64k") else { return };
    node.write("10-net.conflist", LIST);
    let running = settled(&node);
    let _ = fs::write(node.settings.bin_dir.join("filler"), vec![0; 1 << 20]);
    node.new_binary(&format!("#!/bin/sh\n#{}\n", "x".repeat(100_000)));
    node.write("10-net.conflist", &LIST.replace("main", "changed"));
    let reason = running.wait_unready();
    assert!(reason.contains("No space left") && reason.contains("istio-cni"), "{reason}");
    assert!(running.count("COPY_BINARIES_FAILURE") > 0);
    until("the change", || (node.chain() == ["changed", "istio-cni"]).then_some(()));
    assert_eq!(leftovers(&node.settings.bin_dir), Vec::<String>::new());
}

#[test]
fn read_only_directories_name_the_setting() {
    let node = Node::owned();
    let Some(disk) = Tmpfs::on(&node.settings.bin_dir, "size=64k") else { return };
    node.write("10-net.conflist", LIST);
    disk.remount(MsFlags::MS_RDONLY);
    let running = node.start();
    let reason = running.wait_unready();
    assert!(reason.contains("cniBinDir") && reason.contains("read-only"), "{reason}");
    assert_eq!(node.names(), ["10-net.conflist"], "no chain names a plugin that is not there");
    disk.remount(MsFlags::empty());
    running.wait_ready();
    drop(running);

    let node = Node::owned();
    fs::remove_dir(&node.settings.bin_dir).unwrap();
    node.write("10-net.conflist", LIST);
    let running = node.start();
    assert!(running.wait_unready().contains("cniBinDir"));
    fs::create_dir(&node.settings.bin_dir).unwrap();
    running.wait_ready();
    // The configuration directory goes, and comes back as another one.
    fs::rename(&node.settings.net_dir, node.dir.path().join("old")).unwrap();
    let reason = running.wait_unready();
    assert!(reason.contains("net.d"), "{reason}");
    fs::create_dir(&node.settings.net_dir).unwrap();
    node.write("10-net.conflist", LIST);
    running.wait_ready();
    node.write("10-net.conflist", &LIST.replace("main", "changed"));
    until("followed again", || (node.chain() == ["changed", "istio-cni"]).then_some(()));
}

#[test]
fn a_binary_is_replaced_while_it_runs() {
    let node = Node::owned();
    node.write("10-net.conflist", LIST);
    // A real program: the kernel refuses to write a file that is being executed.
    let target = node.settings.bin_dir.join("istio-cni");
    fs::copy("/bin/sleep", &target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a program that runs is what this is about")]
    let mut child = std::process::Command::new(&target).arg("30").spawn().unwrap();
    until("executed", || {
        let exe = fs::read_link(format!("/proc/{}/exe", child.id())).ok()?;
        (exe == target).then_some(())
    });
    assert_eq!(
        fs::OpenOptions::new().write(true).open(&target).unwrap_err().kind(),
        std::io::ErrorKind::ExecutableFileBusy
    );
    let running = settled(&node);
    let new = fs::read(&target).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(new, fs::read(node.settings.binaries.join("istio-cni")).unwrap());
    // Somebody overwrites or removes it, or its mode: by content, not by time.
    let mode = || fs::metadata(&target).map(|meta| meta.mode() & 0o777).unwrap_or(0);
    for spoil in [
        (|path| fs::write(path, "other")) as fn(&Path) -> std::io::Result<()>,
        |path| fs::remove_file(path),
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)),
    ] {
        spoil(&target).unwrap();
        until("right again", || (fs::read(&target).ok()? == new && mode() == 0o755).then_some(()));
    }
    running.wait_ready();
}

#[test]
fn what_a_killed_installer_left_is_removed() {
    let node = Node::owned();
    node.write("10-net.conflist", LIST);
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    let paths = [
        node.net(".sluice-1-2-3"),
        node.settings.bin_dir.join(".sluice-1-2-3"),
        node.settings.bin_dir.join("istio-cni.tmp.123"),
    ];
    let others = [node.net("calico.tmp.1"), node.settings.bin_dir.join("bridge.tmp.1")];
    for path in paths.iter().chain(&others) {
        fs::write(path, "x").unwrap();
        fs::File::open(path).unwrap().set_modified(old).unwrap();
    }
    // One that is being written by somebody.
    fs::write(node.net(".sluice-fresh"), "x").unwrap();
    node.install();
    assert!(paths.iter().all(|path| !path.exists()));
    assert!(others.iter().all(|path| path.exists()));
    assert!(node.net(".sluice-fresh").exists());
}

/// `helm install` right after `helm uninstall`: the pod that holds the node down may end
/// later than the new agent starts.
#[test]
fn an_agent_that_starts_under_a_hold_installs_when_that_is_over() {
    let node = Node::owned();
    node.write("10-net.conflist", LIST);
    node.install();
    let hold = Hold::take(&node.settings.run_dir).unwrap();
    let other = Hold::take(&node.settings.run_dir).unwrap();
    assert!(remove(&node.settings).errors.is_empty());
    let running = node.start();
    assert!(running.wait_unready().contains("cleanup --hold"));
    drop(hold);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(node.chain(), ["main"], "another one still holds it");
    drop(other);
    running.wait_ready();
    assert_eq!(node.chain(), ["main", "istio-cni"]);
    // Given up once more, it stays so: nobody said that it is to come back.
    assert!(remove(&node.settings).errors.is_empty());
    until("given up", || (!running.ready.borrow().ready).then_some(()));
    assert!(running.ready.borrow().reason.contains("was removed"));
}

#[test]
fn odd_files_stop_nothing() {
    let node = Node::owned();
    nix::unistd::mkfifo(&node.net("00-pipe.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(node.net("01-directory.conf")).unwrap();
    std::os::unix::fs::symlink("/nowhere", node.net("03-dangling.conflist")).unwrap();
    fs::write(node.net("04-bytes.conf"), [0xff, 0xfe, 0]).unwrap();
    fs::write(node.net("05-huge.conf"), vec![b' '; 5 << 20]).unwrap();
    // The primary may be a link into a directory that nobody watches.
    let elsewhere = node.dir.path().join("elsewhere.conflist");
    fs::write(&elsewhere, LIST).unwrap();
    std::os::unix::fs::symlink(&elsewhere, node.net("10-net.conflist")).unwrap();
    let running = settled(&node);
    assert_eq!(node.chain(), ["main", "istio-cni"]);
    fs::write(&elsewhere, LIST.replace("main", "changed")).unwrap();
    until("followed", || (node.chain() == ["changed", "istio-cni"]).then_some(()));
    drop(running);

    let node = Node::new(Mode::InPlace);
    std::os::unix::fs::symlink(&elsewhere, node.net("10-net.conflist")).unwrap();
    let running = node.start();
    assert!(running.wait_unready().contains("symbolic link"));
}
