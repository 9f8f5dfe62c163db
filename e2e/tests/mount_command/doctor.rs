//! `vsc-blob-csi doctor URL`: what a container holds that no mount shows, and what was left half done.

use std::process::Command;

use blob_client::{ListOptions, PutOptions};
use e2e::harness::backend::{Backend, ContainerView, Kind};
use e2e::harness::{runtime, tools};
use e2e::store::DEV_KEY;

/// Puts a blob with metadata; its version.
fn put(view: &ContainerView, blob: &str, metadata: &[(&str, &str)]) -> String {
    let options = PutOptions {
        metadata: metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..PutOptions::default()
    };
    let written = runtime().block_on(view.client().put(blob, bytes::Bytes::new().into(), &options));
    written.unwrap().etag.0
}

/// Runs doctor; whether it succeeded, and what it says of the volume: kind, blob, outcome.
fn doctor(url: &str, arguments: &[&str]) -> (bool, Vec<(String, String, Option<String>)>) {
    let output = Command::new(tools::vsc_blob_csi().unwrap())
        .args(["doctor", "--json", "--device", "/nonexistent/azure_blob", url])
        .args(arguments)
        .env("AZURE_STORAGE_KEY", DEV_KEY)
        .env_remove("AZURE_STORAGE_SAS_TOKEN")
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let findings = report["volume"]["findings"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let told = |finding: &serde_json::Value| {
        (
            text(&finding["kind"]).unwrap(),
            text(&finding["blob"]).unwrap(),
            text(&finding["outcome"]),
        )
    };
    (output.status.success(), findings.iter().map(told).collect())
}

#[test]
fn what_is_hidden_is_listed_and_what_was_left_is_mended() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    let view = backend.create_container("photos").unwrap();
    let url = format!("{}/photos", backend.endpoint().as_str().trim_end_matches('/'));
    assert_eq!(doctor(&url, &[]), (true, vec![]));
    let folder = ("hdi_isfolder", "true");
    let old = put(&view, "old", &[folder]);
    put(&view, "new", &[folder, ("vsc_moved_from", &old)]);
    put(&view, "old/1", &[]);
    put(&view, "note", &[folder, ("vsc_moved_from", "\"0x8\"")]);
    put(&view, ".vsc-blob-hidden.1", &[("vsc_hidden", "true")]);
    put(&view, ".vsc-blob-hidden.2", &[("vsc_hidden", "true")]);
    let lease = view.client().acquire_lease(".vsc-blob-hidden.2", Some(60));
    runtime().block_on(lease).unwrap();
    put(&view, "a//b", &[]);
    let told = |outcomes: [Option<&str>; 5]| {
        let found = [
            ("Deleted", ".vsc-blob-hidden.1"),
            ("Deleted", ".vsc-blob-hidden.2"),
            ("Unshown", "a//b"),
            ("HalfMoved", "new"),
            ("StrayNote", "note"),
        ];
        let told = found.iter().zip(outcomes);
        told.map(|((kind, blob), outcome)| {
            ((*kind).to_owned(), (*blob).to_owned(), outcome.map(str::to_owned))
        })
        .collect::<Vec<_>>()
    };
    let before = names(&view);
    assert_eq!(doctor(&url, &[]), (true, told([None; 5])));
    assert_eq!(names(&view), before, "looking changes nothing");
    let outcomes = ["mended", "left", "left", "mended", "mended"].map(Some);
    assert_eq!(doctor(&url, &["--mend"]), (true, told(outcomes)));
    assert_eq!(
        names(&view),
        [".vsc-blob-hidden.2", "a//b", "new", "new/1", "note"]
    );
    let (_, left) = doctor(&url, &[]);
    let left: Vec<&str> = left.iter().map(|(_, blob, _)| blob.as_str()).collect();
    assert_eq!(left, [".vsc-blob-hidden.2", "a//b"]);
}

/// A container that is not there, or a key that is wrong, is told as `mount` tells it.
#[test]
fn a_container_that_does_not_answer_is_named() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    let url = format!("{}/nothere", backend.endpoint().as_str().trim_end_matches('/'));
    let output = Command::new(tools::vsc_blob_csi().unwrap())
        .args(["doctor", "--device", "/nonexistent/azure_blob", &url])
        .env("AZURE_STORAGE_KEY", DEV_KEY)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("\"nothere\" does not exist"), "{text}");
}

fn names(view: &ContainerView) -> Vec<String> {
    let options = ListOptions::default();
    let page = runtime().block_on(view.client().list(&options)).unwrap();
    let blobs = page.items.into_iter().filter_map(|item| match item {
        blob_client::ListItem::Blob { name, .. } => Some(name),
        blob_client::ListItem::Prefix { .. } => None,
    });
    blobs.collect()
}
