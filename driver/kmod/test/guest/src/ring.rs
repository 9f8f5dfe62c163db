//! The asynchronous door: io_uring commands on the node.
#![expect(unsafe_code, reason = "submission entries carry addresses")]

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use vsc_driver::uapi::{CMD_LIST, RequestSync};

use crate::client::{Device, Frame};
use crate::system::soon;

/// What a completion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    /// Which request.
    pub(crate) index: usize,
    /// 0 or a negative errno.
    pub(crate) result: i32,
    /// Status in the lower half, response length in the upper.
    pub(crate) extra: u64,
}

fn done(entry: &cqueue::Entry32) -> Done {
    Done {
        index: entry.user_data() as usize,
        result: entry.result(),
        extra: entry.big_cqe()[0],
    }
}

/// A ring with 32-byte completions, and the structs of its requests at fixed addresses.
pub(crate) struct Ring {
    ring: IoUring<squeue::Entry, cqueue::Entry32>,
    /// Leaked: the kernel may write an answer after the ring has been closed.
    requests: Vec<&'static mut RequestSync>,
}

impl Ring {
    /// A ring with room for `entries` requests in flight.
    pub(crate) fn new(entries: u32) -> Result<Self> {
        let ring = IoUring::builder().build(entries).context("io_uring_setup")?;
        Ok(Self {
            ring,
            requests: Vec::new(),
        })
    }

    /// Submits a request; its completion carries the returned index.
    pub(crate) fn submit(&mut self, device: &Device, frame: &Frame) -> Result<usize> {
        let index = self.requests.len();
        self.requests.push(Box::leak(Box::new(frame.request())));
        let address = std::ptr::from_mut(&mut *self.requests[index]).expose_provenance() as u64;
        self.submit_area(device, CMD_LIST, [address, 0], index)?;
        Ok(index)
    }

    /// Submits any command number and command area.
    pub(crate) fn submit_area(
        &mut self,
        device: &Device,
        command: u32,
        area: [u64; 2],
        index: usize,
    ) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&area[0].to_le_bytes());
        bytes[8..].copy_from_slice(&area[1].to_le_bytes());
        let entry = opcode::UringCmd16::new(types::Fd(device.file().as_raw_fd()), command)
            .cmd(bytes)
            .build()
            .user_data(index as u64);
        // SAFETY: the request struct is never freed; its buffers are the case's mappings.
        unsafe { self.ring.submission().push(&entry) }.context("the submission queue is full")?;
        self.ring.submit().context("io_uring_enter")?;
        Ok(())
    }

    /// A completion that has been posted already.
    pub(crate) fn ready(&mut self) -> Option<Done> {
        self.ring.completion().next().as_ref().map(done)
    }

    /// The next completion.
    pub(crate) fn wait(&mut self) -> Result<Done> {
        let limit = types::Timespec::from(soon());
        let arguments = types::SubmitArgs::new().timespec(&limit);
        if self.ring.completion().is_empty() {
            self.ring
                .submitter()
                .submit_with_args(1, &arguments)
                .context("waiting for a completion")?;
        }
        self.ready().context("no completion")
    }

    /// The answer that was stored in a request's struct.
    pub(crate) fn answer(&self, index: usize) -> Result<(u32, u32)> {
        ensure!(index < self.requests.len(), "no request {index}");
        let request = std::ptr::from_ref(&*self.requests[index]);
        // SAFETY: the struct is ours; the kernel writes to it before it posts the completion.
        let request = unsafe { request.read_volatile() };
        Ok((request.status, request.answer_len))
    }
}
