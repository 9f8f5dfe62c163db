//! `vsc-blob-csi doctor URL`: what a container holds that no mount shows, and what was left half done.

use std::collections::HashMap;
use std::process::Command;

use base64::Engine as _;
use blob_client::{ListOptions, PutOptions};
use e2e::harness::backend::{Backend, ContainerView, Kind};
use e2e::harness::{runtime, tools};
use e2e::store::{DEV_ACCOUNT, DEV_KEY};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use vsc_blob_csi::cluster::Config;
use vsc_blob_csi::commands::doctor::reach::{ReachArgs, follow};
use vsc_blob_csi::commands::{DeviceArgs, LendingArgs};

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

/// An API server that knows these objects, by their paths; one that is null may not be read.
struct Api {
    config: Config,
    task: tokio::task::JoinHandle<()>,
}

impl Api {
    fn new(objects: &[(&str, Value)]) -> Self {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let known: HashMap<String, Value> = objects
            .iter()
            .map(|(path, object)| ((*path).to_owned(), object.clone()))
            .collect();
        let task = runtime().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { break };
                    asked.push(byte);
                }
                let asked = String::from_utf8(asked).unwrap();
                let path = asked.split([' ', '?']).nth(1).unwrap_or_default();
                let failed = |code, reason: &str| {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "code": code,
                        "reason": reason, "message": reason, "metadata": {}});
                    (code, status)
                };
                let (code, body) = match known.get(path) {
                    Some(Value::Null) => failed(403, "Forbidden"),
                    Some(object) => (200, object.clone()),
                    None => failed(404, "NotFound"),
                };
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
            }
        });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        Self { config, task }
    }

    /// The steps of a volume: which, and whether it succeeded.
    fn follow(&self, volume: &str) -> (Vec<(&'static str, bool)>, String) {
        let args = ReachArgs {
            volume: volume.to_owned(),
            json: false,
            lending: LendingArgs::default(),
            device: DeviceArgs {
                device: "/nonexistent/azure_blob".into(),
            },
        };
        let report = runtime().block_on(follow(self.config.clone(), &args)).unwrap();
        let steps = report.steps.iter().map(|step| (step.step, step.ok)).collect();
        assert_eq!(report.failed(), report.steps.iter().any(|step| !step.ok));
        let sentences = report.sentences();
        assert!(!sentences.contains(DEV_KEY), "{sentences}");
        (steps, sentences)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[test]
fn the_way_of_a_volume_is_told_step_by_step() {
    let backend = Backend::start(Kind::Embedded).unwrap();
    backend.create_container("photos").unwrap();
    let volume = |server: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "photos"}, "spec": {
            "claimRef": {"namespace": "team", "name": "data"},
            "mountOptions": ["uid=1000"],
            "csi": {"driver": "vsc-blob.csi.azure.com", "volumeHandle": "photos",
                "volumeAttributes": {"server": server, "containerName": "photos"},
                "nodeStageSecretRef": {"namespace": "team", "name": "account"}}}})
    };
    let claim = |bound: Value| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": "team", "name": "data"}, "spec": bound})
    };
    let secret = |key: &str| {
        let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"namespace": "team", "name": "account"}, "data": {
            "azurestorageaccountname": encoded(DEV_ACCOUNT), "azurestorageaccountkey": encoded(key)}})
    };
    let endpoint = backend.endpoint().as_str().trim_end_matches('/').to_owned();
    let (at_volume, at_claim, at_secret) = (
        "/api/v1/persistentvolumes/photos",
        "/api/v1/namespaces/team/persistentvolumeclaims/data",
        "/api/v1/namespaces/team/secrets/account",
    );
    let bound = claim(json!({"volumeName": "photos"}));
    let all = [
        "objects", "settings", "Secret", "DNS", "TCP", "HTTP", "clock", "token", "rights",
    ];
    let up_to = |failed: &[&str], steps: &[&'static str]| -> Vec<(&'static str, bool)> {
        steps.iter().map(|step| (*step, !failed.contains(step))).collect()
    };

    let good = [
        (at_volume, volume(&endpoint)),
        (at_claim, bound.clone()),
        (at_secret, secret(DEV_KEY)),
    ];
    for name in ["photos", "team/data"] {
        let (steps, told) = Api::new(&good).follow(name);
        assert_eq!(steps, up_to(&[], &all), "{told}");
        assert!(told.contains("list, read, write and delete"), "{told}");
    }
    let (steps, told) = Api::new(&good).follow("another");
    assert_eq!(steps, up_to(&["objects"], &all[..1]), "{told}");
    let unbound = [(at_claim, claim(json!({})))];
    let (steps, told) = Api::new(&unbound).follow("team/data");
    assert_eq!(steps, up_to(&["objects"], &all[..1]), "{told}");
    assert!(told.contains("not bound"), "{told}");

    let wrong_key = [(at_volume, volume(&endpoint)), (at_secret, secret("d3Jvbmc="))];
    let (steps, told) = Api::new(&wrong_key).follow("photos");
    assert_eq!(steps, up_to(&["rights"], &all), "{told}");

    // What only kubelet may read: the network is looked at all the same.
    let closed = [(at_volume, volume(&endpoint)), (at_secret, Value::Null)];
    let (steps, told) = Api::new(&closed).follow("photos");
    assert_eq!(steps, up_to(&["Secret"], &all[..7]), "{told}");
    assert!(told.contains("node.secretNamespaces"), "{told}");

    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0");
    let gone = runtime().block_on(gone).unwrap().local_addr().unwrap();
    let nowhere = format!("http://{gone}/{DEV_ACCOUNT}");
    let away = [(at_volume, volume(&nowhere)), (at_secret, secret(DEV_KEY))];
    let (steps, told) = Api::new(&away).follow("photos");
    let taken = [
        "objects", "settings", "Secret", "DNS", "TCP", "HTTP", "token", "rights",
    ];
    assert_eq!(steps, up_to(&["TCP", "HTTP", "rights"], &taken), "{told}");
}
