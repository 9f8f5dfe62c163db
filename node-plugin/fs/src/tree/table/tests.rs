//! What the table believes, and when it lets go.

use std::time::SystemTime;

use blob_client::{BlobType, ETag, Metadata};

use super::*;
use crate::budget::Budget;
use crate::tree::attrs::Attrs;
use crate::tree::node::{Debt, Life, Marker, NODE_BYTES};

fn table() -> Table {
    table_believing_absence_for(Duration::from_secs(1))
}

fn table_believing_absence_for(negative: Duration) -> Table {
    table_of(negative, Budget::new(0).charge_metadata(0))
}

fn table_charging(charge: Permit) -> Table {
    table_of(Duration::from_secs(1), charge)
}

fn table_of(negative: Duration, charge: Permit) -> Table {
    let second = Duration::from_secs(1);
    Table::new(
        "acct/photos",
        State::fresh(Attrs::default(), SystemTime::now()),
        "p".into(),
        Timeouts {
            attr: second,
            entry: second,
            negative,
        },
        Arc::new(Log::create().unwrap()),
        charge,
    )
}

fn blob(etag: &str, metadata: &[(&str, &str)]) -> Properties {
    Properties {
        etag: ETag(etag.into()),
        last_modified: SystemTime::now(),
        content_length: 3,
        blob_type: BlobType::Block,
        metadata: metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<Metadata>(),
        stored: blob_client::StoredHeaders::default(),
        content_md5: None,
        created: None,
        copied_from: None,
        is_directory: false,
        protection: blob_client::Protection::default(),
    }
}

fn file(p: &Properties) -> Found<'_> {
    Found {
        blob: Some(p),
        prefix: false,
    }
}

const NOTHING: Found<'static> = Found {
    blob: None,
    prefix: false,
};
const PREFIX: Found<'static> = Found {
    blob: None,
    prefix: true,
};

#[test]
fn paths_follow_names() {
    let mut t = table();
    let now = SystemTime::now();
    let d = t.create(ROOT, "d.", Kind::Directory, State::fresh(Attrs::default(), now));
    let f = t.create(d.id, "f", Kind::File, State::fresh(Attrs::default(), now));
    assert_eq!(t.blob(f.id).unwrap(), "p/d\u{FF0E}/f");
    t.rename(ROOT, "d.", ROOT, "e");
    assert_eq!(t.blob(f.id).unwrap(), "p/e/f");
    assert_eq!(t.below(ROOT).len(), 2);
    assert!(t.is_below(f.id, d.id));
    t.remove(d.id, "f");
    assert_eq!(t.blob(f.id), None);
    assert_eq!(t.blob(ROOT).unwrap(), "p");
}

#[test]
fn late_answers_do_not_undo_local_changes() {
    let mut t = table();
    let p = blob("1", &[]);
    let asked = t.ask();
    let node = t.create(
        ROOT,
        "a",
        Kind::File,
        State::fresh(Attrs::default(), SystemTime::now()),
    );
    assert_eq!(t.learn(ROOT, "a", NOTHING, asked), Some(node.id));
    let asked = t.ask();
    t.remove(ROOT, "a");
    assert_eq!(t.learn(ROOT, "a", file(&p), asked), None);
    let asked = t.ask();
    assert!(t.learn(ROOT, "a", file(&p), asked).is_some());
}

#[test]
fn a_listing_removes_what_it_does_not_mention() {
    let mut t = table();
    let p = blob("1", &[]);
    let asked = t.ask();
    t.learn(ROOT, "old", file(&p), asked);
    let first = t.ask();
    let listing = t.begin_listing();
    let new = t.create(
        ROOT,
        "new",
        Kind::File,
        State::fresh(Attrs::default(), SystemTime::now()),
    );
    t.list_entry((listing, false), ROOT, "listed", file(&p), first);
    t.end_listing(listing, ROOT, first);
    assert!(matches!(t.known(ROOT, "old"), Known::Absent(_)));
    assert!(matches!(t.known(ROOT, "new"), Known::Node(id, _) if id == new.id));
    assert!(matches!(t.known(ROOT, "listed"), Known::Node(..)));
    assert!(t.listing_fresh(ROOT));
}

#[test]
fn a_listing_does_not_take_away_what_was_learnt_while_it_ran() {
    let mut t = table();
    let p = blob("1", &[]);
    let first = t.ask();
    let listing = t.begin_listing();
    // Made by somebody else after the first page was put together, and found by a lookup.
    let asked = later_than(first);
    let id = t.learn(ROOT, "new", file(&p), asked).unwrap();
    t.end_listing(listing, ROOT, first);
    assert!(matches!(t.known(ROOT, "new"), Known::Node(known, _) if known == id));
    assert_ne!(t.node(id).unwrap().state().life, Life::Superseded);
    // The next listing began later: it would have it.
    let first = later_than(asked);
    let listing = t.begin_listing();
    t.end_listing(listing, ROOT, first);
    assert!(t.child(ROOT, "new").is_none());
}

/// A question asked after another, by the machine's clock.
fn later_than(asked: Asked) -> Asked {
    Asked {
        at: asked.at + Duration::from_nanos(1),
        ..asked
    }
}

/// The kernel moves the node that it holds under a name, whatever the name leads to here.
#[test]
fn what_lost_its_name_to_a_file_goes_with_its_rename() {
    let mut t = table();
    let p = blob("1", &[]);
    let lost = |t: &mut Table, name: &str| {
        let asked = t.ask();
        let old = t.learn(ROOT, name, file(&p), asked).unwrap();
        t.refer(old, Duration::ZERO);
        let asked = later_than(asked);
        t.learn(ROOT, name, NOTHING, asked);
        let new = t.learn(ROOT, name, file(&p), later_than(asked)).unwrap();
        assert_ne!(old, new);
        old
    };
    let (a, b, c) = (lost(&mut t, "a"), lost(&mut t, "b"), lost(&mut t, "c"));
    t.exchange(ROOT, "b", ROOT, "c");
    t.rename(ROOT, "a", ROOT, "b");
    assert!(!t.restore(c), "what was replaced has no name");
    assert!(t.restore(a));
    assert_eq!(t.blob(a).unwrap(), "p/b");
    assert!(t.restore(b));
    assert_eq!(t.blob(b).unwrap(), "p/c");
    for id in [a, b, c] {
        t.forget(id, 1);
    }
    assert!(t.node(c).is_none());
    assert!(t.superseded.is_empty());
}

#[test]
fn an_older_answer_does_not_undo_a_younger_one() {
    let mut t = table();
    let (old, new) = (blob("1", &[]), blob("2", &[]));
    let before = t.ask();
    let after = later_than(before);
    let id = t.learn(ROOT, "a", file(&new), after).unwrap();
    assert_eq!(t.learn(ROOT, "a", file(&old), before), Some(id));
    assert_eq!(t.node(id).unwrap().state().etag, Some(new.etag.clone()));
    assert_eq!(t.learn(ROOT, "a", NOTHING, before), Some(id));
    assert_eq!(t.learn(ROOT, "a", NOTHING, later_than(after)), None);
}

#[test]
fn a_lost_file_gets_its_name_back_if_the_kernel_knows_no_other() {
    let mut t = table();
    let (old, new) = (blob("1", &[]), blob("2", &[]));
    let asked = t.ask();
    let a = t.learn(ROOT, "a", file(&old), asked).unwrap();
    t.refer(a, Duration::ZERO);
    t.node(a).unwrap().state().handles = 1;
    let b = t.learn(ROOT, "a", file(&new), later_than(asked)).unwrap();
    assert_ne!(a, b, "the reader keeps its version");
    assert_eq!(t.node(a).unwrap().state().life, Life::Superseded);
    assert!(!t.restore(a), "it is still open");
    t.node(a).unwrap().state().handles = 0;
    t.refer(b, Duration::ZERO);
    assert!(!t.restore(a), "the kernel uses the other");
    t.forget(b, 1);
    assert!(t.restore(a));
    assert_eq!(t.blob(a).unwrap(), "p/a");
    assert!(t.node(b).is_none());
    assert!(!t.node(a).unwrap().state().nameless());
    assert!(!t.restore(a), "nothing is superseded any more");
}

#[test]
fn a_directory_with_something_unsaved_below_is_kept() {
    let mut t = table();
    let now = SystemTime::now();
    let asked = t.ask();
    let marker = blob("1", &[("hdi_isfolder", "true")]);
    let d = t.learn(ROOT, "d", file(&marker), asked).unwrap();
    let sub = t.learn(d, "sub", PREFIX, asked).unwrap();
    let f = t.create(sub, "f", Kind::File, State::fresh(Attrs::default(), now));
    f.state().set_debt(Debt::Attributes);
    let asked = later_than(t.ask());
    // Somebody else has deleted it, or made a file in its place.
    assert_eq!(t.learn(ROOT, "d", NOTHING, asked), Some(d));
    let plain = blob("2", &[]);
    assert_eq!(t.learn(ROOT, "d", file(&plain), later_than(asked)), Some(d));
    let listing = t.begin_listing();
    t.end_listing(listing, ROOT, later_than(later_than(asked)));
    assert_eq!(t.blob(f.id).unwrap(), "p/d/sub/f");
    // Only what is below it makes it a directory now.
    assert_eq!(t.node(d).unwrap().state().marker, Marker::Implicit);
    f.state().set_debt(Debt::Nothing);
    let first = t.ask();
    let listing = t.begin_listing();
    t.end_listing(listing, ROOT, first);
    assert!(t.child(ROOT, "d").is_none());
}

#[test]
fn a_directory_wins_over_a_file_of_the_same_name() {
    let mut t = table();
    let (plain, marker) = (
        blob("1", &[]),
        blob("2", &[("hdi_isfolder", "true"), ("vsc_mode", "700")]),
    );
    let asked = t.ask();
    let id = t
        .learn(
            ROOT,
            "d",
            Found {
                blob: Some(&plain),
                prefix: true,
            },
            asked,
        )
        .unwrap();
    let node = t.node(id).unwrap();
    assert_eq!(
        (node.kind, node.state().marker),
        (Kind::Directory, Marker::Implicit)
    );
    assert_eq!(
        t.learn(
            ROOT,
            "d",
            Found {
                blob: Some(&marker),
                prefix: true
            },
            asked
        ),
        Some(id)
    );
    assert_eq!(node.state().marker, Marker::Blob);
    assert_eq!(node.state().attrs.mode, Some(0o700));
    // A listing gives the marker and the prefix one after the other.
    let listing = t.begin_listing();
    t.list_entry((listing, false), ROOT, "d", file(&marker), asked);
    t.list_entry((listing, true), ROOT, "d", PREFIX, asked);
    assert_eq!(node.state().attrs.mode, Some(0o700));
    // And a plain blob, then the prefix.
    let listing = t.begin_listing();
    let as_file = t.list_entry((listing, false), ROOT, "e", file(&plain), asked);
    let as_dir = t.list_entry((listing, false), ROOT, "e", PREFIX, asked);
    assert_ne!(as_file, as_dir);
    assert_eq!(t.child(ROOT, "e").unwrap().kind, Kind::Directory);
    assert_eq!(t.subdirectories(ROOT), 2);
}

#[test]
fn the_same_version_changes_nothing() {
    let mut t = table();
    let p = blob("1", &[]);
    let asked = t.ask();
    let id = t.learn(ROOT, "a", file(&p), asked).unwrap();
    let node = t.node(id).unwrap();
    let ctime = SystemTime::UNIX_EPOCH;
    node.state().ctime = ctime;
    t.learn(ROOT, "a", file(&p), asked);
    assert_eq!(node.state().ctime, ctime);
    t.learn(ROOT, "a", file(&blob("2", &[])), asked);
    assert_ne!(node.state().ctime, ctime);
}

#[test]
fn nodes_live_as_long_as_somebody_refers_to_them() {
    let mut t = table();
    let p = blob("1", &[]);
    let asked = t.ask();
    let id = t.learn(ROOT, "a", file(&p), asked).unwrap();
    t.refer(id, Duration::ZERO);
    t.refer(id, Duration::ZERO);
    t.remove(ROOT, "a");
    t.forget(id, 1);
    assert!(t.node(id).is_some());
    t.forget(id, 5);
    assert!(t.node(id).is_none());
    t.forget(id, 5);
    t.forget(ROOT, 100);
    assert!(t.node(ROOT).is_some());
    t.write_journal();
    assert_eq!(t.journal.state().unwrap().nodes.len(), 1);
}

#[test]
fn a_sweep_frees_what_expired_and_nobody_refers_to() {
    let mut t = table();
    let p = blob("1", &[]);
    let asked = t.ask();
    let listing = t.begin_listing();
    let ids: Vec<_> = (0..10)
        .map(|i| {
            t.list_entry((listing, false), ROOT, &format!("f{i}"), file(&p), asked)
                .unwrap()
        })
        .collect();
    t.end_listing(listing, ROOT, asked);
    t.refer(ids[0], Duration::ZERO);
    let old = Instant::now().checked_sub(2 * SWEEP_AFTER).unwrap();
    ids.iter()
        .for_each(|id| t.node(*id).unwrap().state().validated = old);
    t.sweep();
    assert_eq!(t.nodes().len(), 2);
    assert!(!t.listing_fresh(ROOT));
    assert!(matches!(t.known(ROOT, "f5"), Known::Unknown));
}

#[test]
fn absence_that_is_not_believed_is_neither_known_nor_kept() {
    let mut t = table_believing_absence_for(Duration::ZERO);
    let asked = t.ask();
    for i in 0..10 {
        assert!(t.learn(ROOT, &format!("f{i}"), NOTHING, asked).is_none());
    }
    let listing = t.begin_listing();
    t.end_listing(listing, ROOT, asked);
    assert!(matches!(t.known(ROOT, "f1"), Known::Unknown));
    assert!(!t.listing_fresh(ROOT));
    assert!(t.dir(ROOT).unwrap().absent.is_empty());
    // What this mount removed is remembered all the same: the answer to an older question does not bring it
    // back.
    let p = blob("1", &[]);
    t.learn(ROOT, "gone", file(&p), asked).unwrap();
    let before = t.ask();
    t.remove(ROOT, "gone");
    let after = t.ask();
    assert!(t.learn(ROOT, "gone", NOTHING, after).is_none());
    assert!(t.learn(ROOT, "gone", file(&p), before).is_none());
    assert!(t.learn(ROOT, "gone", file(&p), after).is_some());
}

#[test]
fn questions_about_names_that_are_not_there_ask_for_no_listing() {
    let mut t = table_believing_absence_for(Duration::ZERO);
    for _ in 0..100 {
        assert!(!t.missed(ROOT));
        t.missed_nothing(ROOT);
    }
    let wanted: Vec<bool> = (0..5).map(|_| t.missed(ROOT)).collect();
    assert_eq!(wanted, [false, false, false, true, true]);
    let mut t = table();
    for _ in 0..3 {
        assert!(!t.missed(ROOT));
        t.missed_nothing(ROOT);
    }
    assert!(t.missed(ROOT), "believed absence is worth a listing");
}

#[test]
fn a_name_that_the_kernel_holds_and_asks_for_is_revalidated() {
    let mut t = table();
    let p = blob("1", &[]);
    let asked = t.ask();
    let id = t.learn(ROOT, "a", file(&p), asked).unwrap();
    assert!(!t.revalidates(id), "never handed out");
    t.refer(id, Duration::from_secs(60));
    assert!(t.revalidates(id));
    t.node(id).unwrap().state().handles = 1;
    assert!(t.revalidates(id), "somebody only reads");
    t.node(id).unwrap().state().handles = 0;
    t.node(id).unwrap().state().set_debt(Debt::Attributes);
    assert!(!t.revalidates(id), "this mount's own");
    t.node(id).unwrap().state().set_debt(Debt::Nothing);
    t.forget(id, 1);
    assert!(!t.revalidates(id), "the kernel has forgotten it");
    t.refer(id, Duration::from_secs(60));
    t.not_taken(id);
    assert!(!t.revalidates(id), "it did not get there");
    t.refer(id, Duration::ZERO);
    assert!(!t.revalidates(id), "expired");
}

#[test]
fn what_is_let_go_of_for_want_of_memory_is_in_nobodys_hands() {
    let mut t = table();
    let p = blob("1", &[]);
    let first = t.ask();
    let listing = t.begin_listing();
    let ids: Vec<_> = (0..6)
        .map(|i| {
            t.list_entry((listing, false), ROOT, &format!("f{i}"), file(&p), first)
                .unwrap()
        })
        .collect();
    let d = t.list_entry((listing, false), ROOT, "d", PREFIX, first).unwrap();
    // One is being listed, one is the kernel's, one is new here, and a directory is the kernel's.
    let listed = t.node(ids[0]).unwrap();
    t.refer(ids[1], Duration::from_secs(60));
    t.refer(d, Duration::from_secs(60));
    let fresh = State::fresh(Attrs::default(), SystemTime::now());
    t.create(ROOT, "new", Kind::File, fresh)
        .state()
        .set_debt(Debt::Blob);
    assert_eq!(t.shed(1), NODE_BYTES + 4, "no more than needed");
    assert_eq!(t.shed(usize::MAX), 3 * (NODE_BYTES + 4));
    t.end_listing(listing, ROOT, first);
    assert!(
        !t.listing_fresh(ROOT),
        "what is not known any more must not look absent"
    );
    assert!(matches!(t.known(ROOT, "f5"), Known::Unknown));
    for name in ["f0", "f1", "d", "new"] {
        assert!(t.child(ROOT, name).is_some(), "{name}");
    }
    let names = t.kernels(usize::MAX);
    assert_eq!(names, [(ROOT, Arc::from("f1"))]);
    t.forget(ids[1], 1);
    assert!(t.child(ROOT, "f1").is_none());
    drop(listed);
    assert!(t.shed(1) > 0);
    assert!(t.child(ROOT, "f0").is_none());
}

impl Table {
    /// The maps agree, nothing is kept for nobody, and what is counted is what there is.
    pub(crate) fn assert_sound(&self) {
        let mut names = 0;
        for (id, link) in &self.links {
            names += 2 * link.name.len();
            let handles = link.node.state().handles;
            match link.parent {
                0 if *id == ROOT => {}
                0 => assert!(link.lookups > 0 || handles > 0, "{id} is kept for nobody"),
                parent => {
                    let child = self.dir(parent).and_then(|dir| dir.children.get(&link.name));
                    let name = &link.name;
                    assert_eq!(
                        child.map(|child| child.id),
                        Some(*id),
                        "{id} is not {name} of {parent}"
                    );
                }
            }
            let Some(dir) = &link.dir else { continue };
            let mut subdirectories = 0;
            for (name, child) in &dir.children {
                let there = self.links.get(&child.id).filter(|there| there.parent == *id);
                let there = there.filter(|there| there.name == *name);
                assert!(
                    there.is_some(),
                    "{name} of {id} leads to {}, which is elsewhere",
                    child.id
                );
                let is_directory = there.is_some_and(|there| there.node.kind == Kind::Directory);
                subdirectories += u32::from(is_directory);
            }
            assert_eq!(dir.subdirectories, subdirectories, "of {id}");
        }
        assert_eq!(self.names, names, "bytes of names");
    }
}

/// A question about a file that is known costs little: a listing of thousands of entries is not better than a
/// few of them.
#[test]
fn a_listing_has_to_be_worth_its_entries() {
    let mut t = table();
    let p = blob("1", &[]);
    for n in 0..640 {
        let asked = t.ask();
        t.learn(ROOT, &format!("f{n}"), file(&p), asked).unwrap();
    }
    let wanted: Vec<bool> = (0..11).map(|_| t.missed(ROOT)).collect();
    assert_eq!(wanted[..10], [false; 10]);
    assert!(wanted[10]);
}

/// However long the service takes for each of them, a walk over a large folder is soon a listing; somebody
/// who looks now and then is not.
#[test]
fn a_walk_over_a_large_folder_is_worth_a_listing() {
    let ask = |every: Duration, children: usize| {
        let mut t = table();
        let p = blob("1", &[]);
        for n in 0..children {
            let asked = t.ask();
            t.learn(ROOT, &format!("f{n}"), file(&p), asked).unwrap();
        }
        (0..children).position(|_| {
            // So long ago by now.
            let dir = t.dir_mut(ROOT).unwrap();
            dir.window = dir.window.and_then(|at| at.checked_sub(every));
            t.missed(ROOT)
        })
    };
    assert_eq!(ask(Duration::from_millis(20), 4000), Some(62));
    assert_eq!(ask(Duration::from_millis(100), 4000), Some(62));
    assert_eq!(ask(Duration::from_secs(1), 4000), None);
}

/// A directory that was too large for one page is listed again for lookups once it is smaller.
#[test]
fn a_large_directory_does_not_stay_one() {
    let mut t = table();
    t.note_large(ROOT);
    for _ in 0..10 {
        assert!(!t.missed(ROOT));
    }
    let asked = t.ask();
    let listing = t.begin_listing();
    t.end_listing(listing, ROOT, asked);
    assert!(t.missed(ROOT));
}

/// Metadata of others may be eight times what the node itself takes.
#[test]
fn what_the_service_keeps_with_a_blob_is_charged_with_its_node() {
    let budget = Budget::new(0);
    let charged = || budget.usage().metadata;
    let mut t = table_charging(budget.charge_metadata(0));
    let much = "x".repeat(8000);
    let (small, large) = (blob("1", &[("a", "b")]), blob("2", &[("a", &much)]));
    let entry = |p: &Properties| State::of(p, Instant::now()).heap();
    assert!(entry(&large) > 8000 && entry(&small) < 200);
    for n in 0..100 {
        t.learn(ROOT, &format!("{n:02}"), file(&large), t.ask()).unwrap();
    }
    // In steps of 64 KiB.
    assert!(charged() > 100 * (8000 + NODE_BYTES) - 64 * 1024, "{}", charged());
    // Other metadata, other memory.
    for n in 0..50 {
        t.learn(ROOT, &format!("{n:02}"), file(&small), t.ask()).unwrap();
    }
    let half = 50 * (8000 + NODE_BYTES) + 50 * (NODE_BYTES + 200);
    assert!(charged() < half + 64 * 1024, "{}", charged());
    let freed = t.shed(1);
    assert!(
        (8000 + NODE_BYTES..9000 + NODE_BYTES).contains(&freed),
        "one: {freed}"
    );
    assert!(t.shed(usize::MAX) > 49 * (8000 + NODE_BYTES));
    assert!(charged() < NODE_BYTES + 64 * 1024, "{}", charged());
}
