//! What ztunnel answers.

use crate::DecodeError;
use crate::message::{Ack, ResponsePayload, WorkloadResponse};
use prost::Message;

/// Field 1 with a length: how an answer with anything in it begins.
const FIELD_ONE: u8 = 0x0a;

/// The answer to one request. It says nothing of which: they come in order.
///
/// An error's text is what ztunnel's own error types print, with a stack trace in a
/// debug build: 12 kB have been seen, in a protocol whose requests end at 1 kB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// It was done; for a Del, that it will be.
    Ack,
    /// It was not, in ztunnel's words. A failed Add is tried again by ztunnel
    /// itself, and success is not told.
    Nack(String),
}

impl Response {
    /// The packet. It is never empty: the payload is there when the error is not.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let error = match self {
            Self::Ack => String::new(),
            Self::Nack(error) => error.clone(),
        };
        WorkloadResponse { payload: Some(ResponsePayload::Ack(Ack { error })) }.encode_to_vec()
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// When it is no answer. Whoever sent it speaks another protocol, or another
    /// version, and no later answer can be matched to its request.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let (message, bytes) = ("response", packet.len());
        let decoded = WorkloadResponse::decode(packet)
            .map_err(|source| DecodeError::Malformed { message, bytes, source })?;
        match decoded.payload {
            None => Err(DecodeError::NoPayload { message, bytes }),
            Some(ResponsePayload::Ack(Ack { error })) if error.is_empty() => Ok(Self::Ack),
            Some(ResponsePayload::Ack(Ack { error })) => Ok(Self::Nack(error)),
        }
    }

    /// Reads a packet whose end the receiver's buffer cut off.
    ///
    /// Only an error is that long, so its first part is an answer all the same, and
    /// the connection need not be given up.
    ///
    /// # Errors
    /// When it does not begin as an error does.
    pub fn decode_cut_off(packet: &[u8]) -> Result<Self, DecodeError> {
        let text = after_head(packet).and_then(after_head);
        match text {
            Some(text) => Ok(Self::Nack(String::from_utf8_lossy(text).into_owned())),
            None => Err(DecodeError::CutOff { message: "response", bytes: packet.len() }),
        }
    }
}

/// What follows the key and the length of field 1, where the length is more than
/// what follows.
fn after_head(packet: &[u8]) -> Option<&[u8]> {
    let (&FIELD_ONE, mut rest) = packet.split_first()? else {
        return None;
    };
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    (length > rest.len() as u64).then_some(rest)
}
