//! The command `driver` on the machine of the test, which normally is not offered the device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

fn driver(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vsc-blob-csi"))
        .arg("driver")
        .args(arguments)
        .env_remove("VSC_BLOB_CSI_DRIVER_OFF")
        .env_remove("VSC_BLOB_CSI_DRIVER_SKIP")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn load_says_not_offered_in_one_sentence_and_succeeds() {
    if Path::new("/sys/bus/vmbus").exists() {
        eprintln!("this machine has a VMBus, so the outcome of a load is not known beforehand");
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("state");
    let output = driver(&["load", "--state", folder.to_str().unwrap()]);
    let said = text(&output);
    assert!(said.starts_with("not offered: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!folder.exists(), "nothing is written on such a machine");
}

#[test]
fn status_is_json_for_machines_and_words_for_people() {
    let json: serde_json::Value = serde_json::from_str(&text(&driver(&["status", "--json"]))).unwrap();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(json["kernel"], kernel.trim());
    assert!(json["offered"].is_boolean(), "{json}");
    assert!(text(&driver(&["status"])).starts_with(&format!("kernel: {kernel}")));
}

#[test]
fn off_is_off() {
    let said = text(&driver(&["load", "--off"]));
    assert!(said.starts_with("switched off"), "{said}");
    let output = Command::new(env!("CARGO_BIN_EXE_vsc-blob-csi"))
        .args(["driver", "load", "--json"])
        .env("VSC_BLOB_CSI_DRIVER_OFF", "true")
        .output()
        .unwrap();
    assert!(text(&output).contains(r#""result":"off""#), "{output:?}");
}

#[test]
fn options_are_checked() {
    if Path::new("/sys/bus/vmbus").exists() {
        eprintln!("this machine has a VMBus, so the outcome of a load is not known beforehand");
        return;
    }
    // Nothing to do is a success.
    assert!(text(&driver(&["load", "--strict"])).starts_with("not offered: "));
    assert!(text(&driver(&["load", "--skip", "in-box,prebuilt"])).starts_with("not offered: "));
    let output = driver(&["load", "--skip", "nonsense"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
