//! A kernel that exists in memory: a mount table, file systems that answer, die or hang on command.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use blob_fs::{Held, Owing, Resources, VolumeConfig};
use tokio_util::sync::CancellationToken;

use super::mounter::{Mounter, Serving, Usage};
use super::mountinfo::{Entry, FS_TYPE};

/// How file systems behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Health {
    #[default]
    Answering,
    /// The server is gone: ENOTCONN.
    Dead,
    /// Calls block until the connection is aborted.
    Hung,
    /// The server answers with this errno: the service fails.
    Failing(i32),
}

#[derive(Debug, Default)]
struct State {
    mounts: Vec<Entry>,
    health: Health,
    aborted: Vec<u32>,
    busy: Vec<PathBuf>,
    refuse_mount: bool,
    refuse_abort: bool,
    /// The next file system is mounted, and not served before it is let go on.
    hold_next_mount: bool,
    held: Vec<u32>,
    /// Sessions end and do not commit before this is taken back.
    hold_commits: bool,
    /// Sessions do not end before this is taken back.
    hold_sessions: bool,
    /// The next bind shows this type of file system instead of its source.
    bind_shows: Option<String>,
    /// Stats that were begun.
    asked: usize,
    /// Connections whose sessions were let go of.
    dropped: Vec<u32>,
    /// What happened to sessions, in order: `sync`, `abort`, `join`.
    ends: Vec<(&'static str, u32)>,
    /// What closed files of every file system owe the service.
    owing: Owing,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FakeKernel {
    state: Mutex<State>,
    woken: Condvar,
    next: AtomicU32,
    own: Weak<FakeKernel>,
}

#[derive(Debug)]
struct FakeServing {
    kernel: Arc<FakeKernel>,
    connection: u32,
    ended: CancellationToken,
}

impl Serving for FakeServing {
    fn connection(&self) -> u32 {
        self.connection
    }
    fn is_serving(&self) -> bool {
        true
    }
    fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
    fn sync(&self) -> io::Result<()> {
        self.kernel
            .change(|state| state.ends.push(("sync", self.connection)));
        self.kernel.wait_while(|state| state.hold_commits);
        Ok(())
    }
    fn owing(&self) -> Owing {
        self.kernel.state.lock().unwrap().owing
    }
    fn held(&self) -> Held {
        Held::default()
    }
    fn join(self: Box<Self>) -> io::Result<()> {
        self.kernel.wait_while(|state| state.hold_sessions);
        self.ended.cancel();
        self.kernel.wait_while(|state| state.hold_commits);
        self.kernel
            .change(|state| state.ends.push(("join", self.connection)));
        Ok(())
    }
}

impl Drop for FakeServing {
    fn drop(&mut self) {
        let connection = self.connection;
        self.kernel.change(|state| state.dropped.push(connection));
    }
}

impl FakeKernel {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            ..Self::default()
        })
    }
    pub(crate) fn set(&self, health: Health) {
        self.change(|state| state.health = health);
    }
    pub(crate) fn set_busy(&self, path: &Path) {
        self.change(|state| state.busy.push(path.to_owned()));
    }
    pub(crate) fn refuse_mounts(&self) {
        self.change(|state| state.refuse_mount = true);
    }
    pub(crate) fn refuse_aborts(&self) {
        self.change(|state| state.refuse_abort = true);
    }
    pub(crate) fn hold_next_mount(&self) {
        self.change(|state| state.hold_next_mount = true);
    }
    pub(crate) fn let_mounts_go_on(&self) {
        self.change(|state| state.held.clear());
    }
    pub(crate) fn hold_commits(&self, hold: bool) {
        self.change(|state| state.hold_commits = hold);
    }
    pub(crate) fn hold_sessions(&self, hold: bool) {
        self.change(|state| state.hold_sessions = hold);
    }
    pub(crate) fn bind_shows(&self, fs_type: &str) {
        self.change(|state| state.bind_shows = Some(fs_type.to_owned()));
    }
    pub(crate) fn aborted(&self) -> Vec<u32> {
        self.state.lock().unwrap().aborted.clone()
    }
    /// What happened to sessions, in order.
    pub(crate) fn ends(&self) -> Vec<&'static str> {
        self.state
            .lock()
            .unwrap()
            .ends
            .iter()
            .map(|(what, _)| *what)
            .collect()
    }
    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }
    /// Blocks until this many sessions were let go of.
    pub(crate) fn until_dropped(&self, sessions: usize) {
        self.wait_while(|state| state.dropped.len() < sessions);
    }

    /// What closed files of every file system owe the service from now on.
    pub(crate) fn owe(&self, owing: Owing) {
        self.change(|state| state.owing = owing);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.woken.notify_all();
    }

    fn wait_while(&self, held: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        drop(self.woken.wait_while(state, |state| held(state)).unwrap());
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
    pub(crate) fn add(&self, at: &Path, fs_type: &str) -> u32 {
        let minor = self.next.fetch_add(1, Ordering::Relaxed) + 100;
        self.state.lock().unwrap().mounts.push(Entry {
            major: 0,
            minor,
            root: "/".into(),
            at: at.to_owned(),
            options: "rw".into(),
            fs_type: fs_type.into(),
            source: "fake".into(),
            super_options: "rw".into(),
        });
        minor
    }

    /// Blocks while hung, and tells what a call gets then.
    fn reach(&self, minor: u32) -> io::Result<()> {
        self.wait_while(|state| state.health == Health::Hung && !state.aborted.contains(&minor));
        match self.state.lock().unwrap().health {
            Health::Answering => Ok(()),
            Health::Failing(errno) => Err(io::Error::from_raw_os_error(errno)),
            Health::Dead | Health::Hung => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        }
    }

    fn top(&self, at: &Path) -> io::Result<Entry> {
        let state = self.state.lock().unwrap();
        super::mountinfo::at(&state.mounts, at)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Mounter for FakeKernel {
    fn table(&self) -> io::Result<Vec<Entry>> {
        Ok(self.state.lock().unwrap().mounts.clone())
    }
    fn serve(&self, _: VolumeConfig, at: &Path, _: &Resources) -> io::Result<Box<dyn Serving>> {
        if self.state.lock().unwrap().refuse_mount {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let connection = self.add(at, FS_TYPE);
        self.change(|state| {
            if std::mem::take(&mut state.hold_next_mount) {
                state.held.push(connection);
            }
        });
        self.wait_while(|state| state.held.contains(&connection));
        Ok(Box::new(FakeServing {
            kernel: self.own.upgrade().unwrap(),
            connection,
            ended: CancellationToken::new(),
        }))
    }
    fn answers(&self, at: &Path) -> io::Result<()> {
        let minor = self.top(at)?.minor;
        self.change(|state| state.asked += 1);
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
        if let Some(fs_type) = self.state.lock().unwrap().bind_shows.take() {
            mount.fs_type = fs_type;
            mount.minor = 1;
        }
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
    fn abort(&self, mount: &Entry) -> io::Result<()> {
        if self.state.lock().unwrap().refuse_abort {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.change(|state| {
            state.aborted.push(mount.minor);
            state.ends.push(("abort", mount.minor));
        });
        Ok(())
    }
}
