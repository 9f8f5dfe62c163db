//! The CSI conformance tests (csi-sanity) against the real node and controller, with real mounts and the
//! embedded store.
//!
//! Nothing is skipped by a flag of ours: what csi-sanity leaves out are tests of capabilities the plugin does
//! not declare.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

use std::path::Path;
use std::process::Command;

use e2e::harness::backend::{Backend, Kind};
use e2e::harness::plugin::Plugin;
use e2e::harness::process::Running;
use e2e::harness::tools::Tool;
use e2e::store::{DEV_ACCOUNT, DEV_KEY};

/// The requests of csi-sanity that may carry secrets, as its secrets file names them.
const SECRETS: [&str; 5] = [
    "CreateVolumeSecret",
    "DeleteVolumeSecret",
    "ControllerValidateVolumeCapabilitiesSecret",
    "NodeStageVolumeSecret",
    "NodePublishVolumeSecret",
];

/// Longest run seen is well below a minute; a hang must still end.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

/// A container per volume.
#[test]
fn conformance_with_containers() {
    conformance("csi-sanity (containers)", "");
}

/// A directory per volume, in one container that exists.
#[test]
fn conformance_with_directories() {
    conformance(
        "csi-sanity (directories)",
        "containerName: shared\nprefix: \"volumes/${pv.metadata.name}\"\n",
    );
}

fn conformance(name: &str, parameters: &str) {
    let tool = Tool::CsiSanity.path().unwrap();
    let backend = Backend::start(Kind::Embedded).unwrap();
    backend.create_container("shared").unwrap();
    let plugin = Plugin::start(None).unwrap();
    let folder = plugin.folder();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let secret = format!("  azurestorageaccountname: {DEV_ACCOUNT}\n  azurestorageaccountkey: {DEV_KEY}\n");
    let secrets: String = SECRETS
        .iter()
        .map(|request| format!("{request}:\n{secret}"))
        .collect();
    let server = backend.endpoint().as_str().trim_end_matches('/');
    let parameters = format!("server: {server}\n{parameters}");

    let mut sanity = Running::start(
        "csi-sanity",
        Command::new(tool)
            .args(["--ginkgo.no-color", "--ginkgo.v"])
            .arg("--csi.endpoint")
            .arg(plugin.node_socket())
            .arg("--csi.controllerendpoint")
            .arg(plugin.controller_socket())
            .arg("--csi.mountdir")
            .arg(folder.join("mount"))
            .arg("--csi.stagingdir")
            .arg(folder.join("staging"))
            .arg("--csi.secrets")
            .arg(file("secrets.yaml", secrets))
            .arg("--csi.testvolumeparameters")
            .arg(file("parameters.yaml", parameters)),
    )
    .unwrap();
    let status = sanity.wait(LIMIT).unwrap();
    let output = sanity.output();
    let (passed, failed, skipped) = counts(&output).unwrap_or_else(|| panic!("no summary in:\n{output}"));
    report(name, passed, failed, skipped);
    assert!(
        status.success() && failed == 0,
        "{failed} of csi-sanity failed:\n{output}"
    );
    // Declared: CREATE_DELETE_VOLUME, staging, statistics, health, single-node writers.
    assert!(passed >= 40, "only {passed} tests were selected:\n{output}");
    assert!(backend.store().is_some());
    let left: Vec<_> = mounts_below(folder);
    assert!(left.is_empty(), "left mounted: {left:?}");
}

/// `Ran 46 of 92 Specs ...`, then `... -- 46 Passed | 0 Failed | 0 Pending | 46 Skipped`.
fn counts(output: &str) -> Option<(u32, u32, u32)> {
    let line = output
        .lines()
        .rev()
        .find(|line| line.contains(" Passed ") && line.contains(" Skipped"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |word: &str| {
        words
            .iter()
            .position(|w| *w == word)
            .and_then(|i| words[i - 1].parse().ok())
    };
    Some((before("Passed")?, before("Failed")?, before("Skipped")?))
}

/// For the summary of the test command; skipped ones are capabilities that the plugin does not declare, so
/// they are no skipped tests of ours.
fn report(name: &str, passed: u32, failed: u32, skipped: u32) {
    println!("{name}: {passed} passed, {failed} failed, {skipped} of capabilities that are not declared");
    if let Some(folder) = std::env::var_os("VSC_BLOB_E2E_REPORT") {
        let file = Path::new(&folder).join(name.replace(['(', ')'], "").replace(' ', "-"));
        std::fs::write(file, format!("{passed} {failed} 0\n")).unwrap();
    }
}

fn mounts_below(folder: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The folder itself is one: its mounts are shared with other names.
    let under = format!("{}/", folder.display());
    table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|at| at.starts_with(&under))
        .map(str::to_owned)
        .collect()
}
