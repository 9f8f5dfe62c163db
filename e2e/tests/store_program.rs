//! The program `store`: what it prints, what it keeps, how it stops.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use blob_client::auth::Credentials;
use blob_client::secret::Secret;
use blob_client::transport::https::Https;
use blob_client::{Client, ClientConfig, Condition, Container, ListOptions, PutOptions};
use bytes::Bytes;
use e2e::harness::runtime;
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vsc_driver::buffer::Arena;

fn store() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
    command.env_remove("AZURE_STORAGE_KEY").stdin(Stdio::null());
    command
}

/// The program while it runs.
struct Running {
    child: Child,
    lines: Vec<String>,
}

impl Running {
    /// Starts it and reads as many lines as it is expected to print.
    fn start(command: &mut Command, lines: usize) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let lines = out.lines().take(lines).map(|line| line.unwrap()).collect();
        Self { child, lines }
    }
    /// Ctrl-C.
    fn stop(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn container(endpoint: &str, account: &str, key: &str) -> Container {
    let key = Credentials::SharedKey {
        account: account.into(),
        key: Secret::new(key.into()),
    };
    container_as(endpoint, key, Arc::new(Https::new()))
}

fn container_as(endpoint: &str, credentials: Credentials, https: Arc<Https>) -> Container {
    let config = ClientConfig::new(endpoint.parse().unwrap(), credentials);
    let client = Client::new(config, https, Arena::new(1 << 20).unwrap()).unwrap();
    client.container("data").unwrap()
}

#[test]
fn serves_containers_and_keeps_them_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        Running::start(
            store()
                .args([
                    "--listen",
                    "127.0.0.1:0",
                    "--container",
                    "data",
                    "--container",
                    "more",
                    "--folder",
                ])
                .arg(folder.path()),
            1,
        )
    };
    let running = start();
    let body = Bytes::from_static(b"kept").into();
    runtime()
        .block_on(container(&running.lines[0], DEV_ACCOUNT, DEV_KEY).put("b", body, &PutOptions::default()))
        .unwrap();
    running.stop();
    let running = start();
    let head = runtime()
        .block_on(container(&running.lines[0], DEV_ACCOUNT, DEV_KEY).head("b", &Condition::none()))
        .unwrap();
    assert_eq!(head.content_length, 4);
    running.stop();
}

#[test]
fn prints_what_a_user_exports() {
    let running = Running::start(
        store()
            .args([
                "--listen",
                "127.0.0.1:0",
                "--account",
                "mine",
                "--print-env",
                "--container",
                "data",
            ])
            .env("AZURE_STORAGE_KEY", "bXkga2V5"),
        4,
    );
    let value = |name: &str| {
        running
            .lines
            .iter()
            .find_map(|line| line.strip_prefix(&format!("export {name}='"))?.strip_suffix('\''))
            .unwrap_or_else(|| panic!("{name} is missing in {:?}", running.lines))
            .to_owned()
    };
    assert_eq!(value("AZURE_STORAGE_ACCOUNT"), "mine");
    let endpoint = value("AZURE_STORAGE_BLOB_ENDPOINT");
    assert!(value("AZURE_STORAGE_CONNECTION_STRING").contains(&format!("BlobEndpoint={endpoint};")));
    let container = container(&endpoint, "mine", &value("AZURE_STORAGE_KEY"));
    runtime().block_on(container.properties()).unwrap();
    running.stop();
}

#[test]
fn speaks_tls_and_gives_tokens_to_the_identities_of_a_file() {
    use blob_client::auth::entra::{Identity, token_source};
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let identities = r#"[{"tenant": "t", "clientId": "app", "secret": "s3cret"}]"#;
    let running = Running::start(
        store()
            .args(["--listen", "127.0.0.1:0", "--container", "data"])
            .args(["--tls", "127.0.0.1:0", "--tokens-tls", "127.0.0.1:0"])
            .args(["--identities", &file("identities", identities)])
            .args(["--tls-certificate", &file("certificate", &made.cert.pem())])
            .args(["--tls-key", &file("key", &made.signing_key.serialize_pem())]),
        3,
    );
    let by_name = |line: &str| {
        assert!(line.starts_with("https://127.0.0.1:"), "{line}");
        line.replace("127.0.0.1", "localhost")
    };
    let (endpoint, authority) = (by_name(&running.lines[1]), by_name(&running.lines[2]));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let https = Arc::new(Https::with_roots(roots));

    let identity = Identity::ServicePrincipal {
        tenant_id: "t".into(),
        client_id: "app".into(),
        secret: Secret::new("s3cret".into()),
    };
    let source = token_source(identity, Some(authority.parse().unwrap()), https.clone()).unwrap();
    let container = container_as(&endpoint, Credentials::Token(source), https.clone());
    runtime().block_on(container.properties()).unwrap();

    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let mut options = SasOptions::new("rl", Duration::from_secs(600));
    options.protocol = Some("https".into());
    let page = |endpoint: &str| {
        let sas = Credentials::Sas(Secret::new(key.container_sas("data", &options)));
        let container = container_as(endpoint, sas, https.clone());
        runtime().block_on(container.list(&ListOptions::default()))
    };
    page(&endpoint).unwrap();
    let error = page(&running.lines[0]).unwrap_err().to_string();
    assert!(error.contains("AuthorizationProtocolMismatch"), "{error}");
    running.stop();
}

#[test]
fn wrong_arguments_name_the_field() {
    for (arguments, wanted) in [
        (&["--account", "mine"][..], "AZURE_STORAGE_KEY"),
        (&["--listen", "nowhere"], "--listen"),
        (&["--container", "Not_Valid"], "--container"),
        (&["--folder", "/dev/null/x"], "--folder"),
        (
            &["--tokens", "127.0.0.1:0", "--identities", "/dev/null/x"],
            "--identities /dev/null/x",
        ),
        (&["--identities", "/dev/null/x"], "--tokens"),
        (&["--tls", "127.0.0.1:0"], "--tls-certificate"),
        (
            &["--tls-certificate", "/dev/null/x", "--tls-key", "/dev/null/y"],
            "/dev/null/x",
        ),
        (&["--tokens", "127.0.0.1:0"], "--identities"),
    ] {
        let mut command = store();
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text.contains(wanted), "{arguments:?}: {text}");
    }
    let mut help = String::new();
    let mut child = store().arg("--help").stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_to_string(&mut help).unwrap();
    assert!(child.wait().unwrap().success());
    for word in ["--listen", "--container", "--folder", "--print-env", "Ctrl-C"] {
        assert!(help.contains(word), "{word}");
    }
}
