//! Two mounts that rename one directory to one name at the same time, or one after the other.

use std::sync::Arc;

use blob_client::Metadata;
use vsc_driver::buffer::Arena;

use super::client::Client;
use super::jitter::Jitter;
use super::snapshot::{IS_FOLDER, Snapshot};
use super::steps::Step;
use super::{Plan, World, client};
use crate::budget::Budget;
use crate::store::fake::{FakeStore, Fault};

/// More than are copied at the same time.
const FILES: usize = 40;
const SEEDS: u64 = 40;

fn rename() -> Step {
    Step::Rename {
        from: "d".to_owned(),
        to: "e".to_owned(),
        replace: true,
    }
}

fn folder() -> Metadata {
    Metadata::from([(IS_FOLDER.to_owned(), "true".to_owned())])
}

/// One of them gets it, whatever the two meet of each other; the other one is refused, and nothing is left at
/// the old name.
#[tokio::test]
async fn of_two_mounts_that_rename_a_directory_at_once_one_gets_it() {
    let rename = rename();
    for seed in 0..SEEDS {
        for (marked, held) in [(false, false), (false, true), (true, false), (true, true)] {
            let store = Arc::new(FakeStore::new());
            let (budget, arena) = (Budget::new(32 << 20), Arena::new(64 << 20).unwrap());
            if marked {
                store.foreign_put("d", "", folder());
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

/// Whoever claims a name can tell his marker from one that another mount makes at the same moment with the
/// same attributes: also when the answer is lost, and all that tells is what the marker says.
#[tokio::test]
async fn no_two_claims_of_a_name_are_alike() {
    let rename = rename();
    for marked in [false, true] {
        let mut claims = Vec::new();
        for nth in 0..2 {
            let store = Arc::new(FakeStore::new());
            let (budget, arena) = (Budget::new(32 << 20), Arena::new(64 << 20).unwrap());
            // A file of the directory's name is hidden by it, and there is no marker to copy.
            let metadata = if marked { folder() } else { Metadata::new() };
            store.foreign_put("d", "", metadata);
            store.foreign_put("d/1", "content", Metadata::new());
            let jitter = Jitter::new(Arc::clone(&store), nth, None);
            let copy = jitter.hold("e/1", true);
            let mut mount = client(jitter, true, &budget, &arena);
            let (ended, ()) = futures::join!(mount.run(&rename), async {
                copy.reached().await;
                claims.push(store.properties("e").unwrap().metadata);
                copy.go_on();
            });
            assert!(ended.is_err());
            assert_eq!(store.properties("e"), None, "it is taken back");
            // What it comes to does not say who claimed it.
            let mut mount = client(Jitter::new(Arc::clone(&store), nth, None), true, &budget, &arena);
            mount.run(&rename).await.unwrap();
            let names = store.names();
            let keys = names
                .iter()
                .flat_map(|name| store.properties(name).unwrap().metadata.into_keys());
            assert!(
                !keys
                    .into_iter()
                    .any(|key| key == "vsc_claim" || key == "vsc_moved_from")
            );
        }
        assert_ne!(claims[0], claims[1], "marked: {marked}");
    }
}

/// The first mount is cut off after any number of its requests; somebody writes at a new name, before or
/// after the file at the old one was changed last; and another mount goes on. Whose clock says what is none
/// of its business: neither content is lost.
#[tokio::test]
async fn what_somebody_writes_at_a_new_name_is_not_decided_by_a_clock() {
    /// A rename has not as many requests.
    const ENOUGH: u64 = 100;
    let write = |path: &str, content: &str| Step::Write {
        path: path.to_owned(),
        content: content.to_owned(),
        new: false,
    };
    let mut both = 0;
    for seed in 0..10 {
        for older in [false, true] {
            for cut in 0..ENOUGH {
                let mut world = World::new(Plan {
                    mounts: 2,
                    together: false,
                    ..Plan::of(seed)
                });
                let mut trace = format!("seed {seed}, older {older}, cut off after {cut}");
                let made = [
                    Step::Mkdir { path: "d".to_owned() },
                    write("d/f", "<first>"),
                    write("d/g", "<second>"),
                ];
                for step in made {
                    world.given(Vec::new(), vec![(0, step)], false).await.unwrap();
                }
                world.store.fail_after(cut, Fault::Lost, u64::MAX);
                let moved = world.given(Vec::new(), vec![(0, rename())], true).await;
                moved.unwrap_or_else(|why| panic!("{trace}: {why}"));
                let now = Snapshot::of(&world.store);
                if now.files.contains_key("e/g") && !now.is_dir("d") {
                    break;
                }
                both += usize::from(now.files.contains_key("d/f") && now.files.contains_key("e/f"));
                let theirs = Step::ForeignPut {
                    path: "e/f".to_owned(),
                    content: "<theirs>".to_owned(),
                    dated: false,
                };
                let mut foreign = vec![theirs];
                if older && now.files.contains_key("d/f") {
                    foreign.push(Step::ForeignTag {
                        path: "d/f".to_owned(),
                        tag: "1".to_owned(),
                    });
                }
                for step in foreign {
                    world.given(vec![step], Vec::new(), false).await.unwrap();
                }
                // Gone on with, twice.
                for mount in [1, 1] {
                    let resumed = world.given(Vec::new(), vec![(mount, rename())], false).await;
                    trace = format!("{trace}\n{}", world.trace.join("\n"));
                    resumed.unwrap_or_else(|why| panic!("{trace}: {why}"));
                }
                let now = Snapshot::of(&world.store);
                let there = |content: &str| now.files.values().any(|file| file.content == content);
                assert!(there("<theirs>") && there("<second>"), "{trace}: {now}");
                world.end().await.unwrap();
            }
        }
    }
    assert!(
        both > 0,
        "no move was cut off between its copies and its deletions"
    );
}

/// Who moves a directory is cut off from the service, and another mount goes on with it: what the first one
/// takes back is its own only. `middle`: the second has not finished by then.
#[tokio::test]
async fn what_another_mount_goes_on_with_is_not_taken_back() {
    for middle in [false, true] {
        let store = Arc::new(FakeStore::new());
        let (budget, arena) = (Budget::new(32 << 20), Arena::new(64 << 20).unwrap());
        let files = ["1", "2"];
        for name in files {
            store.foreign_put(&format!("d/{name}"), name, Metadata::new());
        }
        let (one, other) = (
            Jitter::new(Arc::clone(&store), 1, None),
            Jitter::new(Arc::clone(&store), 2, None),
        );
        let cut_off = one.hold("e/2", true);
        let halfway = middle.then(|| other.hold("e/2", false));
        let mut first = client(one, true, &budget, &arena);
        let mut second = client(other, true, &budget, &arena);
        let rename = Step::Rename {
            from: "d".to_owned(),
            to: "e".to_owned(),
            replace: true,
        };
        let (ended, ()) = futures::join!(first.run(&rename), async {
            cut_off.reached().await;
            while store.content("e/1").is_none() {
                tokio::task::yield_now().await;
            }
            let rest = async {
                match &halfway {
                    Some(halfway) => halfway.reached().await,
                    None => std::future::pending().await,
                }
            };
            let mut going_on = Box::pin(second.run(&rename));
            tokio::select! {
                ended = &mut going_on => assert_eq!(ended.as_deref(), Ok(""), "middle: {middle}"),
                () = rest => {
                    cut_off.go_on();
                    // Time for the first one to take everything back.
                    for _ in 0..1000 {
                        tokio::task::yield_now().await;
                    }
                    if let Some(halfway) = &halfway {
                        halfway.go_on();
                    }
                    assert_eq!(going_on.await.as_deref(), Ok(""), "middle: {middle}");
                }
            }
            cut_off.go_on();
        });
        assert!(ended.is_err(), "middle: {middle}: {ended:?}");
        for name in files {
            let content = store.content(&format!("e/{name}"));
            assert_eq!(content.as_deref(), Some(name.as_bytes()), "middle: {middle}");
        }
    }
}
