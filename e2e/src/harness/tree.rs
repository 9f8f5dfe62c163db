//! Reproducible folders full of files, and whether two of them are equal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::tools;

/// What a tree holds.
#[derive(Debug, Clone, Copy)]
pub struct TreeSpec {
    /// Number of regular files, the large one included.
    pub files: usize,
    /// Size of the one large file, in bytes; 0 = none.
    pub large: u64,
    /// Contents, sizes and names follow from it.
    pub seed: u64,
}

/// Sizes that a file system gets wrong: none, one byte, around a page, around the kernel's largest write,
/// more than one.
const EDGE_SIZES: [usize; 9] = [
    0,
    1,
    4095,
    4096,
    4097,
    1 << 17,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
];

/// Pieces of names that have a meaning in a URL, a listing or a shell.
const AWKWARD: [&str; 8] = [
    "with space",
    "100%",
    "a+b",
    "Übergröße",
    "名前",
    "semi;colon",
    "q?m&x=1#f",
    "dot..",
];

/// Writes the tree into the folder, which is made.
pub fn write(root: &Path, spec: TreeSpec) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(spec.seed);
    fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
    let mut folders = vec![root.to_path_buf()];
    let small = spec.files - usize::from(spec.large > 0);
    for number in 0..small {
        // A folder in about twenty files, somewhere below an earlier one.
        if number % 20 == 7 {
            let parent = &folders[random.random_range(0..folders.len())];
            let folder = parent.join(name("folder", number, &mut random));
            fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
            folders.push(folder);
        }
        let size = match EDGE_SIZES.get(number) {
            Some(size) => *size,
            // Most files are small, as in a source tree.
            None => random.random_range(0..if number % 50 == 0 { 1 << 19 } else { 1 << 14 }),
        };
        let path = folders[random.random_range(0..folders.len())].join(name("file", number, &mut random));
        fill(&path, size as u64, &mut random)?;
    }
    if spec.large > 0 {
        fill(&root.join("large.bin"), spec.large, &mut random)?;
    }
    std::os::unix::fs::symlink("large.bin", root.join("link to large"))?;
    std::os::unix::fs::symlink("no such file", root.join("dangling"))?;
    fs::create_dir(root.join("empty folder"))?;
    Ok(())
}

/// Writes `size` random bytes.
pub fn fill(path: &Path, size: u64, random: &mut SmallRng) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut block = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let now = left.min(block.len() as u64);
        let part = &mut block[..now as usize];
        random.fill_bytes(part);
        file.write_all(part)
            .with_context(|| format!("writing {}", path.display()))?;
        left -= now;
    }
    Ok(())
}

fn name(kind: &str, number: usize, random: &mut SmallRng) -> OsString {
    if number % 16 == 3 {
        format!(
            "{} {kind} {number}",
            AWKWARD[random.random_range(0..AWKWARD.len())]
        )
        .into()
    } else {
        format!("{kind}-{number}").into()
    }
}

/// `cp -r` of a folder's contents into another (made) folder.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    tools::run(Command::new("cp").arg("-r").arg("--").arg(from).arg(to)).map(drop)
}

/// `diff -r`: an error with the differences unless both trees are equal, symbolic links compared as links.
pub fn assert_equal(left: &Path, right: &Path) -> Result<()> {
    tools::run(
        Command::new("diff")
            .args(["-r", "--no-dereference", "--"])
            .arg(left)
            .arg(right),
    )
    .map(drop)
}

/// Size of the one large file in [`large_tree`].
pub const LARGE: u64 = 300 << 20;

/// A tree of 2,000 files with a large one, made once for all tests of this process.
pub fn large_tree() -> Result<PathBuf> {
    static TREE: Mutex<Option<tempfile::TempDir>> = Mutex::new(None);
    let mut tree = TREE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = match tree.take() {
        Some(folder) => folder,
        None => {
            let folder = scratch()?;
            let spec = TreeSpec {
                files: 2000,
                large: LARGE,
                seed: 1,
            };
            write(&folder.path().join("tree"), spec)?;
            folder
        }
    };
    Ok(tree.insert(folder).path().join("tree"))
}

/// A scratch folder for a test, removed at its end. Short, because unix socket paths below it must fit into
/// 108 bytes.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("e2e-")
        .rand_bytes(5)
        .tempdir()
        .context("making a scratch folder")
}

/// `path` made as an empty folder.
pub fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}
