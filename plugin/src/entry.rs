//! Where the C library enters the program. std's own entry reads /proc/self/maps for a
//! guard page, sets up a stack for signals and takes that down again: a tenth of the
//! time that the plugin is there. What of it the plugin goes by is done here.

use std::ffi::{c_char, c_int};
use std::process::ExitCode;

/// The program's entry.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    prepare();
    c_int::from(crate::invoke() != ExitCode::SUCCESS)
}

/// What std does for every program: the standard descriptors are open, so that no file
/// or socket of ours gets one of their numbers, and a pipe that nobody reads is an error
/// of `write` and no signal.
fn prepare() {
    for fd in 0..3 {
        // SAFETY: asks for flags of a number that need not be a descriptor; the path is a
        // string that ends in zero. The lowest free number is `fd`: those below are open.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
    // SAFETY: sets no handler but a disposition, before anything else runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
