//! One loader at a time, and what it has loaded since the machine started.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{LoaderConfig, LoaderError, read_word};

/// How often a lock is asked for.
const POLL: Duration = Duration::from_millis(50);

/// What was loaded, `driver.json` in the state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Identity of the machine's start; another one means that the module is gone.
    pub boot_id: String,
    /// Kernel release.
    pub release: String,
    /// Name of the module.
    pub module: String,
    /// SHA-256 of its file; `None` for the kernel's own, which modprobe has found.
    pub digest: Option<String>,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.module)?;
        if let Some(digest) = &self.digest {
            write!(f, " (sha256 {digest})")?;
        }
        Ok(())
    }
}

fn path(config: &LoaderConfig) -> PathBuf {
    config.state.join("driver.json")
}

pub(super) fn boot_id(config: &LoaderConfig) -> String {
    read_word(&config.root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default()
}

impl State {
    /// What was loaded since this start. A file of an earlier start, or one that cannot be understood, counts as none.
    pub(super) fn read(config: &LoaderConfig) -> Result<Option<Self>, LoaderError> {
        let path = path(config);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LoaderError::file(&path)(error)),
        };
        match serde_json::from_str::<Self>(&text) {
            Ok(state) if state.boot_id == boot_id(config) => Ok(Some(state)),
            Ok(_) => Ok(None),
            Err(error) => {
                warn!(path = %path.display(), %error, "the loader's state file is ignored");
                Ok(None)
            }
        }
    }

    /// Replaces the file in one step.
    pub(super) fn write(&self, config: &LoaderConfig) -> Result<(), LoaderError> {
        let path = path(config);
        let new = path.with_extension("json.new");
        let text = serde_json::to_vec(self)
            .map_err(io::Error::other)
            .map_err(LoaderError::file(&path))?;
        fs::write(&new, text).map_err(LoaderError::file(&new))?;
        fs::rename(&new, &path).map_err(LoaderError::file(&path))
    }

    /// Forgets.
    pub(super) fn remove(config: &LoaderConfig) -> Result<(), LoaderError> {
        let path = path(config);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LoaderError::file(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// Held while the loader changes anything; the kernel drops it with the process.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(config: &LoaderConfig) -> Result<Self, LoaderError> {
        fs::create_dir_all(&config.state).map_err(LoaderError::file(&config.state))?;
        let path = config.state.join("driver.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(LoaderError::file(&path))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(LoaderError::file(&path)(error)),
                Err(TryLockError::WouldBlock) if began.elapsed() >= config.lock_wait => {
                    return Err(LoaderError::Locked {
                        path: path.display().to_string(),
                        waited: config.lock_wait,
                    });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
            }
        }
    }
}
