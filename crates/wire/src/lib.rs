//! What crosses a process.
#![forbid(unsafe_code)]
