//! A panic becomes an error object. Release builds abort on panic, so this has
//! to happen in the hook, which runs before.

use std::panic::PanicHookInfo;
use std::process::ExitCode;

use wire::cni::{Error, Version};
use wire::code;

use crate::output;

/// Installs the hook. With `quiet` (DEL) the process ends with success and
/// prints no result.
pub(crate) fn install(quiet: bool) {
    std::panic::set_hook(Box::new(move |info| {
        let error = describe(info);
        output::line(&format!("{}\n", String::from_utf8_lossy(&error.to_json())));
        let status = if quiet { ExitCode::SUCCESS } else { output::error(&error) };
        // Not a return: unwinding (debug) or abort (release) would follow.
        std::process::exit(i32::from(status != ExitCode::SUCCESS));
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> Error {
    let place =
        info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
    let cause = info.payload_as_str().unwrap_or("no message");
    let mut error = Error::new(
        code::INTERNAL,
        format!("istio-cni {} panicked{place}: {cause}", env!("CARGO_PKG_VERSION")),
        "this is a defect of the plugin: report it with this text; the runtime tries again",
    );
    error.cni_version = Some(Version::NEWEST.to_string());
    error
}

#[cfg(test)]
mod tests;
