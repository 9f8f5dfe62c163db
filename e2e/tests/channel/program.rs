//! The program `mock-vsp`: another process behind the device, steered by its control file, ended by a signal.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use e2e::harness::PATIENCE;
use e2e::harness::process::Running;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vsc_driver::channel::{Channel, ChannelConfig, ChannelError, Data};
use vsc_driver::framing::response::STORE_UNREACHABLE;

use crate::fixture::{Fixture, answer};

/// Ends the program and frees its mount, whatever the test did.
struct Program {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // A test that failed half-way may have left two mounts there.
        while nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    }
}

fn start(args: &[&str]) -> Program {
    let dir = tempfile::tempdir().unwrap();
    Program {
        child: spawn(dir.path(), args),
        dir,
    }
}

fn spawn(dir: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mock-vsp"))
        .arg(dir)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads the lines that follow the mount; answers the first one, and what else will come (a program whose
/// output nobody takes would end).
fn mounted(program: &mut Program) -> (String, BufReader<ChildStdout>) {
    let mut out = BufReader::new(program.child.stdout.take().unwrap());
    let lines: Vec<String> = out.by_ref().lines().take(3).collect::<Result<_, _>>().unwrap();
    (lines[0].clone(), out)
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_until_a_signal_and_unmounts() {
    let mut program = start(&["--endpoint", "http://127.0.0.1:1", "--set", "eagain_next=3"]);
    let (line, mut out) = mounted(&mut program);
    let device = program.dir.path().join("azure_blob");
    assert_eq!(line, format!("device   {}", device.display()));

    let fixture = Fixture::new();
    let channel = Channel::open(ChannelConfig {
        device: device.clone(),
        ..Default::default()
    })
    .unwrap();
    // Nobody listens on port 1: the program says so in the answer, through another process's memory.
    let completion = channel
        .submit(fixture.rest("GET", "/x", Data::None))
        .await
        .unwrap();
    assert_eq!(
        (completion.status, answer(&completion).unwrap().status),
        (0, STORE_UNREACHABLE)
    );
    assert_eq!(channel.stats().eagain, 3);

    // The channel still holds the device open: the unmount has to be a lazy one.
    kill(Pid::from_raw(program.child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(program.child.wait().unwrap().success());
    assert!(rest.contains("1 requests (1 rest,"), "{rest}");
    assert!(!device.exists(), "still mounted");
    let error = channel
        .submit(fixture.rest("GET", "/x", Data::None))
        .await
        .unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_server_is_killed_is_gone_and_its_successor_is_found() {
    let mut program = start(&["--endpoint", "http://127.0.0.1:1"]);
    let _out = mounted(&mut program);
    let fixture = Fixture::new();
    let config = ChannelConfig {
        device: program.dir.path().join("azure_blob"),
        ..Default::default()
    };
    let channel = Channel::open(config).unwrap();
    channel
        .submit(fixture.rest("GET", "/x", Data::None))
        .await
        .unwrap();

    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let error = channel
        .submit(fixture.rest("GET", "/x", Data::None))
        .await
        .unwrap_err();
    assert!(matches!(error, ChannelError::Gone { .. }), "{error}");

    nix::mount::umount2(program.dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    program.child = spawn(program.dir.path(), &["--endpoint", "http://127.0.0.1:1"]);
    let _out = mounted(&mut program);
    let mut tries = 0;
    while channel
        .submit(fixture.rest("GET", "/x", Data::None))
        .await
        .is_err()
    {
        tries += 1;
        assert!(tries < 10_000, "the successor was not found");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(channel.stats().reopened, 1);
}

/// A stuck host must not take the doctor with it: that is what one asks it about.
#[test]
fn the_doctor_tells_of_a_device_that_does_not_answer() {
    let mut program = start(&["--endpoint", "http://127.0.0.1:1"]);
    let _out = mounted(&mut program);
    let pid = Pid::from_raw(program.child.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    // A thread that still runs would answer once more.
    e2e::harness::wait_for("every thread to stop", PATIENCE, || {
        let mut stopped = true;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            stopped &= stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"));
        }
        Ok(stopped.then_some(()))
    })
    .unwrap();
    let mut command = Command::new(e2e::harness::tools::vsc_blob_csi().unwrap());
    command
        .arg("doctor")
        .arg("--device")
        .arg(program.dir.path().join("azure_blob"));
    let mut doctor = Running::start("doctor", &mut command).unwrap();
    doctor.wait(PATIENCE).unwrap();
    let report = doctor.output();
    assert!(report.contains("it does not answer"), "{report}");
    assert!(report.contains("FUSE: "), "the rest is told:\n{report}");
    kill(pid, Signal::SIGCONT).unwrap();
}

#[test]
fn bad_arguments_are_named() {
    for (args, expected) in [
        (&["--set", "no_such=1"][..], "no_such"),
        (&["--endpoint", "/path/only"][..], "--endpoint"),
    ] {
        let mut program = start(args);
        let mut error = String::new();
        program
            .child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        assert!(!program.child.wait().unwrap().success());
        assert!(error.contains(expected), "{error}");
        assert!(!program.dir.path().join("azure_blob").exists(), "left mounted");
    }
}
