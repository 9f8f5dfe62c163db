//! The host's side of the bus: packets as they come off the ring, access to the guest's pages, answers.
#![expect(unsafe_code, reason = "the ioctls of /dev/swhost")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

use crate::memory::PAGE;
use crate::system::{soon, wait_until};

/// Packet types of the bus.
const GPA_DIRECT: u16 = 9;
const COMPLETION: u16 = 11;

mod raw {
    //! Request numbers of `/dev/swhost`, as in swhost.h.

    /// `struct swhost_dma`.
    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct Dma {
        pub(super) pfns: u64,
        pub(super) npfns: u32,
        pub(super) offset: u32,
        pub(super) buffer: u64,
        pub(super) len: u32,
        pub(super) write: u32,
    }

    nix::ioctl_write_ptr!(dma, b'm', 1, Dma);
    nix::ioctl_none!(rescind, b'm', 2);
    nix::ioctl_none!(offer, b'm', 3);
    nix::ioctl_none!(refuse, b'm', 4);
    nix::ioctl_none!(ambush, b'm', 5);
    nix::ioctl_write_ptr!(decoy, b'm', 6, libc::c_int);
}

/// One request as the host sees it.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// Id to answer with.
    pub(crate) id: u64,
    /// Page frame numbers of data, request and response, in this order.
    pub(crate) pfns: Vec<u64>,
    /// Milliseconds.
    pub(crate) timeout: u32,
    /// Where the data starts in the pages, and its bytes.
    pub(crate) data: (u32, u32),
    /// Bytes of the data that may be read.
    pub(crate) data_valid: u32,
    /// Where the request starts, and its bytes.
    pub(crate) request: (u32, u32),
    /// Where the response starts, and its capacity.
    pub(crate) response: (u32, u32),
    /// The submitter's name for it.
    pub(crate) guid: [u8; 16],
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Packet {
    /// Reads a packet, and refuses one that a strict host would refuse.
    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() >= 32, "packet of {} bytes", bytes.len());
        let kind = u16_at(bytes, 0);
        let payload_at = usize::from(u16_at(bytes, 2)) * 8;
        let len = usize::from(u16_at(bytes, 4)) * 8;
        ensure!(kind == GPA_DIRECT, "packet type {kind}, need {GPA_DIRECT}");
        ensure!(
            len == bytes.len(),
            "length {len} in a packet of {} bytes",
            bytes.len()
        );
        ensure!(u16_at(bytes, 6) == 1, "no completion asked for");
        ensure!(u32_at(bytes, 16) == 0, "reserved field is {}", u32_at(bytes, 16));
        ensure!(u32_at(bytes, 20) == 1, "{} ranges, need 1", u32_at(bytes, 20));
        let (range_len, range_offset) = (u32_at(bytes, 24) as usize, u32_at(bytes, 28));
        ensure!(range_offset == 0, "range starts at {range_offset}");
        ensure!(range_len.is_multiple_of(PAGE), "range of {range_len} bytes");
        let pages = range_len / PAGE;
        ensure!(pages <= 8192, "{pages} pages");
        ensure!(
            payload_at == 32 + pages * 8,
            "{pages} pages, but the payload is at {payload_at}"
        );
        ensure!(
            len == payload_at + 56,
            "payload of {} bytes, need 56",
            len - payload_at
        );

        let word = |index: usize| u32_at(bytes, payload_at + index * 4);
        ensure!(word(0) == 0, "protocol version {}", word(0));
        ensure!(word(5) == 0x100, "operation {:#x}", word(5));
        let packet = Self {
            id: u64_at(bytes, 8),
            pfns: (0..pages).map(|i| u64_at(bytes, 32 + i * 8)).collect(),
            timeout: word(1),
            data: (word(2), word(3)),
            data_valid: word(4),
            request: (word(6), word(7)),
            response: (word(8), word(9)),
            guid: std::array::from_fn(|i| bytes[payload_at + 40 + i]),
        };
        packet.check_order(pages)?;
        Ok(packet)
    }

    /// Data, request and response follow one another page by page and fill the range exactly.
    fn check_order(&self, pages: usize) -> Result<()> {
        let mut page = 0;
        for (name, (offset, len)) in [
            ("data", self.data),
            ("request", self.request),
            ("response", self.response),
        ] {
            if len == 0 {
                ensure!(name == "data" && offset == 0, "empty {name} at {offset}");
                continue;
            }
            ensure!(
                offset as usize / PAGE == page,
                "{name} starts in page {}, not {page}",
                offset as usize / PAGE
            );
            page += (offset as usize % PAGE + len as usize).div_ceil(PAGE);
        }
        ensure!(page == pages, "buffers fill {page} of {pages} pages");
        Ok(())
    }
}

/// `/dev/swhost`.
#[derive(Debug)]
pub(crate) struct Host {
    node: File,
}

impl Host {
    /// Opens the host.
    pub(crate) fn open() -> Result<Self> {
        let node = File::options()
            .read(true)
            .write(true)
            .open("/dev/swhost")
            .context("/dev/swhost")?;
        Ok(Self { node })
    }

    /// Blocks until the guest has sent a packet.
    pub(crate) fn next(&self) -> Result<Packet> {
        // The length field of a packet counts 8-byte units in 16 bits.
        let mut bytes = vec![0; 8 << 16];
        let n = (&self.node).read(&mut bytes).context("reading the ring")?;
        Packet::parse(&bytes[..n])
    }

    fn dma(&self, packet: &Packet, offset: u32, buffer: u64, len: usize, write: bool) -> Result<()> {
        let dma = raw::Dma {
            pfns: packet.pfns.as_ptr().addr() as u64,
            npfns: packet.pfns.len() as u32,
            offset,
            buffer,
            len: len as u32,
            write: write.into(),
        };
        // SAFETY: both addresses are of live memory of the stated lengths; `buffer` is writable when read
        // into.
        unsafe { raw::dma(self.node.as_raw_fd(), &dma) }
            .map(drop)
            .with_context(|| {
                format!(
                    "{} {len} bytes of the guest at {offset}",
                    if write { "writing" } else { "reading" }
                )
            })
    }

    /// Reads the guest's pages.
    pub(crate) fn read(&self, packet: &Packet, offset: u32, len: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.dma(
            packet,
            offset,
            bytes.as_mut_ptr().expose_provenance() as u64,
            bytes.len(),
            false,
        )?;
        Ok(bytes)
    }

    /// Writes the guest's pages. Fails on a page that is not pinned.
    pub(crate) fn write(&self, packet: &Packet, offset: u32, bytes: &[u8]) -> Result<()> {
        self.dma(packet, offset, bytes.as_ptr().addr() as u64, bytes.len(), true)
    }

    /// Puts a raw packet into the guest's ring.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.node).write(bytes).map(drop)
    }

    /// The same, waiting while the ring is full.
    pub(crate) fn put_patiently(&self, bytes: &[u8]) -> Result<()> {
        let mut outcome = Ok(());
        wait_until("room in the guest's ring", soon(), || {
            outcome = self.put(bytes);
            !matches!(&outcome, Err(error) if error.raw_os_error() == Some(libc::EAGAIN))
        })?;
        outcome.context("writing to the ring")
    }

    /// Completes a request.
    pub(crate) fn answer(&self, id: u64, status: u32, response_len: u32) -> Result<()> {
        self.put_patiently(&completion(COMPLETION, id, &answer_body(status, response_len)))
    }

    /// Takes the offer back.
    pub(crate) fn rescind(&self) -> Result<()> {
        // SAFETY: no argument.
        unsafe { raw::rescind(self.node.as_raw_fd()) }
            .map(drop)
            .context("rescind")
    }

    /// Refuses the next attempt of the guest to open the channel.
    pub(crate) fn refuse_next_open(&self) -> Result<()> {
        // SAFETY: no argument.
        unsafe { raw::refuse(self.node.as_raw_fd()) }
            .map(drop)
            .context("refuse")
    }

    /// Takes the offer back in the middle of the next send: the packet is in the ring, the sender has not
    /// returned. The ring has to be empty then.
    pub(crate) fn rescind_at_next_send(&self) -> Result<()> {
        // SAFETY: no argument.
        unsafe { raw::ambush(self.node.as_raw_fd()) }
            .map(drop)
            .context("ambush")
    }

    /// Puts another device's node in the place of the module's, or takes it away.
    pub(crate) fn decoy(&self, there: bool) -> Result<()> {
        // SAFETY: the argument is an int that outlives the call.
        unsafe { raw::decoy(self.node.as_raw_fd(), &libc::c_int::from(there)) }
            .map(drop)
            .context("decoy")
    }

    /// Offers the device again; EBUSY while the former offer stands.
    pub(crate) fn try_offer(&self) -> nix::Result<()> {
        // SAFETY: no argument.
        unsafe { raw::offer(self.node.as_raw_fd()) }.map(drop)
    }

    /// Offers the device again, as soon as the guest has let go of the former offer.
    pub(crate) fn offer(&self) -> Result<()> {
        let mut outcome = Ok(());
        wait_until("the guest to release the channel", soon(), || {
            outcome = self.try_offer();
            outcome != Err(nix::errno::Errno::EBUSY)
        })?;
        outcome.context("offer")
    }
}

/// The 12 bytes that answer a request.
pub(crate) fn answer_body(status: u32, response_len: u32) -> [u8; 12] {
    let mut body = [0; 12];
    body[..4].copy_from_slice(&12u32.to_le_bytes());
    body[4..8].copy_from_slice(&status.to_le_bytes());
    body[8..].copy_from_slice(&response_len.to_le_bytes());
    body
}

/// A packet of the host, padded to 8 bytes; the body's length shows in the packet only up to that padding.
pub(crate) fn completion(kind: u16, id: u64, body: &[u8]) -> Vec<u8> {
    let units = (16 + body.len()).div_ceil(8);
    let mut bytes = Vec::with_capacity(units * 8);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(2u16.to_le_bytes());
    bytes.extend((units as u16).to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(body);
    bytes.resize(units * 8, 0);
    bytes
}
