//! The first packet of a connection.

use crate::message::ZdsHello;
use crate::{DecodeError, EncodeError};
use prost::Message;

/// What ztunnel sends first, once. It is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The number of the protocol's version. Worth a line in the log and no more:
    /// there is one version, and neither side of Istio looks at it.
    pub version: i32,
}

impl Hello {
    /// The only version there is.
    pub const V1: Self = Self { version: 1 };

    /// The packet.
    ///
    /// # Errors
    /// For version 0, which is no bytes at all.
    pub fn encode(self) -> Result<Vec<u8>, EncodeError> {
        if self.version == 0 {
            return Err(EncodeError::Empty { message: "hello of version 0".to_owned() });
        }
        Ok(ZdsHello { version: self.version }.encode_to_vec())
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// When it is none, as what another program than ztunnel sends first.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let bytes = packet.len();
        match ZdsHello::decode(packet) {
            Ok(ZdsHello { version: 0 }) => Err(DecodeError::NoPayload { message: "hello", bytes }),
            Ok(ZdsHello { version }) => Ok(Self { version }),
            Err(source) => Err(DecodeError::Malformed { message: "hello", bytes, source }),
        }
    }
}
