//! JSON from bytes by way of text, as all of the plugin reads it: a parser of bytes
//! beside the one of text would be kilobytes more of it.

use serde::Deserialize;

/// A value.
///
/// # Errors
/// When the bytes are no UTF-8 or not the JSON of it.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str(text),
        Err(error) => Err(serde::de::Error::custom(error)),
    }
}
