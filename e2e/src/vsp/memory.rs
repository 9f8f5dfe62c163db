//! The guest's memory as the host sees it: three user buffers of another thread, reached by address.

use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// Most pieces that one call takes (IOV_MAX).
const MAX_PIECES: usize = 1024;

/// The thread that waits in the ioctl.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest(Pid);

impl Guest {
    /// `tid` as FUSE names the caller: of this process's pid namespace, 0 when it has none there.
    pub(super) fn new(tid: u32) -> Result<Self, Errno> {
        match i32::try_from(tid) {
            Ok(tid) if tid > 0 => Ok(Self(Pid::from_raw(tid))),
            _ => Err(Errno::ESRCH),
        }
    }

    /// Copies `len` bytes at `address` out of the guest.
    pub(super) fn read(self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let remote = RemoteIoVec {
                base: to_usize(address)? + done,
                len: len - done,
            };
            let local = &mut [IoSliceMut::new(&mut bytes[done..])];
            match process_vm_readv(self.0, local, &[remote]) {
                Ok(0) => return Err(Errno::EFAULT),
                Ok(n) => done += n,
                Err(errno) => return Err(errno),
            }
        }
        Ok(bytes)
    }

    /// Writes the pieces one after another to `address`, without joining them first.
    pub(super) fn write(self, address: u64, pieces: &[Bytes]) -> Result<(), Errno> {
        let mut base = to_usize(address)?;
        let mut cursor = Cursor { pieces, skip: 0 };
        loop {
            let local = match cursor.slices() {
                ControlFlow::Continue(slices) => slices,
                ControlFlow::Break(()) => return Ok(()),
            };
            let len = local.iter().map(|piece| piece.len()).sum();
            match process_vm_writev(self.0, &local, &[RemoteIoVec { base, len }]) {
                Ok(0) => return Err(Errno::EFAULT),
                Ok(n) => {
                    base += n;
                    cursor.advance(n);
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Whether first and last byte of a range are there, as taking its pages would show.
    pub(super) fn probe(self, address: u64, len: u32) -> Result<(), Errno> {
        if len > 0 {
            self.read(address, 1)?;
            let last = address.checked_add(u64::from(len) - 1).ok_or(Errno::EFAULT)?;
            self.read(last, 1)?;
        }
        Ok(())
    }
}

fn to_usize(address: u64) -> Result<usize, Errno> {
    usize::try_from(address).map_err(|_| Errno::EFAULT)
}

/// Where in a list of pieces the next byte is.
struct Cursor<'a> {
    pieces: &'a [Bytes],
    /// Bytes of the first piece that are done.
    skip: usize,
}

impl<'a> Cursor<'a> {
    /// What one call can take, or `Break` at the end.
    fn slices(&mut self) -> ControlFlow<(), Vec<IoSlice<'a>>> {
        self.advance(0);
        if self.pieces.is_empty() {
            return ControlFlow::Break(());
        }
        let skips = std::iter::once(self.skip).chain(std::iter::repeat(0));
        let slices = self.pieces.iter().zip(skips).take(MAX_PIECES);
        ControlFlow::Continue(slices.map(|(piece, skip)| IoSlice::new(&piece[skip..])).collect())
    }

    fn advance(&mut self, n: usize) {
        self.skip += n;
        while let [first, rest @ ..] = self.pieces
            && self.skip >= first.len()
        {
            self.skip -= first.len();
            self.pieces = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Guest {
        Guest::new(nix::unistd::gettid().as_raw() as u32).unwrap()
    }

    #[test]
    fn many_pieces_arrive_in_order() {
        let pieces: Vec<Bytes> = (0..3000usize)
            .map(|i| Bytes::from(vec![i as u8; i % 7]))
            .collect();
        let joined = pieces.concat();
        let mut target = vec![0u8; joined.len() + 8];
        me().write(target.as_mut_ptr().expose_provenance() as u64, &pieces)
            .unwrap();
        assert_eq!(target[..joined.len()], joined[..]);
        assert!(target[joined.len()..].iter().all(|&b| b == 0));
        let address = target.as_ptr().expose_provenance() as u64;
        assert_eq!(me().read(address + 5, 100).unwrap(), joined[5..105]);
    }

    #[test]
    fn unmapped_memory_is_a_fault() {
        assert_eq!(me().read(0, 1), Err(Errno::EFAULT));
        assert_eq!(me().write(0, &[Bytes::from_static(b"x")]), Err(Errno::EFAULT));
        assert_eq!(me().probe(0, 1), Err(Errno::EFAULT));
        assert_eq!(me().probe(u64::MAX, 2), Err(Errno::EFAULT));
        me().probe(0, 0).unwrap();
        assert_eq!(Guest::new(0).unwrap_err(), Errno::ESRCH);
    }
}
