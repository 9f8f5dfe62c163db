//! Threads that use one tree, as a kernel lets them: what changes the names of a directory has it to itself,
//! everything else comes at the same time.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::RwLock;

use super::{SCHEDULES, World, in_schedules, together};
use crate::config::VolumeConfig;
use crate::content::{At, Tuning};
use crate::errno::{Errno, Result};
use crate::journal::log::Log;
use crate::tree::{NodeId, Owner, Replace, SetAttr, Tree};

const ROOT: NodeId = 1;
const OWNER: Owner = Owner { uid: 0, gid: 0 };
/// Longer than any run.
const NEVER: Duration = Duration::from_secs(24 * 3600);

struct Kernel {
    tree: Arc<Tree>,
    world: World,
    directories: std::sync::Mutex<HashMap<NodeId, Arc<RwLock<()>>>>,
}

impl Kernel {
    /// `patient`: what the service said is believed.
    fn new(patient: bool) -> Arc<Self> {
        let world = World::new(Tuning::default());
        let mut config = VolumeConfig::new("schedules", Arc::clone(&world.env.store));
        let timeout = if patient { NEVER } else { Duration::ZERO };
        (config.attr_timeout, config.entry_timeout) = (timeout, timeout);
        let tree = Tree::new(config, world.env.clone(), Arc::new(Log::create().unwrap()));
        Arc::new(Self {
            tree,
            world,
            directories: std::sync::Mutex::default(),
        })
    }

    fn directory(&self, id: NodeId) -> Arc<RwLock<()>> {
        Arc::clone(self.directories.lock().unwrap().entry(id).or_default())
    }

    /// One reference more.
    async fn lookup(&self, parent: NodeId, name: &str) -> Result<Option<NodeId>> {
        let directory = self.directory(parent);
        let _shared = directory.read().await;
        match self.tree.lookup(parent, OsStr::new(name)).await {
            Ok(entry) => Ok(entry.stat.map(|stat| stat.id)),
            Err(Errno(libc::ENOENT)) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// One reference more, and a handle.
    async fn create(&self, parent: NodeId, name: &str) -> Result<(NodeId, u64)> {
        let directory = self.directory(parent);
        let _alone = directory.write().await;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
        let name = OsStr::new(name);
        let (entry, opened) = self.tree.create(parent, name, 0o644, flags, OWNER).await?;
        Ok((entry.stat.unwrap().id, opened.fh))
    }

    async fn mkdir(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        let directory = self.directory(parent);
        let _alone = directory.write().await;
        let entry = self.tree.mkdir(parent, OsStr::new(name), 0o755, OWNER).await?;
        Ok(entry.stat.unwrap().id)
    }

    async fn unlink(&self, parent: NodeId, name: &str) -> Result<()> {
        let directory = self.directory(parent);
        let _alone = directory.write().await;
        self.tree.unlink(parent, OsStr::new(name)).await
    }

    /// Within one directory.
    async fn rename(&self, parent: NodeId, from: &str, to: &str) -> Result<()> {
        let directory = self.directory(parent);
        let _alone = directory.write().await;
        let (from, to) = (OsStr::new(from), OsStr::new(to));
        self.tree.rename(parent, from, parent, to, Replace::Yes).await
    }

    async fn append(&self, id: NodeId, text: &str) -> Result<()> {
        let flags = libc::O_WRONLY | libc::O_APPEND;
        let fh = self.tree.open(id, flags, 0).await?.fh;
        self.finish(fh, text).await
    }

    async fn finish(&self, fh: u64, text: &str) -> Result<()> {
        let handle = self.tree.handle(fh)?;
        let written = self.tree.write(&handle, At::End, text.as_bytes(), false).await;
        drop(handle);
        let flushed = self.tree.flush(fh).await;
        // What close(2) said is said; the kernel releases later, and tells nobody.
        let _ = self.tree.release(fh).await;
        written.and(flushed)
    }

    async fn set(&self, id: NodeId, set: SetAttr) -> Result<()> {
        self.tree.setattr(id, set).await.map(drop)
    }

    /// The mount ends. What nobody refers to, and has no name, is not kept.
    fn end(&self) {
        shuttle::future::block_on(self.tree.finish()).unwrap();
        self.tree.assert_at_rest();
    }

    fn names(&self) -> BTreeSet<String> {
        self.world.store.names().into_iter().collect()
    }
}

/// What a thread does.
fn job<F>(kernel: &Arc<Kernel>, work: impl FnOnce(Arc<Kernel>) -> F) -> BoxFuture<'static, ()>
where
    F: Future<Output = ()> + Send + 'static,
{
    Box::pin(work(Arc::clone(kernel)))
}

fn in_all_schedules(scenario: impl Fn(Arc<Kernel>) + Send + Sync + Clone + 'static) {
    for patient in [true, false] {
        let scenario = scenario.clone();
        in_schedules(SCHEDULES / 2, move || scenario(Kernel::new(patient)));
    }
}

#[test]
fn appenders_beside_a_rename_lose_nothing() {
    in_all_schedules(|kernel| {
        let made = job(&kernel, |kernel| async move {
            let (id, fh) = kernel.create(ROOT, "f").await.unwrap();
            kernel.finish(fh, "<0>").await.unwrap();
            kernel.tree.forget(id, 1);
        });
        together(vec![made]);
        let append = |text: &'static str| {
            job(&kernel, move |kernel| async move {
                // It has one of the two names at each moment.
                let id = 'found: loop {
                    for name in ["f", "g"] {
                        if let Some(id) = kernel.lookup(ROOT, name).await.unwrap() {
                            break 'found id;
                        }
                    }
                };
                kernel.append(id, text).await.unwrap();
                kernel.tree.forget(id, 1);
            })
        };
        let moves = job(&kernel, |kernel| async move {
            kernel.rename(ROOT, "f", "g").await.unwrap();
        });
        together(vec![append("<1>"), append("<2>"), moves]);
        kernel.end();
        assert_eq!(kernel.names(), BTreeSet::from(["g".to_owned()]));
        let content = kernel.world.content("g").unwrap();
        let whole = ["<0><1><2>", "<0><2><1>"].contains(&&*content);
        assert!(whole, "{content}");
    });
}

#[test]
fn a_name_that_comes_and_goes_leaves_nothing() {
    in_all_schedules(|kernel| {
        let makes = job(&kernel, |kernel| async move {
            for text in ["<1>", "<2>"] {
                let (id, fh) = kernel.create(ROOT, "f").await.unwrap();
                kernel.finish(fh, text).await.unwrap();
                kernel.tree.forget(id, 1);
            }
        });
        let removes = job(&kernel, |kernel| async move {
            for _ in 0..2 {
                match kernel.unlink(ROOT, "f").await {
                    Ok(()) | Err(Errno(libc::ENOENT)) => {}
                    Err(errno) => panic!("{errno:?}"),
                }
            }
        });
        let looks = job(&kernel, |kernel| async move {
            for _ in 0..3 {
                if let Some(id) = kernel.lookup(ROOT, "f").await.unwrap() {
                    let _ = kernel.tree.getattr(id).await;
                    kernel.tree.forget(id, 1);
                }
            }
        });
        together(vec![makes, removes, looks]);
        let known = shuttle::future::block_on(kernel.lookup(ROOT, "f")).unwrap();
        if let Some(id) = known {
            kernel.tree.forget(id, 1);
        }
        kernel.end();
        let content = kernel.world.content("f");
        assert_eq!(known.is_some(), content.is_some());
        let possible = [None, Some("<2>"), Some("<1><2>")];
        assert!(possible.contains(&content.as_deref()), "{content:?}");
    });
}

#[test]
fn a_cut_and_a_mode_beside_a_close_are_kept() {
    in_all_schedules(|kernel| {
        let made = job(&kernel, |kernel| async move {
            let (_, fh) = kernel.create(ROOT, "f").await.unwrap();
            kernel.finish(fh, "<0>").await.unwrap();
        });
        together(vec![made]);
        let id = shuttle::future::block_on(kernel.lookup(ROOT, "f"))
            .unwrap()
            .unwrap();
        let appends = job(&kernel, move |kernel| async move {
            kernel.append(id, "<1>").await.unwrap();
        });
        let cuts = job(&kernel, move |kernel| async move {
            let size = Some(1);
            kernel
                .set(
                    id,
                    SetAttr {
                        size,
                        ..SetAttr::default()
                    },
                )
                .await
                .unwrap();
        });
        let protects = job(&kernel, move |kernel| async move {
            let mode = Some(0o600);
            kernel
                .set(
                    id,
                    SetAttr {
                        mode,
                        ..SetAttr::default()
                    },
                )
                .await
                .unwrap();
        });
        together(vec![appends, cuts, protects]);
        kernel.end();
        let content = kernel.world.content("f").unwrap();
        assert!(["<", "<<1>"].contains(&&*content), "{content}");
        let metadata = kernel.world.store.properties("f").unwrap().metadata;
        assert_eq!(
            metadata.get("vsc_mode").map(String::as_str),
            Some("600"),
            "{metadata:?}"
        );
    });
}

#[test]
fn what_is_made_in_a_directory_that_moves_goes_along() {
    in_all_schedules(|kernel| {
        let directory = shuttle::future::block_on(kernel.mkdir(ROOT, "d")).unwrap();
        let makes = |name: &'static str| {
            job(&kernel, move |kernel| async move {
                let (id, fh) = kernel.create(directory, name).await.unwrap();
                kernel.finish(fh, name).await.unwrap();
                kernel.tree.forget(id, 1);
            })
        };
        let moves = job(&kernel, |kernel| async move {
            kernel.rename(ROOT, "d", "e").await.unwrap();
        });
        together(vec![makes("f"), makes("g"), moves]);
        kernel.end();
        let wanted = ["e", "e/f", "e/g"].map(str::to_owned);
        assert_eq!(kernel.names(), BTreeSet::from(wanted));
        for name in ["f", "g"] {
            assert_eq!(kernel.world.content(&format!("e/{name}")).as_deref(), Some(name));
        }
    });
}

/// An open file is unlinked while others write to it and close it.
#[test]
fn what_is_unlinked_while_it_is_open_is_gone_after_its_last_close() {
    in_all_schedules(|kernel| {
        let (id, fh) = shuttle::future::block_on(kernel.create(ROOT, "f")).unwrap();
        let closes = job(&kernel, move |kernel| async move {
            kernel.finish(fh, "<0>").await.unwrap();
            kernel.tree.forget(id, 1);
        });
        let appends = job(&kernel, |kernel| async move {
            let Some(id) = kernel.lookup(ROOT, "f").await.unwrap() else {
                return;
            };
            match kernel.append(id, "<1>").await {
                Ok(()) | Err(Errno(libc::ENOENT | libc::ESTALE)) => {}
                Err(errno) => panic!("{errno:?}"),
            }
            kernel.tree.forget(id, 1);
        });
        let removes = job(&kernel, |kernel| async move {
            kernel.unlink(ROOT, "f").await.unwrap();
        });
        together(vec![closes, appends, removes]);
        kernel.end();
        assert_eq!(kernel.names(), BTreeSet::new());
    });
}
