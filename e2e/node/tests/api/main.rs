//! The agent in a cluster: real ADDs by the real plugin, against an API server that
//! does on demand what real ones do in bad moments. A mesh pod is captured or not
//! started; what is known already is served at once, whatever the server does.

#![expect(clippy::unwrap_used, reason = "a test")]

mod faults;
mod follow;
mod lookup;
mod stage;
