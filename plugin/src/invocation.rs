//! What the runtime gives: environment variables and stdin. The only place
//! that reads them.

use std::ffi::OsString;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use wire::cni::{Error, MAX_STDIN};
use wire::code;

use crate::deadline::Deadline;

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "the plugin's one reader of its environment")]
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// `CNI_COMMAND`; `None` when unset or empty, as when a person runs the file.
pub(crate) fn command_word() -> Option<String> {
    let word = variable("CNI_COMMAND")?.to_string_lossy().into_owned();
    Some(word).filter(|word| !word.is_empty())
}

/// All of stdin.
///
/// # Errors
/// [`code::IO_FAILURE`] when it cannot be read or is not closed in time,
/// [`code::DECODING_FAILURE`] when it is longer than any configuration.
pub(crate) fn stdin(deadline: Deadline) -> Result<Vec<u8>, Error> {
    let stdin = std::io::stdin();
    let fd = stdin.as_fd();
    let mut bytes = Vec::new();
    let mut chunk = [0_u8; 16 << 10];
    loop {
        let Some(timeout) = deadline.timeout() else {
            return Err(unreadable(&format!("it was not closed within {:?}", deadline.length())));
        };
        match ppoll(&mut [PollFd::new(fd, PollFlags::POLLIN)], Some(timeout), None) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(unreadable(errno.desc())),
        }
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(unreadable(errno.desc())),
        }
        if bytes.len() > MAX_STDIN {
            return Err(Error::new(
                code::DECODING_FAILURE,
                format!(
                    "decode the network configuration on stdin: it is longer than {MAX_STDIN} bytes"
                ),
                "check what the container runtime and the plugins before istio-cni put into it",
            ));
        }
    }
}

fn unreadable(cause: &str) -> Error {
    Error::new(
        code::IO_FAILURE,
        format!("read the network configuration from stdin: {cause}"),
        "the container runtime has to write the configuration and to close the pipe",
    )
}
