//! A real Prometheus that reads nodes of this test and evaluates the chart's rules.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::process::Running;
use e2e::harness::tools::Tool;
use e2e::harness::{PATIENCE, tree};
use serde_json::{Value, json};
use url::form_urlencoded::byte_serialize;

/// A running Prometheus; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    folder: tempfile::TempDir,
    address: SocketAddr,
    _process: Running,
}

/// An alert that fires.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Firing {
    pub(crate) alert: String,
    pub(crate) node: String,
    pub(crate) volume: String,
}

impl Prometheus {
    /// Starts it with these rules (the groups of a PrometheusRule). It reads every second what
    /// [`reads`](Self::reads) says, under the name of this job, and what the cluster says at an address.
    pub(crate) fn start(rules: &Value, job: &str, cluster: SocketAddr) -> Result<Self> {
        let folder = tree::scratch()?;
        let write = |name: &str, content: &Value| {
            // JSON is YAML as well.
            std::fs::write(folder.path().join(name), content.to_string())
        };
        write("rules.yml", rules)?;
        write("targets.json", &json!([]))?;
        let cluster = [json!({"targets": [cluster.to_string()]})];
        write("cluster.json", &Value::from_iter(cluster))?;
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": job, "file_sd_configs": [{"files": ["targets.json"]}]},
                // As its ServiceMonitor has it: what is said of a DaemonSet is said by another pod.
                {
                    "job_name": "kube-state-metrics",
                    "honor_labels": true,
                    "file_sd_configs": [{"files": ["cluster.json"]}],
                },
            ],
        });
        write("prometheus.yml", &config)?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut process = Running::start(
            "prometheus",
            Command::new(Tool::Prometheus.path()?)
                .arg(format!("--config.file={}", path("prometheus.yml")))
                .arg(format!("--storage.tsdb.path={}", path("data")))
                .args(["--web.listen-address=127.0.0.1:0", "--log.level=info"]),
        )?;
        let address = process.wait_for_line("the address of Prometheus", PATIENCE, |line| {
            let (_, rest) = line.split_once("\"Listening on\" address=")?;
            rest.split_whitespace().next()?.parse().ok()
        })?;
        Ok(Self {
            folder,
            address,
            _process: process,
        })
    }

    /// From now on it reads these nodes, by their names.
    pub(crate) fn reads(&self, nodes: &[(&str, SocketAddr)]) -> Result<()> {
        let nodes = nodes
            .iter()
            .map(|(node, address)| json!({"targets": [address.to_string()], "labels": {"node": node}}));
        let (new, read) = ("targets.new", "targets.json");
        std::fs::write(self.folder.path().join(new), Value::from_iter(nodes).to_string())?;
        // In one go: it reads the file whenever it changes.
        std::fs::rename(self.folder.path().join(new), self.folder.path().join(read))?;
        Ok(())
    }

    /// The samples that a query gives now.
    pub(crate) fn query(&self, query: &str) -> Result<Vec<Value>> {
        let query: String = byte_serialize(query.as_bytes()).collect();
        let data = self.get(&format!("/api/v1/query?query={query}"))?;
        Ok(data["result"].as_array().context("no samples")?.clone())
    }

    /// The alerts that fire now.
    pub(crate) fn firing(&self) -> Result<BTreeSet<Firing>> {
        let data = self.get("/api/v1/alerts")?;
        let alerts = data["alerts"].as_array().context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .map(|alert| {
                let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
                Firing {
                    alert: label("alertname"),
                    node: label("node"),
                    volume: label("volume"),
                }
            })
            .collect())
    }

    /// The summaries of the alerts of a name that fire now.
    pub(crate) fn summaries(&self, alert: &str) -> Result<Vec<String>> {
        let data = self.get("/api/v1/alerts")?;
        let alerts = data["alerts"].as_array().context("no alerts")?;
        let firing = alerts
            .iter()
            .filter(|one| one["state"] == "firing" && one["labels"]["alertname"] == alert);
        Ok(firing
            .map(|one| {
                one["annotations"]["summary"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.contains(" 200 "), "{path}: {head}\n{body}");
        let mut answer: Value = serde_json::from_str(body)?;
        ensure!(answer["status"] == "success", "{path}: {body}");
        Ok(answer["data"].take())
    }
}
