//! Mounts an empty container in memory at a directory, until standard input ends: for running tools against
//! the file system alone.
//!
//! `cargo run -p blob-fs --example memory_mount -- /mnt/test`

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use blob_fs::store::fake::FakeStore;
use blob_fs::{Budget, Resources, Volume, VolumeConfig, fuse};
use vsc_driver::buffer::Arena;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mountpoint = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .ok_or("usage: memory_mount DIRECTORY")?,
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let resources = Resources {
        budget: Budget::new(512 << 20),
        arena: Arena::new(4 << 30)?,
        runtime: runtime.handle().clone(),
    };
    let config = VolumeConfig::new("memory", Arc::new(FakeStore::new()));
    let fd = fuse::mount(&mountpoint, &config.name, config.read_only)?;
    let volume = Volume::serve(config, fd, mountpoint.clone(), &resources);
    if volume.is_ok() {
        println!("serving at {}", mountpoint.display());
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    nix::mount::umount(&mountpoint)?;
    volume?.join()?;
    Ok(())
}
