//! What a child does between fork and exec: system calls only, since other threads
//! of the parent may have held any lock, the allocator's too, when it was forked.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::RawFd;

/// Mounts `source` over `target` in a new mount namespace that no mount leaves.
pub(super) fn mount_over(target: &CStr, source: &CStr) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::c_char>();
    let mount = |source, target, flags| {
        // SAFETY: strings that end in zero and live longer than the call, or null
        // where the kernel takes null.
        Errno::result(unsafe { libc::mount(source, target, none, flags, none.cast()) })
    };
    // SAFETY: takes a number only. The child has one thread.
    Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(none, c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE)?;
    mount(source.as_ptr(), target.as_ptr(), libc::MS_BIND).map(drop)
}

/// Enters a user namespace and takes its root ids. Without ids of the new
/// namespace exec would drop the capabilities that entering gave.
///
/// Raw system calls: glibc's wrappers of the id calls signal all threads of the
/// process, which in a forked child are not there.
pub(super) fn become_root_of(fd: RawFd) -> std::io::Result<()> {
    let check = |result: libc::c_long| Errno::result(result).map(drop);
    // SAFETY: these calls take numbers only (and a null pointer with length 0)
    // and write no memory of ours.
    unsafe {
        check(libc::setns(fd, libc::CLONE_NEWUSER).into())?;
        // The namespace may forbid setgroups(2); then there are none to drop.
        match check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>())) {
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
    }
    Ok(())
}
