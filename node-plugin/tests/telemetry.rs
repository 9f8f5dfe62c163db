//! Health and metrics of the real program, over HTTP; and docs/metrics.md against a real scrape.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use csi_proto::csi::NodeStageVolumeRequest;
use csi_proto::csi::node_client::NodeClient;
use vsc_blob_csi::grpc::server;

/// A running `node` or `controller`; killed at the end.
struct Program {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Program {
    /// Starts it on a port that is free, and waits until it says which.
    fn start(command: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_vsc-blob-csi"))
            .args([command, "--node-id", "n", "--health-address", "127.0.0.1:0"])
            .args(["--device", "/nonexistent/azure_blob", "--endpoint"])
            .arg(folder.path().join("csi.sock"))
            .args(
                more.iter()
                    .map(|arg| arg.replace("FOLDER", folder.path().to_str().unwrap())),
            )
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let start = seen.len();
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "it ended:\n{seen}");
            if let Some((_, rest)) = seen[start..].split_once("address=") {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        // A full pipe would stop it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));
        Self {
            child,
            address,
            folder,
        }
    }

    fn node() -> Self {
        Self::start("node", &["--state-dir", "FOLDER/state", "--budget", "32MiB"])
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("csi.sock")
    }

    /// Status line and headers, and body.
    fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stage that fails before anything is asked of the network.
fn failing_stage(socket: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(async {
        let mut node = NodeClient::new(server::connect(socket).await.unwrap());
        node.node_stage_volume(NodeStageVolumeRequest::default()).await
    });
    let status = outcome.unwrap_err();
    assert!(status.message().ends_with("[MissingField]"), "{status}");
    assert!(status.metadata().get("x-vsc-blob-reason").is_none(), "{status:?}");
}

#[test]
fn a_node_tells_health_and_counts_calls() {
    let node = Program::node();
    let (head, body) = node.get("/healthz");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, "ok\n");
    let (head, body) = node.get("/readyz");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
    failing_stage(&node.socket());
    let (head, metrics) = node.get("/metrics");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    for line in [
        r#"vsc_blob_rpc_failures_total{method="NodeStageVolume",reason="MissingField"} 1"#,
        r#"vsc_blob_rpc_duration_seconds_count{method="NodeStageVolume",code="InvalidArgument"} 1"#,
        "vsc_blob_mounts 0",
        "vsc_blob_mounts_limit 8",
        r#"vsc_blob_budget_bytes{kind="limit"} 33554432"#,
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
}

/// The node's folders were cleaned by somebody: kubelet finds the driver again, and no mount is lost to a
/// restart.
#[test]
fn sockets_that_vanish_are_bound_again() {
    let options = [
        "--state-dir",
        "FOLDER/state",
        "--budget",
        "32MiB",
        "--registration-dir",
        "FOLDER/registry",
    ];
    let node = Program::start("node", &options);
    let registration = node
        .folder
        .path()
        .join("registry/vsc-blob.csi.azure.com-reg.sock");
    let sockets = [node.socket(), registration];
    let again = || {
        let until = Instant::now() + Duration::from_secs(60);
        // Who asks within a second gets the same answer, and nothing is looked at.
        while sockets.iter().any(|socket| UnixStream::connect(socket).is_err()) {
            assert!(Instant::now() < until, "they are not bound again");
            let (head, body) = node.get("/healthz");
            assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        }
        failing_stage(&sockets[0]);
    };
    sockets
        .iter()
        .for_each(|socket| std::fs::remove_file(socket).unwrap());
    again();
    for socket in &sockets {
        std::fs::remove_file(socket).unwrap();
        // Of a process that has ended.
        drop(UnixListener::bind(socket).unwrap());
    }
    again();
}

#[test]
fn a_controller_tells_health() {
    let controller = Program::start("controller", &[]);
    for path in ["/healthz", "/readyz"] {
        let (head, body) = controller.get(path);
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
    }
    let (_, metrics) = controller.get("/metrics");
    assert!(metrics.contains("vsc_blob_build_info"), "{metrics}");
    assert!(!metrics.contains("vsc_blob_mounts"), "{metrics}");
}

#[test]
fn a_taken_address_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vsc-blob-csi"))
        .args(["controller", "--health-address", &address, "--endpoint"])
        .arg(folder.path().join("csi.sock"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("--health-address {address}")), "{said}");
}

/// Metrics of a scrape: name as samples carry it, with type and labels.
fn scraped(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut types = BTreeMap::new();
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            types.insert(name.to_owned(), kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let sample = line.split(['{', ' ']).next().unwrap();
        let base = |suffix| {
            sample
                .strip_suffix(suffix)
                .filter(|base| types.contains_key(*base))
        };
        let family = base("_total")
            .or(base("_info"))
            .or(base("_bucket"))
            .or(base("_sum"))
            .or(base("_count"))
            .or(base(""))
            .unwrap_or_else(|| panic!("no type for {line}"));
        let kind = &types[family];
        // A histogram's samples share the family's name.
        let name = if kind == "histogram" { family } else { sample };
        let labels = line
            .split_once('{')
            .map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let labels = labels
            .split("\",")
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .filter(|label| label != "le");
        let entry = found
            .entry(name.to_owned())
            .or_insert_with(|| (kind.clone(), BTreeSet::new()));
        entry.1.extend(labels);
    }
    found
}

#[test]
fn the_page_lists_what_a_node_really_serves() {
    // Without names there is a sum of all volumes even when there is none.
    let more = [
        "--state-dir",
        "FOLDER/state",
        "--budget",
        "32MiB",
        "--metrics-volumes",
        "0",
    ];
    let node = Program::start("node", &more);
    failing_stage(&node.socket());
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let documented: BTreeMap<_, _> = page
        .lines()
        .filter(|line| line.starts_with("| `vsc_blob_"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let name = cells.next().unwrap().trim_matches('`').to_owned();
            let kind = cells.next().unwrap().to_owned();
            let labels = cells.next().unwrap().split('`').skip(1).step_by(2);
            let labels = labels
                .map(|label| label.split('=').next().unwrap().to_owned())
                .collect();
            assert!(cells.next().unwrap().len() > 10, "no meaning: {line}");
            (name, (kind, labels))
        })
        .collect();
    assert_eq!(
        scraped(&node.get("/metrics").1),
        documented,
        "left: scraped; right: docs/metrics.md"
    );
}
