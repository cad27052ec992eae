//! The network namespace that something is about, where no descriptor came along.

use crate::failure::causes;
use crate::place;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use sys::netns::{Netns, NetnsId, within};
use wire::passed::Passed;

/// Where charts mount what is of the host.
const HOST: &str = "/host";

/// Where Istio's mounts the runtime's namespaces, whatever they are called outside.
const NAMESPACES: &str = "/host/var/run/netns";

/// What Istio's plugin says of a namespace.
#[derive(Debug, Clone)]
pub(super) struct Said<'a> {
    /// A path, as the runtime means it: on the host.
    pub(super) path: &'a str,
    /// Addresses in it, as far as the plugins before have told.
    pub(super) addresses: &'a [IpAddr],
    /// The process that says so, where it can be seen.
    pub(super) process: Option<i32>,
}

/// The namespace at a path of the host's: as the process that asks sees it, below the
/// host's directories that a chart mounts, as the host's first process sees it, or here,
/// where the agent is in no container.
///
/// # Errors
/// When it is nowhere, and what was tried.
pub(super) fn of_said(said: &Said<'_>) -> Result<Netns, String> {
    look(said, Path::new(HOST), Path::new(NAMESPACES))
}

fn look(said: &Said<'_>, host: &Path, namespaces: &Path) -> Result<Netns, String> {
    let path = Path::new(said.path);
    let below = path.strip_prefix("/").map_err(|_| format!("{path:?} is no absolute path"))?;
    let mut tried = Vec::new();
    let mut note = |place: &Path, why: String| tried.push(format!("{}: {why}", place.display()));
    if let Some(process) = said.process {
        let root = PathBuf::from(format!("/proc/{process}/root"));
        match in_root(&root, below) {
            Ok(netns) => return Ok(netns),
            Err(why) => note(&root.join(below), why),
        }
    }
    match Netns::open(&host.join(below)) {
        Ok(netns) => return Ok(netns),
        Err(error) => note(&host.join(below), causes(&error)),
    }
    let root = host.join("proc/1/root");
    match in_root(&root, below) {
        Ok(netns) => return Ok(netns),
        Err(why) => note(&root.join(below), why),
    }
    let same_name = namespaces.join(path.file_name().unwrap_or(OsStr::new("")));
    match Netns::open(&same_name) {
        Ok(netns) if has_one_of(&netns, said.addresses) => return Ok(netns),
        Ok(_) => note(&same_name, format!("has none of {:?}", said.addresses)),
        Err(error) => note(&same_name, causes(&error)),
    }
    // A number of the host's is another process' in a container.
    if !(path.starts_with("/proc") && host.join("proc/1").exists()) {
        match Netns::open(path) {
            Ok(netns) => return Ok(netns),
            Err(error) => note(path, causes(&error)),
        }
    }
    Err(tried.join("; "))
}

/// Opens a path with links as they are meant below another root.
fn in_root(root: &Path, path: &Path) -> Result<Netns, String> {
    let open = || {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(root, directory, Mode::empty())?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&root, path, how)
    };
    let fd = open().map_err(|errno| errno.desc().to_owned())?;
    Netns::from_fd(fd).map_err(|error| causes(&error))
}

/// Why a namespace with these addresses cannot be the pod's whom the plugins before have
/// given others: rules there would give somebody else's traffic this pod's identity.
/// Nothing where none are named.
///
/// # Errors
/// When it has none of those that are named.
pub(super) fn holds(named: &[IpAddr], held: &[IpAddr]) -> Result<(), String> {
    // What is not told of a namespace says nothing of it either.
    let mut told =
        named.iter().map(IpAddr::to_canonical).filter(|ip| !is_link_local(*ip)).peekable();
    if told.peek().is_none() || told.any(|ip| held.contains(&ip)) {
        return Ok(());
    }
    let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let has = if held.is_empty() { "none".to_owned() } else { list(held) };
    Err(format!(
        "the plugins before us have given the pod {}, and the namespace has {has}",
        list(named)
    ))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn has_one_of(netns: &Netns, addresses: &[IpAddr]) -> bool {
    let held = within(netns, sys::routing::addresses);
    held.is_ok_and(|held| {
        held.is_ok_and(|held| addresses.iter().any(|ip| held.contains(&ip.to_canonical())))
    })
}

/// The namespace of a sandbox that passed: among the host's processes, which every
/// chart mounts and the runtime's directory of namespaces none; or where it was then.
///
/// # Errors
/// When neither has it, and why.
pub(super) fn of_passed(passed: &Passed) -> Result<Netns, String> {
    let id = NetnsId { dev: passed.dev, ino: passed.ino };
    let elsewhere = match place::by_id(&place::root(), id) {
        Ok(Some(netns)) => return Ok(netns),
        Ok(None) => "no process is in it".to_owned(),
        Err(error) => causes(&error),
    };
    let at_path = match Netns::open(Path::new(&passed.netns)) {
        Ok(netns) if netns.id() == id => return Ok(netns),
        Ok(netns) => format!("at {} is {} now", passed.netns, netns.id()),
        Err(error) => causes(&error),
    };
    Err(format!("cannot find network namespace {id}: {elsewhere}, and {at_path}"))
}

/// The namespace of a process.
pub(super) fn of_process(process: i32) -> Option<NetnsId> {
    Netns::open(&PathBuf::from(format!("/proc/{process}/ns/net"))).ok().map(|netns| netns.id())
}

/// True when the path of a namespace says by itself that the sandbox is no more: its
/// directory is here, and the namespace not in it.
pub(super) fn has_left(passed: &Passed) -> bool {
    let path = Path::new(&passed.netns);
    let is_there = Netns::open(path)
        .is_ok_and(|netns| netns.id() == NetnsId { dev: passed.dev, ino: passed.ino });
    !is_there && path.parent().is_some_and(Path::exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};
    use sys::netns::within;

    fn passed(netns: &Netns, path: String) -> Passed {
        let NetnsId { dev, ino } = netns.id();
        Passed { netns: path, dev, ino, ..Passed::default() }
    }

    #[test]
    fn a_namespace_is_known_by_its_inode() {
        let own = Netns::current().unwrap();
        let same = passed(&own, "/nonexistent/a".to_owned());
        assert_eq!(of_passed(&same).unwrap().id(), own.id(), "processes are in it");
        assert!(!has_left(&same), "nothing is known of that directory");

        let bare = Netns::create().unwrap();
        let path = format!("/proc/self/fd/{}", bare.as_fd().as_raw_fd());
        let pinned = passed(&bare, path);
        assert_eq!(of_passed(&pinned).unwrap().id(), bare.id(), "no process, but a path");
        assert!(!has_left(&pinned));
        let reused = Passed { netns: "/proc/self/ns/net".into(), ..pinned.clone() };
        let error = of_passed(&reused).unwrap_err();
        assert!(error.contains("no process is in it") && error.contains("now"), "{error}");
        assert!(has_left(&reused));

        // A thread is no process, but its process' others are elsewhere.
        let found = within(&bare, || of_passed(&Passed { netns: "/none/b".into(), ..pinned }));
        assert!(found.unwrap().is_err());
    }

    /// A host's file system, with a namespace in the runtime's directory of them. Links
    /// are absolute there, as `/var/run` is on some.
    struct Host {
        directory: tempfile::TempDir,
        netns: Netns,
    }

    impl Host {
        fn new() -> Self {
            let host =
                Self { directory: tempfile::tempdir().unwrap(), netns: Netns::create().unwrap() };
            let root = host.at("proc/1/root");
            std::fs::create_dir_all(root.join("run/netns")).unwrap();
            std::fs::create_dir_all(root.join("var")).unwrap();
            std::os::unix::fs::symlink("/run", root.join("var/run")).unwrap();
            std::fs::create_dir_all(host.at("var/run/netns")).unwrap();
            host
        }

        fn at(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }

        /// As a runtime binds it.
        fn bind(&self, path: &str) -> Bound {
            let path = self.at(path);
            std::fs::write(&path, "").unwrap();
            let source = format!("/proc/self/fd/{}", self.netns.as_fd().as_raw_fd());
            let none: Option<&str> = None;
            let flags = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(source.as_str()), &path, none, flags, none).unwrap();
            Bound(path)
        }

        fn look(&self, said: &Said<'_>) -> Result<NetnsId, String> {
            let found = look(said, self.directory.path(), &self.at("var/run/netns"));
            found.map(|netns| netns.id())
        }
    }

    struct Bound(PathBuf);

    impl Drop for Bound {
        fn drop(&mut self) {
            nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }

    #[test]
    fn a_pods_namespace_has_one_of_its_addresses() {
        let (a, b) = (IpAddr::from([10, 0, 0, 5]), IpAddr::from([10, 0, 0, 6]));
        assert_eq!(holds(&[], &[a]), Ok(()), "a stock plugin may name none");
        assert_eq!(holds(&[a, b], &[b]), Ok(()));
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 5]);
        assert_eq!(holds(&[mapped], &[a]), Ok(()));
        assert_eq!(holds(&[IpAddr::from([169, 254, 0, 5])], &[a]), Ok(()));
        let error = holds(&[a], &[b]).unwrap_err();
        assert!(error.contains("10.0.0.5") && error.contains("has 10.0.0.6"), "{error}");
        assert!(holds(&[a], &[]).unwrap_err().contains("has none"));
    }

    #[test]
    fn a_path_of_the_hosts_is_found_where_charts_mount_it() {
        let host = Host::new();
        let id = host.netns.id();
        let said = |path| Said { path, addresses: &[], process: None };
        let error = host.look(&said("/var/run/netns/cni-1")).unwrap_err();
        assert!(error.matches("cni-1").count() >= 4, "all that was tried: {error}");
        {
            let _mounted = host.bind("var/run/netns/cni-1");
            assert_eq!(host.look(&said("/var/run/netns/cni-1")), Ok(id));
            // Of another directory there may be one of the same name.
            let elsewhere = Said { path: "/var/run/docker/netns/cni-1", ..said("") };
            assert!(host.look(&elsewhere).is_err());
            let addresses = [IpAddr::from([10, 0, 0, 5])];
            assert!(host.look(&Said { addresses: &addresses, ..elsewhere.clone() }).is_err());
            let args = ["address", "add", "10.0.0.5/32", "dev", "lo"];
            let run = || sys::process::Command::new("/sbin/ip").args(args).run().map(drop).unwrap();
            within(&host.netns, run).unwrap();
            assert_eq!(host.look(&Said { addresses: &addresses, ..elsewhere }), Ok(id));
        }
        {
            let _bound = host.bind("proc/1/root/run/netns/cni-2");
            for path in ["/run/netns/cni-2", "/var/run/netns/cni-2"] {
                assert_eq!(host.look(&said(path)), Ok(id), "{path}");
            }
        }
        // The number of a process is another's here.
        let own = format!("/proc/{}/ns/net", std::process::id());
        assert!(host.look(&said(&own)).is_err());
        assert!(host.look(&said("relative")).unwrap_err().contains("absolute"));
        let bare = tempfile::tempdir().unwrap();
        let here = look(&said(&own), bare.path(), bare.path()).unwrap();
        assert_eq!(here.id(), Netns::current().unwrap().id());
        // As who asks sees it.
        let asks = Said { process: i32::try_from(std::process::id()).ok(), ..said("/nonexistent") };
        assert!(host.look(&asks).unwrap_err().contains("/root/nonexistent"));
    }
}
