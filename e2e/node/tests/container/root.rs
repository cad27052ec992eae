//! A container for the agent: a root, a mount and a pid namespace of its own, and of
//! the host only what a chart mounts.

use e2e_node::lab::Scratch;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a chart mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mount<'a> {
    /// The host's processes at /host/proc. The first of them is taken to be in the
    /// network namespace that the agent is started in: the lab's host. What it sees
    /// is what there is when the container starts.
    Processes,
    /// A directory of the host, elsewhere.
    Directory(&'a Path, &'a str),
}

/// A script that runs `program` in such a container. The directories in `same` are
/// where they are outside.
pub(crate) fn script(
    scratch: &Scratch,
    program: &Path,
    same: &[&Path],
    mounts: &[Mount<'_>],
) -> PathBuf {
    let root = scratch.dir("container-root").unwrap();
    let mut text = format!(
        r#"set -e
root={root}
mount -t tmpfs -o mode=0755 root "$root"
for name in usr lib lib64 bin sbin etc dev sys; do
  if [ -L "/$name" ]; then cp -P "/$name" "$root/$name"
  elif [ -d "/$name" ]; then mkdir "$root/$name"; mount --rbind "/$name" "$root/$name"
  fi
done
mkdir -p "$root{parent}" "$root/proc"
touch "$root{program}"
mount --bind {program} "$root{program}"
"#,
        root = root.display(),
        parent = program.parent().unwrap().display(),
        program = program.display(),
    );
    let mut directory = |from: &str, to: &str| {
        writeln!(text, "mkdir -p \"$root{to}\" && mount --rbind {from} \"$root{to}\"").unwrap();
    };
    for path in same.iter().map(|path| path.display().to_string()) {
        directory(&path, &path);
    }
    for mount in mounts {
        match mount {
            Mount::Directory(from, to) => directory(&from.display().to_string(), to),
            Mount::Processes => directory("/proc", "/host/proc"),
        }
    }
    if mounts.contains(&Mount::Processes) {
        text.push_str(
            r#"first=$root/host/proc/1
mount -t tmpfs first "$first"
mkdir -p "$first/ns" "$first/root"
touch "$first/ns/net"
mount --bind /proc/self/ns/net "$first/ns/net"
mount --rbind / "$first/root"
"#,
        );
    }
    text.push_str("mount -t proc proc \"$root/proc\"\nexec chroot \"$root\" \"$@\"\n");
    let inner = scratch.path().join("container.sh");
    std::fs::write(&inner, text).unwrap();
    let outer = scratch.path().join("contained-sluice");
    let unshare = "unshare --mount --propagation private --pid --fork --kill-child=KILL";
    let text =
        format!("#!/bin/sh\nexec {unshare} sh {} {} \"$@\"\n", inner.display(), program.display());
    std::fs::write(&outer, text).unwrap();
    std::fs::set_permissions(&outer, std::fs::Permissions::from_mode(0o755)).unwrap();
    outer
}
