//! Names that others remove, make anew and move at the same time; and markers that nobody asked for.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::harness::mount::MountOptions;
use e2e::harness::wait_for;
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};
use nix::errno::Errno;

use crate::foreign::Foreign;
use crate::{outcome, setup, sh};

#[test]
fn removing_the_last_file_of_a_folder_makes_no_marker() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "names")?;
    for name in ["d/f", "e/f", "k/f", "m/f"] {
        foreign.put(name, &[], b"1")?;
    }
    // May delete and may not write: what is asked for needs no more.
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY)?;
    let sas = key.container_sas("names", &SasOptions::new("rld", Duration::from_secs(3600)));
    let a = setup.mount_with(
        "names",
        "a",
        &MountOptions {
            sas: Some(sas),
            ..setup.options()
        },
    )?;
    fs::remove_file(a.path().join("d/f"))?;
    ensure!(!foreign.exists("d/f")? && !foreign.exists("d")?);
    a.unmount()?;
    let b = setup.mount("names", "b")?;
    fs::remove_file(b.path().join("e/f"))?;
    fs::rename(b.path().join("k/f"), b.path().join("g"))?;
    fs::rename(b.path().join("m/f"), b.path().join("m/h"))?;
    for marker in ["e", "k", "m"] {
        ensure!(!foreign.exists(marker)?, "{marker}");
    }
    ensure!(foreign.exists("g")? && foreign.exists("m/h")?);
    b.unmount()?;
    Ok(())
}

/// One line for each folder that hides something, however often it is listed.
#[test]
fn each_folder_that_hides_names_is_told_once() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "names")?;
    for name in ["d//x", "d/y.", "d/f", "e/./y", "e/f", "k/f"] {
        foreign.put(name, &[], b"1")?;
    }
    let a = setup.mount("names", "a")?;
    for _ in 0..3 {
        for folder in ["d", "e", "k"] {
            ensure!(sh(a.path(), &format!("ls {folder}"))?.trim() == "f", "{folder}");
        }
    }
    let told = |output: &str| output.matches("names are no paths").count();
    wait_for("a line for each folder", Duration::from_secs(30), || {
        Ok((told(&a.process().output()) >= 2).then_some(()))
    })?;
    let output = a.process().output();
    let lines: Vec<_> = output
        .lines()
        .filter(|line| line.contains("names are no paths"))
        .collect();
    ensure!(lines.len() == 2, "{output}");
    for first in ["\"d//\"", "\"e/./\""] {
        ensure!(lines.iter().any(|line| line.contains(first)), "{first}: {output}");
    }
    a.unmount()?;
    Ok(())
}

/// A name that was a folder when this mount looked, and is somebody's file now.
#[test]
fn rmdir_spares_a_file_of_another_node() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "names")?;
    let a = setup.mount("names", "a")?;
    let b = setup.mount("names", "b")?;
    for round in 0..6 {
        let (here, there) = (
            a.path().join(format!("d{round}")),
            b.path().join(format!("d{round}")),
        );
        fs::create_dir(&here)?;
        fs::read_dir(a.path())?.count();
        fs::remove_dir(&there)?;
        fs::write(&there, "data")?;
        let ended = outcome(fs::remove_dir(&here));
        ensure!(
            matches!(ended, Err(Errno::ENOTDIR | Errno::ENOENT)),
            "round {round}: {ended:?}"
        );
        ensure!(foreign.read(&format!("d{round}"))? == b"data", "round {round}");
    }
    a.unmount()?;
    b.unmount()?;
    Ok(())
}

/// A name that was a file when this mount looked, and is somebody's folder now.
#[test]
fn unlink_spares_a_folder_of_another_node() -> Result<()> {
    let setup = setup()?;
    let a = setup.mount("names", "a")?;
    let b = setup.mount("names", "b")?;
    for inside in [false, true] {
        for round in 0..3 {
            let name = format!("f{round}{inside}");
            let (here, there) = (a.path().join(&name), b.path().join(&name));
            fs::write(&here, "1")?;
            fs::metadata(&here)?;
            fs::remove_file(&there)?;
            fs::create_dir(&there)?;
            fs::set_permissions(&there, PermissionsExt::from_mode(0o700))?;
            if inside {
                fs::write(there.join("g"), "2")?;
            }
            let ended = outcome(fs::remove_file(&here));
            ensure!(
                matches!(ended, Err(Errno::EISDIR | Errno::ENOENT)),
                "{name}: {ended:?}"
            );
        }
    }
    a.unmount()?;
    b.unmount()?;
    let c = setup.mount("names", "c")?;
    for inside in [false, true] {
        for round in 0..3 {
            let path = c.path().join(format!("f{round}{inside}"));
            let mode = fs::metadata(&path)?.mode();
            ensure!(mode & 0o7777 == 0o700, "{}: {mode:o}", path.display());
            ensure!(!inside || fs::read(path.join("g"))? == b"2");
        }
    }
    c.unmount()?;
    Ok(())
}

/// Of two folders that two nodes rename onto one name at once, no file is lost.
#[test]
fn two_renames_onto_one_name_lose_nothing() -> Result<()> {
    const FILES: usize = 5;
    let setup = setup()?;
    let a = setup.mount("names", "a")?;
    let b = setup.mount("names", "b")?;
    for round in 0..12 {
        let target = format!("t{round}");
        let sources = [format!("p{round}"), format!("q{round}")];
        for (mount, source) in [&a, &b].into_iter().zip(&sources) {
            fs::create_dir(mount.path().join(source))?;
            for number in 0..FILES {
                fs::write(
                    mount.path().join(source).join(format!("{number}")),
                    format!("{source} {number}"),
                )?;
            }
        }
        let barrier = Barrier::new(2);
        let ended: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = [&a, &b]
                .into_iter()
                .zip(&sources)
                .map(|(mount, source)| {
                    let (from, to) = (mount.path().join(source), mount.path().join(&target));
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        outcome(fs::rename(from, to))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Whoever lost keeps its folder: every content is somewhere, once.
        let blobs = setup.backend().container("names")?;
        let mut left = Vec::new();
        for name in blobs.blobs()?.keys() {
            let mine = [&target, &sources[0], &sources[1]];
            if mine.iter().any(|folder| name.starts_with(&format!("{folder}/"))) {
                left.push(String::from_utf8(blobs.read(name)?)?);
            }
        }
        left.sort();
        let mut wanted: Vec<String> = sources
            .iter()
            .flat_map(|source| (0..FILES).map(move |number| format!("{source} {number}")))
            .collect();
        wanted.sort();
        ensure!(left == wanted, "round {round}: {ended:?}: {left:?}");
        ensure!(ended.contains(&Ok(())), "round {round}: {ended:?}");
    }
    a.unmount()?;
    b.unmount()?;
    Ok(())
}
