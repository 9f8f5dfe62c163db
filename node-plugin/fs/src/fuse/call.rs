//! One operation as the kernel asked for it, from its arrival to its answer: counted, traced, and written
//! into the log with its path and its cause when something is wrong.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::silence::Locked;
use crate::cause::Cause;
use crate::content::ReadData;
use crate::errno::{Errno, Result};
use crate::log_limit::{Kind, limited};
use crate::observer::{Ended, Operation};
use crate::tree::{Entry, Listed, NodeId, Opened, Stat, Tree};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    operation: Operation,
    node: NodeId,
    /// In the directory `node`.
    name: Option<Cow<'a, OsStr>>,
    /// The directory that it leads to, of a rename, and the name there.
    to: Option<(NodeId, Cow<'a, OsStr>)>,
    /// The kernel writes its pages back: no program is at work.
    of_pages: bool,
    /// Of data that came with it.
    bytes: u64,
    began: Instant,
}

impl<'a> Call<'a> {
    /// An operation on a node.
    pub(super) fn on(operation: Operation, node: NodeId) -> Self {
        Self {
            operation,
            node,
            name: None,
            to: None,
            of_pages: false,
            bytes: 0,
            began: Instant::now(),
        }
    }

    /// An operation on a name in a directory.
    pub(super) fn at(operation: Operation, directory: NodeId, name: &'a OsStr) -> Self {
        Self {
            name: Some(Cow::Borrowed(name)),
            ..Self::on(operation, directory)
        }
    }

    /// To another directory, or within the same.
    pub(super) fn to(self, directory: NodeId, name: &'a OsStr) -> Self {
        Self {
            to: Some((directory, Cow::Borrowed(name))),
            ..self
        }
    }

    /// A write of the kernel's own.
    pub(super) fn of_pages(self, of_pages: bool) -> Self {
        Self { of_pages, ..self }
    }

    /// With so many bytes of data.
    pub(super) fn with_bytes(self, bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            ..self
        }
    }

    /// The same, to be kept by a task.
    pub(super) fn owned(self) -> Call<'static> {
        Call {
            operation: self.operation,
            node: self.node,
            name: self.name.map(|name| Cow::Owned(name.into_owned())),
            to: self.to.map(|(to, name)| (to, Cow::Owned(name.into_owned()))),
            of_pages: self.of_pages,
            bytes: self.bytes,
            began: self.began,
        }
    }

    /// For traces; empty unless somebody collects them.
    pub(super) fn span(&self, tree: &Tree) -> tracing::Span {
        tracing::info_span!(
            target: blob_client::TRACE, "operation", otel.name = self.operation.name(),
            otel.kind = "server", otel.status_code = tracing::field::Empty, volume = tree.config().name,
            inode = self.node, name = self.name.as_deref().map(tracing::field::debug),
            bytes = self.bytes, errno = tracing::field::Empty
        )
    }

    /// What nobody else can work on in the kernel until this is answered.
    pub(super) fn locks(&self) -> Vec<Locked> {
        use Operation as O;
        match self.operation {
            O::Write if self.of_pages => Vec::new(),
            O::Rename => {
                let mut locks = vec![Locked::Changes(self.node)];
                if let Some((to, _)) = self.to.as_ref().filter(|(to, _)| *to != self.node) {
                    locks.extend([Locked::Changes(*to), Locked::Renames]);
                }
                locks
            }
            O::Lookup | O::Readdir | O::Readdirplus | O::Readlink | O::Read => vec![Locked::Asks(self.node)],
            O::Create
            | O::Mknod
            | O::Mkdir
            | O::Symlink
            | O::Unlink
            | O::Rmdir
            | O::Setattr
            | O::Setxattr
            | O::Removexattr
            | O::Write
            | O::Fsync
            | O::Fallocate
            | O::CopyFileRange => vec![Locked::Changes(self.node)],
            O::Getattr
            | O::Getxattr
            | O::Listxattr
            | O::Open
            | O::Flush
            | O::Release
            | O::Opendir
            | O::Releasedir
            | O::Fsyncdir
            | O::Link
            | O::Statfs
            | O::Ioctl
            | O::Lseek => Vec::new(),
        }
    }

    /// It is about to be answered like this. `cause` is what was noted of an error.
    pub(super) fn ended<T: Outcome>(&self, tree: &Tree, outcome: &Result<T>, way: Way, cause: Option<Cause>) {
        let errno = outcome.as_ref().err().map_or(0, |e| e.0);
        let ended = Ended {
            operation: self.operation,
            errno,
            took: self.began.elapsed(),
            inline: way == Way::Inline,
            bytes: outcome
                .as_ref()
                .map_or(0, |value| value.bytes().unwrap_or(self.bytes)),
        };
        if let Some(observer) = &tree.config().observer {
            observer.ended(&ended);
        }
        let (operation, node) = (self.operation.name(), self.node);
        if errno != 0 && (Errno(errno).is_trouble() || cause.as_ref().is_some_and(|c| c.is_news)) {
            let (path, error) = (path_of(tree, self.node, self.name.as_deref()), Errno(errno));
            let to = self.to.as_ref().map(|(to, name)| path_of(tree, *to, Some(name)));
            let cause = cause.as_ref().map(tracing::field::display);
            limited!(
                warn, tree.volume(), Kind(operation, errno) => "an operation failed",
                operation, path, to, errno, %error, cause
            );
        } else {
            let (bytes, took) = (ended.bytes, ended.took);
            let name = self.name.as_deref().map(tracing::field::debug);
            tracing::trace!(operation, node, name, errno, ?way, bytes, ?took, "answered");
        }
    }
}

/// Where in the container an operation works, as far as that is known.
fn path_of(tree: &Tree, node: NodeId, name: Option<&OsStr>) -> String {
    let path = tree
        .blob_of(node)
        .unwrap_or_else(|| format!("(node {node}, without a name)"));
    match name.map(OsStr::to_string_lossy) {
        Some(name) if path.is_empty() => name.into_owned(),
        Some(name) => format!("{path}/{name}"),
        None if path.is_empty() => "/".to_owned(),
        None => path,
    }
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The thread that read the request, at once.
    Inline,
    /// The same, which waited for what the operation needs.
    Held,
    /// A task.
    Task,
}

/// What an operation gives.
pub(super) trait Outcome {
    /// Bytes of data, where it gives some; otherwise those that it took count.
    fn bytes(&self) -> Option<u64> {
        None
    }
}

impl Outcome for ReadData {
    fn bytes(&self) -> Option<u64> {
        Some(self.len() as u64)
    }
}

/// How much was copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied(pub(super) u64);

impl Outcome for Copied {
    fn bytes(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// A place in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offset(pub(super) u64);

impl Outcome for Offset {}
impl Outcome for () {}
impl Outcome for Entry {}
impl Outcome for Opened {}
impl Outcome for (Entry, Opened) {}
impl Outcome for (Stat, Duration) {}
impl Outcome for Arc<[u8]> {}
impl Outcome for Vec<u8> {}
impl Outcome for Vec<Listed> {}
impl Outcome for u64 {}
