//! The official Python SDK, unmodified, against the embedded store over HTTP: e2e/python/sdk_check.py.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::process::Command;

use e2e::store::{BlobStore, DEV_ACCOUNT, DEV_KEY, StoreConfig};

/// Environment variable with a Python that has the packages of e2e/python/requirements.txt.
const PYTHON: &str = "E2E_PYTHON";

fn run_against(config: StoreConfig) {
    let Some(python) = std::env::var_os(PYTHON) else {
        panic!(
            "{PYTHON} is not set: run e2e/test, which installs the SDK and sets it (or point it to a Python \
             with e2e/python/requirements.txt installed)"
        );
    };
    let store = BlobStore::new(config).unwrap();
    let server = e2e::harness::runtime()
        .block_on(store.serve("127.0.0.1:0".parse().unwrap()))
        .unwrap();
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/sdk_check.py"))
        .arg(server.endpoint().as_str())
        .env("AZURE_STORAGE_ACCOUNT", DEV_ACCOUNT)
        .env("AZURE_STORAGE_KEY", DEV_KEY)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("starting python");
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(
        output.status.success() && passed >= 14,
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_sdk_is_content_with_the_store_in_memory() {
    run_against(StoreConfig::default());
}

#[test]
fn the_sdk_is_content_with_the_store_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    run_against(StoreConfig {
        folder: Some(folder.path().to_owned()),
        ..Default::default()
    });
}
