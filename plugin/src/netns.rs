//! The pod's network namespace: opened here, where the runtime's path means
//! what the runtime meant, and passed on as a descriptor. The agent then needs
//! neither a mount of the host's directory nor trust in a path.

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use wire::cni::Error;
use wire::code;
use wire::request::NetnsFile;

/// A pod's namespace, and the one it is certainly not.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The pod's.
    pub(crate) netns: File,
    /// The plugin's own, which is the host's.
    pub(crate) host: NetnsFile,
}

/// Opens `CNI_NETNS`. `CNI_NETNS_OVERRIDE` is for plugins that may work in their own
/// namespace; rules of the mesh in the host's would cut the node off.
///
/// # Errors
/// [`code::INVALID_NETNS`] when the path cannot be opened, is no network
/// namespace, or is the one that the plugin runs in (which is the host's).
pub(crate) fn open(path: &str) -> Result<Sandbox, Error> {
    let invalid = |cause: String, next: &str| {
        Error::new(code::INVALID_NETNS, format!("CNI_NETNS {path:?}: {cause}"), next)
    };
    // O_NONBLOCK: a path that is a FIFO must not hold the pod up.
    let netns = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(|e| {
        invalid(
            format!("open: {e}"),
            "the pod's sandbox is gone or the runtime's namespace directory is not the one named here; the runtime tries again with a new sandbox",
        )
    })?;
    if namespace_type(&netns) != Some(libc::CLONE_NEWNET) {
        return Err(invalid(
            "it is not a network namespace".to_owned(),
            "the container runtime has to set CNI_NETNS to a network namespace, such as /run/netns/NAME or /proc/PID/ns/net",
        ));
    }
    let both = netns.metadata().and_then(|own| Ok((own, std::fs::metadata("/proc/self/ns/net")?)));
    let (own, host) = both.map_err(|e| {
        invalid(
            format!("compare with the plugin's own namespace: {e}"),
            "/proc has to be mounted where the container runtime runs plugins",
        )
    })?;
    if file(&own) == file(&host) {
        return Err(invalid(
            "it is the network namespace of the host, in which the plugin itself runs".to_owned(),
            "nothing was changed; pods with hostNetwork are not captured and the runtime must not call CNI for them",
        ));
    }
    Ok(Sandbox { netns, host: file(&host) })
}

fn file(meta: &Metadata) -> NetnsFile {
    NetnsFile { dev: meta.dev(), ino: meta.ino() }
}

/// `NS_GET_NSTYPE` (Linux 4.11): the CLONE_NEW* flag, `None` for what is no namespace.
fn namespace_type(file: &File) -> Option<libc::c_int> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: NS_GET_NSTYPE takes no argument and writes no memory; on a file
    // of any other kind the number is unknown (ENOTTY) or, where a driver knows
    // it by accident, answers without an argument to write through. The
    // descriptor is open for the whole call. nix has no wrapper for it.
    let flag = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    (flag >= 0).then_some(flag)
}
