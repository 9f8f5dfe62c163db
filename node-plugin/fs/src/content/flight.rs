//! A GET that is on its way, and those who wait for it.

use std::ops::Range;

use blob_client::ETag;
use tokio::sync::watch;
use vsc_driver::buffer::Slice;

use super::error::{FileError, shutting_down};

/// How a fetch ended.
#[derive(Debug, Clone)]
pub(crate) enum Landed {
    /// The bytes, from the flight's start on.
    Here(Slice),
    /// The bytes, but of this version of the service: whether they are those of the base has to be found out.
    Unproven(Slice, ETag),
    /// The service has another version.
    Changed,
    /// Anything else.
    Failed(FileError),
}

/// A GET on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) range: Range<u64>,
    /// The version of the base it was started for.
    pub(crate) version: u64,
    /// What that was in the service.
    pub(crate) etag: Option<ETag>,
    landed: watch::Sender<Option<Landed>>,
}

impl Flight {
    pub(crate) fn new(range: Range<u64>, version: u64, etag: Option<ETag>) -> Self {
        Self {
            range,
            version,
            etag,
            landed: watch::Sender::new(None),
        }
    }

    /// The answer is here: everybody who waits gets it.
    pub(crate) fn land(&self, landed: Landed) {
        self.landed.send_replace(Some(landed));
    }

    pub(crate) async fn wait(&self) -> Landed {
        let mut landed = self.landed.subscribe();
        match landed.wait_for(Option::is_some).await.map(|l| l.clone()) {
            Ok(Some(landed)) => landed,
            _ => Landed::Failed(shutting_down()),
        }
    }
}
