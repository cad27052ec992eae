//! How many files the process may have open.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as an administrator lets it be raised; says what it is now.
/// systemd and newer runtimes give 1,024, which is for programs that use select(2): a
/// search holds every namespace of the node open, besides those of captured pods and
/// requests. Programs that are started later inherit it.
///
/// # Errors
/// When the kernel refuses; the limit is then as it was.
pub fn raise_limit() -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_be_raised() {
        let limit = raise_limit().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
        assert_eq!(raise_limit().unwrap(), limit);
    }
}
