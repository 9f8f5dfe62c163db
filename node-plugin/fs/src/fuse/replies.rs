//! What the tree answers, as fuser's replies; and what fuser asks, as the tree's arguments.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyXattr, Request, TimeOrNow,
};

use crate::content::ReadData;
use crate::errno::{Errno, Result};
use crate::tree::{Entry, Kind, Listed, NodeId, Opened, Owner, SetTime, Stat, Tree, from_seconds};

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

/// Whose a new node is.
pub(super) fn owner(req: &Request) -> Owner {
    Owner {
        uid: req.uid(),
        gid: req.gid(),
    }
}

pub(super) fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<()>) + Send + 'static {
    move |outcome| match outcome {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

pub(super) fn attributes(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.id),
        size: stat.size,
        blocks: stat.size.div_ceil(512),
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: 0,
        // What cp and stdio size their buffers by; larger makes programs that buffer random reads fetch more
        // than they need.
        blksize: 4096,
        flags: 0,
    }
}

/// "Nothing is there", as an entry that the kernel may keep: node id 0.
fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A node id is given out again only when the kernel has forgotten the node that had it, and such file
/// systems are not exported by NFS: one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);

pub(super) fn reply_entry(reply: ReplyEntry, outcome: Result<Entry>) {
    match outcome {
        Ok(Entry {
            stat: Some(stat),
            attr_ttl,
            entry_ttl,
        }) => {
            reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attributes(&stat), GENERATION);
        }
        Ok(Entry {
            stat: None,
            entry_ttl,
            ..
        }) if !entry_ttl.is_zero() => {
            reply.entry_with_ttls(&Duration::ZERO, &entry_ttl, &nothing(), GENERATION);
        }
        Ok(_) => reply.error(fuser::Errno::ENOENT),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn reply_attr(reply: ReplyAttr, outcome: Result<(Stat, Duration)>) {
    match outcome {
        Ok((stat, ttl)) => reply.attr(&ttl, &attributes(&stat)),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn reply_data(reply: ReplyData, outcome: Result<ReadData>) {
    match outcome {
        Ok(ReadData::Slice(slice)) => reply.data(&slice),
        Ok(ReadData::Owned(bytes)) => reply.data(&bytes),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, outcome: Result<Vec<u8>>) {
    match outcome {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn open_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if opened.direct {
        flags |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    flags
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(forward_nanoseconds(time)),
    }
}

/// fuser 0.18 counts the nanoseconds of a time before 1970 backwards; the kernel counts them forward.
fn forward_nanoseconds(time: SystemTime) -> SystemTime {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time,
        Err(before) => {
            let before = before.duration();
            i64::try_from(before.as_secs())
                .ok()
                .and_then(|secs| from_seconds(-secs, before.subsec_nanos()))
                .unwrap_or(time)
        }
    }
}

/// Adds entries until the buffer is full.
pub(super) fn fill_plus(tree: &Tree, directory: NodeId, listed: &[Listed], reply: &mut ReplyDirectoryPlus) {
    for entry in listed {
        let dots = matches!(&*entry.name, "." | "..");
        // The kernel counts a reference for every entry but these two.
        let Some(found) = tree.entry(entry.id) else {
            continue;
        };
        let full = match &found.stat {
            Some(stat) => {
                let ttl = found.attr_ttl.min(found.entry_ttl);
                reply.add(
                    INodeNo(entry.id),
                    entry.next,
                    name(entry),
                    &ttl,
                    &attributes(stat),
                    GENERATION,
                )
            }
            None => false,
        };
        if full || dots {
            tree.not_taken(entry.id);
        }
        if full {
            break;
        }
    }
    tracing::trace!(directory, entries = listed.len(), "readdirplus");
}

pub(super) fn fill(listed: &[Listed], reply: &mut ReplyDirectory) {
    for entry in listed {
        if reply.add(INodeNo(entry.id), entry.next, file_type(entry.kind), name(entry)) {
            break;
        }
    }
}

fn name(entry: &Listed) -> &OsStr {
    OsStr::new(&*entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_forward() {
        // What fuser makes of -2 s + 800,000,000 ns.
        let fusers = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(
            forward_nanoseconds(fusers),
            UNIX_EPOCH - Duration::new(1, 200_000_000)
        );
        assert_eq!(forward_nanoseconds(UNIX_EPOCH), UNIX_EPOCH);
    }
}
