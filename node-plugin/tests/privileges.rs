//! What the running node may do, as the kernel sees it: every thread of the real program against the table.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vsc_blob_csi::privileges::KEPT;

struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the node and waits until it serves; with what it has said until then.
fn node(folder: &Path) -> (Node, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vsc-blob-csi"))
        .args(["node", "--node-id", "n", "--budget", "32MiB"])
        .args(["--device", "/nonexistent/azure_blob", "--endpoint"])
        .arg(folder.join("csi.sock"))
        .arg("--state-dir")
        .arg(folder.join("state"))
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let node = Node(child);
    let mut seen = String::new();
    while !seen.contains("serving the node") {
        assert_ne!(log.read_line(&mut seen).unwrap(), 0, "it ended:\n{seen}");
    }
    // A full pipe would stop it.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (node, seen)
}

/// Fields of a status file of /proc; nothing when its thread has ended since it was listed, which reads as
/// ENOENT or ESRCH.
fn status(path: &Path) -> Option<BTreeMap<String, String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let fields = text
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Some(fields.collect())
}

fn mask(status: &BTreeMap<String, String>, field: &str) -> u64 {
    u64::from_str_radix(&status[field], 16).unwrap()
}

#[test]
fn every_thread_has_what_the_table_lists_and_nothing_else() {
    let own = status(Path::new("/proc/self/status")).unwrap();
    let kept = KEPT
        .iter()
        .map(|(capability, _)| capability.bitmask())
        .sum::<u64>();
    // What the test itself does not have, its child does not have either.
    let (permitted, bounding) = (mask(&own, "CapPrm") & kept, mask(&own, "CapBnd") & kept);
    if mask(&own, "CapPrm") & !kept == 0 {
        eprintln!("this test has no capability that could be given up: run it as root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (node, _) = node(folder.path());
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.0.id())).unwrap();
    let mut threads = 0;
    for task in tasks {
        let path = task.unwrap().path().join("status");
        let Some(status) = status(&path) else { continue };
        let has = |field| mask(&status, field);
        assert_eq!(has("CapEff"), permitted, "effective: {}", path.display());
        assert_eq!(has("CapPrm"), permitted, "permitted: {}", path.display());
        assert_eq!(has("CapBnd"), bounding, "bounding: {}", path.display());
        assert_eq!(has("CapInh"), 0, "inheritable: {}", path.display());
        assert_eq!(has("CapAmb"), 0, "ambient: {}", path.display());
        assert_eq!(status["NoNewPrivs"], "1", "{}", path.display());
        assert_eq!(status["Seccomp"], "2", "a filter: {}", path.display());
        threads += 1;
    }
    assert!(threads > 1, "the runtime's threads are looked at too");
}

#[test]
fn each_capability_has_its_reason() {
    for (capability, reason) in KEPT {
        assert!(reason.len() > 20, "{capability}");
    }
}

/// It is the one line that says why mounts will fail.
#[test]
fn a_capability_that_is_missing_is_told() {
    let own = status(Path::new("/proc/self/status")).unwrap();
    let admin = caps::Capability::CAP_SYS_ADMIN;
    let settable = mask(&own, "CapPrm") & caps::Capability::CAP_SETPCAP.bitmask() != 0;
    if mask(&own, "CapPrm") & admin.bitmask() != 0 && !settable {
        eprintln!("this test cannot take the capability from a child: run it as root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = std::thread::scope(|scope| {
        // The bounding set is the thread's, and its child begins with it.
        let started = scope.spawn(|| {
            if settable && caps::has_cap(None, caps::CapSet::Bounding, admin).unwrap() {
                caps::drop(None, caps::CapSet::Bounding, admin).unwrap();
            }
            node(folder.path()).1
        });
        started.join().unwrap()
    });
    assert!(log.contains("a capability is missing"), "{log}");
}

/// An abort writes no core file, and a process of the same user cannot look into this one.
#[test]
fn secrets_stay_in_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (node, _) = node(folder.path());
    let process = format!("/proc/{}", node.0.id());
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let values: Vec<&str> = core["Max core file size".len()..].split_whitespace().collect();
    assert_eq!(values[..2], ["0", "0"], "{core}");
    // With this capability everything may be looked into.
    if caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_PTRACE).unwrap() {
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_PTRACE).unwrap();
    }
    let looked = std::fs::File::open(format!("{process}/mem"));
    assert!(looked.is_err(), "its memory can be read");
}
