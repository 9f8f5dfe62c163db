//! Where the data of writes goes that wait for room when there is no memory left to wait in: an unlinked file
//! on a disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// A place holds one write: the largest that the kernel sends.
const PLACE: usize = 1 << 20;
/// Places of a process: 1 GiB.
const PLACES: usize = 1024;

/// See the module. Made when it is needed first.
#[derive(Debug, Default)]
pub(crate) struct Spool(OnceLock<Option<Arc<Places>>>);

#[derive(Debug)]
struct Places {
    file: File,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Places that were used and are free again.
    again: Vec<usize>,
    /// Places that were ever used.
    used: usize,
}

/// Data in the file; gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Spooled {
    places: Arc<Places>,
    place: usize,
    len: usize,
}

impl Spool {
    /// Puts data there. `None` when it cannot be had: there is no disk for it, or it is full.
    pub(crate) fn put(&self, data: &[u8]) -> Option<Spooled> {
        let places = self.0.get_or_init(|| {
            let made = unlinked_file(&std::env::temp_dir());
            made.inspect_err(|error| tracing::warn!(%error, "no file for writes that wait for memory"))
                .ok()
                .map(Arc::new)
        });
        let places = places.as_ref().filter(|_| data.len() <= PLACE)?;
        let place = places.take()?;
        let spooled = Spooled {
            places: Arc::clone(places),
            place,
            len: data.len(),
        };
        match places.file.write_all_at(data, spooled.offset()) {
            Ok(()) => Some(spooled),
            Err(error) => {
                tracing::debug!(%error, "no room on disk for a write that waits for memory");
                None
            }
        }
    }

    /// Writes that are there.
    pub(super) fn held(&self) -> usize {
        let places = self.0.get().and_then(Option::as_ref);
        places.map_or(0, |places| {
            let free = places.lock();
            free.used - free.again.len()
        })
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<usize> {
        let mut free = self.lock();
        if let Some(place) = free.again.pop() {
            return Some(place);
        }
        if free.used == PLACES {
            return None;
        }
        free.used += 1;
        Some(free.used - 1)
    }
}

impl Spooled {
    fn offset(&self) -> u64 {
        (self.place * PLACE) as u64
    }

    /// The data.
    ///
    /// # Errors
    /// Of the disk.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut data = vec![0; self.len];
        self.places.file.read_exact_at(&mut data, self.offset())?;
        Ok(data)
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // What the disk has of it is of no use, and need not be written any more.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (self.offset() as i64, PLACE as i64);
        if let Err(error) = fallocate(&self.places.file, punch, offset, len) {
            tracing::trace!(%error, "room on disk is not given back");
        }
        self.places.lock().again.push(self.place);
    }
}

/// A new file that no name leads to, on a disk.
fn unlinked_file(folder: &Path) -> io::Result<Places> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(folder)?;
    if fstatfs(&file)?.filesystem_type() == TMPFS_MAGIC {
        let text = format!("{} is in memory", folder.display());
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(Places {
        file,
        free: Mutex::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_there_can_be_read_until_it_is_dropped() {
        let spool = Spool::default();
        let one = spool.put(b"one").unwrap();
        let two = spool.put(&[2; PLACE]).unwrap();
        assert!(spool.put(&[0; PLACE + 1]).is_none(), "no write is so large");
        assert_eq!(one.read().unwrap(), b"one");
        assert_eq!(spool.held(), 2);
        drop(one);
        assert_eq!(spool.held(), 1);
        let three = spool.put(b"three").unwrap();
        assert_eq!(three.place, 0, "its place is taken again");
        assert_eq!(two.read().unwrap(), [2; PLACE]);
        assert_eq!(three.read().unwrap(), b"three");
    }

    #[test]
    fn there_are_only_so_many_places_and_none_in_memory() {
        let spool = Spool::default();
        let mut held: Vec<_> = (0..PLACES).map(|_| spool.put(b"x").unwrap()).collect();
        assert!(spool.put(b"x").is_none());
        held.pop();
        assert!(spool.put(b"x").is_some());
        let shm = Path::new("/dev/shm");
        if shm.exists() {
            assert!(unlinked_file(shm).is_err());
        }
    }
}
