//! Beside other writers: what they change of a blob while it is open here, and what that means for who reads
//! and writes it.

use blob_client::{BlobType, BlockId, Condition, StoredHeaders};
use bytes::Bytes;

use super::*;
use crate::store::fake::{Fault, Op};

const MIB: u64 = 1 << 20;

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

/// A file as another mount makes it.
async fn make(world: &World, len: u64) -> Vec<u8> {
    let other = world.create();
    let content = pattern(0, len as usize);
    for (n, part) in content.chunks(MIB as usize).enumerate() {
        other.write(n as u64 * MIB, part).await.unwrap();
    }
    other
        .commit(metadata(&[("mode", "600"), ("uid", "1")]))
        .await
        .unwrap();
    content
}

/// Reads in a second place, and waits until what nobody waits for was asked.
async fn read_more(world: &World, file: &File) {
    let end = file.size().saturating_sub(1);
    file.read(&Reader::default(), end, 1).await.unwrap();
    settled(file).await;
    world.store.reset_counters();
}

/// Waits until what nobody waits for was asked.
async fn settled(file: &File) {
    let known = || match &file.core.lock().base {
        Some(base) => !format!("{:?}", base.blocks).starts_with("Asked"),
        None => true,
    };
    while !known() || !file.core.lock().flights.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reader_goes_on_when_only_metadata_changes() {
    for len in [MIB, 5 * MIB, 40 * MIB] {
        let world = World::usual();
        let content = make(&world, len).await;
        let file = world.open();
        assert_eq!(read(&file, 0, 100).await, content[..100]);
        read_more(&world, &file).await;
        for n in 0..3u64 {
            world
                .store
                .foreign_metadata("file", &metadata(&[("mode", &n.to_string())]));
            let at = (n + 1) * len / 4;
            let read = file.read(&Reader::default(), at, 1000).await.unwrap();
            assert_eq!(read[..], content[at as usize..][..1000], "{len} at {at}");
        }
        assert!(!file.is_stale());
    }
}

#[tokio::test]
async fn a_tier_or_tags_that_somebody_sets_while_the_file_is_open_stay() {
    let at_once = Tuning {
        stored_for: std::time::Duration::ZERO,
        ..Tuning::default()
    };
    let world = World::new(64 << 20, at_once);
    let content_type = |name: &str| StoredHeaders::of_type(name).unwrap();
    for (len, made_here) in [(MIB, true), (MIB, false), (40 * MIB, false)] {
        let file = match made_here {
            true => {
                let file = world.create();
                file.write(0, b"1").await.unwrap();
                commit(&file).await.unwrap();
                file
            }
            false => {
                make(&world, len).await;
                world.open()
            }
        };
        for name in ["text/a", "text/b"] {
            world.store.foreign_stored("file", content_type(name));
            file.write(len - 1, b"!").await.unwrap();
            commit(&file).await.unwrap();
            let stored = world.store.properties("file").unwrap().stored;
            assert_eq!(stored, content_type(name), "{len} {made_here}");
        }
        world.store.foreign_delete("file");
    }
}

/// What was asked a moment ago is not asked again.
#[tokio::test]
async fn commits_within_a_second_ask_for_nothing() {
    let world = World::usual();
    make(&world, MIB).await;
    let file = world.open();
    world.store.reset_counters();
    for n in 0..3 {
        file.write(n, b"!").await.unwrap();
        commit(&file).await.unwrap();
    }
    assert_eq!(world.store.counters().of(Op::Head), 0);
}

/// The store refuses blocks of another scope than the commit's.
#[tokio::test]
async fn a_large_blob_stays_in_its_encryption_scope() {
    let world = World::usual();
    let content = make(&world, 40 * MIB).await;
    let scoped = StoredHeaders::default().in_scope("mine").unwrap();
    world.store.foreign_stored("file", scoped);
    let file = world.open();
    file.write(5 * MIB, b"!").await.unwrap();
    file.write(40 * MIB, &pattern(0, 20 << 20)).await.unwrap();
    commit(&file).await.unwrap();
    assert_eq!(
        world.store.properties("file").unwrap().stored.scope(),
        Some("mine")
    );
    let now = world.content();
    assert_eq!(now.len() as u64, 60 * MIB);
    assert_eq!(now[..5 << 20], content[..5 << 20]);
    assert_eq!(now[5 << 20], b'!');
}

/// A blob that somebody else put in one piece: the service's digest tells that it is the same.
#[tokio::test]
async fn the_digest_of_a_blob_of_one_piece_tells_that_it_is_the_same() {
    let world = World::usual();
    let content = pattern(0, 20 << 20);
    world.store.foreign_put("file", content.clone(), Metadata::new());
    let file = world.open();
    assert_eq!(read(&file, 0, 100).await, content[..100]);
    read_more(&world, &file).await;
    world
        .store
        .foreign_metadata("file", &metadata(&[("mode", "640")]));
    let mut at = 0;
    let reader = Reader::default();
    while at < content.len() {
        let read = file.read(&reader, at as u64, 1 << 20).await.unwrap();
        assert_eq!(read[..], content[at..][..read.len()]);
        at += read.len();
    }
}

#[tokio::test]
async fn a_writer_commits_on_top_of_a_change_of_metadata() {
    for len in [0, 1000, 20 * MIB] {
        let world = World::usual();
        let mut content = make(&world, len).await;
        let file = world.open();
        file.write(At::End, b"line").await.unwrap();
        content.extend_from_slice(b"line");
        read_more(&world, &file).await;
        world.store.foreign_metadata(
            "file",
            &metadata(&[("mode", "640"), ("uid", "1"), ("theirs", "x")]),
        );
        let mine = metadata(&[("mode", "600"), ("uid", "2")]);
        let written = file.commit(mine).await;
        assert!(written.is_ok(), "{len}: {written:?}");
        assert_eq!(world.content(), content);
        let stored = world.store.properties("file").unwrap();
        let merged = metadata(&[("mode", "640"), ("uid", "2"), ("theirs", "x")]);
        assert_eq!(stored.metadata, merged, "{len}");
        assert_eq!(file.etag(), Some(stored.etag));
        // And again, with nothing in between.
        file.write(0, b"X").await.unwrap();
        content[0] = b'X';
        file.commit(merged).await.unwrap().unwrap();
        assert_eq!(world.content(), content);
    }
}

/// The same for a file whose base is in memory, after a commit of its own.
#[tokio::test]
async fn a_writer_goes_on_after_its_own_commits() {
    for len in [100, 20 * MIB] {
        let world = World::usual();
        let file = world.create();
        let mut content = pattern(0, len as usize);
        for (n, part) in content.chunks(MIB as usize).enumerate() {
            file.write(n as u64 * MIB, part).await.unwrap();
        }
        file.commit(metadata(&[("mode", "600")])).await.unwrap();
        for n in 0..3u8 {
            let mode = n.to_string();
            world
                .store
                .foreign_metadata("file", &metadata(&[("mode", &mode)]));
            file.write(At::End, &[n]).await.unwrap();
            content.push(n);
            let before = metadata(&[("mode", "600")]);
            file.commit(before).await.unwrap().unwrap();
            assert_eq!(world.content(), content);
        }
    }
}

/// The commit was executed, its answer was lost, and then somebody changed the metadata.
#[tokio::test]
async fn a_lost_answer_and_a_change_of_metadata_are_no_lost_race() {
    for len in [100, 20 * MIB] {
        let world = World::usual();
        let mut content = make(&world, len).await;
        let file = world.open();
        file.write(At::End, b"line").await.unwrap();
        content.extend_from_slice(b"line");
        world.store.fail(Op::Put, Fault::AnswerLost, 1);
        world.store.fail(Op::Commit, Fault::AnswerLost, 1);
        world.store.fail(Op::Head, Fault::Lost, 1);
        let mine = metadata(&[("mode", "600"), ("uid", "1")]);
        assert!(file.commit(mine.clone()).await.is_err());
        assert_eq!(world.content(), content);
        world
            .store
            .foreign_metadata("file", &metadata(&[("mode", "640")]));
        file.commit(mine).await.unwrap();
        assert!(!file.is_dirty());
        assert_eq!(world.content(), content);
        assert_eq!(world.store.properties("file").unwrap().metadata["mode"], "640");
        file.write(0, b"Y").await.unwrap();
        content[0] = b'Y';
        file.commit(metadata(&[("mode", "640")])).await.unwrap();
        assert_eq!(world.content(), content);
    }
}

/// Another content of the same length and, as tools number their blocks, with blocks of the same names.
#[tokio::test]
async fn another_content_that_looks_alike_is_another_content() {
    let numbered = |byte: u8| -> Vec<(BlockId, Bytes)> {
        (0..3u8)
            .map(|n| {
                (
                    BlockId(vec![b'0', b'0' + n]),
                    Bytes::from(vec![byte + n; 2 << 20]),
                )
            })
            .collect()
    };
    let world = World::usual();
    world.store.foreign_blocks("file", numbered(1));
    let (reader, writer) = (world.open(), world.open());
    assert_eq!(read(&reader, 0, 10).await, [1; 10]);
    writer.write(At::End, b"mine").await.unwrap();
    read_more(&world, &reader).await;
    world.store.foreign_blocks("file", numbered(5));
    let read = reader.read(&Reader::default(), 5 * MIB, 10).await;
    assert!(matches!(read, Err(FileError::Stale)), "{read:?}");
    let commit = writer.commit(Metadata::new()).await;
    assert!(matches!(commit, Err(FileError::Stale)), "{commit:?}");
    assert_eq!(world.content().len(), 6 << 20);
    // In one piece, and small.
    for len in [100, 4 << 20] {
        world.store.foreign_put("file", vec![1; len], Metadata::new());
        let (reader, writer) = (world.open(), world.open());
        if len > 100 {
            reader.read(&Reader::default(), 0, 10).await.unwrap();
            read_more(&world, &reader).await;
        }
        writer.write(At::End, b"mine").await.unwrap();
        world.store.foreign_put("file", vec![2; len], Metadata::new());
        let read = reader.read(&Reader::default(), len as u64 / 2, 10).await;
        assert!(matches!(read, Err(FileError::Stale)), "{len}: {read:?}");
        let commit = writer.commit(Metadata::new()).await;
        assert!(matches!(commit, Err(FileError::Stale)), "{len}: {commit:?}");
        assert_eq!(world.content(), vec![2; len]);
    }
}

/// A tool that says a digest with Put Block List may say that of another content, and put that one later.
#[tokio::test]
async fn a_digest_that_was_only_said_makes_no_mixture() {
    let blocks = |len: usize| -> Vec<(BlockId, Bytes)> {
        (0..3u8)
            .map(|n| (BlockId(vec![b'0', n]), Bytes::from(vec![1; len / 3])))
            .collect()
    };
    let small = 3000;
    for (len, first, writes) in [
        (3 * MIB as usize, 10, false),
        (small, 10, false),
        (small, 10, true),
        (small, 0, true),
    ] {
        let world = World::usual();
        let other = vec![2; len];
        world.store.foreign_put("file", other.clone(), Metadata::new());
        let digest = world.store.properties("file").unwrap().content_md5;
        assert!(digest.is_some());
        world.store.foreign_blocks("file", blocks(len));
        world.store.set_digest("file", digest.as_deref());
        let file = world.open();
        file.opened(writes);
        assert_eq!(read(&file, 0, first).await, vec![1; first]);
        if writes {
            file.write(At::End, b"mine").await.unwrap();
            settled(&file).await;
        }
        world.store.foreign_put("file", other.clone(), Metadata::new());
        let case = format!("{len} {first} {writes}");
        if writes {
            let commit = file.commit(Metadata::new()).await;
            assert!(matches!(commit, Err(FileError::Stale)), "{case}: {commit:?}");
        } else {
            let now = world.store.properties("file").unwrap();
            let same = file.follow(now).await.unwrap();
            assert!(!same, "{case}: a mixture");
        }
        assert_eq!(world.content(), other);
    }
    // What nobody was given may be of either.
    let world = World::usual();
    world.store.foreign_put("file", vec![2; small], Metadata::new());
    let file = world.open();
    file.opened(false);
    world
        .store
        .foreign_metadata("file", &metadata(&[("mode", "640")]));
    assert_eq!(read(&file, 0, small).await, vec![2; small]);
}

/// Whatever was read or written of it before: the file goes on.
#[tokio::test]
async fn a_change_of_attributes_of_a_small_file_disturbs_no_writer() {
    for (before, early) in [
        ("nothing", false),
        ("reads", false),
        ("cuts", false),
        ("nothing", true),
    ] {
        let world = World::usual();
        let mut content = pattern(0, 5000);
        world.store.foreign_put("file", content.clone(), Metadata::new());
        let file = world.open();
        file.opened(true);
        let touch = || {
            world
                .store
                .foreign_metadata("file", &metadata(&[("mode", "640")]))
        };
        match before {
            "reads" => assert_eq!(read(&file, 0, 100).await, content[..100]),
            "cuts" => {
                file.truncate(0).await.unwrap();
                content.clear();
            }
            _ => {}
        }
        if early {
            touch();
        }
        file.write(At::End, b"line").await.unwrap();
        content.extend_from_slice(b"line");
        settled(&file).await;
        if !early {
            touch();
        }
        let stored = file.commit(Metadata::new()).await;
        assert!(stored.is_ok(), "{before} {early}: {stored:?}");
        assert_eq!(world.content(), content);
        assert!(early || world.store.counters().of(Op::Get) <= 2, "{before}");
    }
}

/// Two that append to one file are no change of metadata, whichever way it can be told.
#[tokio::test]
async fn of_two_writers_one_has_lost() {
    for len in [0, 1000, 20 * MIB] {
        let world = World::usual();
        make(&world, len).await;
        let (first, second) = (world.open(), world.open());
        first.write(At::End, b"first").await.unwrap();
        second.write(At::End, b"second").await.unwrap();
        first.commit(Metadata::new()).await.unwrap();
        let lost = second.commit(Metadata::new()).await;
        assert!(matches!(lost, Err(FileError::Stale)), "{len}: {lost:?}");
        assert!(world.content().ends_with(b"first"));
    }
}

#[tokio::test]
async fn a_live_append_blob_is_read_to_its_end() {
    let world = World::usual();
    let content = pattern(0, 40 << 20);
    world.store.foreign_put("file", content.clone(), Metadata::new());
    world.store.set_blob_type("file", BlobType::Append);
    let file = world.open();
    let reader = Reader::default();
    let mut at = 0;
    while at < content.len() {
        assert!(world.store.foreign_append("file", b"line\n"));
        let read = file.read(&reader, at as u64, 1 << 20).await.unwrap();
        assert_eq!(read[..], content[at..][..read.len()]);
        at += read.len();
    }
    assert!(!file.is_stale());
    // Another blob of that name is another file.
    let file = world.open();
    world
        .store
        .foreign_put("file", vec![0; 50 << 20], Metadata::new());
    world.store.set_blob_type("file", BlobType::Append);
    let read = file.read(&Reader::default(), 0, 10).await;
    assert!(matches!(read, Err(FileError::Stale)), "{read:?}");
}

/// Another mount appends with an fsync now and then: what was there at the open can be read.
#[tokio::test]
async fn a_file_that_another_mount_appends_to_is_read_to_its_end() {
    let world = World::usual();
    let content = make(&world, 40 * MIB).await;
    let file = world.open();
    let writer = world.open();
    assert_eq!(read(&file, 0, 100).await, content[..100]);
    read_more(&world, &file).await;
    let reader = Reader::default();
    let mut at = 0;
    while at < content.len() {
        writer.write(At::End, b"line\n").await.unwrap();
        writer.commit(Metadata::new()).await.unwrap();
        let read = file.read(&reader, at as u64, 1 << 20).await.unwrap();
        let known = read.len().min(content.len() - at);
        assert_eq!(read[..known], content[at..][..known]);
        at += read.len();
    }
    assert!(!file.is_stale());
    // A part of it that was changed is another content.
    let file = world.open();
    assert_eq!(read(&file, 0, 100).await, content[..100]);
    read_more(&world, &file).await;
    writer.write(20 * MIB, b"changed").await.unwrap();
    writer.write(At::End, b"line\n").await.unwrap();
    writer.commit(Metadata::new()).await.unwrap();
    let read = file.read(&Reader::default(), 39 * MIB, 10).await;
    assert!(matches!(read, Err(FileError::Stale)), "{read:?}");
}

/// A log as most are: so small that each version is put in one piece.
#[tokio::test]
async fn a_small_file_that_grew_is_told_by_its_bytes() {
    let world = World::usual();
    let content = make(&world, 5000).await;
    let file = world.open();
    let writer = world.open();
    assert_eq!(read(&file, 0, 5000).await, content);
    writer.write(At::End, b"line\n").await.unwrap();
    writer.commit(Metadata::new()).await.unwrap();
    let now = world.store.properties("file").unwrap();
    assert!(file.follow(now.clone()).await.unwrap());
    assert_eq!((file.size(), file.etag()), (5005, Some(now.etag)));
    assert_eq!(
        read(&file, 4998, 100).await,
        [&content[4998..], b"line\n"].concat()
    );
    // Changed at the front, and grown.
    let other = world.open();
    assert_eq!(read(&other, 0, 6000).await.len(), 5005);
    writer.write(0, b"other").await.unwrap();
    writer.write(At::End, b"line\n").await.unwrap();
    writer.commit(Metadata::new()).await.unwrap();
    let now = world.store.properties("file").unwrap();
    assert!(!other.follow(now).await.unwrap());
    assert_eq!(other.size(), 5005);
}

/// What was read ahead past what was promised, and is another content now.
#[tokio::test]
async fn what_was_read_ahead_past_what_was_promised_goes_with_its_version() {
    for read_after in [false, true] {
        let world = World::usual();
        let mut content = pattern(0, 1000);
        world.store.foreign_put("file", content.clone(), Metadata::new());
        let file = world.open();
        file.opened(false);
        assert_eq!(read(&file, 0, 1000).await, content);
        content.extend(pattern(1000, 2000));
        world.store.foreign_put("file", content.clone(), Metadata::new());
        let grown = world.store.properties("file").unwrap();
        assert!(file.follow(grown).await.unwrap());
        assert_eq!(read(&file, 1000, 10).await, content[1000..1010]);
        // Behind what anybody read, but not behind what is in memory.
        content[2500] ^= 0xff;
        world.store.foreign_put("file", content.clone(), Metadata::new());
        let now = world.store.properties("file").unwrap();
        assert!(file.follow(now.clone()).await.unwrap());
        assert_eq!(file.etag(), Some(now.etag));
        file.opened(true);
        if read_after {
            assert_eq!(read(&file, 2500, 1).await, content[2500..2501]);
        }
        file.write(0, b"Z").await.unwrap();
        content[0] = b'Z';
        file.commit(Metadata::new()).await.unwrap().unwrap();
        assert_eq!(world.content(), content, "what somebody else stored");
    }
}

/// The same for what is on its way while the file follows.
#[tokio::test]
async fn what_is_on_its_way_when_the_version_changes_is_not_kept() {
    let world = World::usual();
    let mut content = pattern(0, 1000);
    world.store.foreign_put("file", content.clone(), Metadata::new());
    let file = world.open();
    assert_eq!(read(&file, 0, 1000).await, content);
    content.extend(pattern(1000, 2000));
    world.store.foreign_put("file", content.clone(), Metadata::new());
    let grown = world.store.properties("file").unwrap();
    assert!(file.follow(grown).await.unwrap());
    let version = file.core.lock().version;
    content[2500] ^= 0xff;
    world.store.foreign_put("file", content.clone(), Metadata::new());
    let now = world.store.properties("file").unwrap();
    assert!(file.follow(now).await.unwrap());
    let state = file.core.lock();
    assert!(state.still(version, 1000), "what is proven stays");
    assert!(!state.still(version, 1001));
    assert!(state.still(state.version, 3000));
}

/// What writers of blocks or pages say is the digest, and may have said of another content.
#[tokio::test]
async fn a_digest_that_the_service_did_not_make_proves_nothing() {
    let blocks = |byte: u8| {
        let block = |n: u8| (BlockId(vec![b'0', n]), Bytes::from(vec![byte; 1000]));
        vec![block(b'0'), block(b'1')]
    };
    for (case, kind, put_before, put_after) in [
        ("pages", BlobType::Page, true, true),
        ("blocks", BlobType::Block, false, false),
        ("one piece, then blocks", BlobType::Block, true, false),
    ] {
        let world = World::usual();
        let store = |byte: u8, put: bool| {
            match put {
                true => world.store.foreign_put("file", vec![byte; 2000], Metadata::new()),
                false => world.store.foreign_blocks("file", blocks(byte)),
            };
            world.store.set_blob_type("file", kind);
            let mut now = world.store.properties("file").unwrap();
            now.content_md5 = Some("the same".into());
            now
        };
        let before = store(1, put_before);
        let file = File::open(world.env.clone(), "file".into(), Base::from(&before));
        assert_eq!(read(&file, 0, 10).await, [1; 10]);
        let now = store(2, put_after);
        assert!(!file.follow(now).await.unwrap(), "{case}");
    }
}

/// What the tree stored with the blob, or moved with it, is what others change.
#[tokio::test]
async fn a_change_of_metadata_on_top_of_the_trees_own_is_not_undone() {
    for moved in [false, true] {
        let world = World::usual();
        world
            .store
            .foreign_put("file", pattern(0, 1000), metadata(&[("mode", "600")]));
        let file = world.open();
        let mine = metadata(&[("mode", "640")]);
        let hold = file.hold().await.unwrap();
        let (name, at) = match moved {
            true => ("new", Condition::absent()),
            false => ("file", Condition::matches(&file.etag().unwrap())),
        };
        match moved {
            true => {
                let from = file.etag();
                let copied = world
                    .store
                    .copy("file", from.as_ref(), None, name, Some(&mine), &at)
                    .await
                    .unwrap();
                file.moved(name.to_owned(), Some((&copied, &mine)));
            }
            false => {
                let written = world.store.set_metadata(name, &mine, &at).await.unwrap();
                file.rebase(&written, &mine);
            }
        }
        drop(hold);
        world
            .store
            .foreign_metadata(name, &metadata(&[("mode", "600")]))
            .unwrap();
        file.write(0, b"X").await.unwrap();
        file.commit(mine).await.unwrap().unwrap();
        let stored = world.store.properties(name).unwrap().metadata;
        assert_eq!(stored["mode"], "600", "moved: {moved}");
    }
}

/// The same for a commit whose answer was lost.
#[tokio::test]
async fn a_change_of_metadata_on_top_of_a_commit_in_doubt_is_not_undone() {
    for executed in [true, false] {
        let world = World::usual();
        let before = metadata(&[("mode", "600"), ("uid", "1")]);
        world.store.foreign_put("file", pattern(0, 1000), before);
        let file = world.open();
        read(&file, 0, 1000).await;
        file.write(0, b"X").await.unwrap();
        let mine = metadata(&[("mode", "640"), ("uid", "1")]);
        let fault = if executed { Fault::AnswerLost } else { Fault::Lost };
        world.store.fail(Op::Put, fault, 1);
        world.store.fail(Op::Head, Fault::Lost, 1);
        assert!(file.commit(mine.clone()).await.is_err());
        let theirs = metadata(&[("mode", if executed { "600" } else { "640" }), ("uid", "2")]);
        world.store.foreign_metadata("file", &theirs).unwrap();
        file.write(1, b"Y").await.unwrap();
        file.commit(mine).await.unwrap().unwrap();
        let stored = world.store.properties("file").unwrap().metadata;
        assert_eq!(stored, theirs, "executed: {executed}");
        assert_eq!(world.content()[..2], *b"XY");
    }
}

/// An empty file and the marker of a folder are both blobs without content.
#[tokio::test]
async fn a_folder_that_takes_the_name_of_an_empty_file_is_another_content() {
    for key in ["hdi_isfolder", "vsc_kind"] {
        let world = World::usual();
        world.store.foreign_put("file", "", Metadata::new());
        let file = world.open();
        file.opened(true);
        file.write(0, b"ours").await.unwrap();
        let other = Metadata::from([(key.to_owned(), "true".to_owned())]);
        world.store.foreign_put("file", "", other.clone());
        let committed = file.commit(Metadata::new()).await;
        assert!(matches!(committed, Err(FileError::Stale)), "{key}: {committed:?}");
        assert_eq!(world.content(), b"", "{key}");
        assert_eq!(world.store.properties("file").unwrap().metadata, other);
    }
}
