//! Kubelet as a model over the node service: random pods, failures of every step, lost answers, repeated
//! calls, kills of the node process and restarts of kubelet. At each instant every target of a pod that runs
//! has a mount of its volume; when the failures stop, every pod is served within a bounded number of looks;
//! when the pods are gone, nothing is left. A seed gives the same history again.

mod model;
mod process;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng, SeedableRng};

use self::model::{Kind, Known, Kubelet, Version};
use self::process::{Account, Process, unless_killed};
use super::NodeService;
use crate::mounts::fake::FakeKernel;
use crate::mounts::steps::{Mutant, Steps};

/// Histories of an ordinary run, and those in which a protection that is missing is noticed.
const HISTORIES: u64 = 2000;
/// Histories that fail before the rest is left alone.
const MOST_FAILURES: usize = 25;
/// Looks of kubelet, two minutes apart, after which all is well once nothing fails: what is tried again
/// rests for up to five minutes.
const LOOKS: usize = 8;
/// Longer than any call takes.
const CALLS: Duration = Duration::from_secs(600);
/// The longest pause of kubelet between two attempts.
const PAUSE: Duration = Duration::from_secs(122);

/// What a history is made of.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    version: Version,
    /// Published volumes are published again and again, as CSIDriver's `requiresRepublish` says.
    republish: bool,
    /// The kernel cannot mount beneath a mount.
    covers: bool,
    mutant: Option<Mutant>,
}

impl Plan {
    fn of(seed: u64) -> Self {
        Self {
            seed,
            version: [Version::V1_30, Version::V1_34, Version::V1_37][seed as usize % 3],
            republish: seed % 4 != 3,
            covers: seed % 5 == 4,
            mutant: None,
        }
    }
}

struct World {
    plan: Plan,
    rng: RefCell<StdRng>,
    steps: Arc<Steps>,
    kernel: Arc<FakeKernel>,
    account: Arc<Account>,
    kubelet: RefCell<Kubelet>,
    process: RefCell<Option<NodeService>>,
    /// How many calls are made twice, and how many answers are lost.
    repeats: Cell<f64>,
    wrong: RefCell<Option<String>>,
    folder: tempfile::TempDir,
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let kinds = (0..rng.random_range(1..4)).map(|_| match rng.random_range(0..5) {
            0..=2 => Kind::Anonymous,
            // What nobody brings again cannot be made anew.
            _ if !plan.republish => Kind::Anonymous,
            3 => Kind::Key,
            _ => Kind::Inline,
        });
        let kinds = kinds.collect();
        let kernel = FakeKernel::new();
        if plan.covers {
            kernel.covers();
        }
        // Records are synced to the disk: not one that turns.
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Self {
            steps: Steps::new(plan.seed, plan.mutant),
            plan,
            rng: RefCell::new(rng),
            kernel,
            account: Arc::default(),
            kubelet: RefCell::new(Kubelet::new(kinds)),
            process: RefCell::default(),
            repeats: Cell::new(0.0),
            wrong: RefCell::default(),
            folder: folder.unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn service(&self) -> Option<NodeService> {
        self.process.borrow().clone()
    }

    fn draws(&self, share: f64) -> bool {
        self.rng.borrow_mut().random_bool(share)
    }

    /// The first thing that is wrong.
    fn wrong(&self, what: String) {
        self.steps.note(|| format!("WRONG: {what}"));
        self.wrong.borrow_mut().get_or_insert(what);
    }
}

/// A history as it goes on.
struct History {
    world: World,
    process: Option<Process>,
}

impl History {
    fn start(&mut self) {
        if self.process.is_none() {
            let world = &self.world;
            let state = world.path("state");
            self.process = Process::start(&world.steps, &world.kernel, &world.account, &state);
            let service = self.process.as_ref().map(|process| process.service.clone());
            self.world.steps.note(|| match &service {
                Some(_) => "the process starts".to_owned(),
                None => "the process does not start".to_owned(),
            });
            world.process.replace(service);
        }
    }

    fn kill(&mut self) {
        self.world.process.take();
        if let Some(process) = self.process.take() {
            self.world.steps.note(|| "the process is killed".to_owned());
            process.kill(&self.world.kernel);
        }
    }

    /// The process ends well. Volumes that are staged and have no pod at the moment it takes away, and of a
    /// pod that comes later kubelet has none of them staged again.
    fn end(&mut self) {
        let world = &self.world;
        let Some(process) = &self.process else { return };
        // The calls that nobody waits for.
        let calls = async { tokio::time::sleep(CALLS).await };
        if process.block_on(unless_killed(&world.steps, calls)).is_none() {
            return self.kill();
        }
        self.world.process.take();
        if let Some(process) = self.process.take() {
            self.world.steps.note(|| "the process ends".to_owned());
            process.end(&self.world.steps, &self.world.kernel);
        }
    }

    /// One look of kubelet, and the time after it.
    fn look(&mut self, pause: Duration) {
        let world = &self.world;
        let Some(process) = &self.process else { return };
        let looked = async {
            world.reconcile().await;
            tokio::time::sleep(pause).await;
        };
        if process.block_on(unless_killed(&world.steps, looked)).is_none() {
            self.kill();
        }
        let world = &self.world;
        let running: Vec<u32> = {
            let kubelet = world.kubelet.borrow();
            let running = kubelet.pods.iter().filter(|(_, pod)| pod.running);
            running.map(|(number, _)| *number).collect()
        };
        for pod in running {
            world.look(pod, false);
        }
        if let Some(bare) = world.kernel.uncovered().first() {
            world.wrong(format!("{} was without a mount", bare.display()));
        }
    }

    /// What happens before a look of kubelet.
    fn happen(&mut self) {
        let world = &self.world;
        if world.draws(0.5) && world.kubelet.borrow().pods.len() < 6 {
            let mut kubelet = world.kubelet.borrow_mut();
            let mut rng = world.rng.borrow_mut();
            let volume = rng.random_range(0..kubelet.volumes.len());
            let (read_only, group) = (rng.random_bool(0.3), rng.random_range(1000..1003));
            let pod = kubelet.add(volume, read_only, group);
            world.steps.note(|| format!("pod {pod} of {volume} comes"));
        }
        if world.draws(0.3) {
            let gone = {
                let kubelet = world.kubelet.borrow();
                let wanted = kubelet.pods.iter().filter(|(_, pod)| pod.wanted);
                let wanted = wanted.map(|(number, _)| *number);
                wanted.choose(&mut *world.rng.borrow_mut())
            };
            if let Some(pod) = gone {
                world.remove(pod);
            }
        }
        if world.draws(0.15) {
            world.steps.note(|| "kubelet restarts".to_owned());
            world.restart_kubelet();
        }
        if world.draws(0.3) {
            let refuses = world.draws(0.4);
            world.steps.note(|| format!("the account refuses: {refuses}"));
            world.account.refuse(refuses);
        }
        if world.draws(0.5) {
            let share = [0.0, 0.02, 0.1, 0.3];
            let share = share[world.rng.borrow_mut().random_range(0..4)];
            world.steps.note(|| format!("of all steps {share} fail"));
            world.steps.fail(share);
        }
        if world.draws(0.35) {
            let steps = world.rng.borrow_mut().random_range(0..60);
            world.steps.kill_in(Some(steps));
        }
        world.republish(0.5);
        if self.world.draws(0.1) {
            self.end();
        } else if self.world.draws(0.1) {
            self.kill();
        }
    }

    /// The whole of it; what is wrong, if anything is.
    fn run(plan: Plan, write_down: bool) -> Result<(), String> {
        let world = World::new(plan);
        let steps = Arc::clone(&world.steps);
        let _installed = steps.install();
        if write_down {
            steps.write_down();
        }
        let mut history = Self { world, process: None };
        history.all();
        history.kill();
        match history.world.wrong.take() {
            None => Ok(()),
            Some(wrong) => Err(wrong + "\n" + &steps.trace().join("\n")),
        }
    }

    fn all(&mut self) {
        let rounds = self.world.rng.borrow_mut().random_range(4..12);
        self.world.repeats.set(0.1);
        for _ in 0..rounds {
            self.happen();
            self.start();
            let pauses = [100, 1000, 10_000, 60_000, 122_000];
            let pause = pauses[self.world.rng.borrow_mut().random_range(0..5)];
            self.look(Duration::from_millis(pause));
            if self.is_wrong() {
                return;
            }
        }
        self.calm();
        if !self.within("every pod is served", World::all_served) {
            return;
        }
        let pods: Vec<u32> = self.world.kubelet.borrow().pods.keys().copied().collect();
        for pod in pods {
            self.world.remove(pod);
        }
        let leaked: Vec<usize> = {
            let kubelet = self.world.kubelet.borrow();
            let leaked = |volume: &usize| kubelet.volumes[*volume].leaked;
            (0..kubelet.volumes.len()).filter(leaked).collect()
        };
        if !self.within("kubelet has nothing to do", World::all_gone) {
            return;
        }
        // What kubelet has forgotten goes with the next pod of the volume.
        for volume in leaked {
            let pod = self.world.kubelet.borrow_mut().add(volume, false, 1000);
            if !self.within(
                "a pod of a volume that kubelet forgot is served",
                World::all_served,
            ) {
                return;
            }
            self.world.remove(pod);
            if !self.within("kubelet has nothing to do", World::all_gone) {
                return;
            }
        }
        self.world.look_for_what_is_left();
    }

    fn is_wrong(&self) -> bool {
        self.world.wrong.borrow().is_some()
    }

    /// Nothing fails any more.
    fn calm(&mut self) {
        let world = &self.world;
        world.steps.note(|| "nothing fails any more".to_owned());
        world.steps.fail(0.0);
        world.steps.kill_in(None);
        world.repeats.set(0.0);
        world.account.refuse(false);
    }

    fn within(&mut self, what: &str, met: fn(&World) -> bool) -> bool {
        for _ in 0..LOOKS {
            self.world.republish(1.0);
            self.start();
            self.look(PAUSE);
            if self.is_wrong() {
                return false;
            }
            if met(&self.world) {
                return true;
            }
        }
        self.world.wrong(format!("not within {LOOKS} looks: {what}"));
        let kubelet = format!("{:#?}", self.world.kubelet.borrow());
        self.world.steps.note(|| kubelet);
        false
    }
}

impl World {
    /// A pod goes: its containers have ended.
    fn remove(&self, number: u32) {
        self.steps.note(|| format!("pod {number} goes"));
        self.kernel.unpublish(&self.target(number));
        if let Some(pod) = self.kubelet.borrow_mut().pods.get_mut(&number) {
            (pod.wanted, pod.running) = (false, false);
        }
    }

    fn republish(&self, share: f64) {
        if self.plan.republish {
            for pod in self.kubelet.borrow_mut().pods.values_mut() {
                pod.remount = pod.mount == Known::Mounted && self.draws(share);
            }
        }
    }

    /// Whether a container that starts now would find a mount that serves, for every pod.
    fn all_served(&self) -> bool {
        let kubelet = self.kubelet.borrow();
        let mut wanted = kubelet.pods.iter().filter(|(_, pod)| pod.wanted);
        wanted.all(|(number, pod)| {
            let there = self.kernel.at(&self.target(*number));
            pod.mount == Known::Mounted && there.is_some_and(|(_, serves)| serves)
        })
    }

    fn all_gone(&self) -> bool {
        let kubelet = self.kubelet.borrow();
        let mut volumes = kubelet.volumes.iter();
        kubelet.pods.is_empty() && volumes.all(|volume| volume.device == Known::NotMounted)
    }

    fn look_for_what_is_left(&self) {
        let mounts = self.kernel.mounts();
        if !mounts.is_empty() {
            self.wrong(format!("mounts are left: {mounts:?}"));
        }
        if self.kernel.detached() > 0 {
            self.wrong("mounts are left that nobody sees".to_owned());
        }
        let records = self.service().map(|service| service.mounts.records());
        if records.iter().flatten().next().is_some() {
            self.wrong(format!("records are left: {records:?}"));
        }
        for folder in ["state", "pods", "staging"] {
            let left = std::fs::read_dir(self.path(folder)).into_iter().flatten();
            let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
            if !left.is_empty() {
                self.wrong(format!("files are left: {left:?}"));
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One seed again: `KUBELET_SEED=17`.
#[test]
fn whatever_happens_pods_are_served_and_leave_nothing_behind() {
    let seeds = match number("KUBELET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KUBELET_HISTORIES").unwrap_or(HISTORIES),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        if let Err(wrong) = History::run(Plan::of(seed), false) {
            let first = wrong.lines().next().unwrap_or_default();
            failed.push(format!("KUBELET_SEED={seed}: {first}"));
            if failed.len() == MOST_FAILURES {
                break;
            }
        }
    }
    if let Some(seed) = failed.first().and_then(|first| first.split(['=', ':']).nth(1)) {
        let plan = Plan::of(seed.parse().unwrap());
        let steps = History::run(plan, true).err().unwrap_or_default();
        panic!("{}\n{plan:?}: {steps}", failed.join("\n"));
    }
}

/// The model would see it if a protection were not there.
#[test]
fn kubelet_notices_each_protection_that_is_taken_away() {
    for mutant in [Mutant::UnmountFirst, Mutant::WaitForTheNextStage, Mutant::NoLock] {
        let noticed = (0..HISTORIES).find_map(|seed| {
            let plan = Plan {
                mutant: Some(mutant),
                ..Plan::of(seed)
            };
            let why = History::run(plan, false).err()?;
            // With the protection, the same history is clean.
            History::run(Plan::of(seed), false).is_ok().then_some((seed, why))
        });
        let Some((seed, why)) = noticed else {
            panic!("{mutant:?} is not noticed within {HISTORIES} histories");
        };
        println!(
            "{mutant:?}: history {seed}: {}",
            why.lines().next().unwrap_or_default()
        );
    }
}
