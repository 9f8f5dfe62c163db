//! A size that is stored at once, beside those who have the file open.

use super::*;
use crate::store::fake::{Fault, Op};

async fn all(file: &File) -> Vec<u8> {
    let size = usize::try_from(file.size()).unwrap();
    let read = file.read(&Reader::default(), 0, size).await.unwrap();
    read[..].to_vec()
}

/// What somebody writes before the service has the answer is there in either case.
#[tokio::test]
async fn what_is_written_while_a_size_is_refused_goes_on_top_of_the_old_content() {
    for fault in [Fault::Status(403, "AuthorizationFailure"), Fault::Lost] {
        let world = World::usual();
        world.store.foreign_put("file", "0123456789", Metadata::new());
        let file = world.open();
        world.store.fail(Op::Put, fault, u64::MAX);
        world.store.close();
        let resizing = tokio::spawn({
            let file = Arc::clone(&file);
            async move { file.resize(0, Metadata::new()).await }
        });
        world.store.wait_for(1).await;
        assert_eq!(file.size(), 10);
        file.write(At::Offset(2), b"xy").await.unwrap();
        file.write(At::End, b"+").await.unwrap();
        world.store.open();
        assert!(resizing.await.unwrap().is_err());
        world.store.heal();
        assert_eq!(all(&file).await, b"01xy456789+");
        file.commit(Metadata::new()).await.unwrap();
        assert_eq!(world.content(), b"01xy456789+");
    }
}

#[tokio::test]
async fn what_is_written_while_a_size_is_stored_goes_on_top_of_the_new_content() {
    for (size, expected) in [(5, &b"01xy4"[..]), (14, b"01xy456789\0\0\0\0")] {
        let world = World::usual();
        world.store.foreign_put("file", "0123456789", Metadata::new());
        let file = world.open();
        world.store.hold_answers(Op::Put);
        let resizing = tokio::spawn({
            let file = Arc::clone(&file);
            async move { file.resize(size, Metadata::new()).await }
        });
        world.store.wait_for(1).await;
        file.write(At::Offset(2), b"xy").await.unwrap();
        world.store.give_answers();
        let written = resizing.await.unwrap().unwrap().unwrap();
        assert_eq!(file.etag(), Some(written.etag));
        assert_eq!(all(&file).await, expected);
        file.commit(Metadata::new()).await.unwrap();
        assert_eq!(world.content(), expected);
        // It is an ordinary file from here on.
        file.write(At::End, b"+").await.unwrap();
        file.commit(Metadata::new()).await.unwrap();
        assert_eq!(world.content(), [expected, b"+"].concat());
    }
}

/// What was written first is stored first: the caller is to commit.
#[tokio::test]
async fn a_size_does_not_store_what_others_wrote() {
    let world = World::usual();
    world.store.foreign_put("file", "0123456789", Metadata::new());
    let file = world.open();
    file.write(At::End, b"+").await.unwrap();
    assert!(file.resize(3, Metadata::new()).await.unwrap().is_none());
    assert_eq!(all(&file).await, b"0123456789+");
    assert_eq!(world.content(), b"0123456789");
}

/// Blocks that are sent later have names that nobody else's have.
#[tokio::test]
async fn a_large_file_is_cut_and_goes_on() {
    const MIB: usize = 1 << 20;
    let world = World::usual();
    let file = world.create();
    let mut content: Vec<u8> = (0..30 * MIB).map(|at| (at / 4096 % 251) as u8).collect();
    for part in content.chunks(MIB) {
        file.write(At::End, part).await.unwrap();
    }
    file.commit(Metadata::new()).await.unwrap();
    for size in [17 * MIB + 5, 26 * MIB, 8 * MIB] {
        file.resize(size as u64, Metadata::new()).await.unwrap().unwrap();
        content.resize(size, 0);
        assert!(world.content() == content, "{size}");
        assert!(all(&file).await == content, "{size}");
        let more = vec![9; 9 * MIB];
        for part in more.chunks(MIB) {
            file.write(At::End, part).await.unwrap();
        }
        content.extend_from_slice(&more);
        file.commit(Metadata::new()).await.unwrap();
        assert!(world.content() == content, "{size}");
    }
}
