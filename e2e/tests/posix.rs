//! Everyday programs on a mount: fsx, git, sqlite3, tar, fio, appending shells. Each result is looked at
//! again after a remount.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::harness::backend::Kind;
use e2e::harness::process::Running;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::tools::{Tool, run};
use e2e::harness::tree::{self, TreeSpec};

/// Longest run of one program; far above what it takes, far below the limit of the whole test command.
const PROGRAM_LIMIT: Duration = Duration::from_secs(600);

/// Runs a program that may take long; an error carries its output.
fn run_long(name: &str, command: &mut Command) -> Result<String> {
    let mut running = Running::start(name, command)?;
    let status = running.wait(PROGRAM_LIMIT)?;
    ensure!(status.success(), "{name}: {status}\n{}", running.output());
    Ok(running.output())
}

/// fsx with every kind of operation it knows, on a file of at most `length` bytes.
fn fsx(
    folder: &Path,
    name: &str,
    length: u64,
    largest: u64,
    operations: u32,
    seed: u64,
    scratch: &Path,
) -> Result<()> {
    let config = scratch.join(format!("{name}.toml"));
    fs::write(
        &config,
        format!(
            "flen = {length}\n\
             [opsize]\nmax = {largest}\n\
             [weights]\n\
             close_open = 2\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ninvalidate = 1\n\
             truncate = 3\nfsync = 1\nfdatasync = 1\nposix_fallocate = 1\npunch_hole = 2\nsendfile = 2\n\
             posix_fadvise = 1\ncopy_file_range = 2\n"
        ),
    )?;
    run_long(
        name,
        Command::new(Tool::Fsx.path()?)
            .arg("-f")
            .arg(&config)
            .args(["-S", &seed.to_string(), "-N", &operations.to_string(), "-P"])
            .arg(scratch)
            .arg(folder.join(name)),
    )?;
    Ok(())
}

/// fsx, then the bytes it left must still be there after a remount.
fn fsx_and_remount(name: &str, length: u64, largest: u64, operations: u32, seed: u64) -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let mount = setup.mount("fsx", "mnt")?;
    fsx(
        mount.path(),
        name,
        length,
        largest,
        operations,
        seed,
        setup.scratch(),
    )?;
    let before = fs::read(mount.path().join(name))?;
    mount.unmount()?;
    let mount = setup.mount("fsx", "mnt")?;
    ensure!(
        fs::read(mount.path().join(name))? == before,
        "the file has other bytes after the remount"
    );
    mount.unmount()?;
    Ok(())
}

#[test]
fn fsx_twenty_thousand_operations() -> Result<()> {
    fsx_and_remount("small", 1 << 18, 1 << 16, 20_000, 42)
}

/// Several blocks long, with operations that cross them.
#[test]
fn fsx_over_several_blocks() -> Result<()> {
    fsx_and_remount("large", 40 << 20, 6 << 20, 1_000, 7)
}

/// A repository with a few commits, made on the local disk.
fn repository(at: &Path) -> Result<()> {
    let spec = TreeSpec {
        files: 300,
        large: 3 << 20,
        seed: 11,
    };
    tree::write(at, spec)?;
    git(at, &["init", "--quiet", "--initial-branch=main"])?;
    git(at, &["add", "--all"])?;
    git(at, &["commit", "--quiet", "--message=first"])?;
    for number in 0..5 {
        fs::write(at.join("changing"), format!("version {number}\n"))?;
        git(at, &["add", "--all"])?;
        git(at, &["commit", "--quiet", &format!("--message=change {number}")])?;
    }
    Ok(())
}

/// git without the machine's configuration.
fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    run_long(
        "git",
        Command::new("git")
            .arg("-C")
            .arg(folder)
            .args([
                "-c",
                "user.name=Test",
                "-c",
                "user.email=test@example.com",
                "-c",
                "core.quotepath=off",
            ])
            .args(["-c", "safe.directory=*", "-c", "protocol.file.allow=always"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1"),
    )
}

#[test]
fn git_clone_fsck_and_commit() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let origin = setup.folder("origin")?;
    repository(&origin)?;
    let mount = setup.mount("git", "mnt")?;
    let clone = mount.path().join("clone");
    // `--no-hardlinks` copies objects, as from another disk; hard links are not offered.
    git(
        setup.scratch(),
        &[
            "clone",
            "--quiet",
            "--no-hardlinks",
            origin.to_str().unwrap(),
            clone.to_str().unwrap(),
        ],
    )?;
    git(&clone, &["fsck", "--full", "--strict"])?;
    fs::write(clone.join("from the mount"), "hello\n")?;
    git(&clone, &["add", "--all"])?;
    git(&clone, &["commit", "--quiet", "--message=from the mount"])?;
    git(&clone, &["gc", "--quiet"])?;
    let head = git(&clone, &["rev-parse", "HEAD"])?;
    mount.unmount()?;

    let mount = setup.mount("git", "mnt")?;
    ensure!(git(&clone, &["rev-parse", "HEAD"])? == head, "HEAD moved");
    git(&clone, &["fsck", "--full", "--strict"])?;
    let status = git(&clone, &["status", "--porcelain"])?;
    ensure!(
        status.is_empty(),
        "the clone is not clean after the remount:\n{status}"
    );
    mount.unmount()?;
    Ok(())
}

fn sqlite(database: &Path, sql: &str) -> Result<String> {
    run_long(
        "sqlite3",
        Command::new("sqlite3")
            .arg("-batch")
            .arg("-bail")
            .arg(database)
            .arg(sql),
    )
}

fn sqlite_fifty_mebibytes(journal: &str) -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let mount = setup.mount("sqlite", "mnt")?;
    let database = mount.path().join("test.db");
    // 52,000 rows of 1,000 bytes that follow from the row number, then updates and deletions all over the
    // file.
    sqlite(
        &database,
        &format!(
            "PRAGMA journal_mode = {journal};
             CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB);
             BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 52000)
               INSERT INTO t SELECT i, zeroblob(996) || printf('%04x', i % 65536) FROM n;
             COMMIT;
             CREATE INDEX by_tail ON t(substr(data, -4));
             UPDATE t SET data = data || 'x' WHERE id % 97 = 0;
             DELETE FROM t WHERE id % 101 = 0;"
        ),
    )?;
    let size = fs::metadata(&database)?.len();
    ensure!(size >= 50 << 20, "the database has only {size} bytes");
    let digest = "PRAGMA integrity_check; SELECT count(*), sum(length(data)), sum(id) FROM t; SELECT \
                  count(DISTINCT substr(data, -4)) FROM t;";
    let before = sqlite(&database, digest)?;
    ensure!(before.starts_with("ok\n"), "integrity check: {before}");
    mount.unmount()?;
    let mount = setup.mount("sqlite", "mnt")?;
    let after = sqlite(&database, digest)?;
    ensure!(after == before, "before the remount:\n{before}\nafter:\n{after}");
    mount.unmount()?;
    Ok(())
}

#[test]
fn sqlite_with_rollback_journal() -> Result<()> {
    sqlite_fifty_mebibytes("DELETE")
}

/// The write-ahead log shares memory between processes: a shared writable mapping.
#[test]
fn sqlite_with_write_ahead_log() -> Result<()> {
    sqlite_fifty_mebibytes("WAL")
}

#[test]
fn tar_create_extract_compare() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let source = setup.folder("source")?;
    let spec = TreeSpec {
        files: 600,
        large: 20 << 20,
        seed: 23,
    };
    tree::write(&source, spec)?;
    run(Command::new("mkfifo")
        .arg("-m")
        .arg("640")
        .arg(source.join("a fifo")))?;
    run(Command::new("chmod").arg("751").arg(source.join("empty folder")))?;
    run(Command::new("chown").arg("1234:4321").arg(source.join("file-1")))?;

    let mount = setup.mount("tar", "mnt")?;
    let archive = mount.path().join("source.tar");
    run_long(
        "tar",
        Command::new("tar")
            .arg("-C")
            .arg(&source)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    )?;
    let extracted = mount.path().join("extracted");
    fs::create_dir(&extracted)?;
    run_long(
        "tar",
        Command::new("tar")
            .arg("-C")
            .arg(&extracted)
            .arg("-xpf")
            .arg(&archive),
    )?;
    mount.unmount()?;

    let mount = setup.mount("tar", "mnt")?;
    // Contents, and modes, owners, times and link targets, the FIFO included.
    for folder in [&source, &extracted] {
        run_long(
            "tar",
            Command::new("tar")
                .arg("-C")
                .arg(folder)
                .arg("--compare")
                .arg("-f")
                .arg(&archive),
        )?;
    }
    // Nothing more either. diff calls two FIFOs different, whatever they are.
    for folder in [&source, &extracted] {
        fs::remove_file(folder.join("a fifo"))?;
    }
    tree::assert_equal(&source, &extracted)?;
    mount.unmount()?;
    Ok(())
}

#[test]
fn fio_verifies_crc32c() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let job = |folder: &Path, verify_only: bool| {
        let mut fio = Command::new("fio");
        fio.arg("--name=verify")
            .arg(format!("--directory={}", folder.display()))
            .args([
                "--ioengine=psync",
                "--rw=randwrite",
                "--bsrange=4k-128k",
                "--size=48m",
                "--numjobs=3",
            ])
            .args([
                "--fsync=200",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--randseed=5",
                "--group_reporting",
            ])
            // One job file each, so that the reading run finds what the writing run wrote.
            .args(["--filename_format=$jobname.$jobnum"])
            .arg(if verify_only {
                "--verify_only=1"
            } else {
                "--do_verify=1"
            })
            .current_dir(setup.scratch());
        fio
    };
    let mount = setup.mount("fio", "mnt")?;
    run_long("fio", &mut job(mount.path(), false))?;
    mount.unmount()?;
    let mount = setup.mount("fio", "mnt")?;
    run_long("fio", &mut job(mount.path(), true))?;
    mount.unmount()?;
    Ok(())
}

/// Every process opens once and appends line after line; another set opens anew for each line.
#[test]
fn several_processes_append_without_a_lost_line() -> Result<()> {
    const WRITERS: usize = 8;
    const LINES: usize = 250;
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let mount = setup.mount("append", "mnt")?;
    for (name, script) in [
        (
            "kept-open",
            "exec 3>>\"$1\"; for ((i = 0; i < $3; i++)); do echo \"writer $2 line $i\" >&3 || exit 1; done",
        ),
        (
            "reopened",
            "for ((i = 0; i < $3; i++)); do echo \"writer $2 line $i\" >>\"$1\" || exit 1; done",
        ),
    ] {
        let file = mount.path().join(name);
        let writers: Vec<Running> = (0..WRITERS)
            .map(|writer| {
                Running::start(
                    "appender",
                    Command::new("bash")
                        .args(["-c", script, "appender"])
                        .arg(&file)
                        .args([writer.to_string(), LINES.to_string()]),
                )
            })
            .collect::<Result<_>>()?;
        for mut writer in writers {
            let status = writer.wait(PROGRAM_LIMIT)?;
            ensure!(
                status.success(),
                "{name}: an appender failed: {}",
                writer.output()
            );
        }
    }
    mount.unmount()?;
    let mount = setup.mount("append", "mnt")?;
    for name in ["kept-open", "reopened"] {
        let text = fs::read_to_string(mount.path().join(name)).context(name)?;
        let lines: BTreeSet<&str> = text.lines().collect();
        ensure!(
            text.lines().count() == WRITERS * LINES,
            "{name}: {} lines",
            text.lines().count()
        );
        for writer in 0..WRITERS {
            for line in 0..LINES {
                let wanted = format!("writer {writer} line {line}");
                ensure!(lines.contains(wanted.as_str()), "{name}: lost `{wanted}`");
            }
        }
    }
    mount.unmount()?;
    Ok(())
}
