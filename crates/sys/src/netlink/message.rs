//! Bytes of messages and attributes. Everything is padded to four bytes; lengths
//! count the header and not the padding.

use nix::errno::Errno;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// The two flag bits of an attribute's type (nested, network byte order).
const TYPE_MASK: u16 = 0x3fff;
/// Since 2.6 set on attributes that hold attributes.
const NESTED: u16 = 0x8000;

/// Messages that are being written.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// One message: header, then what `body` writes. Returns where it begins.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        body: impl FnOnce(&mut Self),
    ) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        // More than 4 GiB in one message would not get past the socket anyway.
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        start
    }

    /// Sets flags of the message that begins at `start`.
    pub(super) fn add_flags(&mut self, start: usize, flags: u16) {
        if let Some(field) = self.bytes.get_mut(start + 6..start + 8)
            && let Some(old) = ne16(field)
        {
            field.copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    /// Bytes as they are; the caller keeps them a multiple of four.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.open(kind, |buffer| buffer.bytes.extend_from_slice(value));
    }

    /// A string with its terminating zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.open(kind, |buffer| {
            buffer.bytes.extend_from_slice(value.as_bytes());
            buffer.bytes.push(0);
        });
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute that holds what `body` writes.
    pub(crate) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.open(kind | NESTED, body);
    }

    fn open(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        // Callers never come near: the longest is a rule, some hundred bytes.
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }
}

impl From<Buffer> for Vec<u8> {
    fn from(buffer: Buffer) -> Self {
        buffer.bytes
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// Takes the next message off `bytes`; `None` at the end and when what is left is
/// no whole message.
pub(super) fn take<'a>(bytes: &mut &'a [u8]) -> Option<Message<'a>> {
    let len = usize::try_from(ne32(bytes.get(..4)?)?).ok()?;
    let body = bytes.get(HEADER..len)?;
    let message = Message {
        kind: ne16(&bytes[4..6])?,
        flags: ne16(&bytes[6..8])?,
        sequence: ne32(&bytes[8..12])?,
        body,
    };
    *bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

/// Attributes of a message's body or of a nested attribute; ends where the bytes
/// are no attribute any more.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(ne16(bytes.get(..2)?)?);
        let kind = ne16(bytes.get(2..4)?)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// What an NLMSG_ERROR says: `None` is an acknowledgement.
pub(super) fn acknowledgement(message: &Message<'_>) -> Option<(Errno, Option<String>)> {
    const CAPPED: u16 = 0x100;
    const TLVS: u16 = 0x200;
    const TEXT: u16 = 1;
    let code = message.body.get(..4).and_then(ne32).unwrap_or_default();
    // The kernel sends a negated errno.
    let errno = Errno::from_raw(i32::from_ne_bytes(code.to_ne_bytes()).wrapping_neg());
    if code == 0 {
        return None;
    }
    let mut detail = None;
    if message.flags & TLVS != 0 {
        // The refused message is repeated, whole unless it was capped.
        let repeated = message.body.get(4..8).and_then(ne32).unwrap_or_default();
        let skip = match message.flags & CAPPED {
            0 => usize::try_from(repeated).unwrap_or(usize::MAX),
            _ => HEADER,
        };
        let tlvs = skip
            .checked_next_multiple_of(4)
            .and_then(|skip| message.body.get(4..)?.get(skip..))
            .unwrap_or_default();
        detail = attributes(tlvs).find(|(kind, _)| *kind == TEXT).map(|(_, value)| text(value));
    }
    Some((errno, detail))
}

/// A string up to its first zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(crate) fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

pub(crate) fn ne32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

pub(crate) fn be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn ne16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        let mut buffer = Buffer::default();
        buffer.message(20, 5, 7, |b| {
            b.raw(&[1, 2, 3, 4]);
            b.text(1, "lo");
            b.nested(2, |b| b.be32(3, 0x0102_0304));
        });
        buffer.message(21, 0, 8, |_| ());
        let mut bytes = buffer.as_slice();
        assert_eq!(bytes.len() % 4, 0);
        let first = take(&mut bytes).unwrap();
        assert_eq!((first.kind, first.flags, first.sequence), (20, 5, 7));
        let mut found = attributes(&first.body[4..]);
        assert_eq!(found.next().unwrap(), (1, &b"lo\0"[..]));
        let (kind, inner) = found.next().unwrap();
        assert_eq!(kind, 2, "flag bits are no part of the type");
        assert_eq!(attributes(inner).next().unwrap(), (3, &[1, 2, 3, 4][..]));
        assert!(found.next().is_none());
        assert_eq!(take(&mut bytes).unwrap().kind, 21);
        assert!(take(&mut bytes).is_none());
    }

    #[test]
    fn broken_lengths_end_the_walk() {
        for len in [0u16, 3, 9, u16::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0, 9, 9, 9, 9]);
            assert!(attributes(&bytes).next().is_none(), "{len}");
        }
        for len in [0u32, 15, 17, u32::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[0; 12]);
            assert!(take(&mut bytes.as_slice()).is_none(), "{len}");
        }
    }

    #[test]
    fn any_acknowledgement_is_survived() {
        for flags in [0, 0x100, 0x200, 0x300] {
            for len in 0..40usize {
                for fill in [0u8, 1, 0xff] {
                    let body = vec![fill; len];
                    let message = Message { kind: 2, flags, sequence: 0, body: &body };
                    let _ = acknowledgement(&message);
                }
            }
        }
    }
}
