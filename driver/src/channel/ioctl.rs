//! The first door to the host: the ioctl of the VSC driver. Only this module knows that there is one.
#![expect(unsafe_code, reason = "names user buffers to the kernel by address")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;

use super::abi::Abi;
use super::error::ChannelError;
use super::exchange::{Data, Exchange};
use crate::framing::HEADER_LEN;
use crate::uapi::{CMD_LIST, CMD_UBUNTU, RequestSync, STATUS_POISON, transact};

/// The open device. Requests of several threads may be in it at once.
#[derive(Debug)]
pub(super) struct Door {
    device: File,
    path: String,
    abi: Abi,
}

/// What the host answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u32,
    pub(super) response_len: u32,
}

/// Why a request was not answered.
#[derive(Debug)]
pub(super) enum DoorError {
    /// The ring is full: try again.
    Full,
    /// The device was removed: before anything was sent, or while the host had the request. The drivers
    /// answer the latter when the channel is closed, so the host writes to the buffers no more.
    Gone,
    /// The driver does not take the request, which the host has not seen: another process or user has opened
    /// the device, or there is no memory for it.
    Refused(io::Error),
    /// Anything else.
    Io(io::Error),
}

impl Door {
    /// Opens the device and finds out which command number it knows.
    pub(super) fn open(path: &Path) -> Result<Self, ChannelError> {
        let name = path.display().to_string();
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => ChannelError::Gone {
                    device: name.clone(),
                    sent: false,
                },
                _ => ChannelError::Io { call: "open", source },
            })?;
        let abi = probe(&device, &name)?;
        Ok(Self {
            device,
            path: name,
            abi,
        })
    }

    pub(super) fn abi(&self) -> Abi {
        self.abi
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Sends one exchange and blocks until the host has answered. The host is given `timeout`.
    pub(super) fn transact(&self, exchange: &mut Exchange, timeout: Duration) -> Result<Answer, DoorError> {
        let (data_buffer, data_len, data_valid) = match &mut exchange.data {
            Data::None => (0, 0, 0),
            Data::Out(slice) => (slice.as_ptr().expose_provenance(), slice.len(), slice.len()),
            Data::In(buffer) => (buffer.as_mut_ptr().expose_provenance(), buffer.len(), 0),
        };
        let (request, response) = (&mut exchange.request, &mut exchange.response);
        // Buffers are used again: what an earlier host answer left must not pass for this one's when nothing
        // is written.
        let stale = response.len().min(HEADER_LEN);
        response[..stale].fill(0);
        let mut call = RequestSync {
            guid: exchange.id,
            // Never 0, which would wait for ever.
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1),
            request_len: length(request.len())?,
            response_len: length(response.len())?,
            data_len: length(data_len)?,
            data_valid: length(data_valid)?,
            reserved: 0,
            request_buffer: request.as_mut_ptr().expose_provenance() as u64,
            response_buffer: response.as_mut_ptr().expose_provenance() as u64,
            data_buffer: data_buffer as u64,
            status: STATUS_POISON,
            answer_len: 0,
        };
        // SAFETY: the three buffers belong to `exchange`, which is borrowed mutably for the whole call (a
        // `Data::Out` is only read by the host), and live in an arena's writable mapping with every page
        // present.
        match unsafe { transact(self.device.as_fd(), self.abi.command(), &raw mut call) } {
            Ok(()) if call.status == STATUS_POISON => Err(DoorError::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                "the device returned without a status",
            ))),
            Ok(()) if call.answer_len as usize > response.len() => Err(DoorError::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "an answer of {} bytes in a buffer of {}",
                    call.answer_len,
                    response.len()
                ),
            ))),
            Ok(()) => Ok(Answer {
                status: call.status,
                response_len: call.answer_len,
            }),
            Err(Errno::EAGAIN) => Err(DoorError::Full),
            // ENOTCONN: the mock's process has died and left its mount behind.
            Err(Errno::ENODEV | Errno::ENXIO | Errno::ENOTCONN) => Err(DoorError::Gone),
            // Looked at before anything is sent, by each of the drivers.
            Err(errno @ (Errno::EACCES | Errno::EPERM | Errno::ENOMEM)) => {
                Err(DoorError::Refused(errno.into()))
            }
            Err(errno) => Err(DoorError::Io(errno.into())),
        }
    }
}

fn length(len: usize) -> Result<u32, DoorError> {
    u32::try_from(len).map_err(|_| DoorError::Io(io::ErrorKind::InvalidInput.into()))
}

impl Abi {
    fn command(self) -> u32 {
        match self {
            Self::List => CMD_LIST,
            Self::Ubuntu => CMD_UBUNTU,
        }
    }
}

/// Finds the command number without pinning or sending anything.
///
/// Step 1: a null pointer for the struct. A driver that knows the number fails to copy the struct (EFAULT);
/// one that does not refuses the number first (EINVAL, EIO or ENOTTY). On every shipped driver exactly one
/// number is known, and the question is answered.
///
/// Step 2, when *both* answer EFAULT: either the driver knows both (our own module does), or somebody copies
/// the struct before looking at the number (the FUSE layer does so for the mock device). A readable struct
/// whose request and response buffers of one byte lie at address zero goes past copying and past the length
/// checks; a driver that knows the number then fails to take the pages (EFAULT), again with nothing pinned or
/// sent. (A zero length would not tell: EINVAL means both "bad length" and "unknown number".)
///
/// Still both: either will do, and the number posted to the kernel list is taken.
fn probe(device: &File, name: &str) -> Result<Abi, ChannelError> {
    let both = vec![Abi::List, Abi::Ubuntu];
    let known = known(device, name, both, None)?;
    let known = match known.as_slice() {
        [_, _] => {
            let unreachable_buffers = RequestSync {
                timeout_ms: 1000,
                request_len: 1,
                response_len: 1,
                status: STATUS_POISON,
                ..RequestSync::default()
            };
            self::known(device, name, known, Some(unreachable_buffers))?
        }
        _ => known,
    };
    known.first().copied().ok_or_else(|| ChannelError::UnknownAbi {
        device: name.to_owned(),
    })
}

/// Those of `candidates` that answer EFAULT to this struct (`None`: to a null pointer).
fn known(
    device: &File,
    name: &str,
    candidates: Vec<Abi>,
    request: Option<RequestSync>,
) -> Result<Vec<Abi>, ChannelError> {
    let mut known = Vec::new();
    for abi in candidates {
        let mut request = request;
        let pointer = request
            .as_mut()
            .map_or(ptr::null_mut(), |request| &raw mut *request);
        // SAFETY: a null struct, or a live one whose buffers are the page at address zero, which this process
        // does not map: there is no memory that the host could be made to write.
        match unsafe { transact(device.as_fd(), abi.command(), pointer) } {
            Err(Errno::EFAULT) => known.push(abi),
            Err(Errno::EINVAL | Errno::ENOTTY | Errno::EIO | Errno::ENOSYS) => {}
            Err(Errno::ENODEV) => {
                return Err(ChannelError::Gone {
                    device: name.to_owned(),
                    sent: false,
                });
            }
            Err(errno) => {
                return Err(ChannelError::Io {
                    call: "ioctl",
                    source: errno.into(),
                });
            }
            Ok(()) => {
                return Err(ChannelError::Io {
                    call: "ioctl",
                    source: io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the device accepted an impossible request",
                    ),
                });
            }
        }
    }
    Ok(known)
}
