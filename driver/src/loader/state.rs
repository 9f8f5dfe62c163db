//! One loader at a time, and what it has loaded since the machine started.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::config::LoaderConfig;
use super::error::LoaderError;
use super::sysfs::read_word;

/// How often a lock is asked for.
const POLL: Duration = Duration::from_millis(50);

/// A module that the loader has brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModule {
    /// Name of the module.
    pub module: String,
    /// Kernel release.
    pub release: String,
    /// SHA-256 of its file; `None` for the kernel's own.
    pub digest: Option<String>,
}

impl fmt::Display for LoadedModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.module)?;
        if let Some(digest) = &self.digest {
            write!(f, " (sha256 {digest})")?;
        }
        Ok(())
    }
}

/// What was loaded, `driver.json` in the state folder.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Identity of the machine's start; another one means that the modules are gone.
    boot_id: String,
    /// In the order of loading.
    modules: Vec<LoadedModule>,
}

fn path(config: &LoaderConfig) -> PathBuf {
    config.state.join("driver.json")
}

fn boot_id(config: &LoaderConfig) -> String {
    read_word(&config.root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default()
}

/// What was loaded since this start. A file of an earlier start, or one that cannot be understood, counts as
/// none.
pub(super) fn read(config: &LoaderConfig) -> Result<Vec<LoadedModule>, LoaderError> {
    let path = path(config);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LoaderError::file(&path)(error)),
    };
    match serde_json::from_str::<State>(&text) {
        Ok(state) if state.boot_id == boot_id(config) => Ok(state.modules),
        Ok(_) => Ok(Vec::new()),
        Err(error) => {
            warn!(path = %path.display(), %error, "the loader's state file is ignored");
            Ok(Vec::new())
        }
    }
}

/// Remembers one module more, beside those of before.
pub(super) fn add(config: &LoaderConfig, module: LoadedModule) -> Result<(), LoaderError> {
    let mut modules = read(config)?;
    modules.retain(|known| known.module != module.module);
    modules.push(module);
    write(config, modules)
}

/// Forgets a module.
pub(super) fn forget(config: &LoaderConfig, module: &str) -> Result<(), LoaderError> {
    let mut modules = read(config)?;
    modules.retain(|known| known.module != module);
    write(config, modules)
}

/// Replaces the file in one step; nothing to remember needs no file.
fn write(config: &LoaderConfig, modules: Vec<LoadedModule>) -> Result<(), LoaderError> {
    let path = path(config);
    if modules.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LoaderError::file(&path)(error)),
            _ => Ok(()),
        };
    }
    let state = State {
        boot_id: boot_id(config),
        modules,
    };
    let new = path.with_extension("json.new");
    let text = serde_json::to_vec(&state)
        .map_err(io::Error::other)
        .map_err(LoaderError::file(&path))?;
    fs::write(&new, text).map_err(LoaderError::file(&new))?;
    fs::rename(&new, &path).map_err(LoaderError::file(&path))
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
