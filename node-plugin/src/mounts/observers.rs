//! Who is told of what a volume does and asks for.

use std::fmt::Debug;
use std::sync::Arc;

/// Gives each volume somebody who is told. Called when a mount begins, by the id of its volume; mounts of one
/// volume may have the same.
pub trait Observers: Send + Sync + Debug {
    /// Who is told of a volume, as long as what is answered here lives.
    fn of_volume(&self, volume_id: &str) -> Observed;
}

/// Who is told of one volume.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Of the operations of its file system.
    pub operations: Arc<dyn blob_fs::observer::Observer>,
    /// Of its requests to the service.
    pub requests: Arc<dyn blob_client::Observer>,
}
