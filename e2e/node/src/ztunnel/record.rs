//! What the fake remembers of each connection.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Which way a connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// From the application, by 15001.
    Outbound,
    /// To the application from another ztunnel, by 15008.
    Inbound,
    /// To the application from whoever is not in the mesh, by 15006.
    InboundPlaintext,
    /// A question to 15053.
    Dns,
}

/// How it went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// To the ztunnel of the destination.
    Hbone,
    /// To the destination itself.
    Passthrough,
    /// To the application.
    Application,
    /// Answered by the fake.
    Itself,
    /// To a name server.
    Forwarded,
    /// It did not.
    Nowhere,
}

/// A connection, written down when it was decided what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The pod, by uid.
    pub uid: String,
    /// Which way.
    pub direction: Direction,
    /// Who the pod is.
    pub identity: String,
    /// Who the other side is, where that is proved.
    pub peer_identity: Option<String>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it was meant to go; for DNS, where its listener is.
    pub destination: SocketAddr,
    /// How it went on.
    pub via: Via,
    /// The question of DNS, or why it went nowhere.
    pub note: String,
}
