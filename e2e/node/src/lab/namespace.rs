//! A network namespace with a path, as a container runtime makes it.

use super::Scratch;
use crate::process::{self, Program, Running};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::netns::{Netns, within};

/// What a pod's own root is outside of its user namespace.
pub const FIRST_ID: u32 = 100_000;

/// A namespace bound to a path of the run's private directory.
#[derive(Debug)]
pub struct Namespace {
    netns: Netns,
    path: PathBuf,
    scratch: Arc<Scratch>,
    /// First process of the user namespace that owns it, if that is not ours.
    owner: Option<Running>,
}

impl Namespace {
    /// A fresh one with `lo` up and addresses that need no detection of
    /// duplicates, which would take a second or two.
    ///
    /// # Errors
    /// When it cannot be made or bound.
    pub fn create(scratch: &Arc<Scratch>, name: &str) -> Result<Self> {
        Self::bind(scratch, name, Netns::create()?)
    }

    /// One that belongs to a user namespace of its own, as the pod of a
    /// `hostUsers: false` does: its root is [`FIRST_ID`] outside.
    ///
    /// # Errors
    /// When either namespace cannot be made.
    pub fn create_with_users(scratch: &Arc<Scratch>, name: &str) -> Result<Self> {
        let mut owner = Program::new("unshare").args(["--user", "--net", "sh", "-c"]);
        owner = owner.arg("echo ready; exec cat >/dev/null");
        let mut owner = owner.start()?;
        owner.wait_ready()?;
        let process = PathBuf::from(format!("/proc/{}", owner.pid()));
        for file in ["uid_map", "gid_map"] {
            let path = process.join(file);
            std::fs::write(&path, format!("0 {FIRST_ID} 65536\n"))
                .with_context(|| format!("write {}", path.display()))?;
        }
        let netns = Netns::open(&process.join("ns/net"))?;
        let mut namespace = Self::bind(scratch, name, netns)?;
        namespace.owner = Some(owner);
        Ok(namespace)
    }

    fn bind(scratch: &Arc<Scratch>, name: &str, netns: Netns) -> Result<Self> {
        let path = scratch.path().join("netns").join(name);
        std::fs::write(&path, "").with_context(|| format!("make {}", path.display()))?;
        let source = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
        let none: Option<&str> = None;
        mount(Some(source.as_str()), &path, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind a namespace to {}", path.display()))?;
        let namespace = Self { netns, path, scratch: Arc::clone(scratch), owner: None };
        for (knob, value) in [
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/ip_unprivileged_port_start", "0"),
        ] {
            process::sysctl(&namespace.netns, knob, value)?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The path it is bound to: CNI_NETNS.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's directory.
    #[must_use]
    pub fn scratch(&self) -> &Arc<Scratch> {
        &self.scratch
    }

    /// Runs lines of `ip` in it; those that start with `-6` after the others.
    ///
    /// # Errors
    /// When one fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let rest = |line: &&str| !line.starts_with("-6 ");
        let rest: Vec<_> = lines.lines().filter(rest).collect();
        process::load(&self.netns, &["ip", "-batch", "-"], &rest.join("\n"))?;
        let v6: Vec<_> = lines.lines().filter_map(|line| line.strip_prefix("-6 ")).collect();
        if !v6.is_empty() {
            process::load(&self.netns, &["ip", "-6", "-batch", "-"], &v6.join("\n"))?;
        }
        if lines.contains("addr add") {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits until each IPv6 address is reachable: the kernel adds its local route
    /// from a work queue, after `ip` has returned.
    fn settle(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (addresses, routes) = within(&self.netns, || {
                let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
                Ok::<_, std::io::Error>((read("if_inet6")?, read("ipv6_route")?))
            })??;
            let own = addresses.lines().filter_map(|line| line.split(' ').next());
            // Link-local ones are nobody's concern, and take their time.
            let mut own = own.filter(|address| !address.starts_with("fe80"));
            let local: Vec<_> = routes.lines().filter(|line| line.contains(" 80200001 ")).collect();
            let missing = own.find(|own| !local.iter().any(|line| line.starts_with(own)));
            let Some(missing) = missing else {
                return Ok(());
            };
            if Instant::now() > end {
                bail!("{}: no local route to {missing}", self.path.display());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs `nft`, `iptables-restore` or the like in it.
    ///
    /// # Errors
    /// When it fails.
    pub fn load(&self, argv: &[&str], script: &str) -> Result<String> {
        process::load(&self.netns, argv, script)
    }

    /// A program that is to run in it, among its users.
    pub fn program(&self, program: impl Into<std::ffi::OsString>) -> Program<'_> {
        let program = Program::new(program).within(&self.netns);
        match &self.owner {
            Some(owner) => program.in_user_namespace_of(owner.pid()),
            None => program,
        }
    }

    /// Writes under /proc/sys/net of it.
    ///
    /// # Errors
    /// When there is no such knob.
    pub fn sysctl(&self, knob: &str, value: &str) -> Result<()> {
        process::sysctl(&self.netns, knob, value)
    }

    /// Makes a link between an interface here and one in another namespace.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn link(&self, here: &str, there: &Self, name: &str) -> Result<()> {
        self.ip(&format!(
            "link add {here} type veth peer name {name} netns {}\nlink set {here} up",
            there.path.display()
        ))?;
        there.ip(&format!("link set {name} up"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).ok();
        std::fs::remove_file(&self.path).ok();
    }
}
