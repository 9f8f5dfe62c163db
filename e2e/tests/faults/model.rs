//! The model: steps that programs take, each on files of its own; what each may answer, and what may be in
//! the service after it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};

use crate::kinds::{Failed, Operation, Outcome};
use crate::mapping::Mapping;

/// Sizes of files: one byte, around a page, several, more than the kernel writes at once.
const SIZES: [usize; 4] = [1, 4097, 20_000, 150_000];
/// Files in a folder that is renamed.
const FILES_BELOW: u64 = 3;
/// A folder that no step changes, and what is in it.
pub(crate) const STILL: &str = "still";
const STILL_FILES: usize = 5;
const MODE: u32 = 0o640;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A new file, written and closed.
    New,
    /// The same with an fsync before the close.
    NewSynced,
    /// The same, and read.
    NewRead,
    /// A file that was opened when all was well: its first half is written anew, and it is closed.
    Opened,
    /// The same with an fsync before the close.
    OpenedSynced,
    /// A file that was mapped when all was well: its first half is written anew through the mapping, which is
    /// synced.
    Mapped,
    /// A file that was made when all was well, and not sent: written and closed.
    Unsent,
    /// A file of the service: some bytes are changed.
    Overwrite,
    Append,
    Truncate,
    Read,
    List,
    Rename,
    /// A rename onto another file.
    Replace,
    /// A rename of a folder with files in it.
    RenameFolder,
    Unlink,
    Mkdir,
    Rmdir,
    Chmod,
}

const ALL: [What; 19] = [
    What::New,
    What::NewSynced,
    What::NewRead,
    What::Opened,
    What::OpenedSynced,
    What::Mapped,
    What::Unsent,
    What::Overwrite,
    What::Append,
    What::Truncate,
    What::Read,
    What::List,
    What::Rename,
    What::Replace,
    What::RenameFolder,
    What::Unlink,
    What::Mkdir,
    What::Rmdir,
    What::Chmod,
];

/// One step; the number makes its files its own.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    what: What,
    number: usize,
    seed: u64,
}

/// What a step opened while all was well.
#[derive(Debug)]
pub(crate) struct Opened {
    file: File,
    mapping: Option<Mapping>,
}

/// How long an operation of a step took.
#[derive(Debug, Clone)]
pub(crate) struct Waited {
    pub(crate) step: String,
    pub(crate) operation: Operation,
    pub(crate) took: Duration,
}

/// Of one step.
struct Clock<'a> {
    step: &'a str,
    waited: RefCell<Vec<Waited>>,
}

impl Clock<'_> {
    /// Runs what is one operation for the kernel.
    fn of<T>(&self, operation: Operation, run: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = run();
        self.waited.borrow_mut().push(Waited {
            step: self.step.to_owned(),
            operation,
            took: began.elapsed(),
        });
        done
    }
}

/// What the service has at some names; `None`: nothing.
pub(crate) type Way = Vec<(String, Option<Vec<u8>>)>;

/// What may be there after a step.
#[derive(Debug)]
pub(crate) struct Left {
    /// Any of these.
    pub(crate) ways: Vec<Way>,
    /// Permissions that a file has.
    pub(crate) mode: Option<(String, u32)>,
    /// Markers of folders, which may be there or not.
    pub(crate) markers: Vec<String>,
}

impl Left {
    fn ways(ways: Vec<Way>) -> Self {
        Self {
            ways,
            mode: None,
            markers: vec![],
        }
    }

    fn is(name: &str, content: Option<Vec<u8>>) -> Self {
        Self::ways(vec![vec![(name.to_owned(), content)]])
    }

    /// After an operation that failed. The first way is what was there before.
    fn failed(outcome: &Outcome, mut ways: Vec<Way>) -> Self {
        if outcome.failed == Failed::Nothing {
            ways.truncate(1);
        }
        Self::ways(ways)
    }

    fn as_before_or(outcome: &Outcome, name: &str, before: Option<Vec<u8>>, after: Option<Vec<u8>>) -> Self {
        let way = |content| vec![(name.to_owned(), content)];
        Self::failed(outcome, vec![way(before), way(after)])
    }

    /// There is no doubt: it is in the service, or will be.
    pub(crate) fn certain(&self) -> Option<&Way> {
        match &self.ways[..] {
            [way] => Some(way),
            _ => None,
        }
    }
}

/// Each step so many times, in an order that follows from the seed, dealt to so many programs.
pub(crate) fn deal(seed: u64, rounds: usize, programs: usize) -> Vec<Vec<Step>> {
    let mut steps: Vec<Step> = (0..rounds)
        .flat_map(|round| ALL.iter().map(move |what| (round, *what)))
        .enumerate()
        .map(|(number, (_, what))| Step { what, number, seed })
        .collect();
    steps.shuffle(&mut SmallRng::seed_from_u64(seed));
    let mut dealt = vec![Vec::new(); programs];
    for (number, step) in steps.into_iter().enumerate() {
        dealt[number % programs].push(step);
    }
    dealt
}

/// Blobs that are there before any step, beside those of the steps.
pub(crate) fn furniture() -> Vec<(String, Vec<u8>)> {
    let still = (0..STILL_FILES).map(|n| (format!("{STILL}/{n}"), vec![b's'; n]));
    // So that the steps' folders are there whatever becomes of the steps' files.
    let keep = (0..2).map(|n| (format!("d{n}/keep"), b"k".to_vec()));
    still.chain(keep).collect()
}

impl Step {
    fn name(&self) -> String {
        let what = format!("{:?}", self.what).to_lowercase();
        format!("d{}/{what}-{}", self.number % 2, self.number)
    }

    fn other_name(&self) -> String {
        format!("{}-other", self.name())
    }

    /// What it has in its folder.
    fn below(&self) -> Vec<(String, Vec<u8>)> {
        (0..FILES_BELOW)
            .map(|n| (format!("f{n}"), self.bytes(10 + n)))
            .collect()
    }

    /// Bytes that are this step's own.
    fn bytes(&self, which: u64) -> Vec<u8> {
        let mut random = SmallRng::seed_from_u64(self.seed ^ ((self.number as u64) << 8) ^ which);
        let most = SIZES[self.number % SIZES.len()];
        let mut bytes = vec![0; random.random_range(most.div_ceil(2)..=most)];
        random.fill_bytes(&mut bytes);
        bytes
    }

    /// What was there before.
    fn old(&self) -> Vec<u8> {
        self.bytes(1)
    }

    /// What it writes.
    fn new_bytes(&self) -> Vec<u8> {
        self.bytes(2)
    }

    /// Blobs that it needs, before the volume is mounted; a folder is a marker.
    pub(crate) fn blobs(&self) -> Vec<(String, Vec<u8>)> {
        match self.what {
            What::New | What::NewSynced | What::NewRead | What::Unsent | What::List | What::Mkdir => vec![],
            What::Rmdir => vec![(self.name(), vec![])],
            What::Replace => vec![(self.name(), self.old()), (self.other_name(), self.bytes(3))],
            What::RenameFolder => {
                let below = self.below().into_iter();
                below
                    .map(|(file, bytes)| (format!("{}/{file}", self.name()), bytes))
                    .chain([(self.name(), vec![])])
                    .collect()
            }
            _ => vec![(self.name(), self.old())],
        }
    }

    /// A blob of its name is the marker of a folder.
    pub(crate) fn is_folder(&self, blob: &str) -> bool {
        matches!(self.what, What::Rmdir | What::RenameFolder) && blob == self.name()
    }

    /// What it opens while all is well.
    pub(crate) fn open(&self, root: &Path) -> Result<Option<Opened>> {
        let path = root.join(self.name());
        let file = match self.what {
            What::Opened | What::OpenedSynced | What::Mapped => {
                File::options().read(true).write(true).open(&path)
            }
            What::Unsent => File::create(&path),
            _ => return Ok(None),
        };
        let opened = file.and_then(|file| {
            let mapped = self.what == What::Mapped;
            let mapping = mapped.then(|| Mapping::of(&file)).transpose()?;
            Ok(Opened { file, mapping })
        });
        opened
            .map(Some)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// Takes the step; an error says what must not be.
    pub(crate) fn take(
        &self,
        root: &Path,
        opened: Option<Opened>,
        outcome: &Outcome,
    ) -> Result<(Left, Vec<Waited>)> {
        let step = format!("{:?} of {}", self.what, self.name());
        let clock = Clock {
            step: &step,
            waited: RefCell::default(),
        };
        let left = self.go(root, opened, outcome, &clock)?;
        Ok((left, clock.waited.into_inner()))
    }

    fn go(&self, root: &Path, opened: Option<Opened>, outcome: &Outcome, clock: &Clock<'_>) -> Result<Left> {
        let (name, other) = (self.name(), self.other_name());
        let (path, other_path) = (root.join(&name), root.join(&other));
        let (old, new) = (self.old(), self.new_bytes());
        let may = |operation: Operation, result: io::Result<()>| -> Result<bool> {
            let Err(error) = result else { return Ok(true) };
            let errno = error.raw_os_error().map(Errno::from_raw);
            match errno.filter(|errno| outcome.of(operation).contains(errno)) {
                Some(_) => Ok(false),
                None => bail!("{:?} of {name}: {operation:?}: {error}", self.what),
            }
        };
        let change =
            |run: &dyn Fn() -> io::Result<()>| may(Operation::Change, clock.of(Operation::Change, run));
        // What was written is there in the end, whatever is said here.
        let store = |file: File, sync: bool| -> Result<()> {
            if sync {
                may(Operation::Store, clock.of(Operation::Store, || file.sync_all()))?;
            }
            let closed = clock.of(Operation::Store, || nix::unistd::close(file));
            may(Operation::Store, closed.map_err(io::Error::from))?;
            Ok(())
        };
        Ok(match self.what {
            What::New | What::NewSynced | What::NewRead => {
                let mut file = match clock.of(Operation::Look, || File::create(&path)) {
                    Ok(file) => file,
                    Err(error) => {
                        may(Operation::Look, Err(error))?;
                        return Ok(Left::is(&name, None));
                    }
                };
                let written = clock.of(Operation::Write, || file.write_all(&new));
                may(Operation::Write, written)?;
                store(file, self.what == What::NewSynced)?;
                if self.what == What::NewRead {
                    match read(&path, clock) {
                        Ok(read) => ensure!(read == new, "{name}: not what was written just now"),
                        Err(error) => drop(may(Operation::Read, Err(error))?),
                    }
                }
                Left::is(&name, Some(new))
            }
            What::Opened | What::OpenedSynced => {
                let file = opened.context("opened before")?.file;
                let half = &new[..new.len().min(old.len()).div_ceil(2)];
                let written = clock.of(Operation::Write, || file.write_all_at(half, 0));
                may(Operation::Write, written)?;
                store(file, self.what == What::OpenedSynced)?;
                Left::is(&name, Some([half, &old[half.len()..]].concat()))
            }
            What::Mapped => {
                let Opened { file, mapping } = opened.context("opened before")?;
                let mut mapping = mapping.context("mapped before")?;
                let half = &new[..new.len().min(old.len()).div_ceil(2)];
                mapping.write(half);
                may(Operation::Store, clock.of(Operation::Store, || mapping.sync()))?;
                drop(mapping);
                store(file, false)?;
                Left::is(&name, Some([half, &old[half.len()..]].concat()))
            }
            What::Unsent => {
                let mut file = opened.context("made before")?.file;
                let written = clock.of(Operation::Write, || file.write_all(&new));
                may(Operation::Write, written)?;
                store(file, false)?;
                Left::is(&name, Some(new))
            }
            What::Overwrite | What::Append => {
                let append = self.what == What::Append;
                let open = || File::options().write(true).append(append).open(&path);
                let file = match clock.of(Operation::Look, open) {
                    Ok(file) => file,
                    Err(error) => {
                        may(Operation::Look, Err(error))?;
                        return Ok(Left::is(&name, Some(old)));
                    }
                };
                let mut content = old.clone();
                if append {
                    let written = clock.of(Operation::Write, || (&file).write_all(&new));
                    may(Operation::Write, written)?;
                    content.extend_from_slice(&new);
                } else {
                    let at = old.len() / 3;
                    let piece = &new[..new.len().min(old.len() - at)];
                    let written = clock.of(Operation::Write, || file.write_all_at(piece, at as u64));
                    may(Operation::Write, written)?;
                    content[at..at + piece.len()].copy_from_slice(piece);
                }
                store(file, append)?;
                Left::is(&name, Some(content))
            }
            What::Truncate => {
                let shorter = old[..old.len() / 2].to_vec();
                let cut = || nix::unistd::truncate(&path, shorter.len() as i64);
                let done = clock.of(Operation::Change, cut);
                match may(Operation::Change, done.map_err(io::Error::from))? {
                    true => Left::is(&name, Some(shorter)),
                    false => Left::as_before_or(outcome, &name, Some(old), Some(shorter)),
                }
            }
            What::Read => {
                match read(&path, clock) {
                    Ok(read) => ensure!(read == old, "{name}: not what is in the service"),
                    Err(error) => drop(may(Operation::Read, Err(error))?),
                }
                Left::is(&name, Some(old))
            }
            What::List => {
                match list(&root.join(STILL), clock) {
                    Ok(names) => {
                        let wanted: Vec<String> = (0..STILL_FILES).map(|n| n.to_string()).collect();
                        ensure!(names == wanted, "{STILL} is listed as {names:?}");
                    }
                    Err(error) => drop(may(Operation::Look, Err(error))?),
                }
                Left::ways(vec![vec![]])
            }
            What::Rename => {
                let at_its_old = vec![(name.clone(), Some(old.clone())), (other.clone(), None)];
                let at_both = vec![
                    (name.clone(), Some(old.clone())),
                    (other.clone(), Some(old.clone())),
                ];
                let at_its_new = vec![(name.clone(), None), (other.clone(), Some(old))];
                match change(&|| fs::rename(&path, &other_path))? {
                    true => Left::ways(vec![at_its_new]),
                    false => Left::failed(outcome, vec![at_its_old, at_both, at_its_new]),
                }
            }
            What::Replace => {
                let replaced = self.bytes(3);
                let nothing = vec![(name.clone(), Some(old.clone())), (other.clone(), Some(replaced))];
                let at_both = vec![
                    (name.clone(), Some(old.clone())),
                    (other.clone(), Some(old.clone())),
                ];
                let done = vec![(name.clone(), None), (other.clone(), Some(old))];
                match change(&|| fs::rename(&path, &other_path))? {
                    true => Left::ways(vec![done]),
                    false => Left::failed(outcome, vec![nothing, at_both, done]),
                }
            }
            What::RenameFolder => {
                let done = change(&|| fs::rename(&path, &other_path))?;
                let mut moved = vec![(name.clone(), None), (other.clone(), Some(vec![]))];
                let mut ways: Vec<Way> = vec![vec![]];
                for (file, bytes) in self.below() {
                    let (at, to) = (format!("{name}/{file}"), format!("{other}/{file}"));
                    let [gone, there] = [None, Some(bytes)];
                    moved.extend([(at.clone(), gone.clone()), (to.clone(), there.clone())]);
                    // One that failed can have come half-way; each file has one of its names, or both.
                    let names = [
                        [(&at, &there), (&to, &gone)],
                        [(&at, &there), (&to, &there)],
                        [(&at, &gone), (&to, &there)],
                    ];
                    let each = |way: &Way| {
                        let way = way.clone();
                        names.map(|names| {
                            let names = names.map(|(name, content)| (name.clone(), content.clone()));
                            [way.clone(), names.to_vec()].concat()
                        })
                    };
                    ways = ways.iter().flat_map(each).collect();
                }
                match done {
                    true => Left::ways(vec![moved]),
                    false => Left {
                        markers: vec![name, other],
                        ..Left::failed(outcome, ways)
                    },
                }
            }
            What::Unlink => match change(&|| fs::remove_file(&path))? {
                true => Left::is(&name, None),
                false => Left::as_before_or(outcome, &name, Some(old), None),
            },
            What::Mkdir => match change(&|| fs::create_dir(&path))? {
                true => Left::is(&name, Some(vec![])),
                false => Left::as_before_or(outcome, &name, None, Some(vec![])),
            },
            What::Rmdir => match change(&|| fs::remove_dir(&path))? {
                true => Left::is(&name, None),
                false => Left::as_before_or(outcome, &name, Some(vec![]), None),
            },
            What::Chmod => {
                let changed = change(&|| fs::set_permissions(&path, fs::Permissions::from_mode(MODE)))?;
                Left {
                    mode: changed.then(|| (name.clone(), MODE)),
                    ..Left::is(&name, Some(old))
                }
            }
        })
    }
}

/// A whole file.
fn read(path: &Path, clock: &Clock<'_>) -> io::Result<Vec<u8>> {
    let mut file = clock.of(Operation::Look, || File::open(path))?;
    let mut bytes = Vec::new();
    clock.of(Operation::Read, || file.read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Names in a folder, in order.
fn list(folder: &Path, clock: &Clock<'_>) -> io::Result<Vec<String>> {
    let entries = clock.of(Operation::Look, || fs::read_dir(folder))?;
    let all = || {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
    };
    let mut names = clock.of(Operation::Look, all)?;
    names.sort();
    Ok(names)
}
