//! Transactions of nf_tables: messages that the kernel takes all or not at all.

use super::error::NetlinkError;
use super::message::{Buffer, acknowledgement};
use super::socket::{ACK, ERROR, REQUEST, Socket};
use crate::reaper;
use nix::errno::Errno;
use nix::sys::socket::{self as sock, NetlinkAddr, sockopt};
use std::os::fd::AsRawFd;

/// Above this a batch may not fit the default send buffer (208 KiB, of which
/// bookkeeping takes a part).
const LARGE_BATCH: usize = 100 << 10;

/// Messages that the kernel takes all or not at all.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: Buffer,
    count: u32,
    last: usize,
    deletes: bool,
}

/// NFNL_BATCH_GENID
const BATCH_GENERATION: u16 = 1;

/// Sequence number of the message that begins a batch; the n-th message has n + 1
/// more.
const BATCH_SEQUENCE: u32 = 1;

impl Batch {
    /// A batch that the kernel takes only while its rules are of this generation;
    /// else it answers ERESTART (since 4.12; before, it takes the batch).
    pub(crate) fn new(generation: u32) -> Self {
        let mut batch =
            Self { buffer: Buffer::with_capacity(16 << 10), count: 0, last: 0, deletes: false };
        batch.border(libc::NFNL_MSG_BATCH_BEGIN, BATCH_SEQUENCE, Some(generation));
        batch
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a message.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Buffer)) {
        self.count += 1;
        let sequence = BATCH_SEQUENCE + self.count;
        self.last = self.buffer.message(kind, flags | REQUEST, sequence, body);
    }

    /// Says that a message of the batch deletes something.
    pub(crate) fn deletes(&mut self) {
        self.deletes = true;
    }

    fn border(&mut self, kind: i32, sequence: u32, generation: Option<u32>) {
        let kind = u16::try_from(kind).unwrap_or_default();
        self.buffer.message(kind, REQUEST, sequence, |buffer| {
            // struct nfgenmsg: family, version, subsystem (big endian).
            buffer.raw(&[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES.to_le_bytes()[0]]);
            if let Some(generation) = generation {
                buffer.be32(BATCH_GENERATION, generation);
            }
        });
    }
}

/// Why a batch was not taken. Nothing of it was.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// The first message that was refused; `None` when it was the batch as such.
    pub(crate) message: Option<usize>,
    pub(crate) errno: Errno,
    pub(crate) detail: Option<String>,
}

impl Socket {
    /// Sends a batch. The outer error is one of the socket; whether the batch was
    /// taken is then not known.
    pub(crate) fn transact(mut self, batch: Batch) -> Result<Result<(), Rejected>, NetlinkError> {
        let deletes = batch.deletes;
        let taken = self.transact_kept(batch);
        if deletes {
            self.close_late();
        }
        taken
    }

    /// [`Self::transact`] over a socket that is used again, if the batch was taken:
    /// closing it after something was deleted holds up the next transaction of the
    /// namespace too, 14 ms on 6.18. After a refusal more answers may be on it.
    pub(crate) fn transact_kept(
        &mut self,
        mut batch: Batch,
    ) -> Result<Result<(), Rejected>, NetlinkError> {
        let last = BATCH_SEQUENCE + batch.count;
        // On the last message and not on the end of the batch, where only new
        // kernels honour it.
        batch.buffer.add_flags(batch.last, ACK);
        batch.border(libc::NFNL_MSG_BATCH_END, last + 1, None);
        let bytes = batch.buffer.as_slice();
        if bytes.len() > LARGE_BATCH {
            // Twice: the kernel counts its bookkeeping in. Fine without: then the
            // send says EMSGSIZE.
            let _ = sock::setsockopt(&self.fd, sockopt::SndBufForce, &(bytes.len() * 2));
        }
        self.send(bytes)?;
        let mut refused: Option<Rejected> = None;
        let seen = self.receive(|message| {
            let in_batch = (BATCH_SEQUENCE..=last + 1).contains(&message.sequence);
            if message.kind != ERROR || !in_batch {
                return false;
            }
            if let Some((errno, detail)) = acknowledgement(message) {
                let message = message.sequence.checked_sub(BATCH_SEQUENCE + 1);
                refused = Some(Rejected {
                    message: message.and_then(|n| usize::try_from(n).ok()),
                    errno,
                    detail,
                });
            }
            true
        });
        match seen {
            Ok(()) => Ok(refused.map_or(Ok(()), Err)),
            Err(fault) => Err(fault.named("nf_tables batch".to_owned())),
        }
    }

    /// The kernel's number of the socket, which notifications of what is done over it
    /// bear; 0 before the first message.
    pub(crate) fn port(&self) -> u32 {
        sock::getsockname::<NetlinkAddr>(self.fd.as_raw_fd()).map_or(0, |own| own.pid())
    }

    /// Closes the socket where nobody waits for it.
    pub(crate) fn close_late(self) {
        reaper::close(self.fd);
    }
}
