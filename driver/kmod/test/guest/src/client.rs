//! The two ways in: the bare ioctl for what a well-behaved client never does, and vsc-driver's channel.
#![expect(
    unsafe_code,
    reason = "the bare ioctl, with addresses chosen to be wrong as well"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use vsc_driver::buffer::Arena;
use vsc_driver::channel::{Channel, ChannelConfig, Completion, Data, Exchange};
use vsc_driver::uapi::{CMD_LIST, RequestSync, STATUS_POISON};

use crate::memory::{Memory, PAGE};
use crate::service::{Task, checksum, pattern};
use crate::system::{NODE, patience};

/// The node, opened.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
}

impl Device {
    /// Opens the node.
    pub(crate) fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(NODE).context(NODE)?;
        Ok(Self { file })
    }

    /// A device that somebody else has opened.
    pub(crate) fn inherited(file: File) -> Self {
        Self { file }
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// One ioctl with a struct.
    pub(crate) fn call(&self, command: u32, request: &mut RequestSync) -> nix::Result<()> {
        self.call_at(command, std::ptr::from_mut(request).expose_provenance())
    }

    /// One ioctl with any address.
    pub(crate) fn call_at(&self, command: u32, address: usize) -> nix::Result<()> {
        // SAFETY: the kernel checks the address; the buffers named in the struct are mappings that only this
        // program reaches by copies, or no memory at all.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), command.into(), address) }).map(drop)
    }

    /// Submits what a [`Frame`] describes and returns the host's answer.
    pub(crate) fn submit(&self, frame: &Frame) -> nix::Result<(u32, u32)> {
        let mut request = frame.request();
        self.call(CMD_LIST, &mut request)?;
        Ok((request.status, request.answer_len))
    }
}

/// Where the three buffers of a bare request are.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Address and length.
    pub(crate) request: (u64, u32),
    /// Address and capacity.
    pub(crate) response: (u64, u32),
    /// Address and length; length 0 for none.
    pub(crate) data: (u64, u32),
    /// Valid bytes of the data.
    pub(crate) valid: u32,
    /// Name of the request.
    pub(crate) guid: [u8; 16],
}

impl Frame {
    /// The struct of the ioctl.
    pub(crate) fn request(&self) -> RequestSync {
        RequestSync {
            guid: self.guid,
            timeout_ms: 30_000,
            request_len: self.request.1,
            response_len: self.response.1,
            data_len: self.data.1,
            data_valid: self.valid,
            reserved: 0,
            request_buffer: self.request.0,
            response_buffer: self.response.0,
            data_buffer: self.data.0,
            status: STATUS_POISON,
            answer_len: 0,
        }
    }
}

/// Request and response in two written pages of their own, for cases that are about the data buffer.
#[derive(Debug)]
pub(crate) struct Control {
    memory: Memory,
}

impl Control {
    /// With this task in the request.
    pub(crate) fn new(task: Task) -> Result<Self> {
        let memory = Memory::written(2 * PAGE)?;
        memory.write(0, &task.encode());
        Ok(Self { memory })
    }

    /// A request with this data.
    pub(crate) fn frame(&self, data: (u64, u32), valid: u32) -> Frame {
        Frame {
            request: (self.memory.address(0), 16),
            response: (self.memory.address(PAGE), 64),
            data,
            valid,
            guid: *b"bare-kmod-guest\0",
        }
    }

    /// The checksum in the response.
    pub(crate) fn sum(&self) -> u64 {
        let bytes = self.memory.read(PAGE, 8);
        bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }
}

/// Fills `memory[offset..offset + len]` through the device and checks bytes and checksum.
pub(crate) fn fill(device: &Device, memory: &Memory, offset: usize, len: usize, seed: u64) -> Result<()> {
    let control = Control::new(Task::Fill(seed))?;
    let answer = device
        .submit(&control.frame((memory.address(offset), len as u32), 0))
        .with_context(|| format!("fill of {len} bytes at {offset}"))?;
    ensure!(answer == (0, 8), "answer {answer:?}");
    let seen = memory.read(offset, len);
    ensure!(
        seen == pattern(seed, len),
        "the host's bytes did not arrive ({len} bytes at {offset})"
    );
    ensure!(control.sum() == checksum(&seen), "the response did not arrive");
    Ok(())
}

/// Lets the host sum `memory[offset..offset + len]` and compares.
pub(crate) fn sum(device: &Device, memory: &Memory, offset: usize, len: usize) -> Result<()> {
    let control = Control::new(Task::Sum)?;
    let answer = device
        .submit(&control.frame((memory.address(offset), len as u32), len as u32))
        .with_context(|| format!("sum of {len} bytes at {offset}"))?;
    ensure!(answer == (0, 8), "answer {answer:?}");
    ensure!(
        control.sum() == checksum(&memory.read(offset, len)),
        "the host saw other bytes ({len} bytes at {offset})"
    );
    Ok(())
}

/// A channel with its own arena.
pub(crate) struct Line {
    /// Runs the channel's futures.
    pub(crate) runtime: tokio::runtime::Runtime,
    /// The channel.
    pub(crate) channel: Channel,
    arena: Arc<Arena>,
}

impl Line {
    /// Opens the channel on the node.
    pub(crate) fn open(threads: usize) -> Result<Self> {
        let config = ChannelConfig {
            device: NODE.into(),
            threads,
            ..ChannelConfig::default()
        };
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?,
            channel: Channel::open(config)?,
            arena: Arena::new(256 << 20)?,
        })
    }

    /// One request of the channel.
    pub(crate) fn exchange(&self, task: Task, data: Data) -> Result<Exchange> {
        let encoded = task.encode();
        let mut request = self.arena.alloc(encoded.len())?;
        request.copy_from_slice(&encoded);
        let mut response = self.arena.alloc(64)?;
        response.fill(0);
        Ok(Exchange {
            id: *b"chan-kmod-guest\0",
            // The most that a channel takes is two minutes.
            timeout: Duration::from_secs(60) * patience().min(2),
            request,
            response,
            data,
        })
    }

    /// A fill of `len` bytes by the host, not checked yet.
    pub(crate) fn fill_exchange(&self, len: usize, seed: u64) -> Result<Exchange> {
        let mut data = self.arena.alloc(len)?;
        data.fill(0);
        self.exchange(Task::Fill(seed), Data::In(data))
    }

    /// Sends one and waits.
    pub(crate) fn submit(&self, exchange: Exchange) -> Result<Completion> {
        Ok(self.runtime.block_on(self.channel.submit(exchange))?)
    }

    /// The host fills, and we check.
    pub(crate) fn read(&self, len: usize, seed: u64) -> Result<()> {
        check_fill(&self.submit(self.fill_exchange(len, seed)?)?, len, seed)
    }

    /// We write, and the host sums.
    pub(crate) fn write(&self, len: usize, seed: u64) -> Result<()> {
        let mut data = self.arena.alloc(len)?;
        data.copy_from_slice(&pattern(seed, len));
        let expected = checksum(&data);
        let done = self.submit(self.exchange(Task::Sum, Data::Out(data.freeze()))?)?;
        ensure!(done.status == 0, "status {:#x}", done.status);
        ensure!(
            response_sum(&done)? == expected,
            "the host saw other bytes ({len} bytes)"
        );
        Ok(())
    }
}

fn response_sum(done: &Completion) -> Result<u64> {
    let bytes = done.exchange.response.get(..8).context("short response")?;
    ensure!(done.response_len == 8, "response of {} bytes", done.response_len);
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

/// Checks the completion of a [`Line::fill_exchange`].
pub(crate) fn check_fill(done: &Completion, len: usize, seed: u64) -> Result<()> {
    ensure!(done.status == 0, "status {:#x}", done.status);
    let Data::In(data) = &done.exchange.data else {
        bail!("the data buffer is gone");
    };
    ensure!(
        data.len() == len && **data == *pattern(seed, len),
        "the host's bytes did not arrive ({len} bytes)"
    );
    ensure!(
        response_sum(done)? == checksum(data),
        "the response did not arrive"
    );
    Ok(())
}
