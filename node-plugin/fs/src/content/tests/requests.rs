//! How many requests, and how many bytes, an operation costs.

use blob_client::BlockId;
use bytes::Bytes;

use super::*;
use crate::store::fake::Op;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_new_small_file_is_one_request() {
    let world = World::usual();
    let file = world.create();
    assert!(file.is_dirty());
    assert!(file.try_write(0, &pattern(0, 4096)).unwrap());
    let metadata = Metadata::from([("mode".into(), "0644".into())]);
    let written = file.commit(metadata.clone()).await.unwrap().unwrap();
    assert_eq!(world.content(), pattern(0, 4096));
    let stored = world.store.properties("file").unwrap();
    assert_eq!(stored.metadata, metadata);
    assert_eq!(stored.etag, written.etag);
    assert_eq!(file.etag(), Some(written.etag));
    // What was written is cached, what is committed is not sent again.
    assert_eq!(read(&file, 100, 10).await, pattern(100, 10));
    assert_eq!(commit(&file).await, None);
    let counters = world.store.counters();
    assert_eq!((counters.total(), counters.of(Op::Put)), (1, 1));
}

#[tokio::test]
async fn an_empty_file_is_one_request() {
    let world = World::usual();
    let file = world.create();
    assert!(commit(&file).await.is_some());
    assert_eq!(world.content(), b"");
    assert_eq!(world.store.counters().total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_staged_as_they_fill_and_a_commit_sends_the_tail() {
    let world = World::usual();
    let file = world.create();
    for n in 0..62 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    file.core.no_block_on_its_way().await;
    assert_eq!(world.store.counters().of(Op::Stage), 7);
    world.store.reset_counters();
    commit(&file).await.unwrap();
    let counters = world.store.counters();
    assert_eq!(
        (counters.of(Op::Stage), counters.of(Op::Commit), counters.total()),
        (1, 1, 2)
    );
    assert_eq!(counters.bytes_in, 6 * MIB);
    assert_eq!(world.content(), pattern(0, 62 << 20));
    let sizes = world.store.block_sizes("file");
    assert_eq!(sizes, [vec![8 * MIB; 7], vec![6 * MIB]].concat());
    assert_eq!(read(&file, 30 * MIB + 7, 1000).await, pattern(30 * MIB + 7, 1000));
    assert_eq!(world.store.counters().of(Op::Get), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_gets_each_byte_once_and_in_large_parts() {
    let world = World::usual();
    let size = 64 * MIB;
    world
        .store
        .foreign_put("file", pattern(0, size as usize), Metadata::new());
    let file = world.open();
    let reader = Reader::default();
    let step = 128 * KIB;
    for n in 0..size / step {
        let data = file.read(&reader, n * step, step as usize).await.unwrap();
        assert_eq!(&data[..], pattern(n * step, step as usize));
    }
    let counters = world.store.counters();
    assert_eq!(counters.bytes_out, size);
    assert!(counters.of(Op::Get) <= 32, "{counters:?}");
    // One question about the blocks, so that a version that follows can be told from another content.
    assert_eq!(counters.total(), counters.of(Op::Get) + 1);
    // Again, from memory.
    let data = file.try_read(&reader, 5 * MIB, MIB as usize).unwrap();
    assert!(
        matches!(data, ReadData::Slice(_)),
        "one aligned request is one slice"
    );
}

#[tokio::test]
async fn random_reads_fetch_little_more_than_they_ask_for() {
    let world = World::usual();
    let size = 256 * MIB;
    world
        .store
        .foreign_put("file", vec![7; size as usize], Metadata::new());
    let file = world.open();
    let reader = Reader::default();
    let mut at = 99u64;
    let mut asked = 0;
    for _ in 0..1000 {
        at = at
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let offset = (at >> 30) % size / 4096 * 4096;
        asked += file.read(&reader, offset, 4096).await.unwrap().len() as u64;
    }
    let counters = world.store.counters();
    assert!(
        counters.bytes_out <= asked * 16,
        "{} for {asked}",
        counters.bytes_out
    );
    assert!(counters.of(Op::Get) <= 1000);
}

#[tokio::test]
async fn those_who_wait_for_the_same_bytes_share_a_request() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 10 << 20), Metadata::new());
    let file = world.open();
    world.store.close();
    let readers: Vec<_> = (0..20)
        .map(|n| {
            let file = Arc::clone(&file);
            tokio::spawn(async move { read(&file, 5 * MIB + n * 100, 100).await })
        })
        .collect();
    world.store.wait_for(1).await;
    assert!(file.try_read(&Reader::default(), 5 * MIB, 100).is_none());
    world.store.open();
    for (n, reader) in readers.into_iter().enumerate() {
        let at = 5 * MIB + n as u64 * 100;
        assert_eq!(reader.await.unwrap(), pattern(at, 100));
    }
    assert_eq!(world.store.counters().total(), 1);
}

#[tokio::test]
async fn a_small_file_is_read_and_rewritten_in_one_request_each() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 900_000), Metadata::new());
    let file = world.open();
    assert_eq!(read(&file, 800_000, 10).await, pattern(800_000, 10));
    assert_eq!(read(&file, 0, 10).await, pattern(0, 10));
    assert_eq!(world.store.counters().total(), 1);
    file.write(500, b"change").await.unwrap();
    commit(&file).await.unwrap();
    let counters = world.store.counters();
    assert_eq!((counters.of(Op::Put), counters.total()), (1, 2));
    let mut expected = pattern(0, 900_000);
    expected[500..506].copy_from_slice(b"change");
    assert_eq!(world.content(), expected);
}

fn foreign_blocks(world: &World, sizes: &[usize], id_len: usize) -> Vec<u8> {
    let mut data = Vec::new();
    let mut blocks = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        let block = pattern(data.len() as u64, *size);
        data.extend_from_slice(&block);
        let mut id = vec![b'0'; id_len];
        id[0] = n as u8;
        blocks.push((BlockId(id), Bytes::from(block)));
    }
    world.store.foreign_blocks("file", blocks);
    data
}

#[tokio::test]
async fn a_small_change_in_a_foreign_block_list_sends_a_granule() {
    let world = World::usual();
    let mut expected = foreign_blocks(&world, &[32 << 20, 5_000_001, 16 << 20], 40);
    let file = world.open();
    file.write(10 * MIB + 12345, &[1; 4096]).await.unwrap();
    expected[(10 << 20) + 12345..][..4096].fill(1);
    commit(&file).await.unwrap();
    assert_eq!(world.content(), expected);
    let counters = world.store.counters();
    assert_eq!(counters.of(Op::BlockList), 1);
    assert_eq!(counters.of(Op::StageFrom), 2);
    assert_eq!(counters.of(Op::Stage), 1);
    assert_eq!(counters.of(Op::Commit), 1);
    assert_eq!(counters.bytes_in, MIB);
    assert!(counters.bytes_out <= MIB);
    // The next one knows the block list, and finds the granule split off.
    world.store.reset_counters();
    file.write(10 * MIB, &[2; 100]).await.unwrap();
    expected[10 << 20..][..100].fill(2);
    commit(&file).await.unwrap();
    assert_eq!(world.content(), expected);
    let counters = world.store.counters();
    assert_eq!((counters.of(Op::Stage), counters.of(Op::Commit)), (1, 1));
    assert_eq!(counters.of(Op::BlockList), 0);
}

#[tokio::test]
async fn an_endpoint_without_server_copies_is_asked_once() {
    let world = World::usual();
    world.store.refuse_stage_from(true);
    let mut expected = pattern(0, 20 << 20);
    world.store.foreign_put("file", expected.clone(), Metadata::new());
    let file = world.open();
    for at in [3u64 << 20, 15 << 20] {
        file.write(at, b"x").await.unwrap();
        expected[at as usize] = b'x';
        commit(&file).await.unwrap();
        assert_eq!(world.content(), expected);
    }
    // All copies of the first commit may have been under way when the first was refused.
    assert!(world.store.counters().of(Op::StageFrom) <= 2);
    assert!(!world.env.server_copy.load(std::sync::atomic::Ordering::Relaxed));
}

#[tokio::test]
async fn appending_lines_durably_sends_little() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 32 << 20), Metadata::new());
    let file = world.open();
    let mut size = 32 * MIB;
    for _ in 0..200 {
        file.write(size, &[b'l'; 100]).await.unwrap();
        size += 100;
        commit(&file).await.unwrap();
    }
    assert_eq!(world.content().len() as u64, size);
    let counters = world.store.counters();
    assert!(counters.bytes_in < 200 * 100 * 20, "{counters:?}");
    assert!(counters.bytes_out == 0, "{counters:?}");
    assert!(world.store.block_sizes("file").len() < 30);
}

#[tokio::test]
async fn a_sparse_file_shares_one_block_of_zeros() {
    let world = World::usual();
    let file = world.create();
    file.truncate(1 << 28).await.unwrap();
    file.write(100 * MIB, b"data").await.unwrap();
    assert_eq!(file.seek_data(0).await.unwrap(), Some(100 * MIB));
    commit(&file).await.unwrap();
    let counters = world.store.counters();
    assert!(counters.of(Op::Stage) <= 4, "{counters:?}");
    assert!(counters.bytes_in <= 4 * MIB, "{counters:?}");
    // What was a hole is known to be one, and is not fetched.
    assert_eq!(file.seek_data(0).await.unwrap(), Some(100 * MIB));
    assert_eq!(file.seek_hole(100 * MIB).await.unwrap(), Some(100 * MIB + 4096));
    assert_eq!(read(&file, 200 * MIB, 100).await, [0; 100]);
    assert_eq!(world.store.counters().of(Op::Get), 0);
    let content = world.content();
    assert_eq!(content.len(), 1 << 28);
    assert_eq!(&content[100 << 20..][..5], b"data\0");
}

#[tokio::test]
async fn the_service_copies_committed_ranges() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 32 << 20), Metadata::new());
    let source = world.open();
    let target = File::create(world.env.clone(), "copy".into());
    let copied = target.copy_from(&source, 0, 0, 40 << 20).await.unwrap();
    assert_eq!(copied, 32 << 20);
    target.commit(Metadata::new()).await.unwrap();
    let counters = world.store.counters();
    assert_eq!((counters.of(Op::Get), counters.of(Op::Stage)), (0, 0));
    assert_eq!(&world.store.content("copy").unwrap()[..], pattern(0, 32 << 20));
}

#[tokio::test]
async fn a_copy_of_dirty_data_and_holes_is_right() {
    let world = World::usual();
    let source = world.create();
    source.write(10, b"dirty").await.unwrap();
    source.truncate(3 << 20).await.unwrap();
    let target = File::create(world.env.clone(), "copy".into());
    target.write(0, &[9; 100]).await.unwrap();
    let copied = target.copy_from(&source, 5, 0, 1 << 20).await.unwrap();
    assert_eq!(copied, 1 << 20);
    assert_eq!(target.size(), 1 << 20);
    let mut expected = vec![0; 1 << 20];
    expected[5..10].copy_from_slice(b"dirty");
    assert_eq!(read(&target, 0, 1 << 20).await, expected);
}

/// What fstests' generic/490 looks for: it finds out how small a hole can be, and goes on from there.
#[tokio::test]
async fn holes_are_made_of_pages() {
    let world = World::usual();
    let file = world.create();
    // One byte after a cut shows from where on its block has data.
    for at in [2, 512, 2048, 4095] {
        file.truncate(0).await.unwrap();
        file.write(at, &[1]).await.unwrap();
        assert_eq!(file.seek_data(0).await.unwrap(), Some(0), "a byte at {at}");
    }
    for at in [4096, 8191] {
        file.truncate(0).await.unwrap();
        file.write(at, &[1]).await.unwrap();
        assert_eq!(file.seek_data(0).await.unwrap(), Some(4096), "a byte at {at}");
    }
    // Data of one page far behind.
    let (page, pages) = (4096, 8_391_689);
    file.truncate(0).await.unwrap();
    let last = (pages - 1) * page;
    file.write(last, &[1; 4096]).await.unwrap();
    for from in [0, 1, page, 14 * page, 2060 * page, last - 1, last] {
        assert_eq!(file.seek_data(from).await.unwrap(), Some(last), "from {from}");
    }
    assert_eq!(file.seek_hole(page + 1).await.unwrap(), Some(page + 1));
    assert_eq!(file.seek_hole(last).await.unwrap(), Some(pages * page));
    // A hole that does not begin and end with a page is its whole pages; at the end of the file it ends
    // there.
    file.truncate(0).await.unwrap();
    file.write(0, &[1; 100_000]).await.unwrap();
    file.punch_hole(10_000, 50_000).await.unwrap();
    file.truncate(200_001).await.unwrap();
    assert_eq!(file.seek_hole(0).await.unwrap(), Some(12_288));
    assert_eq!(file.seek_data(12_288).await.unwrap(), Some(57_344));
    assert_eq!(file.seek_data(11_000).await.unwrap(), Some(11_000));
    assert_eq!(file.seek_hole(57_344).await.unwrap(), Some(102_400));
    assert_eq!(file.seek_data(102_400).await.unwrap(), None);
    assert_eq!(file.seek_hole(200_000).await.unwrap(), Some(200_000));
    commit(&file).await;
    assert_eq!(file.seek_hole(0).await.unwrap(), Some(12_288));
}
