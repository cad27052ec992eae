//! Who kubelet is: by its cgroup, or else by its user.

use std::fmt;

/// What a connection's process must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// In this cgroup of cgroup2, or below it.
    Cgroup {
        /// Path below the mount, without a slash at either end.
        path: String,
        /// How deep that is for the kernel: names in `path`, more where the kernel
        /// counts from another root than the path does.
        level: u8,
        /// The kernel's number of it, the inode. A cgroup that is made again has
        /// another one.
        id: u64,
    },
    /// Running as this user.
    Uid(u32),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup { path, id, .. } => write!(f, "cgroup /{path} ({id})"),
            Self::Uid(uid) => write!(f, "every process of user {uid}"),
        }
    }
}

/// A process that looks like kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id in the /proc that was read.
    pub pid: u32,
    /// `kubelet`, or what has kubelet in itself.
    pub name: String,
    /// User of its file accesses, which is the one a socket has.
    pub uid: u32,
    /// Path of its cgroup below the mount of cgroup2, as /proc tells it.
    pub cgroup: Option<String>,
    /// Names of other processes in just that cgroup.
    pub neighbours: Vec<String>,
}

/// What is known of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Kubelet's process; none when there is no such.
    pub process: Option<Process>,
    /// The number of its cgroup; the error says why it is not known.
    pub cgroup_id: Result<u64, String>,
    /// Pods are in its cgroup or below it.
    pub holds_pods: bool,
    /// Levels that the kernel counts more than the path has names; the error says
    /// why the kernel cannot know processes by their cgroup.
    pub level_offset: Result<u8, String>,
}

/// Who kubelet is taken for, and how sure that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// What the rules ask for.
    pub caller: Caller,
    /// Kubelet's process, where one was found.
    pub process: Option<Process>,
    /// Why it is not known by its cgroup.
    pub why: Option<String>,
}

impl Kubelet {
    /// Decides. There is always an answer: without a sign of kubelet it is root, as
    /// a node must not lose its probes by the name of a program (istio/istio#58185).
    #[must_use]
    pub fn choose(facts: Facts) -> Self {
        let Facts { process, cgroup_id, holds_pods, level_offset } = facts;
        let Some(process) = process else {
            let why = "no process is called kubelet, kubelite or k3s".to_owned();
            return Self { caller: Caller::Uid(0), process: None, why: Some(why) };
        };
        let caller = by_cgroup(&process, cgroup_id, holds_pods, level_offset);
        let (caller, why) = match caller {
            Ok(caller) => (caller, None),
            Err(why) => (Caller::Uid(process.uid), Some(why)),
        };
        Self { caller, process: Some(process), why }
    }

    /// One word for `status`: `cgroup`; `cgroup-shared` when other programs are in
    /// the same cgroup and count as kubelet too; `uid` when every process of a user
    /// does.
    #[must_use]
    pub fn word(&self) -> &'static str {
        let shared = self.process.as_ref().is_some_and(|p| !p.neighbours.is_empty());
        match self.caller {
            Caller::Cgroup { .. } if shared => "cgroup-shared",
            Caller::Cgroup { .. } => "cgroup",
            Caller::Uid(_) => "uid",
        }
    }
}

impl fmt::Display for Kubelet {
    /// One sentence for `status`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.caller)?;
        if let Some(Process { pid, name, neighbours, .. }) = &self.process {
            write!(f, ", {name} with pid {pid}")?;
            if !neighbours.is_empty() && matches!(self.caller, Caller::Cgroup { .. }) {
                write!(f, ", together with {}", neighbours.join(", "))?;
            }
        }
        match &self.why {
            Some(why) => write!(f, "; not by its cgroup: {why}"),
            None => Ok(()),
        }
    }
}

fn by_cgroup(
    process: &Process,
    id: Result<u64, String>,
    holds_pods: bool,
    level_offset: Result<u8, String>,
) -> Result<Caller, String> {
    let path = process.cgroup.as_ref().ok_or("it is in no cgroup of cgroup2")?;
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Err("it is in the root cgroup, as everybody may be".to_owned());
    }
    if path.split('/').any(|name| name == "..") {
        return Err(format!("its cgroup {path} is outside of what the agent sees"));
    }
    // Both dialects write it between quotes.
    if path.contains(['"', '\\', '\n']) || path.len() > 511 {
        return Err(format!("its cgroup {path:?} cannot be written in a rule"));
    }
    if holds_pods {
        return Err(format!("pods are in its cgroup /{path}"));
    }
    let depth = u8::try_from(path.split('/').count()).ok();
    let offset = level_offset?;
    let level = depth.and_then(|depth| depth.checked_add(offset));
    let level = level.ok_or_else(|| format!("its cgroup /{path} is too deep"))?;
    Ok(Caller::Cgroup { path: path.to_owned(), level, id: id? })
}
