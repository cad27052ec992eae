//! Finds kubelet's process and its cgroup.

use super::HostError;
use crate::netns::NetnsId;
use redirect::host::Process;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Programs that are kubelet or have it in themselves, best first: MicroK8s has
/// `kubelite`, and k3s is called after its command.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s-server", "k3s-agent", "k3s"];
/// Of each cgroup this many neighbours are named.
const NEIGHBOURS: usize = 8;
/// Programs that kubelet runs itself (mount, plugins) are in its cgroup too, and are
/// kubelet as much as it is. What is older than this, in hundredths of a second (the
/// unit of /proc, USER_HZ), is a neighbour.
const SETTLED: u64 = 1000;
/// Directories below a cgroup that are looked at for pods.
const CHILDREN: usize = 4096;

/// One process of a look at /proc.
struct Seen {
    pid: u32,
    name: String,
    cgroup: Option<String>,
}

/// Kubelet's process among those of `proc`: by its name, in the host's network
/// namespace (a machine that runs nodes in containers has several), not in a pod's
/// cgroup (a program can call itself anything); of several the one that started
/// first.
///
/// # Errors
/// When `proc` cannot be read. A process that goes meanwhile is none.
pub fn find(proc: &Path, host: NetnsId) -> Result<Option<Process>, HostError> {
    let entries = fs::read_dir(proc).map_err(|source| file(proc, source))?;
    let mut all = Vec::new();
    let mut best: Option<((usize, u64, u32), Process)> = None;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let path = entry.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let name = name.trim_end().to_owned();
        let cgroup = cgroup_of(&path);
        if let Some(rank) = NAMES.iter().position(|known| *known == name)
            && !cgroup.as_deref().is_some_and(is_pods)
            && in_netns(&path, host)
            && let Some((start, uid)) = start_and_user(&path)
            && best.as_ref().is_none_or(|(least, _)| (rank, start, pid) < *least)
        {
            let process = Process {
                pid,
                name: name.clone(),
                uid,
                cgroup: cgroup.clone(),
                neighbours: Vec::new(),
            };
            best = Some(((rank, start, pid), process));
        }
        all.push(Seen { pid, name, cgroup });
    }
    let Some((_, mut process)) = best else { return Ok(None) };
    if process.cgroup.is_some() {
        let settled = ticks_since_boot(proc).saturating_sub(SETTLED);
        let near = all.into_iter().filter(|s| s.cgroup == process.cgroup && s.pid != process.pid);
        let lasting = near.filter(|seen| {
            start_and_user(&proc.join(seen.pid.to_string()))
                .is_some_and(|(start, _)| start < settled)
        });
        process.neighbours = lasting.map(|seen| seen.name).collect();
        process.neighbours.sort_unstable();
        process.neighbours.dedup();
        process.neighbours.truncate(NEIGHBOURS);
    }
    Ok(Some(process))
}

fn file(path: &Path, source: std::io::Error) -> HostError {
    HostError::File { path: path.display().to_string(), source }
}

/// Path of a process' cgroup in cgroup2; none on a host that has only the first
/// version.
pub(super) fn cgroup_of(process: &Path) -> Option<String> {
    let text = fs::read_to_string(process.join("cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // What the kernel adds when the cgroup is gone but for this process.
    Some(path.strip_suffix(" (deleted)").unwrap_or(path).to_owned())
}

/// True for a cgroup that kubelet makes for pods, with either driver.
fn is_pods(path: &str) -> bool {
    path.split('/').any(|name| name.starts_with("kubepods") || name.contains("-kubepods"))
}

fn in_netns(process: &Path, host: NetnsId) -> bool {
    let stat = fs::metadata(process.join("ns/net"));
    stat.is_ok_and(|stat| (stat.dev(), stat.ino()) == (host.dev, host.ino))
}

/// When it started, and the user that its files and sockets are made as.
fn start_and_user(process: &Path) -> Option<(u64, u32)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name may have any character, but the last bracket ends it.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, file system.
    let uid = uids.split_whitespace().nth(3)?.parse().ok()?;
    Some((start, uid))
}

fn ticks_since_boot(proc: &Path) -> u64 {
    let uptime = fs::read_to_string(proc.join("uptime")).unwrap_or_default();
    let digits: String = uptime.chars().take_while(|c| *c != ' ').filter(|c| *c != '.').collect();
    digits.parse().unwrap_or(0)
}

/// Where the whole tree of cgroup2 can be seen: a mount of the calling thread, else
/// one of `proc`'s first process.
#[must_use]
pub fn mounts(proc: &Path) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = own.lines().filter_map(cgroup2_mount).collect();
    let first = proc.join("1/root/sys/fs/cgroup");
    found.extend([first.join("unified"), first]);
    found
}

/// The mount point of a line of mountinfo that is all of cgroup2.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    (kind.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
}

/// A cgroup that can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Its directory.
    pub dir: PathBuf,
    /// The kernel's number of it.
    pub id: u64,
    /// Pods are in it or below it.
    pub holds_pods: bool,
}

/// Looks at a cgroup.
///
/// # Errors
/// When it is not seen under any of `mounts`: why, in words.
pub fn look(mounts: &[PathBuf], path: &str) -> Result<Cgroup, String> {
    let path = path.trim_matches('/');
    for mount in mounts {
        let dir = mount.join(path);
        // A directory of that name on another file system has no such file.
        if !dir.join("cgroup.procs").exists() || is_first_version(&dir) {
            continue;
        }
        let stat =
            fs::metadata(&dir).map_err(|error| format!("stat {}: {error}", dir.display()))?;
        let holds_pods = is_pods(path) || has_pods(&dir);
        return Ok(Cgroup { id: stat.ino(), dir, holds_pods });
    }
    Err(format!("cgroup /{path} is not seen by the agent: mount the host's /sys/fs/cgroup"))
}

/// A cgroup of the first version; its files are other ones.
fn is_first_version(dir: &Path) -> bool {
    match fs::exists(dir.join("cgroup.controllers")) {
        Ok(there) => !there,
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

fn has_pods(dir: &Path) -> bool {
    let mut todo = vec![dir.to_owned()];
    let mut seen = 0;
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            seen += 1;
            if seen > CHILDREN || entry.file_name().to_str().is_none_or(is_pods) {
                return true;
            }
            todo.push(entry.path());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let line = "29 25 0:25 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(line), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        for other in [
            "29 25 0:25 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "29 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            "29 25 0:25 / /x rw",
            "",
        ] {
            assert_eq!(cgroup2_mount(other), None, "{other}");
        }
    }

    /// A /proc with one process; whoever is in `ns` has its namespace.
    fn process(proc: &Path, pid: u32, name: &str, cgroup: &str, ns: &Path, start: u64) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        std::os::unix::fs::symlink(ns, dir.join("ns/net")).unwrap();
        fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
        fs::write(dir.join("cgroup"), format!("4:memory:/x\n0::{cgroup}\n")).unwrap();
        // A name may have brackets and spaces.
        let fields = (4..22).map(|_| "0").collect::<Vec<_>>().join(" ");
        fs::write(dir.join("stat"), format!("{pid} (a) b) S {fields} {start} 0\n")).unwrap();
        fs::write(dir.join("status"), format!("Name:\tx\nUid:\t1\t2\t3\t{pid}\n")).unwrap();
    }

    #[test]
    fn finds_kubelet_among_others() {
        let temporary = std::env::temp_dir().join(format!("sluice-proc-{}", std::process::id()));
        let service = "/system.slice/kubelet.service";
        let in_pod = "/kubepods.slice/kubepods-pod1.slice/cri-1.scope";
        type One = (u32, &'static str, &'static str, bool, u64);
        let cases: [(&str, &[One], Option<u32>); 6] = [
            ("one", &[(7, "kubelet", service, true, 50), (8, "sh", "/", true, 1)], Some(7)),
            // A pod's process calls itself so, and a node in a container has its own.
            ("false", &[(5, "kubelet", in_pod, true, 1), (6, "kubelet", service, false, 1)], None),
            (
                "first",
                &[(7, "kubelet", service, true, 50), (8, "kubelet", "/b", true, 40)],
                Some(8),
            ),
            ("k3s", &[(7, "k3s-server", service, true, 50), (8, "k3s", service, true, 1)], Some(7)),
            ("rke2", &[(7, "kubelet", service, true, 50), (8, "k3s", service, true, 1)], Some(7)),
            ("none", &[(8, "kubelet2", service, true, 1)], None),
        ];
        for (case, processes, want) in cases {
            let proc = temporary.join(case);
            fs::create_dir_all(&proc).unwrap();
            let (host, other) = (proc.join("host"), proc.join("other"));
            fs::write(&host, "").unwrap();
            fs::write(&other, "").unwrap();
            fs::write(proc.join("uptime"), "100.00 1.0\n").unwrap();
            for (pid, name, cgroup, in_host, start) in processes {
                let ns = if *in_host { &host } else { &other };
                process(&proc, *pid, name, cgroup, ns, *start);
            }
            let stat = fs::metadata(&host).unwrap();
            let found = find(&proc, NetnsId { dev: stat.dev(), ino: stat.ino() }).unwrap();
            assert_eq!(found.as_ref().map(|found| found.pid), want, "{case}");
            if let Some(found) = found {
                assert_eq!(found.uid, found.pid, "the fourth number of Uid");
                let near: Vec<&str> = found.neighbours.iter().map(String::as_str).collect();
                let want: &[&str] = if matches!(case, "k3s" | "rke2") { &["k3s"] } else { &[] };
                assert_eq!(near, want, "{case}");
            }
        }
        fs::remove_dir_all(temporary).unwrap();
    }

    #[test]
    fn knows_the_cgroups_of_pods() {
        for path in [
            "/kubepods/burstable/pod1/c",
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice",
        ] {
            assert!(is_pods(path), "{path}");
        }
        for path in ["/system.slice/kubelet.service", "/", "/docker/1"] {
            assert!(!is_pods(path), "{path}");
        }
    }
}
