//! The real binary as Istio's manifests start it: settings, ports, sockets, the
//! installer, and the end.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test, with the agent's log beside it"
)]

mod machine;
mod serving;
mod settings;
