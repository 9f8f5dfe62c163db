//! Files of the file system (no mount) over the real client, both paths, and the embedded store: what the
//! tests over a store in memory cannot show - block ids on the wire, copies by the service, buffers of the
//! channel.
//!
//! Prints how fast it was; asserts nothing about that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

use std::sync::Arc;
use std::time::Instant;

use blob_client::auth::Credentials;
use blob_client::transport::failover::{Paths, TransportMode};
use blob_client::{Client, ClientConfig, Condition, Container, Metadata};
use blob_fs::content::{Base, Env, File, ReadData, Reader};
use blob_fs::{Budget, Store};
use e2e::store::{BlobStore, DEV_ACCOUNT, DEV_KEY, Server, StoreConfig};
use e2e::vsp::MockVsp;
use vsc_driver::buffer::Arena;

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 256 * MIB;

struct World {
    env: Env,
    container: Container,
    mode: TransportMode,
    _server: Server,
    _device: Option<(MockVsp, tempfile::TempDir)>,
}

impl World {
    async fn new(mode: TransportMode) -> Self {
        let arena = Arena::new(2 << 30).unwrap();
        let store = BlobStore::new(StoreConfig::default()).unwrap();
        let server = store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        let endpoint = server.endpoint();
        let device = (mode != TransportMode::Https).then(|| {
            let dir = tempfile::tempdir().unwrap();
            (MockVsp::mount(dir.path(), store).unwrap(), dir)
        });
        let runtime = tokio::runtime::Handle::current();
        let device_path = device.as_ref().map(|(mock, _)| mock.device());
        let budget = Budget::new(BUDGET as usize);
        let most = budget.most_at_a_device();
        let paths = Paths::within(device_path, Arc::clone(&arena), runtime.clone(), most);
        if device.is_some() {
            assert_eq!(paths.settled().await, None);
        }
        let credentials = Credentials::SharedKey {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.to_owned().into(),
        };
        let config = ClientConfig::new(endpoint, credentials);
        let client = Client::new(config, paths.transport(mode), Arc::clone(&arena)).unwrap();
        let container = client.container("content").unwrap();
        container.create(&Metadata::new()).await.unwrap();
        let as_store: Arc<dyn Store> = Arc::new(container.clone());
        Self {
            env: Env::new(as_store, budget, arena, runtime),
            container,
            mode,
            _server: server,
            _device: device,
        }
    }

    async fn open(&self, blob: &str) -> Arc<File> {
        let now = self.container.head(blob, &Condition::none()).await.unwrap();
        let base = Base::from(&now);
        File::open(self.env.clone(), blob.into(), base)
    }

    fn report(&self, what: &str, bytes: u64, since: Instant) {
        let rate = bytes as f64 / MIB as f64 / since.elapsed().as_secs_f64();
        println!("{:?}: {what}: {rate:.0} MiB/s", self.mode);
    }
}

fn pattern(offset: u64) -> Vec<u8> {
    let words =
        (offset / 8..(offset + MIB) / 8).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    words.collect()
}

async fn check(file: &File, expected: &[Vec<u8>]) {
    let reader = Reader::default();
    for (n, expected) in expected.iter().enumerate() {
        let data: ReadData = file.read(&reader, n as u64 * MIB, MIB as usize).await.unwrap();
        assert!(data[..] == expected[..], "MiB {n}");
    }
}

async fn exercise(mode: TransportMode) {
    let world = World::new(mode).await;
    // More than the budget, so that staged blocks are dropped from memory before the commit.
    let count = 400;
    let mut expected: Vec<Vec<u8>> = (0..count).map(|n| pattern(n * MIB)).collect();
    let bytes = count * MIB;

    let begun = Instant::now();
    let file = File::create(world.env.clone(), "big file + ü%20".into());
    for (n, data) in expected.iter().enumerate() {
        file.write(n as u64 * MIB, data).await.unwrap();
    }
    let metadata = Metadata::from([("mode".into(), "0644".into())]);
    file.commit(metadata).await.unwrap().unwrap();
    world.report("sequential write and commit", bytes, begun);
    drop(file);

    let begun = Instant::now();
    let file = world.open("big file + ü%20").await;
    let reader = Reader::default();
    for n in 0..count {
        let data = file.read(&reader, n * MIB, MIB as usize).await.unwrap();
        assert_eq!(data.len() as u64, MIB);
    }
    world.report("cold sequential read", bytes, begun);
    check(&file, &expected).await;

    // A change in the middle of a block: kept ranges are copied by the service.
    file.write(100 * MIB + 4321, b"changed").await.unwrap();
    expected[100][4321..4328].copy_from_slice(b"changed");
    file.punch_hole(200 * MIB, 20 * MIB).await.unwrap();
    expected[200..220].iter_mut().for_each(|m| m.fill(0));
    file.commit(Metadata::new()).await.unwrap().unwrap();
    check(&*world.open("big file + ü%20").await, &expected).await;

    // A copy that only the service carries out.
    let begun = Instant::now();
    let copy = File::create(world.env.clone(), "copy".into());
    assert_eq!(copy.copy_stored(&file, 0, 0, bytes).await.unwrap(), bytes);
    copy.commit(Metadata::new()).await.unwrap().unwrap();
    world.report("copy_file_range", bytes, begun);
    check(&*world.open("copy").await, &expected).await;

    // Many small files.
    let begun = Instant::now();
    for n in 0..200 {
        let file = File::create(world.env.clone(), format!("small/{n}"));
        assert!(file.try_write(0, &expected[1][..4096]).unwrap());
        file.commit(Metadata::new()).await.unwrap().unwrap();
    }
    let rate = 200.0 / begun.elapsed().as_secs_f64();
    println!("{mode:?}: create 4 KiB: {rate:.0} files/s");
    let usage = world.env.budget.usage();
    println!("{mode:?}: {usage:?} {:?}", world.env.arena.usage());
    assert!(usage.peak <= usage.total, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_over_https() {
    exercise(TransportMode::Https).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_over_the_channel() {
    exercise(TransportMode::Require).await;
}

/// The host keeps what it is given, as often as it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_channel_loses_is_charged_to_its_volume_until_it_returns() {
    let world = World::new(TransportMode::Prefer).await;
    let (budget, arena) = (&world.env.budget, &world.env.arena);
    let count = 200;
    let expected: Vec<Vec<u8>> = (0..count).map(|n| pattern(n * MIB)).collect();
    let file = File::create(world.env.clone(), "file".into());
    for (n, data) in expected.iter().enumerate() {
        file.write(n as u64 * MIB, data).await.unwrap();
    }
    file.commit(Metadata::new()).await.unwrap().unwrap();
    drop(file);
    assert_eq!(budget.usage().lost, 0);

    let (mock, _) = world._device.as_ref().unwrap();
    let file = world.open("file").await;
    mock.faults().update(|faults| faults.hold_next = u64::MAX);
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let (file, expected) = (Arc::clone(&file), expected.clone());
            tokio::spawn(async move {
                let from = n * (expected.len() / 8);
                let reader = Reader::default();
                for (n, expected) in expected.iter().enumerate().skip(from).take(25) {
                    let data = file.read(&reader, n as u64 * MIB, MIB as usize).await.unwrap();
                    assert!(data[..] == expected[..], "MiB {n}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let (usage, held) = (budget.usage(), arena.usage());
    println!("with a host that keeps everything: {usage:?}, {held:?}");
    assert!(
        usage.lost > MIB as usize,
        "hardly anything was lost: that is no test"
    );
    assert!(usage.lost <= budget.most_at_a_device(), "{usage:?}");
    assert!(held.allocated <= usage.total, "{usage:?}, {held:?}");
    // What is allocated is charged, but for probes of the channel.
    assert!(
        held.allocated <= usage.cached + usage.dirty + usage.lost + MIB as usize,
        "{usage:?}, {held:?}"
    );

    mock.faults().reset();
    mock.faults().release();
    let begun = Instant::now();
    while budget.usage().lost > 0 {
        assert!(begun.elapsed().as_secs() < 60, "{:?}", budget.usage());
        tokio::task::yield_now().await;
    }
    // What was lost is free again, and no more is.
    drop(file);
    let (usage, held) = (budget.usage(), arena.usage());
    assert!(
        held.allocated <= usage.cached + usage.dirty + MIB as usize,
        "{usage:?}, {held:?}"
    );
}
