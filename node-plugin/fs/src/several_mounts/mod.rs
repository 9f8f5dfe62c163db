//! Several mounts of one container, and a writer that is none of ours: random operations, one at a time or
//! beside each other, with requests that fail, come late or come twice. After each, the container must hold
//! what the operations say (see `oracle`). A seed gives the same run again.

mod believed;
mod client;
pub(crate) mod jitter;
mod oracle;
mod renames;
mod snapshot;
mod steps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use blob_client::Metadata;
use futures::FutureExt;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use vsc_driver::buffer::Arena;

use self::client::Client;
use self::jitter::{Jitter, Mutant};
use self::oracle::{Done, Oracle};
use self::snapshot::{Shown, Snapshot, TAG, parent};
use self::steps::{Step, Steps};
use crate::budget::Budget;
use crate::config::VolumeConfig;
use crate::content::Env;
use crate::journal::log::Log;
use crate::store::Store;
use crate::store::fake::{FakeStore, Fault, Op};
use crate::tree::Tree;

/// Longer than any run.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// Rounds of one run; in each, up to three operations.
const ROUNDS: usize = 40;
/// Runs in which a protection that is missing is noticed.
const NOTICED_WITHIN: u64 = 2000;
/// Runs that found something: a rename of a directory that another mount renamed at the same time, which
/// succeeded without its target; rmdir of one that was made anew elsewhere; an empty file whose name became a
/// directory; a mode that was taken for the moved directory's; another file's content under a name that was
/// renamed; a file that took a directory's place. And what looked wrong and was not: a file that a late
/// request made once more, beside a writer, and before who deletes it; a directory that only its mount
/// knows, and that replaces an empty one; a file that is renamed onto a directory without a marker, of which
/// its mount has not heard; one that is replaced by a rename as soon as it is written; the old name of a file
/// that goes late; one that is written once more after it was deleted; one that comes late into a directory
/// that is renamed, or amid another one's creation; one that is renamed while somebody who takes it for a
/// directory puts something below it.
const ONCE_WRONG: [u64; 19] = [
    1_915_051, 2_152_245, 2_403_594, 2_450_757, 1_005_299, 1_009_557, 1_019_034, 1_108_627, 1_014_603,
    1_029_625, 1_016_524, 1_120_452, 1_131_380, 1_133_424, 1_011_858, 1_183_539, 1_475_658, 1_178_363,
    1_246_015,
];
/// Runs that fail before the rest is left alone.
const MOST_FAILURES: usize = 25;

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    mounts: usize,
    /// Operations of a round are at work at the same time.
    together: bool,
    /// Requests go wrong.
    faults: bool,
    mutant: Option<Mutant>,
}

impl Plan {
    fn of(seed: u64) -> Self {
        Self {
            seed,
            mounts: if seed.is_multiple_of(3) { 3 } else { 2 },
            together: seed % 4 >= 2,
            faults: seed % 2 == 1,
            mutant: None,
        }
    }
}

struct World {
    plan: Plan,
    store: Arc<FakeStore>,
    clients: Vec<Client>,
    rng: StdRng,
    steps: Steps,
    oracle: Oracle,
    /// Failed operations whose requests are on their way.
    late: Vec<Step>,
    operations: usize,
    trace: Vec<String>,
}

/// A mount over a store. `strict`: it keeps no names and no attributes.
fn client(store: Arc<dyn Store>, strict: bool, budget: &Arc<Budget>, arena: &Arc<Arena>) -> Client {
    let mut config = VolumeConfig::new("several", store);
    let timeout = if strict { Duration::ZERO } else { NEVER };
    (config.attr_timeout, config.entry_timeout) = (timeout, timeout);
    let env = Env::new(
        Arc::clone(&config.store),
        Arc::clone(budget),
        Arc::clone(arena),
        tokio::runtime::Handle::current(),
    );
    let tree = Tree::new(config, env, Arc::new(Log::create().unwrap()));
    Client::new(tree, !strict)
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let store = Arc::new(FakeStore::new());
        let budget = Budget::new(32 << 20);
        let arena = Arena::new(64 << 20).unwrap();
        let clients = (0..plan.mounts)
            .map(|n| {
                let jitter = Jitter::new(Arc::clone(&store), plan.seed * 8 + n as u64, plan.mutant);
                client(jitter, rng.random_bool(0.5), &budget, &arena)
            })
            .collect();
        Self {
            plan,
            store,
            clients,
            rng,
            steps: Steps::default(),
            oracle: Oracle::default(),
            late: Vec::new(),
            operations: 0,
            trace: Vec::new(),
        }
    }

    /// A step that makes sense of somebody who knows nothing of directories.
    fn may(step: &Step, now: &Snapshot) -> bool {
        match step {
            Step::ForeignPut { path, .. } => {
                let mut above = parent(path);
                while !above.is_empty() {
                    if now.files.contains_key(above) {
                        return false;
                    }
                    above = parent(above);
                }
                !now.is_dir(path)
            }
            Step::ForeignDelete { path } | Step::ForeignTag { path, .. } => now.files.contains_key(path),
            _ => true,
        }
    }

    fn foreign(&self, step: &Step) -> Shown {
        match step {
            Step::ForeignPut { path, content, dated } => {
                let mut metadata = Metadata::new();
                if *dated {
                    metadata.insert("vsc_mtime".to_owned(), "1600000000.000000000".to_owned());
                }
                self.store.foreign_put(path, content.clone(), metadata);
            }
            Step::ForeignDelete { path } => {
                self.store.foreign_delete(path);
            }
            Step::ForeignTag { path, tag } => {
                if let Some(mut properties) = self.store.properties(path) {
                    properties.metadata.insert(TAG.to_owned(), tag.clone());
                    self.store.foreign_metadata(path, &properties.metadata);
                }
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(String::new())
    }

    fn fault(&mut self) -> bool {
        if !self.plan.faults || !self.rng.random_bool(0.4) {
            return false;
        }
        let later = self.rng.random_range(0..12u64);
        // A request that makes a name anew and comes twice is `on_their_way`; of others, the second finds
        // another version.
        const TWICE: [Op; 5] = [Op::Delete, Op::SetMetadata, Op::Put, Op::Commit, Op::Copy];
        if self.rng.random_bool(0.4) {
            let op = *TWICE.choose(&mut self.rng).unwrap_or(&Op::Delete);
            self.store.fail(op, Fault::Doubled(later), 1);
            return false;
        }
        let faults = [
            Fault::Lost,
            Fault::AnswerLost,
            Fault::Late(later),
            Fault::Executed(500, "InternalError"),
            Fault::Status(503, "ServerBusy"),
        ];
        let fault = *faults.choose(&mut self.rng).unwrap_or(&Fault::Lost);
        let pass = self.rng.random_range(0..6);
        let times = self.rng.random_range(1..4);
        self.store.fail_after(pass, fault, times);
        true
    }

    /// One round: some operations, and a look at what the container holds.
    async fn round(&mut self) -> Result<(), String> {
        let before = Snapshot::of(&self.store);
        self.oracle.remember(&before);
        let to_be_finished = self.oracle.to_be_finished(&before);
        let count = if self.plan.together { self.clients.len() } else { 1 };
        let first = self.rng.random_range(0..self.clients.len());
        let mut foreign = Vec::new();
        let mut own = Vec::new();
        for n in 0..count {
            let step = loop {
                let step = match to_be_finished.choose(&mut self.rng) {
                    Some((from, to)) if self.rng.random_bool(0.2) => Step::Rename {
                        from: from.clone(),
                        to: to.clone(),
                        replace: true,
                    },
                    _ => self.steps.next(&mut self.rng),
                };
                let client = self.clients.get((first + n) % self.clients.len());
                if Self::may(&step, &before) && client.is_none_or(|client| client.may(&step)) {
                    break step;
                }
            };
            if step.is_foreign() && !self.plan.together {
                foreign.push(step);
            } else if !step.is_foreign() {
                own.push(((first + n) % self.clients.len(), step));
            }
        }
        if self.rng.random_bool(0.1) {
            self.clients.iter_mut().for_each(Client::forget_names);
        }
        let faulty = !own.is_empty() && self.fault();
        self.play(&before, foreign, own, faulty).await
    }

    /// A round of steps that are given, not drawn.
    async fn given(
        &mut self,
        foreign: Vec<Step>,
        own: Vec<(usize, Step)>,
        faulty: bool,
    ) -> Result<(), String> {
        let before = Snapshot::of(&self.store);
        self.oracle.remember(&before);
        self.play(&before, foreign, own, faulty).await
    }

    /// What others do, and then mounts at the same time, with requests that go wrong (`faulty`: they were
    /// planned); and a look at what has come of it.
    async fn play(
        &mut self,
        before: &Snapshot,
        foreign: Vec<Step>,
        own: Vec<(usize, Step)>,
        faulty: bool,
    ) -> Result<(), String> {
        self.operations += foreign.len() + own.len();
        let mut done: Vec<Done> = Vec::new();
        for step in foreign {
            let shown = self.foreign(&step);
            let (strict, doubtful) = (true, false);
            done.push(Done {
                step,
                shown,
                strict,
                doubtful,
            });
        }
        let on_their_way = self.store.on_their_way() > 0;
        let strict: Vec<bool> = self.clients.iter().map(Client::is_strict).collect();
        let mut at_work = Vec::new();
        for (n, client) in self.clients.iter_mut().enumerate() {
            if let Some((_, step)) = own.iter().find(|(m, _)| *m == n).cloned() {
                let meaning = client.meaning(step.clone());
                at_work.push(async move {
                    let shown = client.run(&step).await;
                    (n, meaning, shown)
                });
            }
        }
        let ended = join_all(at_work).await;
        let struck = self.store.heal();
        // The service is back: what a close could not store is stored now, or never.
        for client in &self.clients {
            client.tree().send_owed().await;
        }
        for (n, step, shown) in ended {
            let doubtful = faulty && struck;
            self.trace.push(format!("mount {n}: {step:?} -> {shown:?}"));
            done.push(Done {
                strict: strict.get(n).copied().unwrap_or(false),
                step,
                shown,
                doubtful,
            });
        }
        for d in done.iter().filter(|d| d.step.is_foreign()) {
            self.trace.push(format!("foreign: {:?}", d.step));
        }
        // Few at a time: what each of them may come to is tried.
        if self.rng.random_bool(0.3) || self.late.len() > 1 {
            self.store.settle();
        }
        let pending = self.store.on_their_way() > 0;
        // What is on its way from former rounds may have come in this one.
        done.extend(self.late.iter().map(|step| Done {
            step: step.clone(),
            shown: Err(libc::EIO),
            strict: true,
            doubtful: true,
        }));
        let after = Snapshot::of(&self.store);
        let mut came = false;
        for (name, content, metadata) in self.store.made_late() {
            let mut made = Snapshot::default();
            made.add(name, &content, &metadata);
            self.trace.push(format!("came late, and made: {made}"));
            self.oracle.remember(&made);
            came = true;
        }
        self.trace
            .push(format!("    struck: {struck}, on their way: {pending}"));
        self.oracle
            .explain(before, &done, &after, on_their_way || pending || struck || came)
            .map_err(|why| {
                let late: Vec<_> = self.late.iter().map(|step| format!("{step:?}")).collect();
                let (strict, late) = (&strict, late.join(", "));
                format!("{why}; strict: {strict:?}, late: [{late}], before: {before}, after: {after}")
            })?;
        if pending {
            let unsure = done.iter().filter(|d| d.doubtful && d.shown.is_err());
            self.late = unsure.map(|d| d.step.clone()).collect();
        } else {
            self.late.clear();
        }
        Ok(())
    }

    /// After everything has come to an end, each mount shows what is there.
    async fn end(&mut self) -> Result<(), String> {
        self.store.settle();
        for client in &mut self.clients {
            client.close().await;
        }
        let now = Snapshot::of(&self.store);
        for client in &mut self.clients {
            let finished = client.tree().finish().await;
            // What a close could not store is told once more.
            finished.or_else(|e| self.plan.faults.then_some(()).ok_or(format!("finish: {e}")))?;
        }
        let unchanged = Snapshot::of(&self.store);
        if unchanged != now {
            return Err(format!(
                "unmounting changed it\nbefore: {now:#?}\nafter: {unchanged:#?}"
            ));
        }
        Ok(())
    }
}

/// A run; how many operations it had.
async fn run(plan: Plan) -> Result<usize, String> {
    let mut world = World::new(plan);
    for round in 0..ROUNDS {
        // A file and a directory of one name: each is served in part, and what is shown depends on who asks.
        let now = Snapshot::of(&world.store);
        if now.files.keys().any(|path| now.is_dir(path)) {
            break;
        }
        if let Err(why) = world.round().await {
            let trace = world.trace.join("\n");
            return Err(format!("{plan:?}, round {round}: {why}\n{trace}"));
        }
    }
    let ended = world.end().await;
    ended.map_err(|why| format!("{plan:?}, at the end: {why}\n{}", world.trace.join("\n")))?;
    Ok(world.operations)
}

/// Runs, until there are enough operations: how many there were, and why runs failed.
fn runs(plans: impl Iterator<Item = Plan>, enough: impl Fn(usize, usize) -> bool) -> (usize, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut operations, mut failures) = (0, Vec::new());
    for plan in plans {
        match runtime.block_on(std::panic::AssertUnwindSafe(run(plan)).catch_unwind()) {
            Ok(Ok(more)) => operations += more,
            Ok(Err(why)) => failures.push(why),
            Err(_) => failures.push(format!("{plan:?} panicked")),
        }
        if enough(operations, failures.len()) {
            break;
        }
    }
    (operations, failures)
}

/// Runs that must not fail.
fn clean_runs(seeds: impl Iterator<Item = u64>, enough: impl Fn(usize) -> bool) -> usize {
    let (operations, failures) = runs(seeds.map(Plan::of), |operations, failures| {
        enough(operations) || failures == MOST_FAILURES
    });
    // The last line of each, and the first in full.
    let short = |why: &String| Some(format!("{}\n    {}", why.lines().next()?, last_step(why)));
    let all: Vec<String> = failures.iter().filter_map(short).collect();
    if let Some(first) = failures.first() {
        panic!(
            "{first}\n\n{} of the runs failed:\n{}",
            failures.len(),
            all.join("\n")
        );
    }
    operations
}

/// What was done in the round that failed.
fn last_step(why: &str) -> String {
    let lines: Vec<&str> = why.lines().collect();
    let rounds = lines.iter().rposition(|line| line.starts_with("    struck"));
    let before = rounds.and_then(|at| {
        lines
            .get(..at)?
            .iter()
            .rposition(|line| line.starts_with("    struck"))
    });
    lines
        .get(before.unwrap_or(0) + 1..)
        .unwrap_or_default()
        .join(" | ")
}

/// What a truncate could not store is not there afterwards: not to be read, not to be written on, not at
/// unmount.
#[tokio::test]
async fn a_truncate_that_failed_is_not_carried_out_later() {
    for (fault, lost) in [
        (
            Fault::Status(403, "AuthorizationPermissionMismatch"),
            libc::EACCES,
        ),
        (Fault::Lost, libc::EIO),
    ] {
        let plan = Plan {
            mounts: 2,
            ..Plan::of(0)
        };
        let mut world = World::new(plan);
        let path = || "f".to_owned();
        let (content, new) = ("0123456789".to_owned(), false);
        let made = Step::Write {
            path: path(),
            content,
            new,
        };
        let ours = &mut world.clients[0];
        ours.run(&made).await.unwrap();
        world.store.fail(Op::Put, fault, u64::MAX);
        let cut = Step::Cut {
            path: path(),
            size: 3,
        };
        assert_eq!(ours.run(&cut).await, Err(lost));
        world.store.heal();
        let read = Step::Read { path: path() };
        assert_eq!(ours.run(&read).await.as_deref(), Ok("0123456789"));
        let content = "foreign".to_owned();
        let dated = false;
        world
            .foreign(&Step::ForeignPut {
                path: path(),
                content,
                dated,
            })
            .unwrap();
        let ours = &mut world.clients[0];
        assert_eq!(ours.run(&read).await.as_deref(), Ok("foreign"), "it is asked for");
        ours.tree().finish().await.unwrap();
        assert_eq!(world.store.content("f").unwrap(), "foreign");
    }
}

/// A directory that this mount knows by what was below it, and that somebody else has made since.
#[tokio::test]
async fn rmdir_of_a_directory_that_was_made_elsewhere_removes_it() {
    let mut world = (0..)
        .map(|seed| {
            World::new(Plan {
                mounts: 2,
                ..Plan::of(seed)
            })
        })
        .find(|world| !world.clients[0].is_strict() && world.clients[1].is_strict())
        .unwrap();
    let path = || "d".to_owned();
    world.store.foreign_put("d/f", "content", Metadata::new());
    let ours = &mut world.clients[0];
    assert_eq!(ours.run(&Step::List { path: path() }).await.as_deref(), Ok("d/f"));
    world.store.foreign_delete("d/f");
    let theirs = &mut world.clients[1];
    theirs.run(&Step::Mkdir { path: path() }).await.unwrap();
    let ours = &mut world.clients[0];
    ours.run(&Step::Rmdir { path: path() }).await.unwrap();
    assert_eq!(world.store.names(), Vec::<String>::new());
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One seed again: `BLOB_FS_SEVERAL_SEED=17`.
#[test]
fn what_several_mounts_and_a_foreign_writer_do_is_what_they_say() {
    let operations = match number("BLOB_FS_SEVERAL_SEED") {
        Some(seed) => clean_runs(std::iter::once(seed), |_| false),
        None => clean_runs(ONCE_WRONG.into_iter().chain(0..), |operations| {
            operations >= 30_000
        }),
    };
    println!("{operations} operations");
}

/// Other seeds, for as long as `BLOB_FS_SEVERAL_SECONDS` says.
#[test]
#[ignore = "an hour"]
fn what_several_mounts_do_is_what_they_say_for_an_hour() {
    let seconds = number("BLOB_FS_SEVERAL_SECONDS").unwrap_or(3600);
    let end = Instant::now() + Duration::from_secs(seconds);
    let operations = clean_runs(1_000_000.., |_| Instant::now() >= end);
    println!("{operations} operations");
}

/// The model would see it if a protection were not there.
#[test]
fn each_protection_that_is_taken_away_is_noticed() {
    for mutant in [
        Mutant::UnconditionalDelete,
        Mutant::NoClaim,
        Mutant::UnguardedMarkers,
        Mutant::MetadataFromTheCache,
    ] {
        let fails = |plan| runs(std::iter::once(plan), |_, _| true).1.into_iter().next();
        // With the protection, the same run is clean.
        let noticed = (0..NOTICED_WITHIN).find_map(|seed| {
            let plan = Plan::of(seed);
            let mutant = Some(mutant);
            let why = fails(Plan { mutant, ..plan })?;
            fails(plan).is_none().then_some((seed, why))
        });
        let Some((seed, why)) = noticed else {
            panic!("{mutant:?} is not noticed within {NOTICED_WITHIN} runs");
        };
        let line = why.lines().next().unwrap_or_default();
        println!("{mutant:?}: run {seed}: {line}\n    {}", last_step(&why));
    }
}
