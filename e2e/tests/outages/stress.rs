//! Many threads do what they like on one mount with little memory, while requests fail at random. Errors are
//! allowed, those that say so. At the end what was acknowledged is there, nothing is held, and the process
//! never had more memory than it may.
//!
//! What waits longest: an unlink or a rename of a file whose creation got no answer, until that cannot be
//! executed any more (`client/late.rs`; half a minute, or `timeout`), and whoever works in its directory, as
//! the kernel has one change of a directory at a time (seen in /proc/PID/task/TID/stack: the one in
//! `request_wait_answer`, the others at the directory's lock). No lock is unfair.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::fuse;
use e2e::harness::backend::{Backend, Kind};
use e2e::harness::node::{Node, NodeOptions};
use e2e::harness::process::Running;
use e2e::harness::wait_for;
use e2e::store::{BlobStore, Fault, FaultRule, Operation};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{FLAGS, LIMIT, MIB, many_files};

const BUDGET: u64 = 64 * MIB;
/// What the program may need beside its budget.
const ALLOWANCE: u64 = 64 * MIB;
const THREADS: u64 = 12;
/// Directories, and names in each: few, so that threads meet.
const DIRECTORIES: u64 = 3;
const NAMES: u64 = 12;
/// Largest file, in words.
const WORDS: u64 = 3 * MIB / 8;
/// What every word of a file has in its upper bits, unless it is a hole.
const MARK: u64 = 0x57a1 << 48;
/// Requests from one fault to the next: more of them would be an outage.
const APART: std::ops::Range<u64> = 8..30;
/// The run of each day.
const SHORT: Duration = Duration::from_secs(120);
/// The longest that one operation may take. Many times what [`FLAGS`] make of one wait, as several may follow
/// each other in a directory.
const LONGEST: Duration = Duration::from_secs(30);

/// Maps files of its own and changes them through the mapping, until it is told to end. A page that cannot be
/// read ends a program, as everywhere.
const MAPS: &str = "\
import mmap, os, random, sys
folder, end = sys.argv[1], sys.argv[2]
while os.path.isdir(folder) and not os.path.exists(end):
    path = os.path.join(folder, 'mapped %d' % random.randrange(3))
    try:
        with open(path, 'a+b') as f:
            f.truncate(1 << 18)
            with mmap.mmap(f.fileno(), 1 << 18) as m:
                for _ in range(8):
                    at = random.randrange((1 << 18) // 8) * 8
                    m[at:at + 8] = (0x57a1 << 48 | at).to_bytes(8, 'little')
                    assert m[at:at + 8] == (0x57a1 << 48 | at).to_bytes(8, 'little')
                m.flush()
    except OSError:
        pass
";

/// What a thread brings back.
#[derive(Debug, Default)]
struct Report {
    /// How often each operation succeeded and failed.
    done: BTreeMap<&'static str, (u64, u64)>,
    longest: (Duration, &'static str),
    /// Words that an fsync has acknowledged, in order.
    acknowledged: Vec<u64>,
}

/// One thread: its own file, which nobody else touches, and everybody's.
struct Worker {
    number: u64,
    at: PathBuf,
    random: SmallRng,
    words: u64,
    report: Report,
}

impl Worker {
    fn path(&mut self) -> PathBuf {
        let (directory, name) = (
            self.random.random_range(0..DIRECTORIES),
            self.random.random_range(0..NAMES),
        );
        self.at.join(format!("d{directory}/f{name}"))
    }

    /// A word that nobody else writes.
    fn word(&mut self) -> u64 {
        self.words += 1;
        MARK | self.number << 32 | self.words
    }

    /// Some words, a few or many.
    fn data(&mut self) -> Vec<u8> {
        let most = if self.random.random_ratio(1, 8) {
            WORDS
        } else {
            2048
        };
        let count = self.random.random_range(1..most) as usize;
        self.word().to_le_bytes().repeat(count)
    }

    fn own(&self) -> PathBuf {
        self.at.join(own(self.number))
    }

    fn step(&mut self) -> Result<()> {
        type Step = fn(&mut Worker) -> io::Result<()>;
        const STEPS: [(&str, Step); 12] = [
            ("create", Worker::create),
            ("append", Worker::append),
            ("write", Worker::write),
            ("read", Worker::read),
            ("rename", Worker::rename),
            ("rename directory", Worker::rename_directory),
            ("unlink", Worker::unlink),
            ("unlink open", Worker::unlink_open),
            ("truncate", Worker::truncate),
            ("list", Worker::list),
            ("chmod", Worker::chmod),
            ("fsync", Worker::acknowledge),
        ];
        let (mut what, mut step) = STEPS[self.random.random_range(0..STEPS.len())];
        // Nobody else gets at its files meanwhile.
        if what == "rename directory" && !self.random.random_ratio(1, 10) {
            (what, step) = ("read", Worker::read);
        }
        let begun = Instant::now();
        let outcome = step(self);
        let took = begun.elapsed();
        self.report.longest = self.report.longest.max((took, what));
        let (well, badly) = self.report.done.entry(what).or_default();
        match outcome {
            Ok(()) => *well += 1,
            Err(error) if is_allowed(&error) => *badly += 1,
            Err(error) => bail!("{what}: {error}"),
        }
        Ok(())
    }

    fn create(&mut self) -> io::Result<()> {
        let (path, data) = (self.path(), self.data());
        let mut file = File::create(path)?;
        file.write_all(&data)?;
        if self.random.random() {
            file.sync_all()
        } else {
            Ok(())
        }
    }

    fn append(&mut self) -> io::Result<()> {
        let (path, data) = (self.path(), self.data());
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?
            .write_all(&data)
    }

    fn write(&mut self) -> io::Result<()> {
        let (path, data) = (self.path(), self.data());
        let at = self.random.random_range(0..WORDS) * 8;
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&data, at)?;
        file.sync_data()
    }

    fn read(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        File::open(self.path())?.read_to_end(&mut bytes)?;
        check(&bytes)
    }

    fn rename(&mut self) -> io::Result<()> {
        let (from, to) = (self.path(), self.path());
        fs::rename(from, to)
    }

    fn rename_directory(&mut self) -> io::Result<()> {
        let directory = self
            .at
            .join(format!("d{}", self.random.random_range(0..DIRECTORIES)));
        let away = self.at.join(format!("away {}", self.number));
        fs::rename(&directory, &away)?;
        // Others have none meanwhile; if this fails there is a new one.
        fs::rename(&away, &directory).inspect_err(|_| drop(fs::create_dir(&directory)))
    }

    fn unlink(&mut self) -> io::Result<()> {
        fs::remove_file(self.path())
    }

    /// What was written to it is read through its handle.
    fn unlink_open(&mut self) -> io::Result<()> {
        let path = self.at.join(format!("gone {}", self.number));
        let data = self.data();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        file.write_all(&data)?;
        fs::remove_file(&path)?;
        let more = self.word().to_le_bytes();
        file.write_all(&more)?;
        let mut read = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut read)?;
        if read.len() != data.len() + 8 || !read.starts_with(&data) || !read.ends_with(&more) {
            return Err(io::Error::other(format!(
                "{} bytes of a file without a name",
                read.len()
            )));
        }
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let size = self.random.random_range(0..WORDS) * 8;
        OpenOptions::new().write(true).open(self.path())?.set_len(size)
    }

    fn list(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(self.path().parent().unwrap_or(&self.at))? {
            match entry?.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn chmod(&mut self) -> io::Result<()> {
        let mode = if self.random.random() { 0o600 } else { 0o640 };
        fs::set_permissions(self.path(), fs::Permissions::from_mode(mode))
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        let word = self.word();
        let mut file = OpenOptions::new().append(true).create(true).open(self.own())?;
        file.write_all(&word.to_le_bytes())?;
        file.sync_all()?;
        self.report.acknowledged.push(word);
        Ok(())
    }
}

fn own(number: u64) -> String {
    format!("own {number}")
}

/// Nobody has written anything else.
fn check(bytes: &[u8]) -> io::Result<()> {
    for word in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        if word != 0 && word & 0xffff << 48 != MARK {
            return Err(io::Error::other(format!("a word that nobody wrote: {word:x}")));
        }
    }
    Ok(())
}

/// What a program may be told while others take names away and requests are lost.
fn is_allowed(error: &io::Error) -> bool {
    use nix::libc::{EBUSY, EEXIST, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, ESTALE};
    let allowed = [EBUSY, EEXIST, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, ESTALE];
    error.raw_os_error().is_some_and(|errno| allowed.contains(&errno))
}

/// Lets requests fail at random until it is told to end.
fn faults(store: &BlobStore, random: &mut SmallRng, over: &AtomicBool) {
    let code = |status, code: &str| Fault::Answer {
        status,
        code: code.to_owned(),
        retry_after: None,
    };
    let mut next = 0;
    while !over.load(Ordering::SeqCst) {
        let requests = store.totals().requests;
        if requests < next {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        next = requests + random.random_range(APART);
        let (operation, fault) = match random.random_range(0..64) {
            0..10 => (None, code(503, "ServerBusy")),
            10..20 => (None, code(500, "InternalError")),
            20..30 => (None, Fault::Disconnect),
            30..36 => (None, Fault::LoseAnswer),
            36..40 => (
                None,
                Fault::AnswerAfter {
                    status: 500,
                    code: "InternalError".into(),
                },
            ),
            40..44 => (
                None,
                Fault::EarlyAnswer {
                    status: 503,
                    code: "ServerBusy".into(),
                },
            ),
            44..50 => (
                None,
                Fault::CutBody {
                    after: random.random_range(0..100_000),
                },
            ),
            50..54 => (
                Some(Operation::ListBlobs),
                Fault::ShortPage {
                    entries: random.random_range(0..3),
                },
            ),
            54..56 => (None, Fault::Hang),
            _ => (
                None,
                Fault::Delay(Duration::from_millis(random.random_range(1..300))),
            ),
        };
        store.inject(FaultRule {
            operation,
            blob_contains: None,
            skip: 0,
            times: 1,
            fault,
        });
    }
}

/// Everything that is not at rest, by its metric.
fn held(node: &Node) -> Result<BTreeMap<&'static str, f64>> {
    // The floor of each: inodes, of the root.
    let floors = [
        ("vsc_blob_unstored_files", 0.0),
        ("vsc_blob_unstored_bytes", 0.0),
        (r#"vsc_blob_budget_bytes{kind="dirty"}"#, 0.0),
        (r#"vsc_blob_budget_bytes{kind="waiting"}"#, 0.0),
        ("vsc_blob_spooled_writes", 0.0),
        ("vsc_blob_open_handles", 0.0),
        ("vsc_blob_leases", 0.0),
        ("vsc_blob_inodes", 1.0),
        (r#"vsc_blob_account_requests{state="out"}"#, 0.0),
        (r#"vsc_blob_account_requests{state="waiting"}"#, 0.0),
    ];
    let metrics = node.metrics()?;
    let mut held = BTreeMap::new();
    for (name, floor) in floors {
        let value = *metrics.get(name).with_context(|| format!("no {name}"))?;
        if value > floor {
            held.insert(name, value);
        }
    }
    Ok(held)
}

fn seed() -> u64 {
    let given = std::env::var("VSC_BLOB_STRESS_SEED").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Keeps a program that maps files at work.
fn maps(folder: &Path, end: &Path) -> Result<()> {
    while folder.is_dir() && !end.exists() {
        let mut command = Command::new("python3");
        command.args(["-c", MAPS]).arg(folder).arg(end);
        let mut program = Running::start("maps", &mut command)?;
        let status = wait_for("the program that maps", Duration::MAX, || program.try_wait())?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        ensure!(
            status.success() || signal == Some(nix::libc::SIGBUS),
            "mapping: {status}\n{}",
            program.output()
        );
    }
    Ok(())
}

fn stress(lasts: Duration) -> Result<()> {
    many_files()?;
    let backend = Backend::start(Kind::Embedded)?;
    let store = Arc::clone(backend.store().context("an embedded store")?);
    let container = backend.create_container("stress")?;
    let node = Node::start(&NodeOptions {
        budget: BUDGET,
        ..NodeOptions::default()
    })?;
    let at = node.stage("stress", backend.endpoint(), "stress", FLAGS)?;
    for directory in 0..DIRECTORIES {
        fs::create_dir(at.join(format!("d{directory}")))?;
    }
    let (over, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let end = node.folder().join("end");
    // None of them holds the node: whatever hangs is freed when this fails.
    let mut workers = Vec::new();
    for number in 0..THREADS {
        let mut worker = Worker {
            number,
            at: at.clone(),
            random: SmallRng::seed_from_u64(seed() * 1000 + number),
            words: 0,
            report: Report::default(),
        };
        let (over, steps) = (Arc::clone(&over), Arc::clone(&steps));
        workers.push(std::thread::spawn(move || -> Result<Report> {
            while !over.load(Ordering::SeqCst) {
                worker.step()?;
                steps.fetch_add(1, Ordering::SeqCst);
            }
            Ok(worker.report)
        }));
    }
    let (folder, until) = (at.clone(), end.clone());
    let mapping = std::thread::spawn(move || maps(&folder, &until));
    let (failing, faulty) = (Arc::clone(&over), Arc::clone(&store));
    let faults = std::thread::spawn(move || {
        faults(&faulty, &mut SmallRng::seed_from_u64(seed()), &failing);
    });
    let begun = Instant::now();
    let outcome = wait_for("the time to be over", lasts + LIMIT, || {
        ensure!(
            !workers.iter().any(|worker| worker.is_finished()),
            "a thread failed"
        );
        ensure!(!mapping.is_finished(), "the program that maps failed");
        Ok((begun.elapsed() >= lasts).then_some(()))
    });
    over.store(true, Ordering::SeqCst);
    faults.join().expect("the faults panicked");
    store.clear_faults();
    File::create(&end)?;
    wait_for("all threads to end", LIMIT, || {
        let busy = workers.iter().any(|worker| !worker.is_finished()) || !mapping.is_finished();
        Ok((!busy).then_some(()))
    })?;
    let mut reports = Vec::new();
    for worker in workers {
        reports.push(worker.join().expect("a worker panicked")?);
    }
    mapping.join().expect("the mapping panicked")?;
    outcome?;
    tell(&reports);

    wait_for("everything to be stored", LIMIT, || {
        Ok((node.metric("vsc_blob_unstored_files")? == 0.0).then_some(()))
    })?;
    for (number, report) in reports.iter().enumerate() {
        if report.acknowledged.is_empty() {
            continue;
        }
        let stored = container.read(&own(number as u64))?;
        check(&stored)?;
        let mut words = stored
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let lost = report
            .acknowledged
            .iter()
            .find(|&&word| !words.any(|stored| stored == word));
        ensure!(
            lost.is_none(),
            "an acknowledged word of thread {number} is not there: {lost:x?}"
        );
    }

    // A deletion behind a request that was lost, and may be executed yet, is EIO after a while.
    wait_for("everything to be removed", LIMIT, || match remove_all(&at) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    let connection = fuse::connection_at(&at)?.context("the connection")?;
    let mut last = BTreeMap::new();
    let rest = wait_for("nothing to be held", LIMIT, || {
        last = held(&node)?;
        let waiting = fuse::waiting(connection)?;
        Ok((last.is_empty() && waiting == 0).then_some(()))
    });
    rest.with_context(|| format!("held: {last:?}"))?;
    let left = container.blobs()?;
    ensure!(left.is_empty(), "left in the container: {:?}", left.keys());
    node.unstage("stress")?;
    for name in [
        "vsc_blob_mounts",
        "vsc_blob_inodes",
        r#"vsc_blob_budget_bytes{kind="cached"}"#,
        r#"vsc_blob_budget_bytes{kind="metadata"}"#,
    ] {
        wait_for(name, LIMIT, || Ok((node.metric(name)? == 0.0).then_some(())))?;
    }
    let peak = node.process().peak_rss()?;
    let worst = reports
        .iter()
        .map(|report| report.longest)
        .max()
        .unwrap_or_default();
    println!(
        "{} operations, the longest took {worst:?}; peak RSS {} MiB, budget {} MiB",
        steps.load(Ordering::SeqCst),
        peak / MIB,
        BUDGET / MIB
    );
    ensure!(peak <= BUDGET + ALLOWANCE, "peak RSS of {} MiB", peak / MIB);
    ensure!(worst.0 < LONGEST, "{} took {:?}", worst.1, worst.0);
    Ok(())
}

/// Removes what is below a directory.
fn remove_all(at: &Path) -> io::Result<()> {
    for entry in fs::read_dir(at)? {
        let path = entry?.path();
        match path.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// How often what succeeded: a run in which nothing does is none.
fn tell(reports: &[Report]) {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (what, (well, badly)) in reports.iter().flat_map(|report| &report.done) {
        let sum = sums.entry(what).or_default();
        (sum.0, sum.1) = (sum.0 + well, sum.1 + badly);
    }
    println!("succeeded and failed: {sums:?}");
    let well: u64 = sums.values().map(|(well, _)| well).sum();
    assert!(well > THREADS, "next to nothing succeeded");
}

#[test]
fn nothing_is_held_after_many_threads_and_faults() -> Result<()> {
    stress(SHORT)
}

#[test]
#[ignore = "a quarter of an hour"]
fn nothing_is_held_after_a_quarter_of_an_hour() -> Result<()> {
    stress(Duration::from_secs(15 * 60))
}
