//! Files over a store in memory: what is asked of it, and what happens when it fails.

mod faults;
mod foreign;
mod model;
mod pressure;
mod relief_log;
mod requests;
mod resize;

use std::sync::Arc;

use blob_client::Metadata;
use vsc_driver::buffer::Arena;

use super::*;
use crate::budget::Budget;
use crate::store::Store;
use crate::store::fake::FakeStore;

/// A store, and files over it.
struct World {
    store: Arc<FakeStore>,
    env: Env,
}

impl World {
    fn new(budget: usize, tuning: Tuning) -> Self {
        let store = Arc::new(FakeStore::new());
        let as_store: Arc<dyn Store> = store.clone();
        let arena = Arena::new(budget.max(64 << 20) * 4).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let env = Env {
            tuning,
            ..Env::new(as_store, Budget::new(budget), arena, runtime)
        };
        Self { store, env }
    }

    fn usual() -> Self {
        Self::new(512 << 20, Tuning::default())
    }

    fn create(&self) -> Arc<File> {
        File::create(self.env.clone(), "file".into())
    }

    fn open(&self) -> Arc<File> {
        let now = self.store.properties("file").unwrap();
        File::open(self.env.clone(), "file".into(), Base::from(&now))
    }

    fn content(&self) -> Vec<u8> {
        self.store.content("file").unwrap().to_vec()
    }
}

/// Sizes so small that a few hundred bytes have all the edges of a few hundred GiB.
fn tiny() -> Tuning {
    Tuning {
        block: 64,
        granule: 16,
        small_file: 16,
        round: 8,
        part_min: 16,
        part_max: 64,
        window_max: 128,
        max_blocks: 400,
        copy_min: 8,
        copy_max: 96,
        zero_max: 64,
        page: 4,
        stage_parallel: 3,
        stored_for: std::time::Duration::from_secs(60),
    }
}

async fn read(file: &File, offset: u64, len: usize) -> Vec<u8> {
    file.read(&Reader::default(), offset, len).await.unwrap().to_vec()
}

async fn commit(file: &File) -> Option<Written> {
    file.commit(Metadata::new()).await.unwrap()
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

impl File {
    /// All of a copy_file_range.
    async fn copy_from(&self, source: &File, from: u64, to: u64, len: u64) -> Result<u64, FileError> {
        let mut done = 0;
        while done < len {
            let (at, to, left) = (from + done, to + done, len - done);
            let more = match self.copy_stored(source, at, to, left).await? {
                0 => self.copy_through(source, at, to, left).await?,
                stored => stored,
            };
            if more == 0 {
                break;
            }
            done += more;
        }
        Ok(done)
    }

    /// No request is under way, and nothing waits to be sent.
    pub(crate) fn assert_idle(&self) {
        let state = self.core.lock();
        assert_eq!(
            (state.staging, state.flights.len(), state.to_stage.len()),
            (0, 0, 0)
        );
        assert!(matches!(state.turn, state::Turn::Free));
    }
}
