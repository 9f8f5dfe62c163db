//! The ioctl of `/dev/azure_blob`: struct layout, both command numbers, compile-time size checks.
//!
//! Interface facts of the driver posted to the kernel list (v2-v5), of Ubuntu's in-box module and of the
//! published Java library; all three use this struct and differ only in the command number.
#![expect(unsafe_code, reason = "the ioctl itself; the struct carries user addresses")]

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::request_code_readwrite;

/// Command number posted to the kernel list, v2 to v5.
pub const CMD_LIST: u32 = 0xC048_52F0;
/// Command number of Ubuntu's in-box module and of the published Java library.
pub const CMD_UBUNTU: u32 = 0xC048_520A;

/// Pages that the three buffers of one request may touch together (32 MiB).
pub const MAX_PAGES: usize = 8192;

/// Value put into `status` before the call: the device returns 0 even when it never wrote an answer.
pub const STATUS_POISON: u32 = 0x0ACE_0ACE;

/// HRESULT of WAIT_TIMEOUT: the host gave the request up after its timeout.
pub const STATUS_TIMEOUT: u32 = 0x8007_0102;

/// `struct az_blob_request_sync` as the kernel reads it (x86-64 only, so native order is little-endian).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestSync {
    /// Transaction id.
    pub guid: [u8; 16],
    /// Milliseconds, enforced by the host; 0 would wait for ever.
    pub timeout_ms: u32,
    /// Bytes of the request buffer, > 0.
    pub request_len: u32,
    /// Capacity of the response buffer in bytes, > 0.
    pub response_len: u32,
    /// Bytes of the data buffer; 0 = the data buffer is not looked at.
    pub data_len: u32,
    /// Bytes of the data buffer that are valid on the way in; at most `data_len`.
    pub data_valid: u32,
    /// Padding made explicit; zero.
    pub reserved: u32,
    /// User address of the request buffer.
    pub request_buffer: u64,
    /// User address of the response buffer.
    pub response_buffer: u64,
    /// User address of the data buffer.
    pub data_buffer: u64,
    /// Out: the host's status, 0 = executed.
    pub status: u32,
    /// Out: bytes the host wrote into the response buffer.
    pub answer_len: u32,
}

/// Bytes of [`RequestSync`]; part of both command numbers.
pub const REQUEST_SIZE: usize = 72;
/// Offset of the 8 bytes that the kernel copies back (`status`, `answer_len`).
pub const ANSWER_OFFSET: usize = 64;

const _: () = {
    assert!(size_of::<RequestSync>() == REQUEST_SIZE);
    assert!(align_of::<RequestSync>() == 8);
    assert!(offset_of!(RequestSync, guid) == 0);
    assert!(offset_of!(RequestSync, timeout_ms) == 16);
    assert!(offset_of!(RequestSync, request_len) == 20);
    assert!(offset_of!(RequestSync, response_len) == 24);
    assert!(offset_of!(RequestSync, data_len) == 28);
    assert!(offset_of!(RequestSync, data_valid) == 32);
    assert!(offset_of!(RequestSync, reserved) == 36);
    assert!(offset_of!(RequestSync, request_buffer) == 40);
    assert!(offset_of!(RequestSync, response_buffer) == 48);
    assert!(offset_of!(RequestSync, data_buffer) == 56);
    assert!(offset_of!(RequestSync, status) == ANSWER_OFFSET);
    assert!(offset_of!(RequestSync, answer_len) == 68);
    assert!(request_code_readwrite!(b'R', 0xf0, REQUEST_SIZE) as u32 == CMD_LIST);
    assert!(request_code_readwrite!(b'R', 10, REQUEST_SIZE) as u32 == CMD_UBUNTU);
};

impl RequestSync {
    /// The struct as the kernel sees it in memory.
    pub fn to_bytes(&self) -> [u8; REQUEST_SIZE] {
        let mut out = [0; REQUEST_SIZE];
        out[..16].copy_from_slice(&self.guid);
        let words = [
            self.timeout_ms,
            self.request_len,
            self.response_len,
            self.data_len,
            self.data_valid,
            self.reserved,
        ];
        for (at, word) in (16..).step_by(4).zip(words) {
            out[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (at, address) in
            (40..)
                .step_by(8)
                .zip([self.request_buffer, self.response_buffer, self.data_buffer])
        {
            out[at..at + 8].copy_from_slice(&address.to_le_bytes());
        }
        out[64..68].copy_from_slice(&self.status.to_le_bytes());
        out[68..72].copy_from_slice(&self.answer_len.to_le_bytes());
        out
    }

    /// Reads the struct from memory; the inverse of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8; REQUEST_SIZE]) -> Self {
        fn array<const N: usize>(bytes: &[u8; REQUEST_SIZE], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        let word = |at| u32::from_le_bytes(array(bytes, at));
        let address = |at| u64::from_le_bytes(array(bytes, at));
        Self {
            guid: array(bytes, 0),
            timeout_ms: word(16),
            request_len: word(20),
            response_len: word(24),
            data_len: word(28),
            data_valid: word(32),
            reserved: word(36),
            request_buffer: address(40),
            response_buffer: address(48),
            data_buffer: address(56),
            status: word(64),
            answer_len: word(68),
        }
    }
}

/// Calls the device and waits for the host (uninterruptibly on a real device).
///
/// # Safety The three buffers named in `request` are valid for their lengths, writable, and used by nobody
/// else until the call returns. A null pointer instead of `request` is allowed: the kernel answers EFAULT.
pub(crate) unsafe fn transact(
    device: BorrowedFd<'_>,
    command: u32,
    request: *mut RequestSync,
) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the duration of the borrow, and the kernel checks the struct's
    // address itself.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), command.into(), request) };
    Errno::result(result).map(drop)
}
