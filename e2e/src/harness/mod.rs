//! What the system suites share: backends, the real program as a child process, mounts that are always freed,
//! trees to copy.
//!
//! The parts:
//! - [`tools`]: where the programs are that `e2e/test` installs, and the program under test;
//! - [`csi`]: a CSI client over a unix socket;
//! - [`process`]: child processes that end with the test;
//! - [`backend`]: a blob service to mount, the embedded store or Azurite;
//! - [`mount`]: `vsc-blob-csi mount` on a folder;
//! - [`canary`]: what stands for every host behind a proxy, and tells who was told what;
//! - [`plugin`]: `vsc-blob-csi node` and `controller` on unix sockets;
//! - [`node`]: the node alone, its staged volumes and its metrics;
//! - [`setup`]: one test's world, made of the above;
//! - [`tree`]: reproducible folders full of files.

pub mod backend;
pub mod canary;
pub mod csi;
pub mod mount;
pub mod node;
pub mod plugin;
pub mod process;
pub mod setup;
mod shared;
pub mod tools;
pub mod tree;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::runtime::Runtime;

/// How long the suites wait for something that should be quick, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The runtime on which the services of a test process run; tests themselves are blocking, as programs on a
/// mount are.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| match Runtime::new() {
        Ok(runtime) => runtime,
        // Without a runtime no test can run at all, and there is nobody to answer to.
        Err(error) => {
            eprintln!("cannot start a tokio runtime: {error}");
            std::process::abort();
        }
    })
}

/// Waits until `probe` gives a value, and fails after `limit` with `what` in the message.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if begin.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        // The pause between two looks at the condition.
        std::thread::sleep(Duration::from_millis(5));
    }
}
