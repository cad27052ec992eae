//! The real agent, in network namespaces of its own, asked as the plugin asks.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails here fails the test, with the agent's log beside it"
)]

mod capture;
mod lab;
mod life;
mod refusal;
mod skew;
