//! A mount without a kernel: names are kept and asked for again as the kernel does, and errors that mean
//! "look again" make it look again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use super::snapshot::Shown;
use super::steps::Step;
use crate::content::At;
use crate::errno::{Errno, Result};
use crate::tree::{Kind, NodeId, Owner, Replace, SetAttr, Tree};

const ROOT: NodeId = 1;
const OWNER: Owner = Owner { uid: 0, gid: 0 };

/// A place in the tree, and what was found there.
struct Place<'p> {
    parent: NodeId,
    name: &'p OsStr,
    found: Option<(NodeId, Kind)>,
}

/// A file that is open for writing.
#[derive(Debug)]
struct Held {
    fh: u64,
    /// Where it is by now.
    path: String,
    /// What was opened or stored last, and what was made of it.
    of: String,
    content: String,
}

#[derive(Debug)]
pub(super) struct Client {
    tree: Arc<Tree>,
    /// Names the kernel would not ask for again, while its timeout is not over; empty where that is zero.
    names: HashMap<(NodeId, String), (NodeId, Kind)>,
    keeps_names: bool,
    held: Option<Held>,
    /// The operation under way has its file open: errors from here on are the program's, as they are.
    opened: bool,
}

fn fail<T>(errno: i32) -> Result<T> {
    Err(Errno(errno))
}

impl Client {
    pub(super) fn new(tree: Arc<Tree>, keeps_names: bool) -> Self {
        Self {
            tree,
            names: HashMap::new(),
            keeps_names,
            held: None,
            opened: false,
        }
    }

    /// Whether a step is for this mount as it is: what it has open, it works on through its handle.
    pub(super) fn may(&self, step: &Step) -> bool {
        let Some(held) = &self.held else {
            return !matches!(step, Step::Scribble { .. } | Step::Sync { .. });
        };
        let meets = |path: &String| {
            let above = held.path.strip_prefix(path.as_str());
            above.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match step {
            Step::Hold { .. } => false,
            Step::Write { path, .. }
            | Step::Append { path, .. }
            | Step::Cut { path, .. }
            | Step::Read { path }
            | Step::Chmod { path, .. }
            | Step::Unlink { path } => *path != held.path,
            Step::Rename { from, to, .. } => !meets(from) && !meets(to),
            _ => true,
        }
    }

    /// What a step stands for.
    pub(super) fn meaning(&self, step: Step) -> Step {
        match (&self.held, step) {
            (Some(held), Step::Sync { .. }) => Step::Store {
                path: held.path.clone(),
                of: held.of.clone(),
                content: (held.of != held.content).then(|| held.content.clone()),
            },
            (_, step) => step,
        }
    }

    pub(super) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Names are asked for each time, and none is kept for what is open.
    pub(super) fn is_strict(&self) -> bool {
        !self.keeps_names && self.held.is_none()
    }

    /// The kernel's timeouts are over.
    pub(super) fn forget_names(&mut self) {
        self.names.clear();
    }

    async fn look(&mut self, parent: NodeId, name: &str, fresh: bool) -> Result<Option<(NodeId, Kind)>> {
        let key = (parent, name.to_owned());
        if !fresh && let Some(known) = self.names.get(&key) {
            return Ok(Some(*known));
        }
        self.names.remove(&key);
        let name = OsStr::new(name);
        let entry = match self.tree.lookup_now(parent, name) {
            Some(entry) => entry?,
            None => match self.tree.lookup(parent, name).await {
                Err(Errno(libc::ENOENT)) => return Ok(None),
                entry => entry?,
            },
        };
        let found = entry.stat.map(|stat| (stat.id, stat.kind));
        if let (Some(found), true) = (found, self.keeps_names && !entry.entry_ttl.is_zero()) {
            self.names.insert(key, found);
        }
        Ok(found)
    }

    async fn walk<'p>(&mut self, path: &'p str, fresh: bool) -> Result<Place<'p>> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parent = ROOT;
        for component in above.split('/').filter(|c| !c.is_empty()) {
            match self.look(parent, component, fresh).await? {
                Some((id, Kind::Directory)) => parent = id,
                Some(_) => return fail(libc::ENOTDIR),
                None => return fail(libc::ENOENT),
            }
        }
        let found = if name.is_empty() {
            Some((ROOT, Kind::Directory))
        } else {
            self.look(parent, name, fresh).await?
        };
        let name = OsStr::new(name);
        Ok(Place { parent, name, found })
    }

    pub(super) async fn run(&mut self, step: &Step) -> Shown {
        self.opened = matches!(step, Step::Scribble { .. } | Step::Sync { .. });
        let first = self.once(step, false).await;
        match first {
            // What path_lookup does: everything is asked for again.
            Err(Errno(libc::ESTALE)) if !self.opened => self.once(step, true).await.map_err(|e| e.0),
            other => other.map_err(|e| e.0),
        }
    }

    async fn once(&mut self, step: &Step, fresh: bool) -> Result<String> {
        match step {
            Step::Write { path, content, new } => self.write(path, content, *new, fresh).await,
            Step::Append { path, content } => {
                let fh = self.open(path, libc::O_WRONLY | libc::O_APPEND, fresh).await?;
                self.finish(fh, At::End, content).await
            }
            Step::Cut { path, size } => {
                let id = self.file(path, fresh).await?;
                let size = Some(*size as u64);
                self.tree
                    .setattr(
                        id,
                        SetAttr {
                            size,
                            ..SetAttr::default()
                        },
                    )
                    .await?;
                Ok(String::new())
            }
            Step::Read { path } => {
                let fh = self.open(path, libc::O_RDONLY, fresh).await?;
                let handle = self.tree.handle(fh)?;
                let read = self.tree.read(&handle, 0, 1 << 16).await;
                drop(handle);
                self.tree.release(fh).await?;
                Ok(String::from_utf8_lossy(&read?).into_owned())
            }
            Step::List { path } => self.list(path, fresh).await,
            Step::Chmod { path, mode } => {
                let (id, _) = self.walk(path, fresh).await?.found.ok_or(Errno(libc::ENOENT))?;
                let mode = Some(*mode);
                self.tree
                    .setattr(
                        id,
                        SetAttr {
                            mode,
                            ..SetAttr::default()
                        },
                    )
                    .await?;
                Ok(String::new())
            }
            Step::Mkdir { path } => {
                let place = self.walk(path, fresh).await?;
                if place.found.is_some() {
                    return fail(libc::EEXIST);
                }
                let entry = self.tree.mkdir(place.parent, place.name, 0o755, OWNER).await?;
                self.keep(&place, entry.stat.map(|stat| (stat.id, stat.kind)));
                Ok(String::new())
            }
            Step::Rmdir { path } => {
                let place = self.walk(path, fresh).await?;
                match place.found {
                    Some((_, Kind::Directory)) => {}
                    Some(_) => return fail(libc::ENOTDIR),
                    None => return fail(libc::ENOENT),
                }
                self.tree.rmdir(place.parent, place.name).await?;
                self.keep(&place, None);
                Ok(String::new())
            }
            Step::Unlink { path } => {
                let place = self.walk(path, fresh).await?;
                match place.found {
                    Some((_, Kind::Directory)) => return fail(libc::EISDIR),
                    Some(_) => {}
                    None => return fail(libc::ENOENT),
                }
                self.tree.unlink(place.parent, place.name).await?;
                self.keep(&place, None);
                Ok(String::new())
            }
            Step::Rename { from, to, replace } => self.rename(from, to, *replace, fresh).await,
            Step::Hold { path } => self.hold(path, fresh).await,
            Step::Scribble { content } => self.scribble(content).await,
            Step::Sync { close } => self.store(*close).await,
            Step::Store { .. }
            | Step::ForeignPut { .. }
            | Step::ForeignDelete { .. }
            | Step::ForeignTag { .. } => fail(libc::EINVAL),
        }
    }

    async fn hold(&mut self, path: &str, fresh: bool) -> Result<String> {
        let fh = self.open(path, libc::O_RDWR, fresh).await?;
        let handle = self.tree.handle(fh)?;
        let read = self.tree.read(&handle, 0, 1 << 16).await;
        drop(handle);
        match read {
            Ok(read) => {
                let of = String::from_utf8_lossy(&read).into_owned();
                let (path, content) = (path.to_owned(), of.clone());
                self.held = Some(Held {
                    fh,
                    path,
                    of,
                    content,
                });
                let shown = self.held.as_ref().map(|held| held.of.clone());
                Ok(shown.unwrap_or_default())
            }
            Err(error) => {
                self.tree.release(fh).await?;
                Err(error)
            }
        }
    }

    async fn scribble(&mut self, content: &str) -> Result<String> {
        let Some(held) = &mut self.held else {
            return fail(libc::EBADF);
        };
        let handle = self.tree.handle(held.fh)?;
        let at = At::Offset(held.content.len() as u64);
        self.tree.write(&handle, at, content.as_bytes(), false).await?;
        held.content.push_str(content);
        Ok(String::new())
    }

    /// Closes what is open, whatever comes of it.
    pub(super) async fn close(&mut self) {
        let _ = self.store(true).await;
    }

    /// fsync, or close; who is told that it failed closes.
    async fn store(&mut self, close: bool) -> Result<String> {
        let Some(mut held) = self.held.take() else {
            return fail(libc::EBADF);
        };
        let stored = if close {
            self.tree.flush(held.fh).await
        } else {
            self.tree.fsync(held.fh).await
        };
        if close || stored.is_err() {
            let released = self.tree.release(held.fh).await;
            return stored.and(released).map(|()| String::new());
        }
        held.of.clone_from(&held.content);
        self.held = Some(held);
        Ok(String::new())
    }

    fn keep(&mut self, place: &Place<'_>, now: Option<(NodeId, Kind)>) {
        let key = (place.parent, place.name.to_string_lossy().into_owned());
        self.names.remove(&key);
        if let (Some(now), true) = (now, self.keeps_names) {
            self.names.insert(key, now);
        }
    }

    async fn file(&mut self, path: &str, fresh: bool) -> Result<NodeId> {
        match self.walk(path, fresh).await?.found {
            Some((_, Kind::Directory)) => fail(libc::EISDIR),
            Some((id, _)) => Ok(id),
            None => fail(libc::ENOENT),
        }
    }

    async fn open(&mut self, path: &str, flags: i32, fresh: bool) -> Result<u64> {
        let id = self.file(path, fresh).await?;
        let fh = self.tree.open(id, flags, 0).await?.fh;
        self.opened = true;
        Ok(fh)
    }

    /// Writes through a handle and closes it, as a program does that looks at each answer.
    async fn finish(&mut self, fh: u64, at: At, content: &str) -> Result<String> {
        self.opened = true;
        let handle = self.tree.handle(fh)?;
        let written = self.tree.write(&handle, at, content.as_bytes(), false).await;
        drop(handle);
        let flushed = self.tree.flush(fh).await;
        let released = self.tree.release(fh).await;
        written.and(flushed).and(released).map(|()| String::new())
    }

    async fn write(&mut self, path: &str, content: &str, new: bool, fresh: bool) -> Result<String> {
        let place = self.walk(path, fresh).await?;
        let fh = match place.found {
            Some(_) if new => return fail(libc::EEXIST),
            Some((_, Kind::Directory)) => return fail(libc::EISDIR),
            Some((id, _)) => {
                // The kernel opens, then cuts.
                let fh = self.tree.open(id, libc::O_WRONLY, 0).await?.fh;
                let cut = SetAttr {
                    size: Some(0),
                    fh: Some(fh),
                    ..SetAttr::default()
                };
                if let Err(error) = self.tree.setattr(id, cut).await {
                    let _ = self.tree.flush(fh).await;
                    let _ = self.tree.release(fh).await;
                    return Err(error);
                }
                fh
            }
            None => {
                let exclusive = if new { libc::O_EXCL } else { 0 };
                let flags = libc::O_WRONLY | libc::O_CREAT | exclusive;
                let (entry, opened) = self
                    .tree
                    .create(place.parent, place.name, 0o644, flags, OWNER)
                    .await?;
                self.keep(&place, entry.stat.map(|stat| (stat.id, stat.kind)));
                opened.fh
            }
        };
        self.finish(fh, At::Offset(0), content).await
    }

    async fn list(&mut self, path: &str, fresh: bool) -> Result<String> {
        let id = match self.walk(path, fresh).await?.found {
            Some((id, Kind::Directory)) => id,
            Some(_) => return fail(libc::ENOTDIR),
            None => return fail(libc::ENOENT),
        };
        let fh = self.tree.opendir(id)?;
        let mut names = Vec::new();
        let mut offset = 0;
        let read = loop {
            match self.tree.readdir(fh, offset).await {
                Ok(batch) => match batch.last() {
                    Some(last) => {
                        offset = last.next;
                        let named = batch.iter().filter(|e| !matches!(&*e.name, "." | ".."));
                        names.extend(named.map(|e| match path {
                            "" => e.name.to_string(),
                            path => format!("{path}/{}", e.name),
                        }));
                    }
                    None => break Ok(()),
                },
                Err(error) => break Err(error),
            }
        };
        self.tree.releasedir(fh);
        read?;
        names.sort();
        Ok(names.join(","))
    }

    async fn rename(&mut self, from: &str, to: &str, replace: bool, fresh: bool) -> Result<String> {
        let source = self.walk(from, fresh).await?;
        let target = self.walk(to, fresh).await?;
        let Some((id, kind)) = source.found else {
            return fail(libc::ENOENT);
        };
        if to.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
            return fail(libc::EINVAL);
        }
        match target.found {
            Some(_) if !replace => return fail(libc::EEXIST),
            Some((over, _)) if over == id => return Ok(String::new()),
            Some(_) if from.strip_prefix(to).is_some_and(|rest| rest.starts_with('/')) => {
                return fail(libc::ENOTEMPTY);
            }
            Some((_, Kind::Directory)) if kind != Kind::Directory => return fail(libc::EISDIR),
            Some((_, over)) if kind == Kind::Directory && over != kind => return fail(libc::ENOTDIR),
            _ => {}
        }
        let how = if replace { Replace::Yes } else { Replace::No };
        self.tree
            .rename(source.parent, source.name, target.parent, target.name, how)
            .await?;
        self.keep(&source, None);
        self.keep(&target, Some((id, kind)));
        Ok(String::new())
    }
}
