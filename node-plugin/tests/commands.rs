//! The program as a stranger meets it: help for every command, and a clear error for what is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_vsc-blob-csi"));
    for name in [
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_ACCOUNT",
        "AZURE_STORAGE_SAS_TOKEN",
        "NODE_ID",
        "RUST_LOG",
    ] {
        program.env_remove(name);
    }
    program
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Fails with a message that has all these words, and without the look of a crash.
fn refused(arguments: &[&str], words: &[&str]) {
    let output = run(arguments);
    let message = text(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: no {word:?} in\n{message}");
    }
    assert!(
        !message.contains("panicked") && !message.contains("RUST_BACKTRACE"),
        "{message}"
    );
}

/// An operator who must have FIPS gets it, or no program at all.
#[test]
fn a_fips_module_is_there_or_missed() {
    let fips = cfg!(feature = "fips");
    let folder = tempfile::tempdir().unwrap();
    let device = folder.path().join("azure_blob");
    let doctor = ["doctor", "--json", "--device", device.to_str().unwrap()];
    let asked = [
        program().args(doctor).arg("--require-fips").output().unwrap(),
        program()
            .args(doctor)
            .env("VSC_BLOB_CSI_REQUIRE_FIPS", "true")
            .output()
            .unwrap(),
    ];
    for output in asked {
        let told = text(&output.stderr);
        assert_eq!(output.status.success(), fips, "{told}");
        assert!(fips || told.contains("deploy/image --fips"), "{told}");
        let report = text(&output.stdout);
        assert!(!fips || report.contains(r#""program": true"#), "{report}");
    }
}

#[test]
fn every_command_has_help() {
    let all = run(&["--help"]);
    assert!(all.status.success());
    let all = text(&all.stdout);
    for command in [
        "node",
        "controller",
        "mount",
        "doctor",
        "cluster-prepare",
        "cluster-cleanup",
    ] {
        assert!(all.contains(command), "--help does not name {command}");
        let help = run(&[command, "--help"]);
        assert!(help.status.success(), "{command} --help");
        let help = text(&help.stdout);
        assert!(
            help.contains("Usage:") && help.contains("Options:"),
            "{command} --help:\n{help}"
        );
    }
    for command in ["node", "controller"] {
        let help = text(&run(&[command, "--help"]).stdout);
        for option in ["--endpoint", "--node-id", "--device"] {
            assert!(help.contains(option), "{command} --help does not name {option}");
        }
    }
}

#[test]
fn the_version_is_told() {
    let version = run(&["--version"]);
    let fips = if cfg!(feature = "fips") { " (FIPS)" } else { "" };
    assert_eq!(
        text(&version.stdout).trim(),
        format!("vsc-blob-csi {}{fips}", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_arguments_are_named() {
    refused(&[], &["Usage:"]);
    refused(&["mount"], &["URL", "DIR"]);
    refused(&["mount", "not a url", "/tmp"], &["not a url"]);
    refused(
        &["mount", "https://acct.blob.core.windows.net", "/tmp"],
        &["container"],
    );
    refused(
        &["mount", "--transport", "pigeon", "https://a/c", "/tmp"],
        &["pigeon", "prefer"],
    );
    refused(
        &["mount", "--budget", "much", "https://a/c", "/tmp"],
        &["much", "512MiB"],
    );
    refused(
        &["mount", "--file-mode", "999", "https://a/c", "/tmp"],
        &["999", "octal"],
    );
    refused(&["node"], &["--node-id"]);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let node = ["node", "--node-id", "n", "--state-dir", state];
    refused(
        &[&node[..], &["--endpoint", "tcp://127.0.0.1:1"]].concat(),
        &["--endpoint", "unix"],
    );
    refused(
        &[&node[..], &["--max-volumes", "0"]].concat(),
        &["--max-volumes", "0"],
    );
    refused(
        &[&node[..], &["--max-volumes", "9", "--budget", "32MiB"]].concat(),
        &["--max-volumes", "9", "--budget 36MiB", "it can be 8"],
    );
    refused(
        &["controller", "--health-address", "29652"],
        &["--health-address", "29652"],
    );
    refused(
        &["controller", "--endpoint", "relative.sock"],
        &["--endpoint", "unix"],
    );
}

#[test]
fn wrong_credentials_are_named_and_not_shown() {
    let output = program()
        .args(["mount", "https://acct.blob.core.windows.net/photos", "/tmp"])
        .env("AZURE_STORAGE_KEY", "canary, no base64!")
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert!(!output.status.success());
    assert!(
        message.contains("AZURE_STORAGE_KEY") && !message.contains("canary"),
        "{message}"
    );
}

/// The socket's place is taken by a file of somebody else: not removed.
#[test]
fn a_file_at_the_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("csi.sock");
    std::fs::write(&path, "precious").unwrap();
    refused(
        &["controller", "--endpoint", &format!("unix://{}", path.display())],
        &["csi.sock", "no socket"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// A program that runs until the end of the test, and what it says.
struct Started {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Started {
    fn new(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads what it says until these words come.
    fn says(&mut self, words: &str) {
        let mut seen = String::new();
        while !seen.contains(words) {
            assert_ne!(
                self.log.read_line(&mut seen).unwrap(),
                0,
                "no {words:?} in:\n{seen}"
            );
        }
    }

    /// SIGTERM, and what it says to its end.
    fn end(mut self) -> (ExitStatus, String) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node on the state and the socket of a folder.
fn node(folder: &Path) -> Command {
    let mut node = program();
    node.args(["node", "--node-id", "n", "--budget", "32MiB"])
        .args(["--device", "/nonexistent/azure_blob", "--endpoint"])
        .arg(folder.join("csi.sock"))
        .arg("--state-dir")
        .arg(folder.join("state"));
    node
}

#[test]
fn a_second_node_process_waits_and_then_says_why_it_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Started::new(&mut node(folder.path()));
    first.says("serving the node");
    let mut impatient = node(folder.path());
    let output = impatient.args(["--predecessor-timeout", "1s"]).output().unwrap();
    let message = text(&output.stderr);
    assert!(!output.status.success(), "{message}");
    for words in [
        "waiting for it",
        "another node process",
        "--state-dir",
        "after 1s",
    ] {
        assert!(message.contains(words), "no {words:?} in {message}");
    }
    // One that waits goes when it is told to.
    let mut waiting = Started::new(&mut node(folder.path()));
    waiting.says("waiting for it");
    let (status, rest) = waiting.end();
    assert!(status.success(), "{rest}");
    // The first has noticed nothing of both.
    assert!(UnixStream::connect(folder.path().join("csi.sock")).is_ok());
    let (status, rest) = first.end();
    assert!(status.success(), "{rest}");
    assert!(!folder.path().join("csi.sock").exists());
}

/// At its end a process takes away what it bound itself: not the socket of its successor.
#[test]
fn a_socket_of_another_process_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("csi.sock");
    let mut controller = program();
    controller.arg("controller").arg("--endpoint").arg(&path);
    let mut controller = Started::new(&mut controller);
    controller.says("serving the controller");
    std::fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    let (status, rest) = controller.end();
    assert!(status.success(), "{rest}");
    assert!(
        UnixStream::connect(&path).is_ok(),
        "the successor's socket was removed"
    );
}

#[test]
fn the_doctor_says_why_https_is_used() {
    let nowhere = Path::new("/nonexistent/azure_blob");
    let report = run(&["doctor", "--device", nowhere.to_str().unwrap()]);
    let report = text(&report.stdout);
    assert!(report.contains("HTTPS, because"), "{report}");
    assert!(report.contains("FUSE: "), "{report}");
    assert!(report.contains("/nonexistent/azure_blob"), "{report}");
}

/// The unit that people copy starts the program with options it has.
#[test]
fn the_sample_unit_starts_the_program() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/vsc-blob-mount.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let mut starts = unit.lines().filter_map(|line| line.strip_prefix("ExecStart="));
    let line = starts.next().unwrap();
    assert_eq!(starts.next(), None);
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/vsc-blob-csi"));
    let words: Vec<&str> = words
        .map(|word| {
            if word.starts_with("/mnt/") {
                "/nonexistent/mnt"
            } else {
                word
            }
        })
        .collect();
    refused(&words, &["DIR: /nonexistent/mnt"]);
}
