//! The machine, one story a test: what happens, and what is asked for then.

#![expect(clippy::panic, reason = "a test")]

mod node;
mod places;
mod requests;
mod sessions;
mod truth;
mod unlisted;
