//! What is told of each operation that has ended: for metrics.

use std::time::Duration;

/// Kind of an operation, as the kernel asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Operation {
    Lookup,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Rename,
    Open,
    Create,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Opendir,
    Readdir,
    Readdirplus,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Fallocate,
    Lseek,
    CopyFileRange,
    Link,
    Releasedir,
    Fsyncdir,
    Statfs,
    Ioctl,
}

impl Operation {
    /// All kinds, each at the index `kind as usize`.
    pub const ALL: [Self; 32] = [
        Self::Lookup,
        Self::Getattr,
        Self::Setattr,
        Self::Readlink,
        Self::Mknod,
        Self::Mkdir,
        Self::Unlink,
        Self::Rmdir,
        Self::Symlink,
        Self::Rename,
        Self::Open,
        Self::Create,
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Release,
        Self::Fsync,
        Self::Opendir,
        Self::Readdir,
        Self::Readdirplus,
        Self::Setxattr,
        Self::Getxattr,
        Self::Listxattr,
        Self::Removexattr,
        Self::Fallocate,
        Self::Lseek,
        Self::CopyFileRange,
        Self::Link,
        Self::Releasedir,
        Self::Fsyncdir,
        Self::Statfs,
        Self::Ioctl,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Getattr => "getattr",
            Self::Setattr => "setattr",
            Self::Readlink => "readlink",
            Self::Mknod => "mknod",
            Self::Mkdir => "mkdir",
            Self::Unlink => "unlink",
            Self::Rmdir => "rmdir",
            Self::Symlink => "symlink",
            Self::Rename => "rename",
            Self::Open => "open",
            Self::Create => "create",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Release => "release",
            Self::Fsync => "fsync",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Readdirplus => "readdirplus",
            Self::Setxattr => "setxattr",
            Self::Getxattr => "getxattr",
            Self::Listxattr => "listxattr",
            Self::Removexattr => "removexattr",
            Self::Fallocate => "fallocate",
            Self::Lseek => "lseek",
            Self::CopyFileRange => "copy_file_range",
            Self::Link => "link",
            Self::Releasedir => "releasedir",
            Self::Fsyncdir => "fsyncdir",
            Self::Statfs => "statfs",
            Self::Ioctl => "ioctl",
        }
    }
}

/// An operation that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What it was.
    pub operation: Operation,
    /// 0, or the error number.
    pub errno: i32,
    /// From its arrival in this process to its answer.
    pub took: Duration,
    /// Answered out of memory, by the thread that read it; otherwise something was waited for.
    pub inline: bool,
    /// Bytes that a read gave or a write took.
    pub bytes: u64,
}

/// Is told of each operation of a volume. Called between an operation's end and its answer: an implementation
/// must be quick and must not block.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// An operation has ended.
    fn ended(&self, operation: &Ended);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_at_its_index() {
        for (index, kind) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{}", kind.name());
        }
    }
}
