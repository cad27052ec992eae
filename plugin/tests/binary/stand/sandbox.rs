//! A network namespace that lives as long as the value.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// An anonymous namespace, held by a descriptor of the test's process.
pub(crate) struct Sandbox {
    file: File,
}

impl Sandbox {
    /// Made on a thread of its own, which stays out of the test's namespace and
    /// ends. Fails loudly without the right to make one: nothing here means
    /// anything without.
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            enter_new_namespace();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        Self { file }
    }

    /// A path by which another process opens it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Device and inode.
    pub(crate) fn id(&self) -> (u64, u64) {
        let metadata = self.file.metadata().unwrap();
        (metadata.dev(), metadata.ino())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a throw-away thread of a test; sys is not the plugin's to use"
)]
fn enter_new_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("make a network namespace (needs root)");
}

/// The namespace that the tests and the plugin run in.
pub(crate) fn own_netns() -> String {
    format!("/proc/{}/ns/net", std::process::id())
}
