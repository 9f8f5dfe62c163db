//! Outages of the service under a workload, and what is left after them; and many threads on one mount while
//! requests fail at random.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

#[path = "outages/gate.rs"]
mod gate;
#[path = "outages/stress.rs"]
mod stress;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::harness::backend::{Backend, ContainerView, Kind};
use e2e::harness::node::{Node, NodeOptions};
use e2e::harness::wait_for;
use e2e::store::{Fault, FaultRule};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use self::gate::{Gate, Passage};

const MIB: u64 = 1 << 20;
/// Files of each volume that are closed while the service is away, together [`CLOSED`].
const FILES: usize = 300;
/// Their sizes together. It fits a volume's share of the budget five times.
const CLOSED: u64 = 60 * MIB;
const BUDGET: u64 = 1024 * MIB;
/// Of them, large ones, of more than one block.
const LARGE: (usize, u64) = (3, 5 * MIB);
/// Programs that write and close them, of each volume. While the service is away each close waits for
/// [`FLAGS`], one after the other.
const WRITERS: usize = 60;
/// Mount options of volumes whose service fails.
const FLAGS: &[&str] = &["timeout=2s"];
/// Requests that may be lost, one in two: more than any run sends.
const LOST: u64 = 20_000;
/// A name that the node loses.
const NAME: &str = "blobs.outage.test";
/// How long what must come may take, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(240);
/// Rounds of the volume that has no outage, while the others have.
const ROUNDS: usize = 20;
/// What nobody waits longer for there, and how much longer than before anything may take on a busy machine.
const BYSTANDER: Duration = Duration::from_secs(2);
const FACTOR: u32 = 20;

/// How the service is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// Nobody listens.
    Refused,
    /// Connections are taken, and nothing is answered.
    Silent,
    /// Everything is answered with 503.
    Busy,
    /// Every second request is lost: before it is carried out, or after it.
    Half,
    /// Its name is not known any more.
    Name,
}

const OUTAGES: [Outage; 5] = [
    Outage::Refused,
    Outage::Silent,
    Outage::Busy,
    Outage::Half,
    Outage::Name,
];

/// A volume, its service, and what stands between them.
struct Volume {
    outage: Option<Outage>,
    at: PathBuf,
    container: ContainerView,
    gate: Gate,
    backend: Backend,
}

impl Volume {
    fn stage(node: &Node, id: &str, outage: Option<Outage>, flags: &[&str]) -> Result<Self> {
        let backend = Backend::start(Kind::Embedded)?;
        let container = backend.create_container("files")?;
        let behind = backend.endpoint().socket_addrs(|| None)?;
        let gate = Gate::before(*behind.first().context("an address")?)?;
        let mut server = backend.endpoint().clone();
        let port = gate.address().port();
        if server.set_port(Some(port)).is_err() {
            bail!("{server} takes no port");
        }
        if outage == Some(Outage::Name) {
            server.set_host(Some(NAME))?;
        }
        let at = node.stage(id, &server, "files", flags)?;
        Ok(Self {
            outage,
            at,
            container,
            gate,
            backend,
        })
    }

    fn begin(&self, node: &Node) -> Result<()> {
        let store = self.backend.store().context("an embedded store")?;
        let rule = |skip, times, fault| FaultRule {
            operation: None,
            blob_contains: None,
            skip,
            times,
            fault,
        };
        match self.outage {
            None => {}
            Some(Outage::Refused) => self.gate.set(Passage::Refused),
            Some(Outage::Silent) => self.gate.set(Passage::Silent),
            Some(Outage::Busy) => {
                let busy = Fault::Answer {
                    status: 503,
                    code: "ServerBusy".into(),
                    retry_after: None,
                };
                store.inject(rule(0, u64::MAX, busy));
            }
            Some(Outage::Half) => {
                for n in 0..LOST {
                    let lost = match n % 3 {
                        0 => Fault::Hang,
                        1 => Fault::LoseAnswer,
                        _ => Fault::Disconnect,
                    };
                    store.inject(rule(2 * n + 1, 1, lost));
                }
            }
            Some(Outage::Name) => {
                node.set_hosts("")?;
                // Connections that know the way are closed, as a service closes idle ones.
                self.gate.set(Passage::Open);
            }
        }
        Ok(())
    }

    fn end(&self, node: &Node) -> Result<()> {
        self.gate.set(Passage::Open);
        self.backend.store().context("an embedded store")?.clear_faults();
        if self.outage == Some(Outage::Name) {
            node.set_hosts(&hosts())?;
        }
        Ok(())
    }

    /// Files that are not there, or not with the right content.
    fn missing(&self) -> Result<Vec<usize>> {
        let blobs = self.container.blobs()?;
        let right = |n: usize| -> Result<bool> {
            let name = name(n);
            Ok(blobs.contains_key(&name) && self.container.read(&name)? == content(n))
        };
        let mut missing = Vec::new();
        for n in 0..FILES {
            if !right(n)? {
                missing.push(n);
            }
        }
        Ok(missing)
    }
}

/// The node, the volumes with outages and one without. Dropped in this order: mounts before their services.
struct World {
    node: Node,
    volumes: Vec<Volume>,
    other: Volume,
}

impl World {
    fn start() -> Result<Self> {
        many_files()?;
        let node = Node::start(&NodeOptions {
            budget: BUDGET,
            hosts: Some(hosts()),
            ..NodeOptions::default()
        })?;
        let stage = |outage: &Outage| Volume::stage(&node, &format!("{outage:?}"), Some(*outage), FLAGS);
        let volumes = OUTAGES.iter().map(stage).collect::<Result<Vec<_>>>()?;
        let other = Volume::stage(&node, "bystander", None, &[])?;
        Ok(Self { node, volumes, other })
    }
}

/// Open files and connections of all volumes are this process's.
fn many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}

fn hosts() -> String {
    format!("127.0.0.1 localhost {NAME}\n")
}

fn name(n: usize) -> String {
    format!("file {n}")
}

fn content(n: usize) -> Vec<u8> {
    let (large, size) = LARGE;
    let size = match n < large {
        true => size,
        false => (CLOSED - large as u64 * size) / (FILES - large) as u64,
    };
    let mut bytes = vec![0; size as usize];
    SmallRng::seed_from_u64(n as u64).fill_bytes(&mut bytes);
    bytes
}

/// A program that works on the volume that has no outage; its longest wait, and for what.
fn round(at: &Path, number: usize) -> Result<(Duration, &'static str)> {
    let mut longest = (Duration::ZERO, "");
    let mut begun = Instant::now();
    let mut done = |what| {
        longest = longest.max((begun.elapsed(), what));
        begun = Instant::now();
    };
    let data = vec![number as u8; MIB as usize];
    let (one, other) = (
        at.join(format!("one {number}")),
        at.join(format!("other {number}")),
    );
    let mut file = File::create(&one)?;
    done("create");
    file.write_all(&data)?;
    file.sync_all()?;
    drop(file);
    done("write");
    std::fs::rename(&one, &other)?;
    done("rename");
    ensure!(std::fs::read(&other)? == data, "{} differs", other.display());
    done("read");
    let listed = std::fs::read_dir(at)?.count();
    done("list");
    ensure!(listed >= 1, "{listed} entries");
    std::fs::remove_file(&other)?;
    done("remove");
    Ok(longest)
}

/// The programs of a volume: each writes its files, which are open, and closes them.
fn close_all(files: Vec<(usize, File)>, closed: &AtomicUsize, errors: &Mutex<Vec<String>>) {
    for (n, mut file) in files {
        // What is written while nobody answers is in memory. The end of a program closes its files and asks
        // for no answer.
        if let Err(error) = file.write_all(&content(n)) {
            errors.lock().unwrap().push(format!("{}: {error}", name(n)));
        }
        drop(file);
        closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// All kinds of outages at once, each of one volume of a process, which last at least so long, while files
/// are closed; then the service is back, and everything is stored within `back`. The volume that has no
/// outage waits [`BYSTANDER`] at most, or so many times what it waited before.
fn outages(lasts: Duration, back: Duration) -> Result<()> {
    let world = World::start()?;
    let World { node, volumes, other } = &world;
    // A name is asked for while the service is there.
    let mut files = Vec::new();
    for volume in volumes {
        let open = |n| File::create(volume.at.join(name(n))).map(|file| (n, file));
        let mut open = (0..FILES).map(open).collect::<std::io::Result<Vec<_>>>()?;
        let share = FILES.div_ceil(WRITERS);
        while !open.is_empty() {
            files.push(open.split_off(open.len().saturating_sub(share)));
        }
    }
    let mut before = (Duration::ZERO, "");
    for number in 0..ROUNDS {
        before = before.max(round(&other.at, number)?);
    }
    let begun = Instant::now();
    volumes.iter().try_for_each(|volume| volume.begin(node))?;
    let (closed, rounds, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let errors = Mutex::new(Vec::new());
    let returned = std::thread::scope(|scope| {
        for files in files {
            scope.spawn(|| close_all(files, &closed, &errors));
        }
        let works = scope.spawn(|| -> Result<(Duration, &str)> {
            let mut longest = (Duration::ZERO, "");
            while !over.load(Ordering::SeqCst) {
                longest = longest.max(round(&other.at, rounds.load(Ordering::SeqCst))?);
                rounds.fetch_add(1, Ordering::SeqCst);
            }
            Ok(longest)
        });
        let ended = (|| {
            wait_for("all files to be closed", LIMIT, || {
                Ok((closed.load(Ordering::SeqCst) == FILES * OUTAGES.len()).then_some(()))
            })?;
            // Of one that waits for an outage this would be the first one after it.
            wait_for("the volume without an outage", LIMIT, || {
                ensure!(!works.is_finished(), "it failed");
                Ok((rounds.load(Ordering::SeqCst) >= ROUNDS).then_some(()))
            })?;
            wait_for("the outage to have lasted", lasts + LIMIT, || {
                Ok((begun.elapsed() >= lasts).then_some(()))
            })?;
            // What four of them have closed is kept; of the fifth, half of the requests come through.
            let kept = (OUTAGES.len() - 1) as f64;
            for (name, least) in [
                ("vsc_blob_unstored_files", kept * FILES as f64),
                // Divided, the sizes are a little less.
                ("vsc_blob_unstored_bytes", kept * (CLOSED - MIB) as f64),
                (
                    r#"vsc_blob_budget_bytes{kind="dirty"}"#,
                    kept * (CLOSED - MIB) as f64,
                ),
            ] {
                wait_for(name, LIMIT, || Ok((node.metric(name)? >= least).then_some(())))?;
            }
            let metrics = node.metrics()?;
            let metric = |name: &str| metrics.get(name).copied().with_context(|| name.to_owned());
            println!(
                "after {:?}: {} files and {} MiB are not stored, the oldest since {} s",
                begun.elapsed(),
                metric("vsc_blob_unstored_files")?,
                metric("vsc_blob_unstored_bytes")? / MIB as f64,
                metric("vsc_blob_unstored_oldest_seconds")?
            );
            volumes.iter().try_for_each(|volume| volume.end(node))
        })();
        // Whatever happened: nobody waits any more.
        let returned = Instant::now();
        over.store(true, Ordering::SeqCst);
        for volume in volumes {
            volume.end(node)?;
        }
        let longest = works.join().expect("the bystander panicked")?;
        println!("the volume without an outage waited {longest:?} at most, {before:?} before");
        ended?;
        ensure!(
            longest.0 <= BYSTANDER.max(before.0 * FACTOR),
            "the volume without an outage waited {longest:?}, {before:?} before"
        );
        anyhow::Ok(returned)
    })?;
    let errors = errors.into_inner().unwrap();
    ensure!(errors.is_empty(), "writes that fit failed: {errors:?}");
    wait_for("everything to be stored", back, || {
        Ok((node.metric("vsc_blob_unstored_files")? == 0.0).then_some(()))
    })?;
    println!("stored {:?} after the return", returned.elapsed());
    for name in [
        "vsc_blob_unstored_bytes",
        "vsc_blob_unstored_oldest_seconds",
        r#"vsc_blob_budget_bytes{kind="dirty"}"#,
        r#"vsc_blob_account_requests{state="waiting"}"#,
    ] {
        wait_for(name, LIMIT, || Ok((node.metric(name)? == 0.0).then_some(())))?;
    }
    for volume in volumes {
        let missing = volume.missing()?;
        ensure!(
            missing.is_empty(),
            "{:?}: {} files are missing: {missing:?}",
            volume.outage,
            missing.len()
        );
    }
    for outage in OUTAGES {
        node.unstage(&format!("{outage:?}"))?;
    }
    node.unstage("bystander")
}

#[test]
fn closed_files_are_stored_when_the_service_is_back() -> Result<()> {
    let minute = Duration::from_secs(60);
    outages(minute, minute)
}

#[test]
#[ignore = "ten minutes"]
fn ten_minutes_of_outages() -> Result<()> {
    let minute = Duration::from_secs(60);
    outages(10 * minute, minute)
}
