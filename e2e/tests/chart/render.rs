//! Running helm, and reading what it renders.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::harness::tools::Tool;
use serde_json::Value;

/// The versions between which the chart decides something, and the newest it was rendered for.
pub(crate) const KUBE_VERSIONS: [&str; 6] = ["1.30.0", "1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0"];

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

pub(crate) fn chart(path: &str) -> PathBuf {
    repository("charts/vsc-blob-csi-driver").join(path)
}

pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file, without empty ones.
pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

/// The sets of values that the suites render: what a user gives at least, everything switched on, and the
/// ready file for AKS.
pub(crate) fn value_sets() -> [Helm; 3] {
    [Helm::minimal(), Helm::new().file("ci/full-values.yaml"), aks()]
}

/// The file for AKS with what a user fills in.
pub(crate) fn aks() -> Helm {
    let parameters = [
        ("storageAccount", "account"),
        ("containerName", "volumes"),
        (
            "AzureStorageIdentityClientID",
            "00000000-0000-0000-0000-000000000001",
        ),
    ];
    let filled = Helm::minimal().file("values-aks.yaml");
    parameters.iter().fold(filled, |helm, (key, value)| {
        helm.json(
            &format!("storageClasses[0].parameters.{key}"),
            &Value::from(*value),
        )
    })
}

/// One call of helm.
#[derive(Debug, Clone, Default)]
pub(crate) struct Helm {
    arguments: Vec<String>,
}

impl Helm {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Only what is required.
    pub(crate) fn minimal() -> Self {
        Self::new().json("image.repository", &"registry.example/vsc-blob-csi".into())
    }

    /// Values of a file of the chart.
    pub(crate) fn file(self, name: &str) -> Self {
        self.argument("--values").argument(chart(name).to_str().unwrap())
    }

    pub(crate) fn json(self, key: &str, value: &Value) -> Self {
        self.argument("--set-json").argument(&format!("{key}={value}"))
    }

    pub(crate) fn kube_version(self, version: &str) -> Self {
        self.argument("--kube-version").argument(version)
    }

    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// What `helm template` prints, or why it refuses.
    pub(crate) fn template(&self) -> Result<String, String> {
        self.run(&["template", "vsc-blob"], &["--namespace", "kube-system"])
    }

    pub(crate) fn lint(&self) -> Result<String, String> {
        self.run(&["lint", "--strict"], &[])
    }

    /// The rendered objects.
    pub(crate) fn objects(&self) -> Vec<Value> {
        documents(
            &self
                .template()
                .unwrap_or_else(|error| panic!("{self:?}\n{error}")),
        )
    }

    fn run(&self, verb: &[&str], options: &[&str]) -> Result<String, String> {
        let output = Command::new(Tool::Helm.path().unwrap())
            .args(verb)
            .arg(chart(""))
            .args(options)
            .args(&self.arguments)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            let mut told = String::from_utf8_lossy(&output.stdout).into_owned();
            told.push_str(&String::from_utf8_lossy(&output.stderr));
            Err(told)
        }
    }
}

/// The one object of a kind and name.
pub(crate) fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let first = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two of {kind} {name}");
    first
}
