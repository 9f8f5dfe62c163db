//! `vsc-blob-csi mount` and signals: what each does, and what the exit code says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

#[path = "mount_command/doctor.rs"]
mod doctor;
#[path = "mount_command/immutable.rs"]
mod immutable;
#[path = "mount_command/root.rs"]
mod root;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use e2e::harness::backend::{Backend, ContainerView, Kind};
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::process::Running;
use e2e::harness::{PATIENCE, runtime, tools, tree, wait_for};
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};
use nix::sys::signal::Signal;
use vsc_blob_csi::commands::BudgetArgs;
use vsc_blob_csi::commands::size::ByteSize;
use vsc_blob_csi::mounts::calls::Patience;
use vsc_blob_csi::mounts::{Condition, Kernel, Mounts};

const LIMIT: Duration = PATIENCE;

/// A mounted container, freed whatever happens.
struct Mounted {
    process: Running,
    at: PathBuf,
    backend: Backend,
    scratch: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Self {
        let backend = Backend::start(Kind::Embedded).unwrap();
        backend.create_container("photos").unwrap();
        let scratch = tree::scratch().unwrap();
        let at = tree::folder(scratch.path().join("mnt")).unwrap();
        let url = format!("{}/photos", backend.endpoint().as_str().trim_end_matches('/'));
        let mut process = Running::start("mount", &mut command(&url, &at)).unwrap();
        let line = process.wait_for_line("the mount", LIMIT, |l| {
            l.starts_with("mounted ").then(|| l.to_owned())
        });
        assert_eq!(line.unwrap(), format!("mounted {url} at {}", at.display()));
        Self {
            process,
            at,
            backend,
            scratch,
        }
    }

    fn stored(&self, blob: &str) -> Vec<u8> {
        self.backend.container("photos").unwrap().read(blob).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if mounted(&self.at) {
            // Also when it is stopped.
            let _ = self.process.signal(Signal::SIGKILL);
            let _ = self.process.wait(LIMIT);
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

fn command(url: &str, at: &Path) -> Command {
    let mut command = Command::new(tools::vsc_blob_csi().unwrap());
    command.arg("mount").arg(url).arg(at);
    command.args(["--device", "/nonexistent/azure_blob"]);
    command.env("AZURE_STORAGE_KEY", DEV_KEY);
    command
}

fn mounted(at: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .any(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p) == at))
}

#[test]
fn a_signal_unmounts_and_everything_is_stored() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut mount = Mounted::new();
        std::fs::write(mount.at.join("a"), "hello").unwrap();
        mount.process.signal(signal).unwrap();
        assert!(mount.process.wait(LIMIT).unwrap().success());
        assert!(!mounted(&mount.at));
        assert_eq!(mount.stored("a"), b"hello");
    }
}

#[test]
fn a_mount_in_use_is_waited_for() {
    let mut mount = Mounted::new();
    let mut file = std::fs::File::create(mount.at.join("a")).unwrap();
    mount.process.signal(Signal::SIGTERM).unwrap();
    mount
        .process
        .wait_for_line("the notice", LIMIT, |l| l.contains("is in use").then_some(()))
        .unwrap();
    file.write_all(b"still writing").unwrap();
    drop(file);
    assert!(mount.process.wait(LIMIT).unwrap().success());
    assert_eq!(mount.stored("a"), b"still writing");
}

#[test]
fn the_second_signal_detaches_and_the_third_gives_up() {
    let mut mount = Mounted::new();
    let mut file = std::fs::File::create(mount.at.join("a")).unwrap();
    file.write_all(b"hello").unwrap();
    mount.process.signal(Signal::SIGTERM).unwrap();
    mount
        .process
        .wait_for_line("the notice", LIMIT, |l| l.contains("is in use").then_some(()))
        .unwrap();
    mount.process.signal(Signal::SIGTERM).unwrap();
    wait_for("the mount to be detached", LIMIT, || {
        Ok((!mounted(&mount.at)).then_some(()))
    })
    .unwrap();
    assert!(
        mount.process.try_wait().unwrap().is_none(),
        "the open file is still served"
    );
    file.write_all(b" again").unwrap();
    mount.process.signal(Signal::SIGTERM).unwrap();
    let status = mount.process.wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1), "not everything was committed");
    assert!(mount.process.output().contains("before everything was committed"));
}

/// A container that was started while it was mounted has a copy of the mount, which nobody here can unmount.
#[test]
fn the_second_signal_ends_a_copy_in_another_namespace() {
    let mut mount = Mounted::new();
    // It lets go at once of what other tests have mounted.
    let script = r#"awk -v own="$0" '/ - fuse.vsc-blob / && $5 != own { print $5 }' /proc/self/mountinfo |
        while read -r at; do umount -l "$at"; done; echo ready; exec sleep infinity"#;
    let mut holder = Command::new("unshare");
    holder.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let mut holder = Running::start("holder", holder.arg(&mount.at)).unwrap();
    holder
        .wait_for_line("a copy of the mount", LIMIT, |l| (l == "ready").then_some(()))
        .unwrap();
    let there = PathBuf::from(format!("/proc/{}/root{}", holder.id(), mount.at.display()));
    mount.process.signal(Signal::SIGTERM).unwrap();
    mount
        .process
        .wait_for_line("the notice", LIMIT, |l| {
            l.contains("another mount namespace").then_some(())
        })
        .unwrap();
    assert!(!mounted(&mount.at));
    std::fs::write(there.join("a"), "hello").unwrap();
    let mut open = std::fs::File::create(there.join("b")).unwrap();
    open.write_all(b"not closed").unwrap();
    mount.process.signal(Signal::SIGTERM).unwrap();
    assert!(mount.process.wait(LIMIT).unwrap().success());
    assert_eq!(mount.stored("a"), b"hello");
    assert_eq!(mount.stored("b"), b"not closed");
    drop(open);
    holder.signal(Signal::SIGKILL).unwrap();
    holder.wait(LIMIT).unwrap();
}

#[test]
fn unmounting_by_hand_ends_it_well() {
    let mut mount = Mounted::new();
    std::fs::write(mount.at.join("a"), "hello").unwrap();
    tools::run(Command::new("umount").arg(&mount.at)).unwrap();
    assert!(mount.process.wait(LIMIT).unwrap().success());
    assert_eq!(mount.stored("a"), b"hello");
}

/// A call to mount that took so long that its caller has unmounted and mounted anew: what it cleans up is its
/// own.
#[test]
fn a_mount_that_fails_late_leaves_its_successor_alone() {
    use blob_fs::VolumeConfig;
    use blob_fs::store::fake::{FakeStore, Fault, Op};
    use vsc_blob_csi::mounts::Mounter;
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let budget = BudgetArgs {
        budget: ByteSize(32 << 20),
    };
    let resources = {
        let _runtime = runtime().enter();
        budget.resources().unwrap()
    };
    let failing = FakeStore::new();
    failing.set_delay(Duration::from_secs(3));
    failing.fail(Op::List, Fault::Lost, 1);
    let late = std::thread::spawn({
        let (at, resources) = (at.clone(), resources.clone());
        move || {
            let config = VolumeConfig::new("acct/late", Arc::new(failing));
            Kernel.serve_at(config, &at, &resources).map(drop)
        }
    });
    wait_for("the first mount", LIMIT, || Ok(mounted(&at).then_some(()))).unwrap();
    Kernel.unmount(&at, true).unwrap();
    let config = VolumeConfig::new("acct/next", Arc::new(FakeStore::new()));
    let next = Kernel.serve_at(config, &at, &resources).unwrap();
    late.join().unwrap().unwrap_err();
    assert!(mounted(&at), "the successor's mount is gone");
    Kernel.answers(&at).unwrap();
    Kernel.unmount(&at, true).unwrap();
    next.join().unwrap();
}

/// The node plugin's way with a mount that does not answer: a real one, its process stopped in the middle.
#[test]
fn a_hung_mount_is_taken_down_within_bounds() {
    let mut mount = Mounted::new();
    let patience = Patience {
        answer: Duration::from_millis(500),
        unmount: Duration::from_millis(500),
        ..Patience::default()
    };
    mount.process.signal(Signal::SIGSTOP).unwrap();
    // A thread that still runs would answer once more.
    wait_for("every thread to stop", LIMIT, || {
        let mut stopped = true;
        for task in std::fs::read_dir(format!("/proc/{}/task", mount.process.id()))? {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            stopped &= stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"));
        }
        Ok(stopped.then_some(()))
    })
    .unwrap();
    let at = mount.at.clone();
    let state = mount.scratch.path().join("state");
    // Bounded steps only: the whole must be over long before somebody would call it hung.
    let work = async {
        let budget = BudgetArgs {
            budget: ByteSize(32 << 20),
        };
        let mounts = Mounts::new(Arc::new(Kernel), budget.resources().unwrap(), &state, patience).unwrap();
        let condition = mounts.condition(&at).await.unwrap();
        assert!(matches!(condition, Condition::Dead(_)), "{condition:?}");
        mounts.stop(&at).await.unwrap();
        assert_eq!(mounts.condition(&at).await.unwrap(), Condition::NotMounted);
    };
    runtime()
        .block_on(async { tokio::time::timeout(LIMIT, work).await })
        .unwrap();
    assert!(!mounted(&mount.at));
    // Its connection was aborted: the process has nothing left to serve.
    mount.process.signal(Signal::SIGCONT).unwrap();
    mount.process.wait(LIMIT).unwrap();
}

/// What a SAS does not allow is seen on the mount before a program relies on it.
#[test]
fn a_sas_that_may_not_write_gives_a_read_only_mount() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    let view = backend.create_container("photos").unwrap();
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    for (rights, read_only) in [("rl", true), ("rcl", true), ("rdl", false), ("racwdl", false)] {
        for blob in ["d/f", "d/stays"] {
            view.write(blob, &b"hello"[..], &Default::default()).unwrap();
        }
        let sas = signer.container_sas("photos", &SasOptions::new(rights, LIMIT));
        let mount = Mount::start(
            &backend,
            "photos",
            &at,
            &MountOptions {
                sas: Some(sas),
                ..MountOptions::default()
            },
        )
        .unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table
            .lines()
            .find(|line| line.contains(at.to_str().unwrap()))
            .unwrap();
        let options = line.split(' ').nth(5).unwrap();
        assert_eq!(options.starts_with("ro"), read_only, "{rights}: {line}");
        assert_eq!(std::fs::read(at.join("d/f")).unwrap(), b"hello");
        if read_only {
            let error = std::fs::write(at.join("g"), "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{rights}");
        } else {
            std::fs::remove_file(at.join("d/f")).unwrap();
        }
        if rights == "rdl" {
            // Told by who opens: a shell does not hear what close says.
            let stays = at.join("d/stays");
            let append = OpenOptions::new().append(true).open(&stays).map(drop);
            let empty = OpenOptions::new().write(true).truncate(true).open(&stays);
            let new = std::fs::File::create(at.join("new"));
            for ended in [append, empty.map(drop), new.map(drop)] {
                assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::EACCES));
            }
            for script in [
                "echo hi >new",
                "echo hi >>d/stays",
                "mkdir e",
                "mv d/stays d/moved",
            ] {
                let ended = Command::new("sh")
                    .args(["-c", script])
                    .current_dir(&at)
                    .output()
                    .unwrap();
                assert!(!ended.status.success(), "{script}");
            }
            assert_eq!(view.read("d/stays").unwrap(), b"hello");
        }
        mount.unmount().unwrap();
    }
}

/// The blobs of a container, with what they hold.
fn contents(view: &ContainerView) -> BTreeMap<String, Vec<u8>> {
    let names = view.blobs().unwrap().into_keys();
    names
        .map(|name| (name.clone(), view.read(&name).unwrap()))
        .collect()
}

/// Who may write and not delete cannot rename: nothing is there twice because he tried.
#[test]
fn a_sas_that_may_not_delete_renames_nothing() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    let view = backend.create_container("photos").unwrap();
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    for blob in ["f", "g", "d/1", "d/2"] {
        view.write(
            blob,
            format!("this is {blob}\n").into_bytes(),
            &Default::default(),
        )
        .unwrap();
    }
    let sas = signer.container_sas("photos", &SasOptions::new("rcwl", LIMIT));
    let options = MountOptions {
        sas: Some(sas),
        ..MountOptions::default()
    };
    let mount = Mount::start(&backend, "photos", &at, &options).unwrap();
    let mut before = contents(&view);
    for (script, words) in [
        ("mv f h", "Permission denied"),
        ("mv f g", "Permission denied"),
        ("mv d e", "Permission denied"),
        ("rm f", "Permission denied"),
        ("rm -r d", "Permission denied"),
        ("sed -i s/is/was/ f", "Permission denied"),
    ] {
        let ended = Command::new("sh")
            .args(["-c", script])
            .current_dir(&at)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(
            !ended.status.success() && said.contains(words),
            "{script}: {said}"
        );
        let mut after = contents(&view);
        // What sed wrote beside it cannot be removed either.
        after.retain(|name, _| !name.starts_with("sed"));
        assert_eq!(after, before, "{script}");
    }
    // Everything else works, and in place.
    std::fs::write(at.join("new"), "new").unwrap();
    let mut f = OpenOptions::new().append(true).open(at.join("f")).unwrap();
    f.write_all(b"more\n").unwrap();
    drop(f);
    before.insert("new".to_owned(), b"new".to_vec());
    before.insert("f".to_owned(), b"this is f\nmore\n".to_vec());
    let mut after = contents(&view);
    after.retain(|name, _| !name.starts_with("sed"));
    assert_eq!(after, before);
    mount.unmount().unwrap();
}

#[test]
fn bad_input_is_named_and_nothing_stays_mounted() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    backend.create_container("photos").unwrap();
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let endpoint = backend.endpoint().as_str().trim_end_matches('/').to_owned();
    let photos = format!("{endpoint}/photos");
    let failed = |command: &mut Command, wanted: &str| {
        let mut process = Running::start("mount", command).unwrap();
        let status = process.wait(LIMIT).unwrap();
        let output = process.output();
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.contains(wanted), "{wanted:?} is not in: {output}");
        assert!(!output.contains(DEV_KEY), "the key is in: {output}");
        assert!(!mounted(&at));
    };
    failed(
        &mut command(&format!("{endpoint}/nothere"), &at),
        "container \"nothere\" does not exist",
    );
    failed(&mut command(&photos, &scratch.path().join("nowhere")), "DIR: ");
    failed(
        command(&photos, &at).env("AZURE_STORAGE_KEY", "d3Jvbmc="),
        "[AuthenticationFailed]",
    );
    failed(
        command(&photos, &at).env("AZURE_STORAGE_KEY", "not base64"),
        "AZURE_STORAGE_KEY is not base64",
    );
    failed(
        command(&photos, &at).env("AZURE_STORAGE_SAS_TOKEN", "sig=1"),
        "both set",
    );
    failed(
        command(&photos, &at).args(["--transport", "require"]),
        "[ChannelRequired]",
    );
    failed(&mut command("photos", &at), "URL: ");
    let view = backend.container("photos").unwrap();
    view.write("file", &b"x"[..], &Default::default()).unwrap();
    failed(
        &mut command(&format!("{photos}/file"), &at),
        "[PrefixNotDirectory]",
    );
    failed(
        command(&format!("{photos}/nothing"), &at).arg("--read-only"),
        "[PrefixNotFound]",
    );
}

/// Gives the first `answers` listings an empty one and is silent from then on; each request's first line is
/// told.
fn falls_silent(answers: usize) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "http://{}/devstoreaccount1/photos",
        listener.local_addr().unwrap()
    );
    let (told, asked) = std::sync::mpsc::channel();
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    // Ends with the process of the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (told, count) = (told.clone(), Arc::clone(&count));
            std::thread::spawn(move || serve_some(stream.unwrap(), answers, &count, &told));
        }
    });
    (url, asked)
}

fn serve_some(
    stream: TcpStream,
    answers: usize,
    count: &std::sync::atomic::AtomicUsize,
    told: &std::sync::mpsc::Sender<String>,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        if !reader.read_line(&mut first).is_ok_and(|read| read > 0) {
            return;
        }
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            line.clear();
        }
        if answers > 0 && first.contains("include=permissions") {
            // As an account without a hierarchical namespace answers the question whether it has one.
            let refusal = "HTTP/1.1 400 Bad Request\r\nx-ms-request-id: 1\r\ncontent-length: 0\r\n\r\n";
            reader.get_mut().write_all(refusal.as_bytes()).unwrap();
            continue;
        }
        let silent = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) >= answers;
        // Nobody listens any more when the test has seen enough.
        let _ = told.send(first);
        if !silent {
            let body = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
                        <EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";
            let head = "HTTP/1.1 200 OK\r\nx-ms-request-id: 1\r\ncontent-length";
            let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    }
}

/// An endpoint that does not answer is given up at the first signal, not after all deadlines, and nothing
/// stays mounted.
#[test]
fn a_signal_ends_a_mount_that_waits_for_the_service() {
    for (answers, told) in [
        (0, "stopped before anything was mounted"),
        (1, "stopped before the file system answered"),
    ] {
        let scratch = tree::scratch().unwrap();
        let at = tree::folder(scratch.path().join("mnt")).unwrap();
        let (url, asked) = falls_silent(answers);
        let mut process = Running::start("mount", &mut command(&url, &at)).unwrap();
        for _ in 0..=answers {
            asked.recv_timeout(LIMIT).unwrap();
        }
        process.signal(Signal::SIGINT).unwrap();
        let status = process.wait(LIMIT).unwrap();
        let output = process.output();
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.contains(told), "{output}");
        assert!(!mounted(&at));
    }
}
/// HTTPS_PROXY is where https:// endpoints are asked for, and a refusal names it.
#[test]
fn the_environments_proxy_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap().to_string();
    let (told, asked) = std::sync::mpsc::channel();
    // Ends with the process of the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let _ = told.send(line);
            let refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
            let _ = reader.get_mut().write_all(refusal);
        }
    });
    let scratch = tree::scratch().unwrap();
    let at = tree::folder(scratch.path().join("mnt")).unwrap();
    let mut command = command("https://acct.blob.core.windows.net/photos", &at);
    command.env("HTTPS_PROXY", format!("http://me:canary@{proxy}"));
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    let mut process = Running::start("mount", &mut command).unwrap();
    assert_eq!(
        asked.recv_timeout(LIMIT).unwrap().trim_end(),
        "CONNECT acct.blob.core.windows.net:443 HTTP/1.1"
    );
    let status = process.wait(LIMIT).unwrap();
    let output = process.output();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(
        output.contains(&proxy) && output.contains("HTTPS_PROXY") && !output.contains("canary"),
        "{output}"
    );
}
