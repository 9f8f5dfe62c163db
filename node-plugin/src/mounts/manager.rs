//! The mounts of this process, by their paths: how one is made, and what is asked of all of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blob_fs::{Held, Owing, Resources, VolumeConfig};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::calls::{Calls, Patience};
use super::heal::Healing;
use super::holdings::{CountInterval, Counted, Counter, Turns};
use super::mount::{Credentials, Mount, Session, State, prune};
use super::mounter::{Detached, Mounter, Usage};
use super::mountinfo::{self, Entry};
use super::observers::Observers;
use super::record::{Folder, Record, this_boot};
use crate::error::{Error, Reason, Result};

/// All mounts of a node plugin.
#[derive(Debug)]
pub struct Mounts {
    pub(super) calls: Calls,
    resources: Resources,
    folder: Folder,
    /// By the path where the file system is mounted: staging path, or target path of an inline volume.
    all: Mutex<BTreeMap<PathBuf, Mount>>,
    /// Told when a call has ended.
    pub(super) left: Notify,
    /// No call begins any more.
    pub(super) closed: AtomicBool,
    /// When the process ends, once that is known.
    pub(super) end_by: watch::Sender<Option<Instant>>,
    healing: Healing,
    /// File systems that may be served at a time.
    limit: usize,
    /// Whose turn it is to be counted.
    turns: Turns,
    /// Who is told of what each volume does and asks for.
    observers: Option<Arc<dyn Observers>>,
}

impl Mounts {
    /// Mounts with their records in `state`.
    pub fn new(
        mounter: Arc<dyn Mounter>,
        resources: Resources,
        state: &Path,
        patience: Patience,
    ) -> io::Result<Self> {
        let (folder, found) = Folder::open(state)?;
        let known = found.into_iter();
        let all = known.map(|stored| (stored.record.path.clone(), Mount::of_record(stored)));
        Ok(Self {
            calls: Calls::new(mounter, patience),
            healing: Healing::default(),
            limit: resources.budget.mounts(),
            resources,
            folder,
            all: Mutex::new(all.collect()),
            left: Notify::new(),
            closed: AtomicBool::new(false),
            end_by: watch::channel(None).0,
            turns: Turns::new(CountInterval::default()),
            observers: None,
        })
    }

    /// What is remembered of the mount at a path.
    pub fn record(&self, path: &Path) -> Option<Record> {
        let all = self.lock();
        Some(all.get(path)?.record.as_ref()?.record.clone())
    }

    /// What is remembered of all of them.
    pub fn records(&self) -> Vec<Record> {
        let all = self.lock();
        let records = all.values().filter_map(|mount| mount.record.as_ref());
        records.map(|stored| stored.record.clone()).collect()
    }

    /// Can a record be written? For Probe.
    pub fn check_folder(&self) -> io::Result<()> {
        self.folder.check()
    }

    /// Remembers a mount, replacing what was remembered of its path.
    pub(crate) fn remember(&self, record: Record) -> Result<()> {
        let _changing = self.folder.changing();
        self.write(record)
    }

    /// Changes what is remembered of a mount, if anything is.
    pub(super) fn change_record(&self, path: &Path, change: impl FnOnce(&mut Record)) -> Result<()> {
        let _changing = self.folder.changing();
        let Some(mut record) = self.record(path) else {
            return Ok(());
        };
        change(&mut record);
        self.write(record)
    }

    /// The lock of the map is not held meanwhile: a disk may be slow.
    fn write(&self, record: Record) -> Result<()> {
        let path = record.path.clone();
        let file = {
            let all = self.lock();
            all.get(&path)
                .and_then(|mount| mount.record.as_ref())
                .map(|stored| stored.file.clone())
        };
        let stored = self.folder.write(file, record);
        let stored = stored.map_err(|error| {
            Error::new(Reason::NodeError, format!("state of {}: {error}", path.display()))
        })?;
        let mut all = self.lock();
        match all.get_mut(&path) {
            Some(mount) => mount.record = Some(stored),
            None => drop(all.insert(path, Mount::of_record(stored))),
        }
        Ok(())
    }

    /// Forgets what was mounted at a path.
    pub(super) fn forget(&self, path: &Path) -> Result<()> {
        let _changing = self.folder.changing();
        let file = {
            let all = self.lock();
            all.get(path)
                .and_then(|mount| mount.record.as_ref())
                .map(|stored| stored.file.clone())
        };
        if let Some(file) = file {
            self.folder.remove(&file).map_err(|e| node_error(path, &e))?;
        }
        let mut all = self.lock();
        if let Some(mount) = all.get_mut(path) {
            mount.record = None;
            mount.credentials = Credentials::default();
        }
        prune(&mut all);
        drop(all);
        self.healing.forget(path);
        Ok(())
    }

    /// The same with another limit than what the budget serves.
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// The same, with another interval between two counts of a volume.
    pub fn with_counts(self, interval: CountInterval) -> Self {
        Self {
            turns: Turns::new(interval),
            ..self
        }
    }

    /// The same, with somebody who is told of what volumes do and ask for.
    pub fn with_observers(self, observers: Arc<dyn Observers>) -> Self {
        Self {
            observers: Some(observers),
            ..self
        }
    }

    /// File systems that may be served at a time.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether one more file system may be served. Asked before a volume's container is: calls that come at
    /// the same moment may go past the limit by a few, which the budget bears.
    ///
    /// # Errors
    /// `TooManyVolumes`.
    pub fn room(&self) -> Result<()> {
        let served = self.served();
        if served < self.limit {
            return Ok(());
        }
        Err(Error::new(
            Reason::TooManyVolumes,
            format!(
                "--max-volumes: this node serves {served} volumes, and its budget of {} MiB is for {}",
                self.resources.budget.total() >> 20,
                self.limit
            ),
        ))
    }

    /// How often dead mounts were made anew.
    pub fn healing(&self) -> &Healing {
        &self.healing
    }

    /// File systems that this process serves now.
    pub fn served(&self) -> usize {
        let all = self.lock();
        let sessions = all.values().filter_map(Mount::session);
        sessions.filter(|session| session.serving.is_serving()).count()
    }

    /// Forgets volumes of which nothing is mounted any more (the machine was restarted). Dead mounts are
    /// remembered: the next stage of their volume takes them down. And so are those that a process has
    /// unmounted at its end: kubelet does not stage them again.
    pub async fn forget_gone(&self) -> Result<()> {
        let (table, boot) = (self.calls.table().await?, this_boot());
        for record in self.records() {
            let mut places = std::iter::once(&record.path).chain(record.targets.keys());
            let mounted = places.any(|path| mountinfo::at(&table, path).is_some_and(Entry::is_ours));
            match (mounted, &record.set_aside) {
                (true, None) => {}
                // The process was killed before it had unmounted it.
                (true, Some(_)) => self.note_mounted(&record.path),
                (false, Some(then)) if boot.as_ref() == Some(then) => {}
                (false, _) => {
                    tracing::info!(
                        volume_id = record.volume_id, path = %record.path.display(),
                        "no longer mounted"
                    );
                    self.forget(&record.path)?;
                }
            }
        }
        Ok(())
    }

    /// Forgets a volume that a former process has unmounted: kubelet does not take it for staged any more.
    pub fn forget_set_aside(&self, path: &Path) -> Result<()> {
        match self.record(path).is_some_and(|record| record.set_aside.is_some()) {
            true => self.forget(path),
            false => Ok(()),
        }
    }

    /// Mounts and serves a volume at an existing directory, and remembers it. It is made where nobody sees it
    /// and has answered before it appears, over what was mounted there: at no moment is the directory below
    /// to be seen, and after an error all is as it was.
    pub async fn start(&self, record: Record, config: VolumeConfig, credentials: Credentials) -> Result<()> {
        self.start_as(record, config, credentials, false).await
    }

    /// The same for what no call has asked for: nothing appears any more when the process is about to end,
    /// because it would have to be taken down again.
    ///
    /// # Errors
    /// `OperationPending` then, too.
    pub async fn start_anew(
        &self,
        record: Record,
        config: VolumeConfig,
        credentials: Credentials,
    ) -> Result<()> {
        self.start_as(record, config, credentials, true).await
    }

    async fn start_as(
        &self,
        record: Record,
        config: VolumeConfig,
        credentials: Credentials,
        anew: bool,
    ) -> Result<()> {
        let path = record.path.clone();
        self.check_late(&path)?;
        // A session whose mount has died or was taken away from outside has accepted changes as well.
        self.drain(&path)?;
        match self.committed(&path).await {
            Err(error) if error.reason == Reason::CommitPending => return Err(error),
            // Told now, because the call that waited for it has gone.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "changes of the former mount are lost")
            }
            Ok(()) => {}
        }
        self.set_state(&path, State::Starting);
        let started = self.appear(record, config, credentials, anew).await;
        if started.is_err() {
            let mut all = self.lock();
            match all.get_mut(&path) {
                // It may have taken something.
                Some(mount) if matches!(mount.state, State::Ending(_)) => {}
                Some(mount) => mount.state = State::Dead,
                None => {}
            }
            prune(&mut all);
        }
        started
    }

    /// The steps of a start from which there is a way back.
    async fn appear(
        &self,
        record: Record,
        mut config: VolumeConfig,
        credentials: Credentials,
        anew: bool,
    ) -> Result<()> {
        let path = record.path.clone();
        let failed = |error: io::Error| {
            let text = format!("mount of {}: {error}", path.display());
            Error::new(Reason::MountFailed, text)
        };
        if let Some(observers) = &self.observers {
            let observed = observers.of_volume(&record.volume_id);
            config.observer = Some(observed.operations);
            config.store.observe(observed.requests);
        }
        let counter = Counter::new(
            Arc::clone(&config.store),
            &config.prefix,
            self.resources.runtime.clone(),
            self.turns.clone(),
        );
        // Before the new one has a number.
        let to = self.place(&path, record.inline).await?;
        let (serving, detached) = self.calls.serve(config, &self.resources).await.map_err(failed)?;
        let detached = Arc::new(detached);
        let ask = async {
            let answer = self.calls.ask(&detached.at, Arc::new(())).await;
            answer.map_err(|error| {
                let text = format!("{}: mounted, but it does not answer: {error}", path.display());
                Error::new(Reason::FileSystemSilent, text)
            })
        };
        let answer = match anew {
            true => self.unless_ending(ask).await,
            false => ask.await,
        };
        if let Err(error) = answer {
            self.discard(detached, &path).await;
            return Err(error);
        }
        // First: a mount of which nothing is remembered could not be told from somebody else's. One that was
        // set aside is so until it is there: the process may be killed in between.
        let former = self.record(&path);
        let was_set_aside = record.set_aside.is_some();
        self.remember(record)?;
        self.begin(&path, Session { serving, counter }, credentials);
        let at_work = Arc::new(());
        let late = Arc::downgrade(&at_work);
        // Kept here, too: the thread may end between its time and a look at what it has left.
        let attached = self.calls.attach(Arc::clone(&detached), to, at_work).await;
        if let Err(error) = attached {
            self.keep_while_late(&path, &error, late);
            if error.kind() == io::ErrorKind::TimedOut || self.is_seen(&path, detached.connection).await {
                self.end_unwanted(&path, &detached).await;
            }
            self.discard(detached, &path).await;
            match former {
                Some(former) => self.remember(former)?,
                None => self.forget(&path)?,
            }
            if let Some(mount) = self.lock().get_mut(&path) {
                mount.credentials = Credentials::default();
            }
            return Err(failed(error));
        }
        if was_set_aside {
            self.note_mounted(&path);
        }
        // It stays where it is; somebody may have unmounted it already, and then this may block.
        self.discard(detached, &path).await;
        Ok(())
    }

    /// Notes that a volume which was set aside is mounted. A full disk is no reason not to serve it: the next
    /// process looks what is mounted.
    fn note_mounted(&self, path: &Path) {
        if let Err(error) = self.change_record(path, |record| record.set_aside = None) {
            tracing::warn!(path = %path.display(), %error, "could not note that a volume is mounted");
        }
    }

    /// Whether a mount of a connection is at a path, also below another one; when nobody can say, it may be.
    async fn is_seen(&self, path: &Path, connection: u32) -> bool {
        let of_connection = |entry: &Entry| entry.is_ours() && entry.at == path && entry.minor == connection;
        self.calls
            .table()
            .await
            .map_or(true, |table| table.iter().any(of_connection))
    }

    /// Ends the session of a mount that has appeared after all, or may yet: what it has taken is committed,
    /// and it takes nothing more, unless it cannot be aborted. Then it goes on until it is unmounted.
    async fn end_unwanted(&self, path: &Path, detached: &Arc<Detached>) {
        if let Err(error) = self.calls.abort_kept(detached).await {
            tracing::warn!(path = %path.display(), %error, "could not abort a late mount");
        }
        if let Err(error) = self.drain(path) {
            tracing::error!(path = %path.display(), %error, "changes of a late mount are lost");
        }
    }

    async fn discard(&self, detached: Arc<Detached>, path: &Path) {
        if let Err(error) = self.calls.discard(detached).await {
            tracing::warn!(path = %path.display(), %error, "could not let go of a mount in time");
        }
    }

    fn set_state(&self, path: &Path, state: State) {
        if let Some(mount) = self.lock().get_mut(path) {
            mount.state = state;
        }
    }

    /// From here on this process serves the mount.
    fn begin(&self, path: &Path, session: Session, credentials: Credentials) {
        let mut all = self.lock();
        let mount = all.entry(path.to_owned()).or_insert_with(Mount::new);
        mount.state = State::Serving(session);
        mount.credentials = credentials;
    }

    /// Whether this process serves a file system that is mounted at a path itself.
    pub fn serves(&self, path: &Path) -> bool {
        self.lock()
            .get(path)
            .is_some_and(|mount| mount.session().is_some())
    }

    /// Space and inodes at a path.
    pub async fn usage(&self, path: &Path) -> Result<Usage> {
        let usage = self.calls.usage(path).await;
        usage.map_err(|e| node_error(path, &e))
    }

    /// What the volume mounted at `path` (its own mount, not a bind of it) holds, as far as it has been
    /// counted.
    pub async fn holdings(&self, path: &Path) -> Counted {
        let counter = {
            let all = self.lock();
            let session = all.get(path).and_then(Mount::session);
            session.map(|session| Arc::clone(&session.counter))
        };
        match counter {
            Some(counter) => counter.counted().await,
            None => Counted::NotYet,
        }
    }

    /// What closed files of the volume that is mounted at `path` itself owe the service.
    pub fn owing(&self, path: &Path) -> Owing {
        let all = self.lock();
        let session = all.get(path).and_then(Mount::session);
        session.map(|session| session.serving.owing()).unwrap_or_default()
    }

    /// The same of every volume, by the path of its own mount.
    pub fn all_owing(&self) -> Vec<(PathBuf, Owing)> {
        let all = self.lock();
        let served = all
            .iter()
            .filter_map(|(path, mount)| Some((path, mount.session()?)));
        served
            .map(|(path, session)| (path.clone(), session.serving.owing()))
            .collect()
    }

    /// The same of every mount, with the id of its volume.
    pub fn owing_by_volume(&self) -> Vec<(String, Owing)> {
        let all = self.lock();
        let served = all
            .values()
            .filter_map(|mount| Some((mount.record.as_ref()?, mount.session()?)));
        served
            .map(|(stored, session)| (stored.record.volume_id.clone(), session.serving.owing()))
            .collect()
    }

    /// What all volumes hold for the kernel and in the service.
    pub fn all_held(&self) -> Held {
        let all = self.lock();
        let sessions = all.values().filter_map(Mount::session);
        sessions
            .map(|session| session.serving.held())
            .fold(Held::default(), |sum, held| Held {
                handles: sum.handles + held.handles,
                inodes: sum.inodes + held.inodes,
                leases: sum.leases + held.leases,
            })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Mount>> {
        // Whole after a panic elsewhere: every change is one assignment, insert or remove.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn node_error(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Reason::NodeError, format!("{}: {error}", path.display()))
}

#[cfg(test)]
pub(super) mod tests;
