//! The tree of one volume: what its parts share, and its beginning and end.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::attrs::{Attrs, Defaults, Kind};
use super::handles::Handles;
use super::hidden::HiddenBlobs;
use super::node::{Marker, Node, NodeId, Stat, State};
use super::rights::Lacking;
use super::table::guard::SharedTable;
use super::table::{Table, Timeouts};
use super::unstored::Owed;
use crate::budget::Share;
use crate::caller::Clock;
use crate::config::VolumeConfig;
use crate::content::Env;
use crate::errno::{Result, because, fail};
use crate::journal::log::Log;
use crate::journal::record::Record;
use crate::log_limit::limited;
use crate::sync::Mutex;

/// Called with a node whose attributes the kernel should ask for again.
type Invalidate = Box<dyn Fn(NodeId) + Send + Sync>;
/// Called with a file and a range whose pages the kernel should drop. May wait for whoever reads there.
type DropPages = Arc<dyn Fn(NodeId, u64, u64) + Send + Sync>;
/// Called with a directory and a name in it that the kernel should forget. May wait for whoever works in the
/// directory.
type Expire = Arc<dyn Fn(NodeId, &str) + Send + Sync>;

/// Between two tries to make metadata smaller, when the last one had an effect and when it had none.
const SHED_AGAIN: Duration = Duration::from_millis(100);
const SHED_LATER: Duration = Duration::from_secs(2);
/// Directories whose names the kernel is asked to forget at the same time.
const ASKED_AT_ONCE: usize = 8;
/// Directories of one volume that the kernel may be waiting for meanwhile, each on a thread.
const ASKED_AT_MOST: usize = 16;
/// The same of all volumes: threads that wait are missing elsewhere.
static ASKING: Semaphore = Semaphore::const_new(128);
/// Blobs of deleted files that are deleted at the same time at the end.
const DROPPED_AT_ONCE: usize = 16;

/// The tree of one volume.
pub(crate) struct Tree {
    pub(super) env: Env,
    pub(super) defaults: Defaults,
    pub(super) timeouts: Timeouts,
    pub(super) config: VolumeConfig,
    pub(super) table: SharedTable,
    pub(super) handles: Handles,
    pub(super) hidden: Arc<HiddenBlobs>,
    pub(super) owed: Owed,
    pub(super) journal: Arc<Log>,
    /// No policy is known that keeps what the container holds.
    pub(super) deletes: AtomicBool,
    /// Rights that the credential lacked when it was asked for last.
    pub(super) lacking: Lacking,
    pub(super) invalidate: OnceLock<Invalidate>,
    expire: OnceLock<Expire>,
    /// Directories whose names the kernel is being asked to forget.
    asking: Arc<Mutex<HashSet<NodeId>>>,
    drop_pages: OnceLock<DropPages>,
    /// The log has it that content is encoded.
    pub(super) warned_encoding: AtomicBool,
    /// Keeps metadata within its part of the budget.
    shedder: OnceLock<AbortHandle>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(shedder) = self.shedder.get() {
            shedder.abort();
        }
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("name", &self.config.name)
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// The tree of a volume. Nothing is asked of the service yet.
    pub(crate) fn new(config: VolumeConfig, env: Env, journal: Arc<Log>) -> Arc<Self> {
        let defaults = Defaults {
            uid: config.uid,
            gid: config.gid,
            file_mode: config.file_mode,
            dir_mode: config.dir_mode,
        };
        let timeouts = Timeouts {
            attr: config.attr_timeout,
            entry: config.entry_timeout,
            negative: config.negative_timeout,
        };
        let mut root = State::fresh(Attrs::default(), SystemTime::now());
        root.marker = if config.prefix.is_empty() {
            Marker::Container
        } else {
            Marker::Implicit
        };
        let charge = env.budget.charge_metadata(0);
        let table = Table::new(
            &config.name,
            root,
            config.prefix.clone(),
            timeouts,
            Arc::clone(&journal),
            charge,
        );
        let lacking = Lacking::of(config.rights);
        env.share.is_of(&config.name);
        let (store, runtime) = (Arc::clone(&env.store), env.runtime.clone());
        let hidden = HiddenBlobs::new(store, runtime, config.prefix.clone(), env.share.id());
        let tree = Arc::new(Self {
            hidden,
            owed: Owed::default(),
            env,
            defaults,
            timeouts,
            config,
            table: SharedTable::new(table),
            handles: Handles::default(),
            journal,
            deletes: AtomicBool::new(false),
            lacking,
            invalidate: OnceLock::new(),
            expire: OnceLock::new(),
            asking: Arc::default(),
            drop_pages: OnceLock::new(),
            warned_encoding: AtomicBool::new(false),
            shedder: OnceLock::new(),
        });
        let (weak, budget) = (Arc::downgrade(&tree), Arc::clone(&tree.env.budget));
        let shedder = tree.env.runtime.spawn(async move {
            loop {
                budget.crowded().await;
                let Some(tree) = weak.upgrade() else { return };
                let pause = if tree.shed().await { SHED_AGAIN } else { SHED_LATER };
                drop(tree);
                tokio::time::sleep(pause).await;
            }
        });
        let _ = tree.shedder.set(shedder.abort_handle());
        tree
    }

    /// Metadata of all mounts holds more than its part of the budget: forgets what is not in use, and asks
    /// the kernel to forget names. False when there was nothing to forget.
    async fn shed(&self) -> bool {
        let (freed, names) = {
            let excess = self.env.budget.excess();
            let mut table = self.table.lock();
            let freed = table.shed(excess);
            (freed, table.kernels(excess.saturating_sub(freed)))
        };
        let asked = names.len();
        tracing::debug!(freed, asked, "metadata is over its part of the budget");
        self.ask_to_forget(names).await;
        freed + asked > 0
    }

    /// Asks the kernel to forget names. Each directory on a thread of its own: the kernel waits for
    /// operations in it, and one that is long under way there holds up no other directory.
    pub(super) async fn ask_to_forget(&self, names: Vec<(NodeId, Arc<str>)>) {
        let Some(expire) = self.expire.get() else { return };
        let mut by_parent: HashMap<NodeId, Vec<Arc<str>>> = HashMap::new();
        for (parent, name) in names {
            by_parent.entry(parent).or_default().push(name);
        }
        let asking = stream::iter(by_parent).for_each_concurrent(ASKED_AT_ONCE, |(parent, names)| {
            let (expire, busy) = (Arc::clone(expire), Arc::clone(&self.asking));
            async move {
                let Ok(thread) = ASKING.try_acquire() else { return };
                {
                    let mut busy = busy.lock();
                    if busy.len() >= ASKED_AT_MOST || !busy.insert(parent) {
                        // Threads of an earlier time still wait, perhaps there.
                        return;
                    }
                }
                let asked = tokio::task::spawn_blocking(move || {
                    let _thread = thread;
                    for name in names {
                        expire(parent, &name);
                    }
                    busy.lock().remove(&parent);
                });
                // It may wait on; others are asked meanwhile.
                let _ = tokio::time::timeout(SHED_LATER, asked).await;
            }
        });
        asking.await;
    }

    /// How the kernel is told to forget a name.
    pub(crate) fn on_expire(&self, expire: Expire) {
        let _ = self.expire.set(expire);
    }

    /// How the kernel is told to drop pages.
    pub(crate) fn on_drop_pages(&self, drop_pages: DropPages) {
        let _ = self.drop_pages.set(drop_pages);
    }

    /// After a write past the kernel's pages (O_DIRECT): what it has read for them meanwhile is old. It drops
    /// them by itself before it asks for such a write, and after it only if it is not asynchronous.
    pub(crate) async fn drop_pages(&self, id: NodeId, offset: u64, len: u64) {
        let Some(drop_pages) = self.drop_pages.get().cloned() else {
            return;
        };
        // On a thread of its own: the kernel waits for reads under way, which are answered elsewhere.
        let dropped = tokio::task::spawn_blocking(move || drop_pages(id, offset, len));
        let _ = dropped.await;
    }

    /// How the kernel is told to ask for attributes again.
    pub(crate) fn on_invalidate(&self, invalidate: Invalidate) {
        let _ = self.invalidate.set(invalidate);
    }

    /// The volume's settings.
    pub(crate) fn config(&self) -> &VolumeConfig {
        &self.config
    }

    /// How long a caller waits for an operation.
    pub(crate) fn clock(&self) -> Clock {
        Clock::new(self.config.timeout, &self.env.progress)
    }

    /// See [`Progress::trouble`](blob_client::Progress::trouble).
    pub(crate) fn trouble(&self) -> Option<String> {
        self.env.progress.trouble()
    }

    /// Tells volumes apart, in what all of them share.
    pub(crate) fn volume(&self) -> usize {
        self.env.share.id()
    }

    /// What a node is called in the container; `None` once nothing leads to it.
    pub(crate) fn blob_of(&self, id: NodeId) -> Option<String> {
        self.table.lock().blob(id)
    }

    /// This mount's part of the memory of all.
    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.env.share
    }

    /// The journal.
    pub(crate) fn journal(&self) -> &Arc<Log> {
        &self.journal
    }

    /// Reads the root: fails when the container is not there or not accessible. What processes that died have
    /// left is deleted in the background.
    pub(crate) async fn check_root(&self) -> Result<(), blob_client::Error> {
        let left = self.hidden.list().await?;
        if !left.is_empty() && !self.config.read_only {
            let hidden = Arc::clone(&self.hidden);
            self.env.runtime.spawn(async move { hidden.collect(left).await });
        }
        self.read_root().await
    }

    /// Records the outcome of an operation that must not be carried out twice, before its reply is sent.
    pub(crate) fn record_reply(&self, unique: u64, errno: i32, node: NodeId, fh: u64) {
        if let Err(error) = self.journal.append(&[Record::Reply {
            unique,
            errno,
            node,
            fh,
        }]) {
            // Each operation that changes something would say it.
            limited!(error, self.volume(), "the journal cannot be written", %error);
        }
    }

    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.table
            .lock()
            .node(id)
            .ok_or_else(|| because(libc::ESTALE, "the node is not known any more"))
    }

    pub(super) fn writable(&self) -> Result<()> {
        if self.config.read_only {
            fail(libc::EROFS)
        } else {
            Ok(())
        }
    }

    /// Attributes of a node to show now, and for how long.
    pub(super) fn stat(&self, node: &Node) -> (Stat, Duration) {
        let subdirectories = match node.kind {
            Kind::Directory => self.table.lock().subdirectories(node.id),
            _ => 0,
        };
        let mut state = node.state();
        let left = if state.local() {
            self.timeouts.attr
        } else {
            self.timeouts.attr.saturating_sub(state.validated.elapsed())
        };
        (Stat::of(node, &mut state, subdirectories, &self.defaults), left)
    }

    /// Entries of a directory came or went by this mount.
    pub(super) fn touch(&self, directory: NodeId) {
        if let Ok(node) = self.node(directory) {
            let now = SystemTime::now();
            let mut state = node.state();
            state.entries_changed = Some(now);
            state.ctime = now;
        }
    }

    /// The session is over: everything is committed, and what the kernel did not release any more is
    /// released. However much that is, a service that answers nothing is waited for once.
    pub(crate) async fn finish(self: &Arc<Self>) -> Result<()> {
        self.owed.lock().ended = true;
        let committed = self.commit_all().await;
        let mut hidden = Vec::new();
        for fh in self.handles.all_files() {
            if let Ok(handle) = self.handle(fh) {
                // Nothing came after the commit above, and it has had its try.
                let (_, dropped) = self.close_handle(fh, &handle, Ok(()));
                hidden.extend(dropped);
            }
        }
        if !hidden.is_empty() {
            self.drop_hidden(hidden).await;
        }
        // What is under way is not lost yet.
        let _round = match self.owed.round.try_lock() {
            Ok(round) => Some(round),
            Err(_) => {
                let timeout = self.config.timeout.whole();
                tokio::time::timeout(timeout, self.owed.round.lock()).await.ok()
            }
        };
        self.discard_owed();
        self.hidden.drained().await;
        committed
    }

    /// Deletes blobs of files that were deleted while they were open.
    async fn drop_hidden(&self, hidden: Vec<String>) {
        let files = hidden.len();
        let dropping = stream::iter(hidden).for_each_concurrent(DROPPED_AT_ONCE, |blob| async move {
            self.hidden.drop_blob(&blob).await;
        });
        let dropped = tokio::time::timeout(self.config.timeout.whole(), dropping).await;
        if dropped.is_err() {
            tracing::warn!(
                volume = self.config.name,
                files,
                "files deleted while open may still be stored; a later mount deletes them"
            );
        }
    }
}
