//! What leaves the plugin: stdout for the runtime, stderr for people. Written
//! to the descriptors directly: a panic in the middle of std's locked and
//! buffered stdout could not report itself through it.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::TimeSpec;
use wire::cni::{Error, Version};

/// Prints a result. Where stdout cannot take it the runtime has no result, so
/// the exit status says failure.
pub(crate) fn result(bytes: &[u8]) -> ExitCode {
    match write_all(std::io::stdout().as_fd(), bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints the error object.
pub(crate) fn error(error: &Error) -> ExitCode {
    // A stdout that is closed leaves the exit status to say it.
    let _ = write_all(std::io::stdout().as_fd(), &error.to_json());
    ExitCode::FAILURE
}

/// Says what this file is, when it runs without `CNI_COMMAND`.
pub(crate) fn about() {
    line(&format!(
        "CNI plugin istio-cni {}\nCNI protocol versions supported: {}\n",
        env!("CARGO_PKG_VERSION"),
        Version::list()
    ));
}

/// Writes to stderr when it can take it at once: a log that nobody reads must
/// not hold a pod up.
pub(crate) fn line(text: &str) {
    let stderr = std::io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if matches!(poll(&mut ready, PollTimeout::ZERO), Ok(1)) {
        let _ = nix::unistd::write(stderr.as_fd(), text.as_bytes());
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Wall clock for a log line, `2026-11-20T09:15:00.123456Z`.
pub(crate) fn timestamp() -> String {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).unwrap_or(TimeSpec::new(0, 0));
    let (days, second) = (now.tv_sec().div_euclid(86_400), now.tv_sec().rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        now.tv_nsec() / 1000
    )
}

/// The date of a day since 1970-01-01 in the proleptic Gregorian calendar:
/// count in eras of 400 years that begin on 1 March, so that the leap day is
/// the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(19_783), (2024, 3, 1));
        assert_eq!(civil(20_777), (2026, 11, 20));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }
}
