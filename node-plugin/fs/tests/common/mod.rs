//! Real mounts over a container in memory, cleaned up even when a test fails.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "every test binary uses its own part"
)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use blob_fs::store::fake::FakeStore;
use blob_fs::{Budget, Resources, Volume, VolumeConfig};
use vsc_driver::buffer::Arena;

/// What all mounts of a test binary share.
pub fn resources() -> &'static Resources {
    static RESOURCES: OnceLock<(tokio::runtime::Runtime, Resources)> = OnceLock::new();
    &RESOURCES
        .get_or_init(|| {
            let _ = tracing_subscriber::fmt()
                .with_env_filter(
                    tracing_subscriber::EnvFilter::try_from_default_env()
                        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error")),
                )
                .with_test_writer()
                .try_init();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let resources = Resources {
                budget: Budget::new(128 << 20),
                arena: Arena::new(1 << 30).unwrap(),
                runtime: runtime.handle().clone(),
            };
            (runtime, resources)
        })
        .1
}

/// The runtime of [`resources`], with a budget of its own.
pub fn resources_of(budget: usize) -> Resources {
    Resources {
        budget: Budget::new(budget),
        arena: Arena::new(4 * budget).unwrap(),
        runtime: resources().runtime.clone(),
    }
}

/// A serving mount in a directory of its own. Dropping it unmounts and waits until everything is committed.
pub struct Mount {
    dir: Option<tempfile::TempDir>,
    volume: Option<Volume>,
}

impl Mount {
    /// The whole container, default settings.
    pub fn new(store: &Arc<FakeStore>) -> Self {
        Self::with(store, |_| {})
    }

    /// With other settings.
    pub fn with(store: &Arc<FakeStore>, change: impl FnOnce(&mut VolumeConfig)) -> Self {
        Self::on(resources(), store, change)
    }

    /// With memory of its own, or shared with other mounts than usual.
    pub fn on(resources: &Resources, store: &Arc<FakeStore>, change: impl FnOnce(&mut VolumeConfig)) -> Self {
        let mut config = VolumeConfig::new("test-container", Arc::clone(store) as Arc<dyn blob_fs::Store>);
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        let fd = blob_fs::fuse::mount(dir.path(), &config.name, config.read_only).unwrap();
        let volume = match Volume::serve(config, fd, dir.path().to_owned(), resources) {
            Ok(volume) => volume,
            Err(error) => {
                unmount(dir.path());
                panic!("{error}");
            }
        };
        Self {
            dir: Some(dir),
            volume: Some(volume),
        }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// A path below the root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    /// What closed files owe the service.
    pub fn owing(&self) -> blob_fs::Owing {
        self.volume().owing()
    }

    /// Unmounts and waits for the end; what `join` says.
    pub fn end(mut self) -> std::io::Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> std::io::Result<()> {
        if let Some(dir) = &self.dir {
            unmount(dir.path());
        }
        self.volume.take().map_or(Ok(()), Volume::join)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.volume.is_some() {
            let ended = self.finish();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// Unmounts; open files of a failed test do not stop it.
fn unmount(path: &Path) {
    if nix::mount::umount2(path, nix::mount::MntFlags::empty()).is_err() {
        let _ = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Waits for a condition that becomes true by itself.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Past every timeout of a mount with default settings.
pub fn outlive_timeouts() {
    std::thread::sleep(Duration::from_millis(1100));
}

/// Errno of a failed call.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// A path for libc.
pub fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// 0 or the error of a libc call.
pub fn check(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Metadata out of pairs.
pub fn meta(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// Sorted names in a directory.
pub fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
