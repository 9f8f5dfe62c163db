//! Others change what is open here: metadata, content that grows, a name that is replaced by another type.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::harness::{PATIENCE, wait_for};
use e2e::store::Operation;
use md5::{Digest as _, Md5};

use crate::foreign::Foreign;
use crate::{bytes, setup, sh};

#[test]
fn a_reader_goes_on_through_a_change_of_metadata() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    let content = bytes(96 << 20);
    // That it is the same content is told by the digest of what came in one piece, which the service checks.
    let md5 = STANDARD.encode(Md5::digest(&content));
    foreign.put("f", &[("x-ms-blob-content-md5", &md5)], &content)?;
    let a = setup.mount("changes", "a")?;
    let mut file = File::open(a.path().join("f"))?;
    let mut read = vec![0; 1 << 20];
    file.read_exact(&mut read)?;
    foreign.set_metadata("f", &[("x-ms-meta-reviewed", "yes")])?;
    file.read_to_end(&mut read)?;
    ensure!(read == content, "{} bytes", read.len());
    drop(file);
    a.unmount()?;
    Ok(())
}

#[test]
fn a_writer_goes_on_through_a_change_of_metadata() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    foreign.put("out", &[], b"old\n")?;
    let a = setup.mount("changes", "a")?;
    let b = setup.mount("changes", "b")?;
    let mut file = OpenOptions::new().append(true).open(a.path().join("out"))?;
    file.write_all(b"w\n")?;
    fs::set_permissions(b.path().join("out"), PermissionsExt::from_mode(0o640))?;
    foreign.head("out")?;
    file.sync_all()?;
    drop(file);
    ensure!(foreign.read("out")? == b"old\nw\n");
    a.unmount()?;
    b.unmount()?;
    let c = setup.mount("changes", "c")?;
    let mode = fs::metadata(c.path().join("out"))?.mode() & 0o7777;
    ensure!(mode == 0o640, "{mode:o}");
    c.unmount()?;
    Ok(())
}

#[test]
fn a_setattr_that_changes_nothing_writes_nothing() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    foreign.put("x/f", &[], b"1")?;
    let a = setup.mount("changes", "a")?;
    let (file, folder) = (a.path().join("x/f"), a.path().join("x"));
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640))?;
    let etag = foreign.head("x/f")?.header("etag");
    let told = fs::metadata(&folder)?;
    let store = setup.backend().store().unwrap();
    store.reset_counters();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640))?;
    chown(&file, Some(fs::metadata(&file)?.uid()), None)?;
    fs::set_permissions(&folder, PermissionsExt::from_mode(told.mode() & 0o7777))?;
    chown(&folder, Some(told.uid()), Some(told.gid()))?;
    for operation in [
        Operation::PutBlob,
        Operation::SetBlobMetadata,
        Operation::PutBlockList,
    ] {
        let written = store.counters(operation).requests;
        ensure!(written == 0, "{operation}: {written}");
    }
    ensure!(foreign.head("x/f")?.header("etag") == etag);
    ensure!(!foreign.exists("x")?, "a marker was made");
    a.unmount()?;
    Ok(())
}

#[test]
fn a_rename_replaces_append_and_page_blobs() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    foreign.make("AppendBlob", "log", &[])?;
    foreign.append("log", b"old")?;
    foreign.make("PageBlob", "disk", &[("x-ms-blob-content-length", "512")])?;
    let a = setup.mount("changes", "a")?;
    for name in ["log", "disk"] {
        sh(a.path(), &format!("echo new > tmp && mv tmp {name}"))?;
        ensure!(foreign.read(name)? == b"new\n", "{name}");
        ensure!(
            foreign.head(name)?.header("x-ms-blob-type") == "BlockBlob",
            "{name}"
        );
        ensure!(!foreign.exists("tmp")?, "{name}");
    }
    a.unmount()?;
    Ok(())
}

/// What a shipper of logs does: it remembers inode and offset, and begins anew when the inode is another.
fn new_bytes(path: &Path, seen: &mut (u64, u64), shipped: &mut Vec<u8>) -> Result<()> {
    let mut file = File::open(path)?;
    let inode = file.metadata()?.ino();
    if seen.0 != inode {
        *seen = (inode, 0);
    }
    file.seek(SeekFrom::Start(seen.1))?;
    seen.1 += file.read_to_end(shipped)? as u64;
    Ok(())
}

/// Reads a log to which another node appends, of a block blob and of an append blob. `begin` opens it; what
/// that gives is called with the last line that is there, after each new one, and reads on.
fn follow_logs<R>(begin: impl Fn(&Path) -> Result<R>) -> Result<()>
where
    R: FnMut(&str, &mut Vec<u8>) -> Result<()>,
{
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    let a = setup.mount("changes", "a")?;
    let b = setup.mount("changes", "b")?;
    sh(b.path(), "seq 1000 > l")?;
    foreign.make("AppendBlob", "m", &[])?;
    foreign.append("m", &fs::read(b.path().join("l"))?)?;
    for name in ["l", "m"] {
        let (mut read_on, mut read) = (begin(&a.path().join(name))?, Vec::new());
        read_on("1000\n", &mut read)?;
        for line in 1001..=1005 {
            match name {
                "l" => drop(sh(b.path(), &format!("echo {line} >> l"))?),
                _ => drop(foreign.append("m", format!("{line}\n").as_bytes())?),
            }
            read_on(&format!("{line}\n"), &mut read).with_context(|| format!("{name}: line {line}"))?;
        }
        let wanted: String = (1..=1005).map(|line| format!("{line}\n")).collect();
        ensure!(
            read == wanted.as_bytes(),
            "{name}: {} bytes instead of {}",
            read.len(),
            wanted.len()
        );
    }
    a.unmount()?;
    b.unmount()?;
    Ok(())
}

/// `less +F`: the file stays open and is read on at its end, and is opened anew by its name when that leads
/// to another one.
#[test]
fn less_shows_each_new_line_of_another_node_once() -> Result<()> {
    follow_logs(|path| {
        let path = path.to_owned();
        let mut file = File::open(&path)?;
        let inode = file.metadata()?.ino();
        Ok(move |new: &str, shown: &mut Vec<u8>| {
            wait_for("the new line", PATIENCE, || {
                // What less asks for once a second: is it still the file of that name, and is there more?
                ensure!(fs::metadata(&path)?.ino() == inode, "another file");
                file.read_to_end(shown)?;
                Ok(shown.ends_with(new.as_bytes()).then_some(()))
            })
        })
    })
}

#[test]
fn each_line_of_a_log_of_another_node_is_shipped_once() -> Result<()> {
    follow_logs(|path| {
        let (path, mut seen) = (path.to_owned(), (0, 0));
        Ok(move |_: &str, shipped: &mut Vec<u8>| new_bytes(&path, &mut seen, shipped))
    })
}

#[test]
fn tail_follows_a_log_of_another_node() -> Result<()> {
    let setup = setup()?;
    let a = setup.mount("changes", "a")?;
    let b = setup.mount("changes", "b")?;
    sh(b.path(), "seq 1000 > l")?;
    let shown = setup.scratch().join("shown");
    let mut tail = Command::new("tail")
        .args(["-n", "1", "-s", "0.2", "-F"])
        .arg(a.path().join("l"))
        .stdout(File::create(&shown)?)
        .stderr(Stdio::null())
        .spawn()?;
    let followed = (|| {
        for line in 1000..=1005 {
            if line > 1000 {
                sh(b.path(), &format!("echo {line} >> l"))?;
            }
            wait_for(&format!("line {line}"), PATIENCE, || {
                let text = fs::read_to_string(&shown)?;
                Ok(text.lines().any(|shown| shown == line.to_string()).then_some(()))
            })?;
        }
        Ok::<_, anyhow::Error>(())
    })();
    tail.kill()?;
    tail.wait()?;
    followed?;
    let text = fs::read_to_string(&shown)?;
    ensure!(text.lines().count() == 6, "{} lines", text.lines().count());
    a.unmount()?;
    b.unmount()?;
    Ok(())
}

/// How many versions a program's writing makes.
#[test]
fn one_write_is_one_version() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    let a = setup.mount("changes", "a")?;
    let store = setup.backend().store().unwrap();
    let versions = |command: &str, name: &str| -> Result<u64> {
        store.reset_counters();
        sh(a.path(), command)?;
        wait_for("the data in the service", PATIENCE, || {
            let there = foreign.exists(name)? && foreign.read(name)? == fs::read(a.path().join(name))?;
            Ok(there.then_some(()))
        })?;
        Ok(store.counters(Operation::PutBlob).requests + store.counters(Operation::PutBlockList).requests)
    };
    for (command, name) in [
        ("echo hi > echo", "echo"),
        ("seq 9 | cat > cat", "cat"),
        ("seq 9 | dd of=dd status=none", "dd"),
        ("cp /etc/passwd cp", "cp"),
    ] {
        let made = versions(command, name)?;
        ensure!(made == 1, "{command}: {made}");
        // What is there is replaced by one, too.
        foreign.put(name, &[], b"what was there before\n")?;
        let made = versions(command, name)?;
        ensure!(made == 1, "{command} over a file: {made}");
    }
    let made = versions(
        "for i in $(seq 200); do /bin/echo line $i; done > build.log",
        "build.log",
    )?;
    ensure!(made <= 10, "200 children: {made}");
    ensure!(
        foreign
            .read("build.log")?
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            == 200
    );
    a.unmount()?;
    Ok(())
}
