//! What keeps the loader from working.

use std::io;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

/// What keeps the loader from working at all. Neither that no module could be loaded nor that another loader
/// is at work is among it: see [`Outcome`](super::Outcome).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// A file of the loader itself, or one of the kernel that is always there.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another loader is at work, or hangs. Only from [`unload`](super::Loader::unload).
    #[error("{path} has been locked by another loader for more than {waited:?}")]
    Locked {
        /// The lock file.
        path: String,
        /// Time waited.
        waited: Duration,
    },
}

impl LoaderError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        |source| Self::File { path, source }
    }
}
