//! Others change what is open here: metadata, content that grows.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use e2e::harness::{PATIENCE, wait_for};
use e2e::store::Operation;

use crate::foreign::Foreign;
use crate::{setup, sh};

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

#[test]
fn each_line_of_a_log_of_another_node_is_shipped_once() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "changes")?;
    let a = setup.mount("changes", "a")?;
    let b = setup.mount("changes", "b")?;
    sh(b.path(), "seq 1000 > l")?;
    foreign.make("AppendBlob", "m", &[])?;
    foreign.append("m", &fs::read(b.path().join("l"))?)?;
    for name in ["l", "m"] {
        let path = a.path().join(name);
        let (mut seen, mut shipped) = ((0, 0), Vec::new());
        new_bytes(&path, &mut seen, &mut shipped)?;
        for line in 1001..=1005 {
            match name {
                "l" => drop(sh(b.path(), &format!("echo {line} >> l"))?),
                _ => drop(foreign.append("m", format!("{line}\n").as_bytes())?),
            }
            new_bytes(&path, &mut seen, &mut shipped)?;
        }
        let wanted: String = (1..=1005).map(|line| format!("{line}\n")).collect();
        ensure!(
            shipped == wanted.as_bytes(),
            "{name}: {} bytes instead of {}",
            shipped.len(),
            wanted.len()
        );
    }
    a.unmount()?;
    b.unmount()?;
    Ok(())
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
