//! More data than memory, and many tasks at once.

use std::time::Duration;

use super::*;
use crate::budget::BudgetUsage;
use crate::caller::Caller;
use crate::store::fake::{Fault, Op};

const MIB: u64 = 1 << 20;
const SMALL: usize = 32 << 20;

/// Within the budget, what reads take so that they get on included: that is set aside.
fn check_usage(usage: BudgetUsage) {
    assert!(usage.peak <= SMALL, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_more_than_memory_gets_on() {
    let world = World::new(SMALL, Tuning::default());
    let file = world.create();
    for n in 0..200 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    commit(&file).await.unwrap();
    assert_eq!(world.content(), pattern(0, 200 << 20));
    check_usage(world.env.budget.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_service_holds_writers_back() {
    let world = World::new(SMALL, Tuning::default());
    world.store.set_delay(Duration::from_millis(5));
    let files: Vec<_> = (0..6)
        .map(|n| File::create(world.env.clone(), format!("file{n}")))
        .collect();
    let writers: Vec<_> = files
        .iter()
        .map(|file| {
            let file = Arc::clone(file);
            tokio::spawn(async move {
                for n in 0..30 {
                    file.write(n * MIB, &pattern(n * MIB, MIB as usize))
                        .await
                        .unwrap();
                }
                commit(&file).await.unwrap();
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for name in world.store.names() {
        assert_eq!(&world.store.content(&name).unwrap()[..], pattern(0, 30 << 20));
    }
    check_usage(world.env.budget.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn random_small_writes_over_more_than_memory_are_committed_meanwhile() {
    let world = World::new(SMALL, Tuning::default());
    let mut expected = pattern(0, 64 << 20);
    world.store.foreign_put("file", expected.clone(), Metadata::new());
    let file = world.open();
    let mut at = 5u64;
    for n in 0..20_000u32 {
        at = at
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let offset = (at >> 30) % (64 * MIB - 4096);
        let data = [n as u8; 3000];
        file.write(offset, &data).await.unwrap();
        expected[offset as usize..][..3000].copy_from_slice(&data);
    }
    commit(&file).await.unwrap();
    assert!(world.content() == expected);
    check_usage(world.env.budget.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_reads_back_what_is_only_staged() {
    let world = World::new(SMALL, Tuning::default());
    let file = world.create();
    file.set_metadata(Metadata::from([("k".into(), "v".into())]));
    for n in 0..100 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    let reader = Reader::default();
    for n in 0..100 {
        let data = file.read(&reader, n * MIB, MIB as usize).await.unwrap();
        assert!(data[..] == pattern(n * MIB, MIB as usize));
    }
    // And changes it.
    file.write(MIB, b"again").await.unwrap();
    file.truncate(50 * MIB + 5).await.unwrap();
    commit(&file).await;
    let mut expected = pattern(0, (50 << 20) + 5);
    expected[1 << 20..][..5].copy_from_slice(b"again");
    assert!(world.content() == expected);
}

/// A file that is refused is not sent again and again while somebody waits for room: one block after a pause.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_refused_is_tried_with_one_block_after_a_pause() {
    let world = World::new(512 << 20, tiny());
    let file = world.create();
    let refused = Fault::Status(403, "AuthorizationFailure");
    world.store.fail(Op::Stage, refused, u64::MAX);
    file.write(0, &pattern(0, 1000)).await.unwrap();
    let relieve = async || {
        world.env.budget.relieve(1, None);
        while file.core.lock().staging > 0 {
            tokio::task::yield_now().await;
        }
        world.store.counters().of(Op::Stage)
    };
    // Whatever goes out before anybody knows.
    relieve().await;
    tokio::time::advance(world.env.patience.again()).await;
    let known = relieve().await;
    for _ in 0..10 {
        assert_eq!(relieve().await, known);
    }
    tokio::time::advance(world.env.patience.again()).await;
    assert_eq!(relieve().await, known + 1);
    world.store.heal();
    tokio::time::advance(world.env.patience.again()).await;
    assert_eq!(relieve().await, known + 2);
    // What was taken tells that the rest is, too.
    while !file.core.lock().overlay.memory(0..u64::MAX).is_empty() {
        relieve().await;
    }
    commit(&file).await.unwrap();
    assert_eq!(&world.store.content("file").unwrap()[..], pattern(0, 1000));
}

/// While somebody holds the version still, what was written stays in memory: a block staged under the old
/// name would be lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_during_a_move_stays_in_memory() {
    let world = World::new(SMALL, tiny());
    let file = world.create();
    file.write(0, &pattern(0, 1000)).await.unwrap();
    let written = commit(&file).await.unwrap();
    let hold = file.hold().await.unwrap();
    let copied = world
        .store
        .copy(
            "file",
            Some(&written.etag),
            None,
            "new",
            None,
            &blob_client::Condition::none(),
        )
        .await
        .unwrap();
    file.write(1000, &pattern(1000, 1000)).await.unwrap();
    let staged = || {
        let state = file.core.lock();
        !state.staged.is_empty() && state.staging == 0 && state.staged.values().all(|block| block.done)
    };
    while !staged() {
        world.env.budget.relieve(1, None);
        tokio::task::yield_now().await;
    }
    world.env.budget.relieve(1, None);
    assert!(!file.core.lock().has_remote(0..u64::MAX));
    file.moved("new".into(), Some((&copied, &Metadata::new())));
    drop(hold);
    assert_eq!(read(&file, 0, 2000).await, pattern(0, 2000));
    // Relief that waited for the move may have been quicker.
    commit(&file).await;
    assert_eq!(&world.store.content("new").unwrap()[..], pattern(0, 2000));
}

/// The blob of an open file could not be deleted: what was to be committed is not forgotten without a word.
#[tokio::test]
async fn data_of_a_deletion_that_failed_is_owed() {
    let world = World::usual();
    world.store.foreign_put("file", pattern(0, 1000), Metadata::new());
    for dirty in [false, true] {
        let file = world.open();
        if dirty {
            file.write(0, b"mine").await.unwrap();
        }
        assert!(file.detach(8 << 20).await.unwrap());
        assert!(
            commit(&file).await.is_none(),
            "deleted: nothing is to be committed"
        );
        file.give_up();
        assert_eq!(file.commit(Metadata::new()).await.is_err(), dirty);
        assert!(file.write(0, b"more").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_stay_within_the_budget() {
    let world = World::new(SMALL, Tuning::default());
    for n in 0..8 {
        let name = format!("file{n}");
        world
            .store
            .foreign_put(&name, pattern(0, 64 << 20), Metadata::new());
    }
    let arena = Arc::clone(&world.env.arena);
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let name = format!("file{n}");
            let now = world.store.properties(&name).unwrap();
            let base = Base::from(&now);
            let file = File::open(world.env.clone(), name, base);
            let arena = Arc::clone(&arena);
            tokio::spawn(async move {
                let reader = Reader::default();
                let mut peak = 0;
                for n in 0..64 {
                    let data = file.read(&reader, n * MIB, MIB as usize).await.unwrap();
                    assert!(data[..] == pattern(n * MIB, MIB as usize));
                    let usage = arena.usage();
                    peak = peak.max(usage.allocated + usage.idle);
                }
                peak
            })
        })
        .collect();
    for reader in readers {
        let peak = reader.await.unwrap();
        assert!(peak <= SMALL + (32 << 20), "{peak}");
    }
    check_usage(world.env.budget.usage());
    // Each byte once, or nearly: parts may be pushed out before they are read.
    let fetched = world.store.counters().bytes_out;
    assert!(fetched <= 8 * 64 * MIB * 5 / 4, "{fetched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_on_one_file() {
    let world = World::new(
        SMALL,
        Tuning {
            stage_parallel: 3,
            ..tiny()
        },
    );
    world.store.foreign_put("file", vec![0; 4000], Metadata::new());
    let file = world.open();
    let mut tasks = Vec::new();
    // Each task owns every eighth piece of 50 bytes and must always read there what it wrote last.
    for task in 0..8u8 {
        let file = Arc::clone(&file);
        tasks.push(tokio::spawn(async move {
            let reader = Reader::default();
            for round in 0..60u8 {
                for piece in 0..10u64 {
                    let at = (piece * 8 + u64::from(task)) * 50;
                    file.write(at, &[round; 50]).await.unwrap();
                    let data = file.read(&reader, at, 50).await.unwrap();
                    assert_eq!(&data[..], [round; 50]);
                }
                if round % 16 == u8::from(task % 2 == 0) {
                    file.commit(Metadata::new()).await.unwrap();
                }
            }
        }));
    }
    let pressure = tokio::spawn({
        let budget = Arc::clone(&world.env.budget);
        async move {
            loop {
                budget.relieve(1, None);
                while budget.evict_one() {}
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    pressure.abort();
    commit(&file).await;
    assert_eq!(world.content(), [59; 4000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn appends_at_the_end_overwrite_nothing() {
    let world = World::new(SMALL, tiny());
    let file = world.create();
    let tasks: Vec<_> = (0..8u8)
        .map(|task| {
            let file = Arc::clone(&file);
            tokio::spawn(async move {
                for n in 0..100 {
                    if !file.try_write(At::End, &[task + 1; 10]).unwrap() {
                        file.write(At::End, &[task + 1; 10]).await.unwrap();
                    }
                    if n % 40 == 0 {
                        file.commit(Metadata::new()).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    commit(&file).await;
    let content = world.content();
    assert_eq!(content.len(), 8000);
    for line in content.chunks(10) {
        assert!(line.iter().all(|b| *b == line[0]), "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn appends_at_offsets_of_their_own_are_all_there() {
    let world = World::new(SMALL, tiny());
    let file = world.create();
    let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let tasks: Vec<_> = (0..8u8)
        .map(|task| {
            let (file, next) = (Arc::clone(&file), Arc::clone(&next));
            tokio::spawn(async move {
                for n in 0..100 {
                    let at = next.fetch_add(10, std::sync::atomic::Ordering::Relaxed);
                    file.write(at, &[task + 1; 10]).await.unwrap();
                    if n % 40 == 0 {
                        commit(&file).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    commit(&file).await;
    let content = world.content();
    assert_eq!(content.len(), 8000);
    for task in 0..8u8 {
        assert_eq!(content.iter().filter(|b| **b == task + 1).count(), 1000);
    }
}

/// A write across the border of two blocks needs memory of both: it waits for both at once. One by one, as
/// many writers as there are pieces of memory would each hold one and wait for one.
#[tokio::test(start_paused = true)]
async fn writers_across_borders_do_not_wait_for_each_other() {
    let world = World::new(SMALL, Tuning::default());
    let border = world.env.tuning.block;
    let writers: Vec<_> = (0..80)
        .map(|n| {
            let file = File::create(world.env.clone(), format!("file{n}"));
            tokio::spawn(async move {
                for n in 1..4 {
                    let at = n * border - MIB / 2;
                    file.write(at, &pattern(at, MIB as usize)).await?;
                    tokio::task::yield_now().await;
                }
                commit(&file).await;
                Ok::<_, FileError>(())
            })
        })
        .collect();
    let begin = tokio::time::Instant::now();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "nobody waited in vain");
    check_usage(world.env.budget.usage());
}

/// However many files are deleted while they are open, memory is what it was: what finds no room is moved to
/// a hidden blob (by who asked for it).
#[tokio::test]
async fn files_that_are_deleted_while_open_stay_within_the_budget() {
    let world = World::new(SMALL, Tuning::default());
    let mut in_memory = 0;
    let mut open = Vec::new();
    for n in 0..20 {
        let name = format!("file{n}");
        world
            .store
            .foreign_put(&name, pattern(n, 4 << 20), Metadata::new());
        let base = Base::from(&world.store.properties(&name).unwrap());
        let file = File::open(world.env.clone(), name, base);
        if file.detach(8 << 20).await.unwrap() {
            file.departed();
            in_memory += 1;
        }
        open.push(file);
    }
    assert!((1..20).contains(&in_memory), "{in_memory}");
    check_usage(world.env.budget.usage());
    let reader = Reader::default();
    for (n, file) in (0..).zip(&open) {
        assert_eq!(file.read(&reader, 0, 8).await.unwrap()[..], pattern(n, 8)[..]);
    }
    drop(open);
    assert_eq!(world.env.budget.usage().dirty, 0);
}

/// What is written while a commit's blocks are sent is left to the commit: somebody who writes on and on
/// keeps nobody waiting.
#[tokio::test(start_paused = true)]
async fn sending_ahead_ends_beside_a_writer() {
    let world = World::new(SMALL, Tuning::default());
    let file = world.create();
    for n in 0..10 {
        file.write(n * MIB, &pattern(n * MIB, MIB as usize))
            .await
            .unwrap();
    }
    world.store.set_delay(Duration::from_secs(1));
    let writer = {
        let file = Arc::clone(&file);
        tokio::spawn(async move {
            for n in 10..100_000 {
                let at = n % 1000 * MIB;
                file.write(at, &pattern(at, MIB as usize)).await.unwrap();
            }
        })
    };
    tokio::task::yield_now().await;
    let ahead = tokio::time::timeout(Duration::from_secs(60), file.stage_ahead());
    assert!(ahead.await.is_ok(), "it waits for the writer");
    assert!(!writer.is_finished());
    writer.abort();
}

/// Nor does somebody who writes the same again and again, faster than it is sent.
#[tokio::test(start_paused = true)]
async fn sending_ahead_ends_beside_somebody_who_rewrites() {
    let world = World::usual();
    let file = world.create();
    file.write(0, &pattern(0, 40 << 20)).await.unwrap();
    world.store.set_delay(Duration::from_secs(1));
    let writer = {
        let file = Arc::clone(&file);
        tokio::spawn(async move {
            for n in 0..1_000_000 {
                let at = n % 40 * MIB;
                file.write(at, &pattern(at, MIB as usize)).await.unwrap();
                // It is quick, and takes its time.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    tokio::task::yield_now().await;
    let ahead = tokio::time::timeout(Duration::from_secs(60), file.stage_ahead());
    assert!(ahead.await.is_ok(), "it waits for the writer");
    assert!(!writer.is_finished());
    writer.abort();
}

/// What is left of one buffer on both sides of a change has one charge: when it is stored, it can go.
#[tokio::test]
async fn what_a_file_kept_without_its_blob_can_be_dropped_when_it_is_stored() {
    let world = World::new(SMALL, Tuning::default());
    let len = 900 << 10;
    world.store.foreign_put("file", pattern(0, len), Metadata::new());
    let file = world.open();
    read(&file, 0, len).await;
    file.write(400 << 10, &[1; 4096]).await.unwrap();
    assert!(file.detach(8 << 20).await.unwrap());
    assert!(file.attach(), "the blob could not be deleted");
    commit(&file).await.unwrap();
    while world.env.budget.evict_one() {}
    let usage = world.env.budget.usage();
    assert_eq!((usage.cached, usage.dirty), (0, 0));
    assert_eq!(world.env.arena.usage().allocated, 0);
}

/// Until the service tells what became of a commit nothing of the version before is kept for that: it would
/// be memory that nobody can have back as long as an outage lasts.
#[tokio::test(start_paused = true)]
async fn a_commit_in_doubt_keeps_no_cached_data() {
    for (fault, puts) in [(Fault::Lost, 2), (Fault::AnswerLost, 1)] {
        for len in [600 << 10, 1 << 20] {
            let world = World::new(SMALL, Tuning::default());
            world.store.foreign_put("file", pattern(0, len), Metadata::new());
            let file = world.open();
            read(&file, 0, len).await;
            file.write(5, b"changed").await.unwrap();
            world.store.fail(Op::Put, fault, 1);
            world.store.set_delay(world.env.patience.call());
            assert!(file.commit(Metadata::new()).await.is_err());
            world.store.set_delay(Duration::ZERO);
            while world.env.budget.evict_one() {}
            assert_eq!(world.env.budget.usage().cached, 0, "{fault:?}");
            file.commit(Metadata::new()).await.unwrap();
            let mut expected = pattern(0, len);
            expected[5..12].copy_from_slice(b"changed");
            assert_eq!(world.content(), expected);
            assert_eq!(world.store.counters().of(Op::Put), puts, "{fault:?}");
        }
    }
}

/// Who waits for the right to read a blob in order to send it again is told when that takes too long; what he
/// asked for is not done after that. A commit that fails that way stays owed.
#[tokio::test]
async fn nothing_is_sent_again_for_a_caller_who_has_left() {
    let world = World::new(SMALL, Tuning::default());
    world.store.foreign_put("file", pattern(0, 1000), Metadata::new());
    let share = &world.env.share;
    for resize in [true, false] {
        let file = world.open();
        let right = share.acquire_resend(u64::MAX).await;
        if !resize {
            file.write(5, b"changed").await.unwrap();
        }
        let (caller, operation) = (Caller::default(), Arc::clone(&file));
        let waiting = tokio::spawn(caller.waits_for(async move {
            match resize {
                true => operation.resize(300, Metadata::new()).await,
                false => operation.commit(Metadata::new()).await,
            }
        }));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        caller.leaves();
        drop(right);
        assert!(matches!(waiting.await.unwrap(), Err(FileError::GivenUp(_))));
        assert_eq!(world.store.counters().of(Op::Put), 0);
        assert_eq!(file.is_dirty(), !resize);
        if !resize {
            commit(&file).await.unwrap();
        }
    }
    assert_eq!(&world.content()[5..12], b"changed");
}
