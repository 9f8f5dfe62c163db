//! The FUSE side: a directory with the device node and a control file.

use std::ffi::OsStr;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use serde_json::json;
use tokio::runtime::Handle;
use vsc_driver::uapi::{ANSWER_OFFSET, RequestSync};

use super::faults::{FaultControl, Tally};
use super::host::{Answer, Host};

/// Name of the device inside the mount.
pub const DEVICE_NAME: &str = "azure_blob";
/// Name of the control file inside the mount.
pub const CONTROL_NAME: &str = "control";

const ROOT: INodeNo = INodeNo::ROOT;
const DEVICE: INodeNo = INodeNo(2);
const CONTROL: INodeNo = INodeNo(3);

/// Nothing is cached: the device comes and goes.
const NO_CACHE: Duration = Duration::ZERO;

/// Requests with a data buffer up to this size are tried in the thread that took them, so that large copies
/// do not hold up the others.
const INLINE_DATA: u32 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Device {
    pub(super) host: Arc<Host>,
    pub(super) faults: FaultControl,
    pub(super) runtime: Handle,
    pub(super) started: SystemTime,
    /// The latest command that was refused, shown in the control file.
    pub(super) last_error: std::sync::Mutex<Option<String>>,
}

impl Device {
    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, nlink) = match ino {
            ROOT => (FileType::Directory, 0o755, 2),
            DEVICE if self.faults.state.present() => (FileType::RegularFile, 0o600, 1),
            CONTROL => (FileType::RegularFile, 0o600, 1),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: self.started,
            mtime: self.started,
            ctime: self.started,
            crtime: self.started,
            kind,
            perm,
            nlink,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn shown(&self) -> String {
        let last_error = self
            .last_error
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let shown = json!({
            "faults": self.faults.get(),
            "counters": self.faults.state.counters(),
            "last_error": last_error,
        });
        format!("{shown:#}\n")
    }
}

impl Filesystem for Device {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match name.to_str() {
            Some(DEVICE_NAME) => DEVICE,
            Some(CONTROL_NAME) => CONTROL,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.attr(ino) {
            Some(attr) if parent == ROOT => reply.entry(&NO_CACHE, &attr, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&NO_CACHE, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    // `>` in a shell truncates before it writes: a truncation to nothing changes nothing.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attr(ino) {
            Some(attr) if ino == CONTROL && mode.or(uid).or(gid).is_none() => reply.attr(&NO_CACHE, &attr),
            Some(_) => reply.error(Errno::EPERM),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let mut entries = vec![
            (ROOT, FileType::Directory, "."),
            (ROOT, FileType::Directory, ".."),
            (CONTROL, FileType::RegularFile, CONTROL_NAME),
        ];
        if self.faults.state.present() {
            entries.push((DEVICE, FileType::RegularFile, DEVICE_NAME));
        }
        for (next, (ino, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match ino {
            DEVICE => match self.faults.state.open() {
                Some(generation) => reply.opened(FileHandle(generation), FopenFlags::FOPEN_DIRECT_IO),
                None => reply.error(Errno::ENODEV),
            },
            CONTROL => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Closing a device does nothing.
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The real device has neither read nor write.
        if ino != CONTROL {
            return reply.error(Errno::EINVAL);
        }
        let text = self.shown();
        let from = (offset as usize).min(text.len());
        let to = from.saturating_add(size as usize).min(text.len());
        reply.data(&text.as_bytes()[from..to]);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if ino != CONTROL {
            return reply.error(Errno::EINVAL);
        }
        let result = String::from_utf8_lossy(data)
            .lines()
            .try_for_each(|line| self.faults.command(line));
        *self
            .last_error
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) =
            result.as_ref().err().map(ToString::to_string);
        match result {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EINVAL),
        }
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        if ino != DEVICE {
            return reply.error(Errno::ENOTTY);
        }
        let state = &self.faults.state;
        if !state.reaches(fh.0) {
            Tally::add(&state.tally.enodev, 1);
            return reply.error(Errno::ENODEV);
        }
        let bytes = match in_data.try_into() {
            Ok(bytes) if state.knows(cmd) => bytes,
            _ => {
                Tally::add(&state.tally.refused, 1);
                return reply.error(Errno::EINVAL);
            }
        };
        let request = RequestSync::from_bytes(bytes);
        let (host, tid) = (Arc::clone(&self.host), req.pid());
        let mut work = Box::pin(async move { host.call(tid, request).await });
        if request.data_len <= INLINE_DATA {
            // A store in process answers at once: handing a small request to another thread would cost more
            // than it takes.
            let _runtime = self.runtime.enter();
            if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return finish(reply, &request, result);
            }
        }
        self.runtime
            .spawn(async move { finish(reply, &request, work.await) });
    }
}

fn finish(reply: ReplyIoctl, request: &RequestSync, result: Result<Answer, nix::errno::Errno>) {
    match result {
        Ok(answer) => {
            // Only the last 8 bytes change, as on the real device.
            let mut out = request.to_bytes();
            out[ANSWER_OFFSET..ANSWER_OFFSET + 4].copy_from_slice(&answer.status.to_le_bytes());
            out[ANSWER_OFFSET + 4..].copy_from_slice(&answer.len.to_le_bytes());
            reply.ioctl(0, &out);
        }
        Err(errno) => reply.error(Errno::from_i32(errno as i32)),
    }
}
