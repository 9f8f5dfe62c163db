//! Two mounts that rename one directory to one name at the same time.

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

/// More than are copied at the same time.
const FILES: usize = 40;
const SEEDS: u64 = 40;

/// One of them gets it, whatever the two meet of each other; the other one is refused, and nothing is left at
/// the old name.
#[tokio::test]
async fn of_two_mounts_that_rename_a_directory_at_once_one_gets_it() {
    let rename = Step::Rename {
        from: "d".to_owned(),
        to: "e".to_owned(),
        replace: true,
    };
    for seed in 0..SEEDS {
        for (marked, held) in [(false, false), (false, true), (true, false), (true, true)] {
            let store = Arc::new(FakeStore::new());
            let (budget, arena) = (Budget::new(32 << 20), Arena::new(64 << 20).unwrap());
            if marked {
                let folder = [(IS_FOLDER.to_owned(), "true".to_owned())];
                store.foreign_put("d", "", Metadata::from(folder));
            }
            let files: Vec<String> = (0..FILES).map(|n| format!("e/{n:03}")).collect();
            for name in &files {
                store.foreign_put(&name.replace('e', "d"), name.clone(), Metadata::new());
            }
            let mount = |nth| Jitter::new(Arc::clone(&store), 2 * seed + nth, None);
            let (first, second) = (mount(0), mount(1));
            // Neither has copied a file before the other one has looked at what there is.
            let begin = held.then(|| (first.hold("e/", false), second.hold("e/", false)));
            let mut one = client(first, true, &budget, &arena);
            let mut other = client(second, true, &budget, &arena);
            let open = || {
                if let Some((first, second)) = &begin {
                    first.open();
                    second.open();
                }
            };
            let run = async |mount: &mut Client| {
                let ended = mount.run(&rename).await;
                open();
                ended
            };
            let (one, other, ()) = futures::join!(run(&mut one), run(&mut other), async {
                if let Some((first, second)) = &begin {
                    futures::join!(first.reached(), second.reached());
                    open();
                }
            });
            let ended = (one, other);
            let case = format!("seed {seed}, marked {marked}, held {held}: {ended:?}");
            let names = || -> Vec<String> { store.names().into_iter().filter(|n| n.contains('/')).collect() };
            assert_eq!(names(), files, "{case}");
            for name in &files {
                assert_eq!(store.content(name).unwrap(), name.as_bytes(), "{case}");
            }
            assert!(ended.0.is_ok() || ended.1.is_ok(), "{case}");
            for ended in [ended.0, ended.1] {
                let told = ended.as_ref().err().copied();
                assert!(
                    matches!(told, None | Some(libc::ENOTEMPTY | libc::ENOENT | libc::EBUSY)),
                    "{case}"
                );
            }
            assert_eq!(store.properties("d"), None, "{case}");
            assert!(!marked || store.properties("e").is_some(), "{case}");
            let note = store.properties("e").map(|e| e.metadata);
            assert!(
                note.is_none_or(|note| !note.contains_key("vsc_moved_from")),
                "{case}"
            );
        }
    }
}
