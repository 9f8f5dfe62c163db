//! What a container holds, as a file system shows it; and what each operation would make of it on a plain
//! file system.

use std::collections::{BTreeMap, BTreeSet};

use blob_client::Metadata;

use super::steps::Step;
use crate::store::fake::FakeStore;

/// A key of somebody else's in a blob's metadata.
pub(super) const TAG: &str = "tag";
const MODE: &str = "vsc_mode";
pub(super) const IS_FOLDER: &str = "hdi_isfolder";
const MOVED_FROM: &str = "vsc_moved_from";
/// What the names of blobs begin with that no name leads to.
const HIDDEN: &str = ".vsc-blob-hidden.";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIs {
    pub(super) content: String,
    pub(super) mode: String,
    pub(super) tag: String,
}

impl FileIs {
    pub(super) fn new(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            mode: String::new(),
            tag: String::new(),
        }
    }
}

/// Directories with a marker: their permission bits, and whether something is being moved there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DirIs {
    pub(super) mode: String,
    pub(super) half_done: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) files: BTreeMap<String, FileIs>,
    pub(super) markers: BTreeMap<String, DirIs>,
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (path, file) in &self.files {
            write!(f, "{path}={}", file.content.replace("..........", ""))?;
            if !file.mode.is_empty() || !file.tag.is_empty() {
                write!(f, "[{} {}]", file.mode, file.tag)?;
            }
            write!(f, " ")?;
        }
        for (path, marker) in &self.markers {
            let note = if marker.half_done { " half" } else { "" };
            write!(f, "{path}/[{}{note}] ", marker.mode)?;
        }
        Ok(())
    }
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub(super) fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// What an operation shows when it succeeds.
pub(super) type Shown = Result<String, i32>;

impl Snapshot {
    pub(super) fn of(store: &FakeStore) -> Self {
        let mut found = Self::default();
        for name in store.names() {
            if let Some((content, properties)) = store.content(&name).zip(store.properties(&name)) {
                found.add(name, &content, &properties.metadata);
            }
        }
        found
    }

    /// Takes up a blob.
    pub(super) fn add(&mut self, name: String, content: &[u8], metadata: &Metadata) {
        if name.starts_with(HIDDEN) {
            return;
        }
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let mode = text(MODE);
        if !text(IS_FOLDER).is_empty() {
            let half_done = !text(MOVED_FROM).is_empty();
            self.markers.insert(name, DirIs { mode, half_done });
        } else {
            let content = String::from_utf8_lossy(content).into_owned();
            let tag = text(TAG);
            self.files.insert(name, FileIs { content, mode, tag });
        }
    }

    /// All directories but the root, with a marker or by what is below.
    pub(super) fn directories(&self) -> BTreeSet<String> {
        let mut all: BTreeSet<String> = self.markers.keys().cloned().collect();
        for name in self.files.keys().chain(self.markers.keys()) {
            let mut above = parent(name);
            while !above.is_empty() {
                all.insert(above.to_owned());
                above = parent(above);
            }
        }
        all
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        path.is_empty()
            || self.markers.contains_key(path)
            || self
                .files
                .keys()
                .chain(self.markers.keys())
                .any(|name| is_below(name, path))
    }

    fn is_file(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    pub(super) fn children(&self, path: &str) -> BTreeSet<String> {
        let directories = self.directories();
        self.files
            .keys()
            .chain(directories.iter())
            .filter(|name| parent(name) == path)
            .cloned()
            .collect()
    }

    /// The directory of a path is there.
    fn reach(&self, path: &str) -> Result<(), i32> {
        let mut above = parent(path);
        let mut missing = false;
        while !above.is_empty() {
            // A file that a directory of its name hides is in nobody's way.
            if self.is_file(above) && !self.is_dir(above) {
                return Err(libc::ENOTDIR);
            }
            missing |= !self.is_dir(above);
            above = parent(above);
        }
        if missing { Err(libc::ENOENT) } else { Ok(()) }
    }

    fn file(&mut self, path: &str) -> Result<&mut FileIs, i32> {
        self.reach(path)?;
        if self.is_dir(path) {
            return Err(libc::EISDIR);
        }
        self.files.get_mut(path).ok_or(libc::ENOENT)
    }

    fn dir(&self, path: &str) -> Result<(), i32> {
        self.reach(path)?;
        match (self.is_dir(path), self.is_file(path)) {
            (true, _) => Ok(()),
            (_, true) => Err(libc::ENOTDIR),
            _ => Err(libc::ENOENT),
        }
    }

    fn put(&mut self, path: &str, content: &str) {
        match self.files.get_mut(path) {
            Some(file) => content.clone_into(&mut file.content),
            None => {
                self.files.insert(path.to_owned(), FileIs::new(content));
            }
        }
    }

    /// Does what a plain file system would, and tells what it would show.
    pub(super) fn apply(&mut self, step: &Step) -> Shown {
        let done = Ok(String::new());
        match step {
            Step::Write { path, content, new } => {
                self.reach(path)?;
                if self.is_dir(path) {
                    return Err(if *new { libc::EEXIST } else { libc::EISDIR });
                }
                if *new && self.is_file(path) {
                    return Err(libc::EEXIST);
                }
                self.put(path, content);
                done
            }
            Step::Append { path, content } => {
                let file = self.file(path)?;
                file.content.push_str(content);
                done
            }
            Step::Cut { path, size } => {
                let file = self.file(path)?;
                let mut bytes = std::mem::take(&mut file.content).into_bytes();
                bytes.resize(*size, 0);
                file.content = String::from_utf8_lossy(&bytes).into_owned();
                done
            }
            Step::Scribble { .. } | Step::Sync { .. } => done,
            Step::Store { content: None, .. } => done,
            Step::Store {
                path,
                of,
                content: Some(content),
            } => {
                // Whoever has it open needs no way to it.
                let file = self.files.get_mut(path).filter(|file| file.content == *of);
                content.clone_into(&mut file.ok_or(libc::ESTALE)?.content);
                done
            }
            Step::Read { path } | Step::Hold { path } => self.file(path).map(|file| file.content.clone()),
            Step::List { path } => {
                self.dir(path)?;
                Ok(self.children(path).into_iter().collect::<Vec<_>>().join(","))
            }
            Step::Chmod { path, mode } => {
                self.reach(path)?;
                let mode = match mode {
                    0o644 if self.is_file(path) => String::new(),
                    0o755 if !self.is_file(path) => String::new(),
                    mode => format!("{mode:o}"),
                };
                if let Some(file) = self.files.get_mut(path) {
                    file.mode = mode;
                } else if self.is_dir(path) {
                    let half_done = self.markers.get(path).is_some_and(|m| m.half_done);
                    self.markers.insert(path.clone(), DirIs { mode, half_done });
                } else {
                    return Err(libc::ENOENT);
                }
                done
            }
            Step::Mkdir { path } => {
                self.reach(path)?;
                if self.is_dir(path) || self.is_file(path) {
                    return Err(libc::EEXIST);
                }
                self.mark(path);
                done
            }
            Step::Rmdir { path } => {
                self.dir(path)?;
                if !self.children(path).is_empty() {
                    return Err(libc::ENOTEMPTY);
                }
                self.markers.remove(path);
                done
            }
            Step::Unlink { path } => {
                self.file(path)?;
                self.files.remove(path);
                done
            }
            Step::Rename { from, to, replace } => self.rename(from, to, *replace).map(|()| String::new()),
            Step::ForeignPut { path, content, .. } => {
                self.files.insert(path.clone(), FileIs::new(content));
                done
            }
            Step::ForeignDelete { path } => {
                self.files.remove(path);
                done
            }
            Step::ForeignTag { path, tag } => {
                if let Some(file) = self.files.get_mut(path) {
                    tag.clone_into(&mut file.tag);
                }
                done
            }
        }
    }

    /// What [`Snapshot::apply`] comes to where it makes something in a directory that is gone, of which
    /// somebody still knows. Nothing where it makes nothing.
    pub(super) fn anyway(&self, step: &Step, before: &Self) -> Vec<Self> {
        let mut made = self.clone();
        match step {
            Step::Write { path, content, .. } if !self.is_dir(path) => {
                made.put(path, content);
                // Opened as it was, or made anew.
                if let (Some(file), false) = (before.files.get(path), self.is_file(path)) {
                    let mut as_it_was = self.clone();
                    as_it_was.files.insert(path.clone(), file.clone());
                    as_it_was.put(path, content);
                    return vec![made, as_it_was];
                }
            }
            Step::Chmod { path, mode } if !self.is_file(path) => {
                let (mode, half_done) = (format!("{mode:o}"), false);
                made.markers.insert(path.clone(), DirIs { mode, half_done });
            }
            Step::Mkdir { path } if !self.is_dir(path) && !self.is_file(path) => made.mark(path),
            Step::Rename { from, to, replace } if made.rename_there(from, to, *replace).is_ok() => {}
            _ => return Vec::new(),
        }
        vec![made]
    }

    /// A file is renamed to the name of a directory that has no marker: who has not seen what is below it
    /// finds nothing there, and no condition of the service can tell.
    pub(super) fn unseen(mut self, step: &Step) -> Option<Self> {
        let Step::Rename { from, to, .. } = step else {
            return None;
        };
        if self.is_dir(from) || !self.is_dir(to) || self.markers.contains_key(to) {
            return None;
        }
        let file = self.files.remove(from)?;
        self.files.insert(to.clone(), file);
        Some(self)
    }

    /// A file is renamed, below whose name there is something since.
    pub(super) fn alone(mut self, step: &Step) -> Option<Self> {
        let Step::Rename { from, to, .. } = step else {
            return None;
        };
        if !self.is_dir(from) || self.markers.contains_key(from) || self.is_dir(to) {
            return None;
        }
        let file = self.files.remove(from)?;
        self.files.insert(to.clone(), file);
        Some(self)
    }

    pub(super) fn mark(&mut self, path: &str) {
        self.mark_with(path, "");
    }

    pub(super) fn mark_with(&mut self, path: &str, mode: &str) {
        let fresh = DirIs {
            mode: mode.to_owned(),
            half_done: false,
        };
        self.markers.insert(path.to_owned(), fresh);
    }

    fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<(), i32> {
        self.reach(from)?;
        self.reach(to)?;
        self.rename_there(from, to, replace)
    }

    fn rename_there(&mut self, from: &str, to: &str, replace: bool) -> Result<(), i32> {
        let directory = self.is_dir(from);
        if !directory && !self.is_file(from) {
            return Err(libc::ENOENT);
        }
        if directory && is_below(to, from) {
            return Err(libc::EINVAL);
        }
        if !replace && (self.is_file(to) || self.is_dir(to)) {
            return Err(libc::EEXIST);
        }
        if from == to {
            return Ok(());
        }
        if is_below(from, to) {
            return Err(libc::ENOTEMPTY);
        }
        match (directory, self.is_dir(to), self.is_file(to)) {
            (true, _, true) => return Err(libc::ENOTDIR),
            (false, true, _) => return Err(libc::EISDIR),
            (true, true, _) if !self.children(to).is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        if !directory {
            if let Some(file) = self.files.remove(from) {
                self.files.insert(to.to_owned(), file);
            }
            return Ok(());
        }
        let moved = |name: &String| match name.strip_prefix(from) {
            Some("") => Some(to.to_owned()),
            Some(rest) if rest.starts_with('/') => Some(format!("{to}{rest}")),
            _ => None,
        };
        let marked = self.markers.get(from).cloned();
        // A file that it hides stays.
        let below = |name: &String| moved(name).filter(|_| name != from);
        self.files = std::mem::take(&mut self.files)
            .into_iter()
            .map(|(name, file)| (below(&name).unwrap_or(name), file))
            .collect();
        self.markers.remove(to);
        self.markers = std::mem::take(&mut self.markers)
            .into_iter()
            .map(|(name, dir)| (moved(&name).unwrap_or(name), dir))
            .collect();
        if marked.is_none() {
            // What is moved has a marker afterwards: it is the note of the move.
            self.mark(to);
        }
        Ok(())
    }

    /// Whether this is what `expected` says. Directories without a marker, in either or `before`, may come
    /// and go with what is below them.
    pub(super) fn is_as(&self, expected: &Self, before: &Self) -> bool {
        if self.files != expected.files {
            return false;
        }
        for (path, marker) in &self.markers {
            if let Some(wanted) = expected.markers.get(path)
                && wanted.mode != marker.mode
            {
                return false;
            }
        }
        let (is, wanted) = (self.directories(), expected.directories());
        let bare = |path: &String| before.is_dir(path) && !before.markers.contains_key(path);
        is.symmetric_difference(&wanted).all(bare)
    }
}
