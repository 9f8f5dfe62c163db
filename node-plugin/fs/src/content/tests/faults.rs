//! What happens when the service fails, is slow, or has been changed by somebody else.

use blob_client::{BlockId, Condition};

use super::*;
use crate::caller::Caller;
use crate::store::fake::{Fault, Op};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_lost_race_is_stale_for_ever_and_cached_data_stays_readable() {
    let world = World::usual();
    world.store.foreign_put("file", pattern(0, 1000), Metadata::new());
    let file = world.open();
    assert_eq!(read(&file, 0, 10).await, pattern(0, 10));
    file.write(0, b"mine").await.unwrap();
    world.store.foreign_put("file", &b"theirs"[..], Metadata::new());
    for _ in 0..2 {
        let error = file.commit(Metadata::new()).await.unwrap_err();
        assert!(matches!(error, FileError::Stale), "{error}");
    }
    assert!(file.is_stale() && file.is_dirty());
    assert_eq!(world.content(), b"theirs");
    assert_eq!(read(&file, 0, 4).await, b"mine");
    assert_eq!(read(&file, 4, 10).await, pattern(4, 10));
}

#[tokio::test]
async fn a_read_of_a_changed_blob_is_stale() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 5 << 20), Metadata::new());
    let file = world.open();
    assert_eq!(read(&file, 0, 10).await, pattern(0, 10));
    world.store.foreign_put("file", &b"theirs"[..], Metadata::new());
    let error = file.read(&Reader::default(), 3 << 20, 10).await.unwrap_err();
    assert!(matches!(error, FileError::Stale));
    assert_eq!(read(&file, 5, 10).await, pattern(5, 10));
    world.store.foreign_delete("file");
    let error = file.read(&Reader::default(), 4 << 20, 10).await.unwrap_err();
    assert!(matches!(error, FileError::Stale));
}

#[tokio::test]
async fn a_new_file_never_replaces_one_that_came_meanwhile() {
    for size in [5usize, 20 << 20] {
        let world = World::usual();
        let file = world.create();
        file.write(0, &pattern(0, size)).await.unwrap();
        world.store.foreign_put("file", &b"theirs"[..], Metadata::new());
        let error = file.commit(Metadata::new()).await.unwrap_err();
        assert!(matches!(error, FileError::Stale), "{error}");
        assert_eq!(world.content(), b"theirs");
    }
}

#[tokio::test]
async fn a_lost_answer_is_no_error_and_no_lost_race() {
    for size in [5usize, 20 << 20] {
        let world = World::usual();
        let file = world.create();
        file.write(0, &pattern(0, size)).await.unwrap();
        world.store.fail(Op::Put, Fault::AnswerLost, 1);
        world.store.fail(Op::Commit, Fault::AnswerLost, 1);
        commit(&file).await.unwrap();
        assert_eq!(world.content(), pattern(0, size));
        assert_eq!(file.etag(), world.store.properties("file").map(|p| p.etag));
        file.write(1, b"again").await.unwrap();
        commit(&file).await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_of_unknown_outcome_is_cleared_up_by_the_next() {
    for size in [5usize, 20 << 20] {
        let world = World::usual();
        let file = world.create();
        file.write(0, &pattern(0, size)).await.unwrap();
        world.store.fail(Op::Put, Fault::AnswerLost, 1);
        world.store.fail(Op::Commit, Fault::AnswerLost, 1);
        world.store.fail(Op::Head, Fault::Lost, 1);
        assert!(file.commit(Metadata::new()).await.is_err());
        assert!(file.is_dirty());
        file.write(2, b"more").await.unwrap();
        commit(&file).await.unwrap();
        let mut expected = pattern(0, size);
        expected.resize(size.max(6), 0);
        expected[2..6].copy_from_slice(b"more");
        assert_eq!(world.content(), expected);
    }
}

#[tokio::test]
async fn what_could_not_be_staged_in_the_background_is_staged_by_the_commit() {
    let world = World::usual();
    let file = world.create();
    world.store.fail(Op::Stage, Fault::Lost, 2);
    for n in 0..25 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    file.core.no_block_on_its_way().await;
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 25 << 20));
}

#[tokio::test]
async fn an_error_is_reported_and_the_next_commit_tries_everything_again() {
    let world = World::usual();
    let file = world.create();
    for n in 0..25 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    file.core.no_block_on_its_way().await;
    for (op, fault) in [
        (Op::Stage, Fault::Lost),
        (Op::Commit, Fault::Status(503, "ServerBusy")),
        (Op::Commit, Fault::Status(403, "AuthorizationFailure")),
        (Op::Commit, Fault::Lost),
    ] {
        world.store.fail(op, fault, 1);
        let error = file.commit(Metadata::new()).await.unwrap_err();
        assert!(matches!(error, FileError::Client(_)), "{error}");
        assert!(file.is_dirty());
    }
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 25 << 20));
}

#[tokio::test]
async fn writes_during_a_commit_stay_dirty() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &[1; 100]).await.unwrap();
    world.store.close();
    let first = tokio::spawn({
        let file = Arc::clone(&file);
        async move { file.commit(Metadata::new()).await }
    });
    world.store.wait_for(1).await;
    file.write(50, &[2; 100]).await.unwrap();
    file.truncate(140).await.unwrap();
    world.store.open();
    first.await.unwrap().unwrap().unwrap();
    assert_eq!(world.content(), [1; 100]);
    assert!(file.is_dirty());
    let expected = [vec![1; 50], vec![2; 90]].concat();
    assert_eq!(read(&file, 0, 1000).await, expected);
    commit(&file).await.unwrap();
    assert_eq!(world.content(), expected);
}

#[tokio::test]
async fn a_cut_during_a_commit_is_not_undone_by_it() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &[1; 100]).await.unwrap();
    world.store.close();
    let first = tokio::spawn({
        let file = Arc::clone(&file);
        async move { file.commit(Metadata::new()).await }
    });
    world.store.wait_for(1).await;
    file.truncate(10).await.unwrap();
    file.truncate(100).await.unwrap();
    world.store.open();
    first.await.unwrap().unwrap().unwrap();
    assert_eq!(world.content(), [1; 100]);
    assert!(file.is_dirty());
    let expected = [vec![1; 10], vec![0; 90]].concat();
    assert_eq!(read(&file, 0, 1000).await, expected);
    commit(&file).await.unwrap();
    assert_eq!(world.content(), expected);
}

#[tokio::test]
async fn a_commit_whose_caller_went_away_is_carried_out() {
    let world = World::usual();
    let file = world.create();
    file.write(0, b"data").await.unwrap();
    world.store.close();
    let mut abandoned = Box::pin(file.commit(Metadata::new()));
    assert!(futures::poll!(abandoned.as_mut()).is_pending());
    world.store.wait_for(1).await;
    drop(abandoned);
    world.store.open();
    assert_eq!(commit(&file).await, None);
    assert_eq!(world.content(), b"data");
    assert!(!file.is_dirty());
    file.write(0, b"DATA").await.unwrap();
    commit(&file).await.unwrap();
}

#[tokio::test]
async fn a_read_whose_caller_went_away_still_fills_the_cache() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 5 << 20), Metadata::new());
    let file = world.open();
    world.store.close();
    let reader = Reader::default();
    let mut abandoned = Box::pin(file.read(&reader, 0, 100));
    assert!(futures::poll!(abandoned.as_mut()).is_pending());
    world.store.wait_for(1).await;
    drop(abandoned);
    world.store.open();
    assert_eq!(read(&file, 0, 100).await, pattern(0, 100));
    assert_eq!(world.store.counters().total(), 1);
}

#[tokio::test]
async fn a_failed_read_is_an_error_for_all_who_waited_and_tried_again_later() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 5 << 20), Metadata::new());
    let file = world.open();
    world.store.fail(Op::Get, Fault::Status(500, "InternalError"), 1);
    let (one, other) = (Reader::default(), Reader::default());
    let both = tokio::join!(file.read(&one, 0, 100), file.read(&other, 10, 100));
    assert!(both.0.is_err() && both.1.is_err());
    assert_eq!(world.store.counters().total(), 1);
    assert_eq!(read(&file, 0, 100).await, pattern(0, 100));
}

#[tokio::test]
async fn blocks_left_behind_by_somebody_else_do_not_matter() {
    let world = World::usual();
    world
        .store
        .foreign_stage("file", BlockId(b"abc".to_vec()), &b"left"[..]);
    let file = world.create();
    file.write(0, &pattern(0, 20 << 20)).await.unwrap();
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 20 << 20));
}

#[tokio::test]
async fn a_rewritten_blob_of_short_ids_gets_ids_of_that_length() {
    let world = World::usual();
    let blocks = (0..3u8).map(|n| (BlockId(vec![n, 0]), pattern(0, 1 << 20).into()));
    world.store.foreign_blocks("file", blocks.collect());
    let file = world.open();
    file.truncate(0).await.unwrap();
    for n in 0..20 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 20 << 20));
}

#[tokio::test]
async fn staged_blocks_that_vanished_are_sent_again() {
    let world = World::usual();
    let file = world.create();
    for n in 0..20 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    file.core.no_block_on_its_way().await;
    world.store.foreign_delete("file");
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 20 << 20));
}

#[tokio::test]
async fn a_read_while_the_tree_changes_metadata_waits_instead_of_failing() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 5 << 20), Metadata::new());
    let file = world.open();
    let hold = file.hold().await.unwrap();
    let condition = Condition::matches(&file.etag().unwrap());
    let metadata = Metadata::from([("mode".into(), "0600".into())]);
    let written = world
        .store
        .set_metadata("file", &metadata, &condition)
        .await
        .unwrap();
    let mut reading = Box::pin(read(&file, 3 << 20, 10));
    for _ in 0..20 {
        assert!(futures::poll!(reading.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    file.rebase(&written, &metadata);
    drop(hold);
    assert_eq!(reading.await, pattern(3 << 20, 10));
    file.write(0, b"x").await.unwrap();
    commit(&file).await.unwrap();
}

#[tokio::test]
async fn a_renamed_file_goes_on_under_its_new_name() {
    let world = World::usual();
    let file = world.create();
    for n in 0..20 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    let hold = file.hold().await.unwrap();
    file.moved("other".into(), None);
    drop(hold);
    commit(&file).await.unwrap();
    assert_eq!(world.store.names(), ["other"]);
    assert_eq!(&world.store.content("other").unwrap()[..], pattern(0, 20 << 20));
}

#[tokio::test]
async fn a_detached_file_lives_on_in_memory() {
    let world = World::usual();
    world
        .store
        .foreign_put("file", pattern(0, 3 << 20), Metadata::new());
    let file = world.open();
    file.write(5, b"dirty").await.unwrap();
    assert!(!file.detach(1 << 20).await.unwrap());
    assert!(file.detach(4 << 20).await.unwrap());
    world.store.foreign_delete("file");
    world.store.reset_counters();
    file.write(3 << 20, b"more").await.unwrap();
    let mut expected = pattern(0, 3 << 20);
    expected[5..10].copy_from_slice(b"dirty");
    expected.extend_from_slice(b"more");
    while world.env.budget.evict_one() {}
    assert_eq!(read(&file, 0, 4 << 20).await, expected);
    assert!(!file.is_dirty());
    assert_eq!(commit(&file).await, None);
    assert_eq!(world.store.counters().total(), 0);
}

#[tokio::test]
async fn what_cannot_be_written_says_so() {
    let world = World::usual();
    world.store.foreign_put("file", pattern(0, 10), Metadata::new());
    let now = world.store.properties("file").unwrap();
    let base = Base {
        kind: blob_client::BlobType::Page,
        ..Base::from(&now)
    };
    let file = File::open(world.env.clone(), "file".into(), base);
    assert!(matches!(file.try_write(0, b"x"), Err(FileError::Unwritable(_))));
    assert!(matches!(file.truncate(3).await, Err(FileError::Unwritable(_))));
    assert_eq!(read(&file, 0, 10).await, pattern(0, 10));
    let file = world.open();
    assert!(matches!(file.truncate(1 << 60).await, Err(FileError::TooLarge)));
    assert!(matches!(
        file.write(u64::MAX, b"x").await,
        Err(FileError::TooLarge)
    ));
    assert!(matches!(
        file.allocate(1 << 60, 1, false).await,
        Err(FileError::NoSpace)
    ));
}

/// Staged blocks live for a week. When they were all there was, no number of tries brings them back.
#[tokio::test(flavor = "multi_thread")]
async fn staged_blocks_that_the_service_has_discarded_are_told_once_and_for_all() {
    let world = World::new(512 << 20, tiny());
    let file = world.create();
    file.write(0, &pattern(0, 1000)).await.unwrap();
    while !file.core.lock().has_remote(0..u64::MAX) {
        world.env.budget.relieve(1, None);
        tokio::task::yield_now().await;
    }
    world
        .store
        .fail(Op::Commit, Fault::Status(400, "InvalidBlockList"), 1);
    for _ in 0..2 {
        let error = file.commit(Metadata::new()).await.unwrap_err();
        assert!(matches!(error, FileError::Stale), "{error}");
    }
}

/// Remembers which blocks were written down.
#[derive(Debug, Default)]
struct Noted(std::sync::Mutex<std::collections::HashSet<blob_client::BlockId>>);

impl crate::content::dirty_log::DirtyLog for Noted {
    fn dirty(&self, _offset: u64, _len: u64, _arena_offset: u64) {}
    fn hole(&self, _offset: u64, _len: u64) {}
    fn size(&self, _size: u64) {}
    fn block(&self, id: &blob_client::BlockId, _offset: u64, _len: u64) {
        self.0.lock().unwrap().insert(id.clone());
    }
    fn sent(&self, _id: &blob_client::BlockId) {}
    fn unstaged(&self, _id: &blob_client::BlockId) {}
    fn metadata(&self, _metadata: &Metadata) {}
    fn committed(&self, _etag: &blob_client::ETag) {}
    fn begin_commit(&self) {}
}

/// Whoever goes on after this process must know which blocks it may have staged, whatever they were staged
/// for.
#[tokio::test(flavor = "multi_thread")]
async fn every_block_is_written_down() {
    let world = World::usual();
    let id = |n: u8| blob_client::BlockId(vec![n; 5]);
    let foreign = (0..4u8).map(|n| (id(n), bytes::Bytes::from(vec![n; 8 << 20])));
    world.store.foreign_blocks("file", foreign.collect());
    world
        .store
        .foreign_put("source", pattern(0, 20 << 20), Metadata::new());
    let noted = Arc::new(Noted::default());
    let env = world.env.with_log(Arc::clone(&noted) as _);
    let now = world.store.properties("file").unwrap();
    let base = Base::from(&now);
    // Ids of another length than ours: the first try is refused.
    let file = File::open(env, "file".into(), base);
    for n in 0..9 {
        file.write((40 + n) * MIB, &pattern(0, MIB as usize))
            .await
            .unwrap();
    }
    // Copied parts of a block, zeros, and a copy of another file.
    file.write(3 * MIB, b"change").await.unwrap();
    file.punch_hole(16 * MIB, 8 * MIB).await.unwrap();
    let now = world.store.properties("source").unwrap();
    let base = Base::from(&now);
    let source = File::open(world.env.clone(), "source".into(), base);
    file.copy_from(&source, 0, 60 * MIB, 20 * MIB).await.unwrap();
    commit(&file).await.unwrap();
    let list = world.store.block_list("file").await.unwrap();
    let known = noted.0.lock().unwrap();
    let fresh: Vec<_> = list
        .committed
        .iter()
        .filter(|b| !(0..4).any(|n| b.id == id(n)))
        .collect();
    assert!(fresh.len() > 6, "{fresh:?}");
    for block in fresh {
        assert!(known.contains(&block.id), "{block:?}");
    }
}

/// What could never be committed is refused at once, however the file would be changed.
#[tokio::test]
async fn every_change_of_a_superseded_file_is_stale() {
    let world = World::usual();
    world.store.foreign_put("file", vec![1; 1000], Metadata::new());
    let file = world.open();
    file.write(0, &[2; 10]).await.unwrap();
    world.store.foreign_put("file", vec![3; 500], Metadata::new());
    assert!(matches!(
        file.commit(Metadata::new()).await,
        Err(FileError::Stale)
    ));
    let changes = [
        file.truncate(3).await,
        file.truncate(5000).await,
        file.punch_hole(0, 100).await,
        file.allocate(0, 2000, false).await,
        file.allocate(0, 2000, true).await,
        file.write(0, &[4; 10]).await,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        assert!(matches!(change, Err(FileError::Stale)), "change {n}: {change:?}");
    }
    assert_eq!(file.size(), 1000);
}

/// More than a blob can hold: reserving it is a matter of space, writing there is one of size.
#[tokio::test]
async fn reserving_more_than_a_blob_can_hold_is_a_matter_of_space() {
    let world = World::usual();
    let file = world.create();
    let far = 1 << 50;
    for keep in [false, true] {
        let reserved = file.allocate(0, far, keep).await;
        assert!(matches!(reserved, Err(FileError::NoSpace)), "{reserved:?}");
    }
    assert!(matches!(file.write(far, &[1]).await, Err(FileError::TooLarge)));
    assert!(matches!(file.truncate(far).await, Err(FileError::TooLarge)));
    assert_eq!(file.size(), 0);
}

/// Whoever waited for an answer until the client gave up is not kept waiting for what became of the request:
/// the next commit asks.
#[tokio::test(start_paused = true)]
async fn a_commit_that_took_long_is_cleared_up_by_the_next() {
    for (fault, puts) in [(Fault::AnswerLost, 1), (Fault::Lost, 2)] {
        let world = World::usual();
        let file = world.create();
        file.write(0, b"content").await.unwrap();
        world.store.set_delay(std::time::Duration::from_secs(60));
        world.store.fail(Op::Put, fault, 1);
        let begin = tokio::time::Instant::now();
        assert!(file.commit(Metadata::new()).await.is_err());
        assert_eq!(begin.elapsed().as_secs(), 60, "one request");
        world.store.set_delay(std::time::Duration::ZERO);
        assert!(file.is_dirty());
        commit(&file).await.unwrap();
        assert_eq!(world.content(), b"content");
        assert_eq!(world.store.counters().of(Op::Put), puts);
    }
}

/// An upload that takes long is no answer that took long: what became of its last request is asked for.
#[tokio::test(start_paused = true)]
async fn a_long_upload_is_cleared_up_at_once() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &pattern(0, 40 << 20)).await.unwrap();
    world.store.set_delay(std::time::Duration::from_secs(20));
    world.store.fail(Op::Commit, Fault::AnswerLost, 1);
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 40 << 20));
}

/// A block that could not be sent ahead is sent by the commit; only if that fails, too, is there an error.
#[tokio::test]
async fn what_could_not_be_sent_ahead_is_sent_by_the_commit() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &pattern(0, 20 << 20)).await.unwrap();
    world.store.fail(Op::Stage, Fault::Lost, 2);
    file.stage_ahead().await.unwrap();
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 20 << 20));
}

/// Who has waited for blocks until the client gave up is not kept waiting for them once more.
#[tokio::test(start_paused = true)]
async fn what_was_not_taken_for_long_is_not_waited_for_again() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &pattern(0, 20 << 20)).await.unwrap();
    world.store.set_delay(std::time::Duration::from_secs(50));
    world.store.fail(Op::Stage, Fault::Lost, u64::MAX);
    let begin = tokio::time::Instant::now();
    let refused = file.stage_ahead().await;
    assert!(matches!(refused, Err(FileError::Client(_))), "{refused:?}");
    assert_eq!(begin.elapsed().as_secs(), 50);
    world.store.set_delay(std::time::Duration::ZERO);
    world.store.heal();
    file.stage_ahead().await.unwrap();
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 20 << 20));
}

/// Of a large file that the service refuses one block is sent again, not all.
#[tokio::test]
async fn what_is_refused_is_tried_with_one_block() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &pattern(0, 100 << 20)).await.unwrap();
    world
        .store
        .fail(Op::Stage, Fault::Status(403, "AuthorizationFailure"), u64::MAX);
    let _ = file.stage_ahead().await;
    for _ in 0..3 {
        let before = world.store.counters().of(Op::Stage);
        assert!(
            file.stage_ahead().await.is_err(),
            "the commit would only send more in vain"
        );
        assert_eq!(world.store.counters().of(Op::Stage) - before, 1);
    }
    world.store.heal();
    file.stage_ahead().await.unwrap();
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 100 << 20));
}

/// Who waits for a commit of somebody else that gets no answer takes that for his own; the end of a volume
/// tries for itself.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_commit_without_an_answer_has_his_own() {
    let w = World::usual();
    let file = w.create();
    file.try_write(0, b"content").unwrap();
    w.store.set_delay(w.env.patience.call());
    w.store.fail_after(0, Fault::Lost, u64::MAX);
    let commit = || {
        let file = Arc::clone(&file);
        async move { file.commit(Metadata::new()).await }
    };
    let held = |file: &Arc<File>| {
        let file = Arc::clone(file);
        tokio::spawn(Caller::default().waits_for(async move { file.hold().await.map(drop) }))
    };
    let begin = tokio::time::Instant::now();
    let first = tokio::spawn(commit());
    tokio::task::yield_now().await;
    let (second, hold) = (tokio::spawn(Caller::default().waits_for(commit())), held(&file));
    assert!(matches!(first.await.unwrap(), Err(FileError::Client(_))));
    assert!(matches!(second.await.unwrap(), Err(FileError::GivenUp(_))));
    assert!(matches!(hold.await.unwrap(), Err(FileError::GivenUp(_))));
    assert_eq!(begin.elapsed(), w.env.patience.call());
    // What nobody waits for is tried.
    let (first, last) = (tokio::spawn(commit()), tokio::spawn(commit()));
    for outcome in [first.await.unwrap(), last.await.unwrap()] {
        assert!(matches!(outcome, Err(FileError::Client(_))));
    }
    w.store.heal();
    assert!(commit().await.unwrap().is_some());
    assert_eq!(w.content(), b"content");
}

/// A copy whose caller was told that it failed goes no further: something else may be written there by now.
#[tokio::test]
async fn a_copy_ends_with_its_caller() {
    let w = World::usual();
    w.store
        .foreign_put("file", pattern(0, 3 * MIB as usize), Metadata::new());
    let from = w.open();
    let to = File::create(w.env.clone(), "to".into());
    let caller = Caller::default();
    w.store.close();
    let copying = tokio::spawn(caller.waits_for({
        let (from, to) = (Arc::clone(&from), Arc::clone(&to));
        async move { to.copy_through(&from, 0, 0, 3 * MIB).await }
    }));
    while w.store.counters().of(Op::Get) == 0 {
        tokio::task::yield_now().await;
    }
    caller.leaves();
    w.store.open();
    assert!(matches!(copying.await.unwrap(), Err(FileError::GivenUp(_))));
    assert_eq!(to.size(), 0);
}
