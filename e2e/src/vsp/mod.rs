//! Mock VSP: a FUSE file `azure_blob` that answers the real ioctl and executes requests against a backend.
//!
//! Production code runs over it unchanged: the 72-byte struct arrives in the ioctl request, the three buffers
//! are reached by address in the caller's memory, and the payload lands there without passing through the
//! FUSE layer.
//!
//! Two things differ from a real device. The kernel's FUSE code copies the struct before it asks about the
//! command number, so a probe with a null pointer gets EFAULT for every number; and a caller's credentials
//! are not compared.

mod backend;
mod behind;
mod device;
mod faults;
mod host;
mod memory;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use fuser::{BackgroundSession, Config, MountOption, Session};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{minor, stat};
use tokio::runtime::Runtime;
use vsc_driver::uapi::RequestSync;

pub use self::backend::{Backend, HttpBackend};
pub use self::behind::Behind;
use self::device::Device;
pub use self::device::{CONTROL_NAME, DEVICE_NAME};
use self::faults::Control;
pub use self::faults::{Counters, FaultControl, Faults, Spoil};
use self::host::Host;

/// A mounted mock. Dropping it lets held requests go and unmounts; while the device is still open
/// somewhere lazily, and later calls on that descriptor get ENOTCONN.
#[derive(Debug)]
pub struct MockVsp {
    dir: PathBuf,
    /// The kernel's number of this FUSE connection: the minor of the mount's device.
    connection: u64,
    faults: FaultControl,
    session: Option<BackgroundSession>,
    runtime: Option<Runtime>,
}

impl MockVsp {
    /// Mounts the device directory at `dir` (which must exist) in front of `backend`.
    pub fn mount(dir: &Path, backend: Arc<dyn Backend>) -> io::Result<Self> {
        Self::mount_with(dir, backend, Faults::default())
    }

    /// As [`mount`](Self::mount), with faults from the start.
    pub fn mount_with(dir: &Path, backend: Arc<dyn Backend>, faults: Faults) -> io::Result<Self> {
        let dir = dir.canonicalize()?;
        // Requests run here and not on a runtime of the test's: a test that blocks its own thread would wait
        // for ever.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(4, |n| n.get().max(4)))
            .thread_name("mock-vsp")
            .enable_all()
            .build()?;
        let control = Arc::new(Control::new(faults));
        let faults = FaultControl {
            state: Arc::clone(&control),
        };
        let device = Device {
            host: Arc::new(Host::new(backend, control)),
            faults: faults.clone(),
            runtime: runtime.handle().clone(),
            started: SystemTime::now(),
            last_error: Mutex::new(None),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("mock-vsp".into())];
        // While one thread executes a small request the other takes the next.
        config.n_threads = Some(2);
        let session = Session::new(device, &dir, &config)?.spawn()?;
        let connection = minor(stat(&dir)?.st_dev);
        Ok(Self {
            dir,
            connection,
            faults,
            session: Some(session),
            runtime: Some(runtime),
        })
    }

    /// Path of the device.
    pub fn device(&self) -> PathBuf {
        self.dir.join(DEVICE_NAME)
    }

    /// Handle on the faults.
    pub fn faults(&self) -> FaultControl {
        self.faults.clone()
    }

    /// What the mock has counted so far.
    pub fn counters(&self) -> Counters {
        self.faults.state.counters()
    }

    /// The struct of the latest request that was taken: lengths and addresses as the guest gave them.
    pub fn last_request(&self) -> Option<RequestSync> {
        self.faults.state.last()
    }
}

impl Drop for MockVsp {
    fn drop(&mut self) {
        // New calls answer ENODEV from here on, held ones return.
        self.faults.state.close();
        if let Some(session) = self.session.take()
            && session.umount_and_join().is_err()
        {
            // A descriptor is still open. The session's thread serves it until it closes.
            if let Err(error) = umount2(&self.dir, MntFlags::MNT_DETACH) {
                tracing::warn!(%error, dir = %self.dir.display(), "could not unmount the mock device");
            }
            // Whoever still calls may be a thread of this process. Should the process end before the call is
            // answered, the caller would wait for a server that died with it, and the process could never
            // end: let it go now.
            if let Err(error) = crate::fuse::abort(self.connection) {
                tracing::debug!(%error, "could not abort the mock device's connection");
            }
        }
        if let Some(runtime) = self.runtime.take() {
            // Not waiting: this may run inside another runtime. Requests that are dropped answer EIO.
            runtime.shutdown_background();
        }
    }
}
