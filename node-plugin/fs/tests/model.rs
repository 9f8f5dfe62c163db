//! Model test: random operation sequences on a mount and on a plain directory give the same results, tree,
//! contents and errno.
//!
//! After every sequence the tree is also read through a second mount of the same container that caches
//! nothing: what was closed is in the service.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]
#![allow(unsafe_code, reason = "system calls that std does not offer")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blob_fs::VolumeConfig;
use blob_fs::content::Tuning;
use blob_fs::store::fake::FakeStore;
use common::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A path below the case's directory: few names, so that sequences meet.
#[derive(Debug, Clone)]
struct Name(&'static str);

#[derive(Debug, Clone)]
enum Step {
    Create(Name, bool),
    WriteFile(Name, usize),
    Append(Name, usize),
    Truncate(Name, u64),
    Read(Name),
    Stat(Name),
    List(Name),
    Rename(Name, Name, u32),
    Unlink(Name),
    Mkdir(Name),
    Rmdir(Name),
    Symlink(Name, Name),
    ReadLink(Name),
    Chmod(Name, u32),
    Chown(Name, u32),
    /// Sets the modification time, in seconds.
    Touch(Name, u64),
    /// Only ever at a name that nothing else opens: whoever does waits.
    Fifo,
    UnlinkFifo,
    SetXattr(Name, usize, i32),
    GetXattr(Name, usize),
    RemoveXattr(Name, usize),
    ListXattr(Name),
    Open {
        slot: usize,
        name: Name,
        append: bool,
        create: bool,
        truncate: bool,
    },
    WriteAt {
        slot: usize,
        at: u64,
        len: usize,
    },
    ReadAt {
        slot: usize,
        at: u64,
        len: usize,
    },
    SetLen {
        slot: usize,
        len: u64,
    },
    Punch {
        slot: usize,
        at: u64,
        len: u64,
    },
    /// fallocate with a mode that keeps what is there.
    Allocate {
        slot: usize,
        at: u64,
        len: u64,
        mode: i32,
    },
    /// SEEK_DATA and SEEK_HOLE over the whole file: where the holes are is a file system's own business, what
    /// they hold is not.
    Holes(usize),
    /// Stores through a shared mapping.
    Map {
        slot: usize,
        at: u64,
    },
    Copy {
        from: usize,
        to: usize,
        at: u64,
        to_at: u64,
        len: usize,
    },
    Sync(usize),
    FStat(usize),
    Close(usize),
}

const SLOTS: usize = 3;
const FIFO: Name = Name("fifo");
const XATTRS: [&str; 2] = ["user.one", "user.Two"];

fn name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec![
        "a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/f", "g", "g/a", "g/d", "a/x", "name-x",
        "name", "name/y",
    ])
    .prop_map(Name)
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..SLOTS;
    // Around the sizes of pages and of the smallest pieces content is kept in.
    let at = prop_oneof![
        0u64..300,
        Just(4095),
        Just(4096),
        60_000u64..70_000,
        Just(1 << 20)
    ];
    let len = prop_oneof![1usize..300, Just(4096), Just(70_000)];
    let flags =
        prop_oneof![4 => Just(0), 1 => Just(libc::RENAME_NOREPLACE), 1 => Just(libc::RENAME_EXCHANGE)];
    prop_oneof![
        3 => (name(), any::<bool>()).prop_map(|(n, x)| Step::Create(n, x)),
        4 => (name(), len.clone()).prop_map(|(n, l)| Step::WriteFile(n, l)),
        2 => (name(), len.clone()).prop_map(|(n, l)| Step::Append(n, l)),
        2 => (name(), at.clone()).prop_map(|(n, s)| Step::Truncate(n, s)),
        2 => name().prop_map(Step::Read),
        2 => name().prop_map(Step::Stat),
        2 => name().prop_map(Step::List),
        6 => (name(), name(), flags).prop_map(|(a, b, f)| Step::Rename(a, b, f)),
        3 => name().prop_map(Step::Unlink),
        5 => name().prop_map(Step::Mkdir),
        2 => name().prop_map(Step::Rmdir),
        1 => (name(), name()).prop_map(|(a, b)| Step::Symlink(a, b)),
        1 => name().prop_map(Step::ReadLink),
        2 => (name(), prop::sample::select(vec![0o600, 0o644, 0o755, 0o4711]))
            .prop_map(|(n, m)| Step::Chmod(n, m)),
        1 => (name(), 0u32..3).prop_map(|(n, owner)| Step::Chown(n, owner)),
        1 => (name(), 0u64..2_000_000_000).prop_map(|(n, at)| Step::Touch(n, at)),
        1 => prop_oneof![Just(Step::Fifo), Just(Step::UnlinkFifo)],
        2 => (name(), 0..XATTRS.len(), prop::sample::select(vec![0, libc::XATTR_CREATE, libc::XATTR_REPLACE]))
            .prop_map(|(n, x, flags)| Step::SetXattr(n, x, flags)),
        1 => (name(), 0..XATTRS.len()).prop_map(|(n, x)| Step::GetXattr(n, x)),
        1 => (name(), 0..XATTRS.len()).prop_map(|(n, x)| Step::RemoveXattr(n, x)),
        1 => name().prop_map(Step::ListXattr),
        5 => (slot.clone(), name(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
            |(slot, name, append, create, truncate)| Step::Open { slot, name, append, create, truncate }),
        6 => (slot.clone(), at.clone(), len.clone())
            .prop_map(|(slot, at, len)| Step::WriteAt { slot, at, len }),
        4 => (slot.clone(), at.clone(), len.clone())
            .prop_map(|(slot, at, len)| Step::ReadAt { slot, at, len }),
        2 => (slot.clone(), at.clone()).prop_map(|(slot, len)| Step::SetLen { slot, len }),
        1 => (slot.clone(), at.clone(), at.clone())
            .prop_map(|(slot, at, len)| Step::Punch { slot, at, len: len + 1 }),
        1 => (slot.clone(), at.clone(), at.clone(), prop::sample::select(vec![0, libc::FALLOC_FL_KEEP_SIZE]))
            .prop_map(|(slot, at, len, mode)| Step::Allocate { slot, at, len: len + 1, mode }),
        1 => slot.clone().prop_map(Step::Holes),
        1 => (slot.clone(), at.clone()).prop_map(|(slot, at)| Step::Map { slot, at }),
        1 => (slot.clone(), slot.clone(), at.clone(), at, len).prop_map(
            |(from, to, at, to_at, len)| Step::Copy { from, to, at, to_at, len }),
        2 => slot.clone().prop_map(Step::Sync),
        2 => slot.clone().prop_map(Step::FStat),
        2 => slot.prop_map(Step::Close),
    ]
}

/// One of the two sides: a directory and its open handles.
struct Side {
    root: PathBuf,
    open: [Option<File>; SLOTS],
}

/// What a step shows: a description, or an errno.
type Shown = Result<String, i32>;

impl Side {
    fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap();
        Self {
            root,
            open: [const { None }; SLOTS],
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.root.join(name.0)
    }

    fn slot(&self, slot: usize) -> std::io::Result<&File> {
        self.open[slot]
            .as_ref()
            .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBADF))
    }

    fn run(&mut self, step: &Step, n: u8) -> Shown {
        self.try_run(step, n).map_err(|e| e.raw_os_error().unwrap_or(-1))
    }

    fn try_run(&mut self, step: &Step, n: u8) -> std::io::Result<String> {
        let done = |()| String::new();
        Ok(match step {
            Step::Create(name, true) => File::create_new(self.path(name)).map(|_| String::new())?,
            Step::Create(name, false) => File::create(self.path(name)).map(|_| String::new())?,
            Step::WriteFile(name, len) => fs::write(self.path(name), vec![n; *len]).map(done)?,
            Step::Append(name, len) => {
                use std::io::Write;
                let mut f = OpenOptions::new().append(true).open(self.path(name))?;
                f.write_all(&vec![n; *len]).map(done)?
            }
            Step::Truncate(name, size) => nix::unistd::truncate(&self.path(name), *size as i64)
                .map_err(std::io::Error::from)
                .map(done)?,
            Step::Read(name) => digest(&fs::read(self.path(name))?),
            Step::Stat(name) => describe(&fs::symlink_metadata(self.path(name))?),
            Step::List(name) => {
                let mut names = Vec::new();
                for entry in fs::read_dir(self.path(name))? {
                    let entry = entry?;
                    names.push(format!(
                        "{:?} {:?}",
                        entry.file_name(),
                        entry.file_type()?.is_dir()
                    ));
                }
                names.sort();
                names.join(",")
            }
            Step::Rename(a, b, flags) => {
                let (a, b) = (c(&self.path(a)), c(&self.path(b)));
                // SAFETY: both are C strings.
                let result = unsafe {
                    libc::syscall(
                        libc::SYS_renameat2,
                        libc::AT_FDCWD,
                        a.as_ptr(),
                        libc::AT_FDCWD,
                        b.as_ptr(),
                        *flags,
                    )
                };
                check(result as libc::c_int).map(done)?
            }
            Step::Unlink(name) => fs::remove_file(self.path(name)).map(done)?,
            Step::Mkdir(name) => fs::create_dir(self.path(name)).map(done)?,
            Step::Rmdir(name) => fs::remove_dir(self.path(name)).map(done)?,
            Step::Symlink(name, target) => symlink(target.0, self.path(name)).map(done)?,
            Step::ReadLink(name) => format!("{:?}", fs::read_link(self.path(name))?),
            Step::Chmod(name, mode) => {
                fs::set_permissions(self.path(name), Permissions::from_mode(*mode)).map(done)?
            }
            Step::Chown(name, owner) => {
                std::os::unix::fs::lchown(self.path(name), Some(*owner), Some(owner + 1)).map(done)?
            }
            Step::Touch(name, at) => {
                let time = nix::sys::time::TimeSpec::new(*at as i64, 5);
                let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
                let here = nix::fcntl::AT_FDCWD;
                nix::sys::stat::utimensat(here, &self.path(name), &time, &time, follow)?;
                let meta = fs::symlink_metadata(self.path(name))?;
                format!("{} {}", meta.mtime(), meta.mtime_nsec())
            }
            Step::Fifo => {
                nix::unistd::mkfifo(&self.path(&FIFO), nix::sys::stat::Mode::from_bits_truncate(0o640))?;
                describe(&fs::symlink_metadata(self.path(&FIFO))?)
            }
            Step::UnlinkFifo => fs::remove_file(self.path(&FIFO)).map(done)?,
            Step::SetXattr(name, x, flags) => {
                let (path, attr, value) = (c(&self.path(name)), xattr(*x), [n; 9]);
                // SAFETY: C strings, and a value of the length that is told.
                check(unsafe {
                    libc::setxattr(
                        path.as_ptr(),
                        attr.as_ptr(),
                        value.as_ptr().cast(),
                        value.len(),
                        *flags,
                    )
                })
                .map(done)?
            }
            Step::GetXattr(name, x) => {
                let (path, attr, mut value) = (c(&self.path(name)), xattr(*x), [0u8; 64]);
                // SAFETY: C strings, and a buffer of the length that is told.
                let len = unsafe {
                    libc::getxattr(
                        path.as_ptr(),
                        attr.as_ptr(),
                        value.as_mut_ptr().cast(),
                        value.len(),
                    )
                };
                format!("{:?}", &value[..length(len)?])
            }
            Step::RemoveXattr(name, x) => {
                let (path, attr) = (c(&self.path(name)), xattr(*x));
                // SAFETY: C strings.
                check(unsafe { libc::removexattr(path.as_ptr(), attr.as_ptr()) }).map(done)?
            }
            Step::ListXattr(name) => {
                let (path, mut list) = (c(&self.path(name)), [0u8; 256]);
                // SAFETY: a C string, and a buffer of the length that is told.
                let len = unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
                let mut names: Vec<_> = list[..length(len)?]
                    .split(|b| *b == 0)
                    .filter(|name| name.starts_with(b"user."))
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect();
                names.sort();
                names.join(",")
            }
            Step::Open {
                slot,
                name,
                append,
                create,
                truncate,
            } => {
                self.open[*slot] = None;
                let mut options = OpenOptions::new();
                options
                    .read(true)
                    .write(!*append)
                    .append(*append)
                    .create(*create)
                    .truncate(*truncate && !*append);
                self.open[*slot] = Some(options.open(self.path(name))?);
                String::new()
            }
            Step::WriteAt { slot, at, len } => {
                self.slot(*slot)?.write_all_at(&vec![n; *len], *at).map(done)?
            }
            Step::ReadAt { slot, at, len } => {
                let mut bytes = vec![0; *len];
                let mut got = 0;
                loop {
                    match self.slot(*slot)?.read_at(&mut bytes[got..], at + got as u64)? {
                        0 => break,
                        more => got += more,
                    }
                }
                digest(&bytes[..got])
            }
            Step::SetLen { slot, len } => self.slot(*slot)?.set_len(*len).map(done)?,
            Step::Punch { slot, at, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: the descriptor is open.
                check(unsafe {
                    libc::fallocate(self.slot(*slot)?.as_raw_fd(), mode, *at as i64, *len as i64)
                })
                .map(done)?
            }
            Step::Allocate { slot, at, len, mode } => {
                // SAFETY: the descriptor is open.
                check(unsafe {
                    libc::fallocate(self.slot(*slot)?.as_raw_fd(), *mode, *at as i64, *len as i64)
                })
                .map(done)?
            }
            Step::Holes(slot) => {
                let file = self.slot(*slot)?;
                let size = file.metadata()?.len();
                let mut bytes = vec![0; size as usize];
                file.read_exact_at(&mut bytes, 0)?;
                let mut at = 0;
                while at < size {
                    // SAFETY: the descriptor is open.
                    let seek = |whence| unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
                    // None: nothing but a hole is left.
                    let data = u64::try_from(seek(libc::SEEK_DATA)).unwrap_or(size);
                    assert!((at..=size).contains(&data), "data at {data}");
                    assert!(
                        bytes[at as usize..data as usize].iter().all(|b| *b == 0),
                        "data in a hole at {at}"
                    );
                    at = data;
                    if at < size {
                        // SAFETY: as above.
                        let hole =
                            unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_HOLE) };
                        let hole = u64::try_from(hole).unwrap();
                        assert!(hole > at && hole <= size, "a hole at {hole} after data at {at}");
                        at = hole;
                    }
                }
                String::new()
            }
            Step::Map { slot, at } => {
                let file = self.slot(*slot)?;
                if file.metadata()?.len() <= *at {
                    return Ok("past the end".into());
                }
                let page = *at / 4096 * 4096;
                // SAFETY: a fresh shared mapping of one page of an open file, of which one byte within the
                // file is changed; it is unmapped.
                unsafe {
                    let map = libc::mmap(
                        std::ptr::null_mut(),
                        4096,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_SHARED,
                        file.as_raw_fd(),
                        page as libc::off_t,
                    );
                    if map == libc::MAP_FAILED {
                        return Err(std::io::Error::last_os_error());
                    }
                    map.cast::<u8>().add((at - page) as usize).write(n);
                    let synced = check(libc::msync(map, 4096, libc::MS_SYNC));
                    check(libc::munmap(map, 4096)).and(synced).map(done)?
                }
            }
            Step::Copy {
                from,
                to,
                at,
                to_at,
                len,
            } => {
                let (from, to) = (self.slot(*from)?, self.slot(*to)?);
                let (mut at, mut to_at, mut left) = (*at as i64, *to_at as i64, *len);
                while left > 0 {
                    // SAFETY: descriptors are open, offsets live through the call.
                    let n = unsafe {
                        libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, left, 0)
                    };
                    match usize::try_from(n) {
                        Ok(0) => break,
                        Ok(n) => left -= n,
                        Err(_) => return Err(std::io::Error::last_os_error()),
                    }
                }
                format!("{left} left")
            }
            Step::Sync(slot) => self.slot(*slot)?.sync_all().map(done)?,
            Step::FStat(slot) => describe(&self.slot(*slot)?.metadata()?),
            Step::Close(slot) => {
                self.open[*slot] = None;
                String::new()
            }
        })
    }
}

fn describe(meta: &fs::Metadata) -> String {
    let kind = meta.mode() & libc::S_IFMT;
    let file = kind == libc::S_IFREG;
    // A directory's size and links are a file system's own business.
    let (size, links) = if kind == libc::S_IFDIR {
        (0, 0)
    } else {
        (meta.len(), meta.nlink())
    };
    let mode = if file { meta.mode() } else { kind };
    format!("{mode:o} {size} {links} {}:{}", meta.uid(), meta.gid())
}

fn xattr(x: usize) -> std::ffi::CString {
    std::ffi::CString::new(XATTRS[x]).unwrap()
}

fn length(len: libc::ssize_t) -> std::io::Result<usize> {
    usize::try_from(len).map_err(|_| std::io::Error::last_os_error())
}

fn digest(bytes: &[u8]) -> String {
    // Runs of equal bytes: short, and readable when it differs.
    let mut runs: Vec<(u8, usize)> = Vec::new();
    for byte in bytes {
        match runs.last_mut() {
            Some((b, n)) if b == byte => *n += 1,
            _ => runs.push((*byte, 1)),
        }
    }
    format!("{runs:?}")
}

/// Everything below a directory, by path.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                todo.push(path.clone());
                String::new()
            } else if meta.is_symlink() {
                format!("{:?}", fs::read_link(&path).unwrap())
            } else if !meta.is_file() {
                String::new()
            } else {
                digest(&fs::read(&path).unwrap())
            };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(name, format!("{} {content}", describe(&meta)));
        }
    }
    found
}

fn cases() -> u32 {
    std::env::var("BLOB_FS_MODEL_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(500)
}

#[test]
fn a_mount_behaves_like_a_directory() {
    behaves_like_a_directory(cases(), |_| {});
}

/// The same with blocks of a few KiB: what the steps write is staged while it is written, split, copied by
/// the service and put together again.
#[test]
fn a_mount_with_tiny_blocks_behaves_like_a_directory() {
    behaves_like_a_directory(cases() / 4, |c| {
        c.tuning = Tuning {
            block: 16 << 10,
            granule: 4 << 10,
            small_file: 4 << 10,
            round: 4 << 10,
            part_min: 8 << 10,
            part_max: 16 << 10,
            window_max: 64 << 10,
            copy_min: 1 << 10,
            copy_max: 32 << 10,
            zero_max: 16 << 10,
            page: 1 << 10,
            ..Tuning::default()
        };
    });
}

fn behaves_like_a_directory(cases: u32, change: impl FnOnce(&mut VolumeConfig)) {
    let store = Arc::new(FakeStore::new());
    let mount = Mount::with(&store, change);
    let second = Mount::with(&store, |c| {
        (c.attr_timeout, c.entry_timeout, c.negative_timeout) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    });
    // A memory file system has every operation; the usual temporary directory may not.
    let plain = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let number = std::cell::Cell::new(0u32);
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&prop::collection::vec(step(), 1..40), |steps| {
        let case = format!("case{}", number.replace(number.get() + 1));
        let mut ours = Side::new(mount.path(&case));
        let mut theirs = Side::new(plain.path().join(&case));
        for (n, step) in steps.iter().enumerate() {
            let n = (n % 255) as u8 + 1;
            let expected = theirs.run(step, n);
            prop_assert_eq!(ours.run(step, n), expected, "step {}: {:?}", n, step);
        }
        prop_assert_eq!(tree(&ours.root), tree(&theirs.root));
        let roots = (ours.root.clone(), theirs.root.clone());
        drop((ours, theirs));
        prop_assert_eq!(tree(&roots.0), tree(&roots.1), "after closing");
        prop_assert_eq!(tree(&second.path(&case)), tree(&roots.1), "through another mount");
        fs::remove_dir_all(&roots.0).unwrap();
        fs::remove_dir_all(&roots.1).unwrap();
        let left: Vec<_> = store
            .names()
            .into_iter()
            .filter(|n| n.starts_with(&format!("{case}/")))
            .collect();
        prop_assert!(left.is_empty(), "{:?} is left", left);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
