//! The node plugin as a library: CSI services, mounts, the cluster, telemetry and the commands of
//! `vsc-blob-csi`.

pub mod access;
pub mod allocator;
pub mod cluster;
pub mod commands;
pub mod csi;
pub mod error;
pub mod folders;
pub mod grpc;
pub mod instance;
pub mod mounts;
pub mod privileges;
pub mod seccomp;
pub mod socket;
pub mod telemetry;

/// Name of the CSI driver: `driver:` of a PersistentVolume, `provisioner:` of a StorageClass.
pub const DRIVER_NAME: &str = "vsc-blob.csi.azure.com";

/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version as people read it, with what the build is.
pub const BUILD: &str = if cfg!(feature = "fips") {
    concat!(env!("CARGO_PKG_VERSION"), " (FIPS)")
} else {
    VERSION
};

/// The channel's device node.
pub const DEVICE: &str = "/dev/azure_blob";
