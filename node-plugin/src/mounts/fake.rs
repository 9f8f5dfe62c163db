//! A kernel that exists in memory: a mount table, file systems that answer, die or hang on command.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use blob_fs::{Held, Owing, Resources, VolumeConfig};
use tokio_util::sync::CancellationToken;

use super::mounter::{Detached, Kept, Mounter, Serving, Usage};
use super::mountinfo::{Entry, FS_TYPE};
use super::placing::Place;

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
    /// Mounted, and to be seen nowhere.
    detached: Vec<Entry>,
    /// Connections that nobody serves, whatever the others do.
    dead: Vec<u32>,
    /// Targets of pods that live: at no moment are they without a mount of ours.
    published: Vec<PathBuf>,
    /// Those of them that were.
    uncovered: Vec<PathBuf>,
    /// Nothing can be attached.
    refuse_attach: bool,
    /// The mount table cannot be read.
    refuse_table: bool,
    /// What is there cannot be replaced.
    for_good: Vec<PathBuf>,
    /// What the next bind fails with.
    bind_fails: Option<i32>,
    /// The next attach fails when its mount is there.
    appear_and_fail: bool,
    /// The next mount that comes to a place does so when this is taken back.
    hold_appearing: bool,
    /// A kernel that cannot mount beneath a mount.
    covers: bool,
    /// The next file system is mounted, and not served before it is let go on.
    hold_next_mount: bool,
    held: Vec<u32>,
    /// Sessions end and do not commit before this is taken back.
    hold_commits: bool,
    /// Sessions do not end before this is taken back.
    hold_sessions: bool,
    /// The next bind finds something else at its source.
    bind_misses: bool,
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
        !self
            .kernel
            .state
            .lock()
            .unwrap()
            .aborted
            .contains(&self.connection)
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

#[derive(Debug)]
struct FakeTree {
    kernel: Arc<FakeKernel>,
    connection: u32,
}

impl Kept for FakeTree {
    fn tree(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for FakeTree {
    fn drop(&mut self) {
        let connection = self.connection;
        self.kernel
            .change(|state| state.detached.retain(|entry| entry.minor != connection));
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
    pub(crate) fn refuse_mounts(&self, refuse: bool) {
        self.change(|state| state.refuse_mount = refuse);
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
    pub(crate) fn bind_misses(&self) {
        self.change(|state| state.bind_misses = true);
    }
    pub(crate) fn refuse_attach(&self, refuse: bool) {
        self.change(|state| state.refuse_attach = refuse);
    }
    pub(crate) fn refuse_table(&self, refuse: bool) {
        self.change(|state| state.refuse_table = refuse);
    }
    /// What is at a path cannot be replaced as long as the pod lives.
    pub(crate) fn keep_for_good(&self, at: &Path) {
        self.change(|state| state.for_good.push(at.to_owned()));
    }
    pub(crate) fn fail_next_bind(&self, errno: i32) {
        self.change(|state| state.bind_fails = Some(errno));
    }
    pub(crate) fn appear_and_fail(&self) {
        self.change(|state| state.appear_and_fail = true);
    }
    pub(crate) fn hold_appearing(&self, hold: bool) {
        self.change(|state| state.hold_appearing = hold);
    }
    /// Mounts are not replaced from here on but covered, as older kernels can.
    pub(crate) fn covers(&self) {
        self.change(|state| state.covers = true);
    }
    /// The options of the mount at a path are others from now on.
    pub(crate) fn change_options(&self, at: &Path, options: &str) {
        let id = self.top(at).unwrap().id;
        self.change(|state| {
            for mount in state.mounts.iter_mut().filter(|mount| mount.id == id) {
                options.clone_into(&mut mount.options);
            }
        });
    }
    /// Nobody serves what is at a path, or is served as its connection is, any more.
    pub(crate) fn kill(&self, at: &Path) {
        let connection = self.top(at).unwrap().minor;
        self.change(|state| state.dead.push(connection));
    }
    /// From here on a pod lives that has this target.
    pub(crate) fn publish(&self, target: &Path) {
        self.change(|state| state.published.push(target.to_owned()));
    }
    /// Nobody has this target any more.
    pub(crate) fn unpublish(&self, target: &Path) {
        self.change(|state| state.published.retain(|published| published != target));
    }
    /// Nobody serves anything that is mounted now any more: the process has ended.
    pub(crate) fn kill_all(&self) {
        self.change(|state| {
            let all = state.mounts.iter().chain(&state.detached);
            let connections: Vec<u32> = all.map(|mount| mount.minor).collect();
            state.dead.extend(connections);
        });
    }
    /// The uppermost mount at a path, and whether it is served.
    pub(crate) fn at(&self, path: &Path) -> Option<(Entry, bool)> {
        let state = self.state.lock().unwrap();
        let top = super::mountinfo::at(&state.mounts, path)?;
        let ends = [&state.dead, &state.aborted];
        Some((top.clone(), !ends.iter().any(|ends| ends.contains(&top.minor))))
    }
    /// Targets of living pods that were without a mount at some moment.
    pub(crate) fn uncovered(&self) -> Vec<PathBuf> {
        self.state.lock().unwrap().uncovered.clone()
    }
    /// File systems that nobody sees.
    pub(crate) fn detached(&self) -> usize {
        self.state.lock().unwrap().detached.len()
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
        let mut state = self.state.lock().unwrap();
        change(&mut state);
        let covered = |path: &PathBuf| {
            super::mountinfo::at(&state.mounts, path).is_some_and(|top| top.fs_type == FS_TYPE)
        };
        let bare: Vec<PathBuf> = state
            .published
            .iter()
            .filter(|path| !covered(path))
            .cloned()
            .collect();
        state.uncovered.extend(bare);
        drop(state);
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
        let mut entry = self.entry(at, fs_type);
        let minor = entry.minor;
        self.change(|state| {
            entry.parent = super::mountinfo::at(&state.mounts, at).map_or(0, |top| top.id);
            state.mounts.push(entry);
        });
        minor
    }

    /// Binds a mount where nothing is.
    pub(crate) fn bind_to(&self, source: &Entry, target: &Path) {
        let to = Place {
            at: target.to_owned(),
            over: None,
            seen: true,
        };
        self.bind(source, &to, false).unwrap();
    }

    /// As [`super::placing::put`] does it.
    fn put(&self, mut entry: Entry, to: &Place) -> io::Result<()> {
        self.wait_while(|state| state.hold_appearing);
        let mut expected = true;
        self.change(|state| {
            let top = super::mountinfo::at(&state.mounts, &to.at).cloned();
            expected = top.as_ref().map(|top| top.id) == to.over.as_ref().map(|over| over.id);
            if !expected {
                return;
            }
            entry.at.clone_from(&to.at);
            entry.parent = top.as_ref().map_or(0, |top| top.id);
            if let Some(top) = top.filter(|_| !state.covers) {
                entry.parent = top.parent;
                state.mounts.retain(|mount| mount.id != top.id);
            }
            state.mounts.push(entry);
        });
        match expected {
            true => Ok(()),
            false => Err(io::Error::other("another mount has come or gone there meanwhile")),
        }
    }

    fn entry(&self, at: &Path, fs_type: &str) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 100;
        Entry {
            id: number,
            parent: 0,
            group: None,
            major: 0,
            minor: number,
            root: "/".into(),
            at: at.to_owned(),
            options: "rw".into(),
            fs_type: fs_type.into(),
            source: "fake".into(),
            super_options: "rw".into(),
        }
    }

    /// Blocks while hung, and tells what a call gets then.
    fn reach(&self, minor: u32) -> io::Result<()> {
        let ended = |state: &State| state.dead.contains(&minor) || state.aborted.contains(&minor);
        if ended(&self.state.lock().unwrap()) {
            return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        }
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
            .or_else(|| super::mountinfo::at(&state.detached, at))
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Mounter for FakeKernel {
    fn table(&self) -> io::Result<Vec<Entry>> {
        let state = self.state.lock().unwrap();
        match state.refuse_table {
            true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            false => Ok(state.mounts.clone()),
        }
    }
    fn serve(&self, config: VolumeConfig, _: &Resources) -> io::Result<(Box<dyn Serving>, Detached)> {
        if self.state.lock().unwrap().refuse_mount {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let mut entry = self.entry(Path::new(""), FS_TYPE);
        entry.source.clone_from(&config.name);
        entry.super_options = if config.read_only { "ro" } else { "rw" }.into();
        let connection = entry.minor;
        let at = Path::new("/detached").join(connection.to_string());
        entry.at = at.clone();
        self.change(|state| {
            state.detached.push(entry);
            if std::mem::take(&mut state.hold_next_mount) {
                state.held.push(connection);
            }
        });
        let kernel = self.own.upgrade().unwrap();
        let kept = Box::new(FakeTree {
            kernel: kernel.clone(),
            connection,
        });
        self.wait_while(|state| state.held.contains(&connection));
        let serving = FakeServing {
            kernel,
            connection,
            ended: CancellationToken::new(),
        };
        let detached = Detached { connection, at, kept };
        Ok((Box::new(serving), detached))
    }
    fn attach(&self, mount: &Detached, to: &Place) -> io::Result<()> {
        if self.state.lock().unwrap().refuse_attach {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut entry = self.top(&mount.at)?;
        entry.id = self.next.fetch_add(1, Ordering::Relaxed) + 100;
        self.put(entry, to)?;
        let mut fails = false;
        self.change(|state| {
            state.detached.retain(|entry| entry.minor != mount.connection);
            fails = std::mem::take(&mut state.appear_and_fail);
        });
        match fails {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
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
    fn bind(&self, source: &Entry, to: &Place, read_only: bool) -> io::Result<()> {
        let mut mount = self.top(&source.at)?;
        let mut missed = mount.minor != source.minor;
        let mut fails = None;
        self.change(|state| {
            missed |= std::mem::take(&mut state.bind_misses);
            fails = state.bind_fails.take();
        });
        if let Some(errno) = fails {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if missed {
            return Err(io::Error::other("the volume was not there any more"));
        }
        if self.state.lock().unwrap().for_good.contains(&to.at) {
            return Err(super::placing::for_good());
        }
        mount.id = self.next.fetch_add(1, Ordering::Relaxed) + 100;
        mount.options = if read_only { "ro" } else { "rw" }.into();
        self.put(mount, to)
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
        let mut gone = None;
        self.change(|state| {
            let top = super::mountinfo::at(&state.mounts, at).map(|top| top.id);
            let index = state.mounts.iter().position(|mount| Some(mount.id) == top);
            gone = index.map(|index| state.mounts.remove(index));
        });
        gone.map(drop)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
    fn abort(&self, connection: u32) -> io::Result<()> {
        if self.state.lock().unwrap().refuse_abort {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.change(|state| {
            state.aborted.push(connection);
            state.ends.push(("abort", connection));
        });
        Ok(())
    }
}
