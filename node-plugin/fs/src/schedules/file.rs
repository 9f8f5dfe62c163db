//! Threads that share one file: whoever writes, reads, cuts, commits, and moves its blob.

use std::sync::Arc;

use blob_client::{Condition, Metadata};

use super::{SCHEDULES, World, in_schedules, together};
use crate::content::{At, Base, File, Reader, Tuning};

/// So small that the pieces below are staged in the background, and fetched one by one.
fn tiny() -> Tuning {
    Tuning {
        block: 32,
        granule: 8,
        small_file: 8,
        round: 8,
        part_min: 8,
        part_max: 32,
        window_max: 64,
        max_blocks: 400,
        copy_min: 4,
        copy_max: 48,
        zero_max: 32,
        page: 4,
        stage_parallel: 2,
        stored_for: std::time::Duration::from_secs(60),
    }
}

const PIECE: usize = 12;

fn piece(thread: usize, number: usize) -> String {
    format!("<{thread}{number}........>")
}

async fn whole(file: &File) -> String {
    let read = file.read(&Reader::default(), 0, 1 << 16).await.unwrap();
    String::from_utf8_lossy(&read).into_owned()
}

/// Whole pieces only, each once.
fn pieces(content: &str) -> Vec<String> {
    let mut pieces: Vec<String> = content
        .as_bytes()
        .chunks(PIECE)
        .map(|piece| String::from_utf8_lossy(piece).into_owned())
        .collect();
    pieces.sort();
    let whole = |piece: &String| piece.starts_with('<') && piece.ends_with('>');
    assert!(pieces.iter().all(whole), "{content}");
    let count = pieces.len();
    pieces.dedup();
    assert_eq!(pieces.len(), count, "{content}");
    pieces
}

/// Nothing is left over.
fn at_rest(file: &File) {
    assert!(!file.is_dirty() && !file.is_stale());
    file.assert_idle();
}

#[test]
fn appenders_lose_nothing_and_readers_see_whole_writes() {
    const EACH: usize = 3;
    in_schedules(SCHEDULES, || {
        let world = Arc::new(World::new(tiny()));
        let file = File::create(world.env.clone(), "f".into());
        let mut work: Vec<futures::future::BoxFuture<'static, ()>> = Vec::new();
        for thread in 0..2 {
            let (file, world) = (Arc::clone(&file), Arc::clone(&world));
            work.push(Box::pin(async move {
                for number in 0..EACH {
                    let piece = piece(thread, number);
                    file.write(At::End, piece.as_bytes()).await.unwrap();
                    assert!(whole(&file).await.contains(&piece), "just written");
                    if number != 1 {
                        file.commit(Metadata::new()).await.unwrap();
                        let stored = world.content("f").unwrap();
                        assert!(stored.contains(&piece), "{piece} was committed: {stored}");
                    }
                }
            }));
        }
        let reader = Arc::clone(&file);
        work.push(Box::pin(async move {
            let mut before = Vec::new();
            for _ in 0..3 {
                let now = pieces(&whole(&reader).await);
                assert!(
                    before.iter().all(|piece| now.contains(piece)),
                    "{before:?}: {now:?}"
                );
                before = now;
            }
        }));
        together(work);
        at_rest(&file);
        let stored = world.content("f").unwrap();
        assert_eq!(pieces(&stored).len(), 2 * EACH, "{stored}");
    });
}

/// Each thread has a part of the file; a third cuts what is behind them both, and fills it again.
#[test]
fn writers_in_different_places_and_a_cut_do_not_meet() {
    const START: usize = 10 * PIECE;
    in_schedules(SCHEDULES, || {
        let world = Arc::new(World::new(tiny()));
        let start = ".".repeat(START);
        world.store.foreign_put("f", start.clone(), Metadata::new());
        let now = world.store.properties("f").unwrap();
        let file = File::open(world.env.clone(), "f".into(), Base::from(&now));
        let mut work: Vec<futures::future::BoxFuture<'static, ()>> = Vec::new();
        for thread in 0..2 {
            let (file, world) = (Arc::clone(&file), Arc::clone(&world));
            work.push(Box::pin(async move {
                for number in 0..2 {
                    let (at, piece) = ((2 * thread + number) * 17, piece(thread, number));
                    file.write(at as u64, piece.as_bytes()).await.unwrap();
                    file.commit(Metadata::new()).await.unwrap();
                    let stored = world.content("f").unwrap();
                    assert_eq!(stored.get(at..at + PIECE), Some(&*piece), "{stored}");
                }
            }));
        }
        let cuts = Arc::clone(&file);
        work.push(Box::pin(async move {
            cuts.truncate(80).await.unwrap();
            cuts.write(80, b"end").await.unwrap();
            cuts.commit(Metadata::new()).await.unwrap();
        }));
        together(work);
        at_rest(&file);
        let mut wanted = start[..80].to_owned() + "end";
        for (n, at) in [0, 17, 34, 51].into_iter().enumerate() {
            wanted.replace_range(at..at + PIECE, &piece(n / 2, n % 2));
        }
        assert_eq!(world.content("f").unwrap(), wanted);
        let file = shuttle::future::block_on(whole(&file));
        assert_eq!(file, wanted);
    });
}

/// The tree moves the blob while others write and read.
#[test]
fn what_is_written_while_the_blob_moves_goes_along() {
    in_schedules(SCHEDULES, || {
        let world = Arc::new(World::new(tiny()));
        world
            .store
            .foreign_put("f", piece(8, 0) + &piece(8, 1), Metadata::new());
        let now = world.store.properties("f").unwrap();
        let file = File::open(world.env.clone(), "f".into(), Base::from(&now));
        let writer = Arc::clone(&file);
        let write = async move {
            for number in 0..4 {
                writer.write(At::End, piece(0, number).as_bytes()).await.unwrap();
            }
            writer.commit(Metadata::new()).await.unwrap();
        };
        let reader = Arc::clone(&file);
        let read = async move {
            for _ in 0..2 {
                let read = pieces(&whole(&reader).await);
                assert!(
                    read.contains(&piece(8, 0)) && read.contains(&piece(8, 1)),
                    "{read:?}"
                );
            }
        };
        let (mover, store) = (Arc::clone(&file), Arc::clone(&world.env.store));
        let rename = async move {
            let hold = mover.hold().await.unwrap();
            let (etag, metadata) = (mover.etag().unwrap(), Metadata::new());
            let absent = Condition::absent();
            let copied = store.copy("f", Some(&etag), None, "g", Some(&metadata), &absent);
            let written = copied.await.unwrap();
            store.delete("f", &Condition::matches(&etag)).await.unwrap();
            mover.moved("g".to_owned(), Some((&written, &metadata)));
            drop(hold);
        };
        together(vec![Box::pin(write), Box::pin(read), Box::pin(rename)]);
        at_rest(&file);
        assert_eq!(world.content("f"), None);
        assert_eq!(pieces(&world.content("g").unwrap()).len(), 6);
    });
}
