//! What a mount goes on knowing of a name, after somebody else has put another thing there.

use std::sync::Arc;

use blob_client::Metadata;
use vsc_driver::buffer::Arena;

use super::client;
use super::client::Client;
use super::jitter::Jitter;
use super::snapshot::IS_FOLDER;
use super::steps::Step;
use crate::budget::Budget;
use crate::store::fake::FakeStore;

/// A mount that keeps the names it knows.
fn mount(store: &Arc<FakeStore>) -> Client {
    let jitter = Jitter::new(Arc::clone(store), 1, None);
    client(
        jitter,
        false,
        &Budget::new(32 << 20),
        &Arena::new(64 << 20).unwrap(),
    )
}

fn write(path: &str, content: &str) -> Step {
    Step::Write {
        path: path.to_owned(),
        content: content.to_owned(),
        new: false,
    }
}

fn read(path: &str) -> Step {
    Step::Read {
        path: path.to_owned(),
    }
}

fn list(path: &str) -> Step {
    Step::List {
        path: path.to_owned(),
    }
}

fn rename(from: &str, to: &str) -> Step {
    Step::Rename {
        from: from.to_owned(),
        to: to.to_owned(),
        replace: true,
    }
}

/// The kernel moves the inode it knows under a name, which may have lost that name to what is renamed: it
/// then leads to what was renamed, never to what has the old name by now.
#[tokio::test]
async fn an_outdated_name_that_is_renamed_leads_to_what_was_renamed() {
    let store = Arc::new(FakeStore::new());
    let mut ours = mount(&store);
    ours.run(&write("f", "ours")).await.unwrap();
    store.foreign_delete("f");
    assert_eq!(ours.run(&list("")).await.as_deref(), Ok(""));
    store.foreign_put("f", "theirs", Metadata::new());
    ours.run(&rename("f", "g")).await.unwrap();
    store.foreign_put("f", "another", Metadata::new());
    assert_eq!(ours.run(&read("g")).await.as_deref(), Ok("theirs"));
    ours.run(&write("g", "written")).await.unwrap();
    assert_eq!(store.content("f").unwrap(), "another");
    assert_eq!(store.content("g").unwrap(), "written");
}

/// A file is renamed onto one of which this mount does not know the version, and which has become a
/// directory: that stays.
#[tokio::test]
async fn a_file_takes_no_directorys_place() {
    let store = Arc::new(FakeStore::new());
    let mut ours = mount(&store);
    ours.run(&write("a", "ours")).await.unwrap();
    store.foreign_put("a", "theirs", Metadata::new());
    // What is renamed is their version, which this mount has not seen.
    ours.run(&rename("a", "b")).await.unwrap();
    store.foreign_delete("b");
    let folder = Metadata::from([(IS_FOLDER.to_owned(), "true".to_owned())]);
    store.foreign_put("b", "", folder);
    ours.run(&write("c", "content")).await.unwrap();
    assert_eq!(ours.run(&rename("c", "b")).await, Err(libc::EISDIR));
    assert!(store.properties("b").unwrap().metadata.contains_key(IS_FOLDER));
    assert_eq!(store.content("c").unwrap(), "content");
}
