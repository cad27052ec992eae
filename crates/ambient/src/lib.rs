//! Ambient capture as one pure state machine: [`event::Event`]s go in,
//! [`action::Action`]s come out. Nothing here reads a clock, a file or a socket, and
//! nothing waits: time comes as [`event::Event::Timer`], work goes out as actions and
//! its outcome comes back as events.
//!
//! What the two sides owe each other is said once, at [`event`] and [`action`].

#![forbid(unsafe_code)]

pub mod action;
pub mod config;
pub mod event;
pub mod id;
pub mod machine;
