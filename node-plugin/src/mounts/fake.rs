//! A kernel that exists in memory: a mount table, file systems that answer, die or hang on command.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use blob_fs::{Resources, VolumeConfig};

use super::mounter::{Mounter, Serving, Usage};
use super::mountinfo::{FS_TYPE, Mount};

/// How file systems behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Health {
    #[default]
    Answering,
    /// The server is gone: ENOTCONN.
    Dead,
    /// Calls block until the connection is aborted.
    Hung,
}

#[derive(Debug, Default)]
struct State {
    mounts: Vec<Mount>,
    health: Health,
    aborted: Vec<u32>,
    busy: Vec<PathBuf>,
    refuse_mount: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FakeKernel {
    state: Mutex<State>,
    woken: Condvar,
    next: AtomicU32,
}

#[derive(Debug)]
struct FakeServing;

impl Serving for FakeServing {
    fn is_serving(&self) -> bool {
        true
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn join(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

impl FakeKernel {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }
    pub(crate) fn set(&self, health: Health) {
        self.state.lock().unwrap().health = health;
    }
    pub(crate) fn set_busy(&self, path: &Path) {
        self.state.lock().unwrap().busy.push(path.to_owned());
    }
    pub(crate) fn refuse_mounts(&self) {
        self.state.lock().unwrap().refuse_mount = true;
    }
    pub(crate) fn aborted(&self) -> Vec<u32> {
        self.state.lock().unwrap().aborted.clone()
    }
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        self.state
            .lock()
            .unwrap()
            .mounts
            .iter()
            .map(|m| m.at.clone())
            .collect()
    }
    pub(crate) fn add(&self, at: &Path, fs_type: &str) {
        let minor = self.next.fetch_add(1, Ordering::Relaxed) + 100;
        self.state.lock().unwrap().mounts.push(Mount {
            major: 0,
            minor,
            root: "/".into(),
            at: at.to_owned(),
            options: "rw".into(),
            fs_type: fs_type.into(),
            source: "fake".into(),
            super_options: "rw".into(),
        });
    }

    /// Blocks while hung, and tells what a call gets then.
    fn reach(&self, minor: u32) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        while state.health == Health::Hung && !state.aborted.contains(&minor) {
            state = self.woken.wait(state).unwrap();
        }
        match state.health {
            Health::Answering => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        }
    }

    fn top(&self, at: &Path) -> io::Result<Mount> {
        let state = self.state.lock().unwrap();
        super::mountinfo::at(&state.mounts, at)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Mounter for FakeKernel {
    fn table(&self) -> io::Result<Vec<Mount>> {
        Ok(self.state.lock().unwrap().mounts.clone())
    }
    fn serve(&self, _: VolumeConfig, at: &Path, _: &Resources) -> io::Result<Box<dyn Serving>> {
        if self.state.lock().unwrap().refuse_mount {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.add(at, FS_TYPE);
        Ok(Box::new(FakeServing))
    }
    fn answers(&self, at: &Path) -> io::Result<()> {
        let minor = self.top(at)?.minor;
        self.reach(minor)
    }
    fn usage(&self, at: &Path) -> io::Result<Usage> {
        self.answers(at)?;
        Ok(Usage {
            bytes: [100, 40, 60],
            inodes: [10, 4, 6],
        })
    }
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
        let mut mount = self.top(source)?;
        mount.at = target.to_owned();
        mount.options = if read_only { "ro" } else { "rw" }.into();
        self.state.lock().unwrap().mounts.push(mount);
        Ok(())
    }
    fn unmount(&self, at: &Path, detach: bool) -> io::Result<()> {
        let minor = self.top(at)?.minor;
        if !detach {
            // The last mount of a hung file system cannot go; a dead one can.
            if let Err(error) = self.reach(minor)
                && self.state.lock().unwrap().health == Health::Hung
            {
                return Err(error);
            }
            if self.state.lock().unwrap().busy.contains(&at.to_owned()) {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
        }
        let mut state = self.state.lock().unwrap();
        let index = state.mounts.iter().rposition(|m| m.at == at);
        index
            .map(|i| drop(state.mounts.remove(i)))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
    fn abort(&self, mount: &Mount) -> io::Result<()> {
        self.state.lock().unwrap().aborted.push(mount.minor);
        self.woken.notify_all();
        Ok(())
    }
}
