//! Files made from the chart: deploy/*.yaml and the table of the chart's README. `deploy/generate` writes them anew.

use std::path::Path;

use super::render::{Helm, chart, repository, text};
use super::values::{default_of, defaults, keys};

const START: &str = "<!-- values: made by deploy/generate -->";
const END: &str = "<!-- end of values -->";

/// Compares, or writes when UPDATE_CHART is set.
fn expect(path: &Path, wanted: &str) {
    if std::env::var_os("UPDATE_CHART").is_some() {
        return std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the chart gives; run deploy/generate and commit the result",
        path.display()
    );
}

/// For the oldest version of Kubernetes that the chart takes, because newer ones take the fields of older ones.
#[test]
fn manifests() {
    for file in ["csidriver", "rbac", "node", "controller"] {
        let rendered = Helm::new()
            .json("image.repository", &"vsc-blob-csi".into())
            .kube_version("1.30.0")
            .argument("--show-only")
            .argument(&format!("templates/{file}.yaml"))
            .template()
            .unwrap();
        // Lines of helm that say which template a document came from.
        let body: Vec<&str> = rendered
            .lines()
            .filter(|line| !line.starts_with("# Source: "))
            .map(str::trim_end)
            .collect();
        let wanted = format!(
            "# Made from charts/vsc-blob-csi-driver by deploy/generate; change the chart instead.\n{}\n",
            body.join("\n").trim_end()
        );
        expect(&repository("deploy").join(file).with_extension("yaml"), &wanted);
    }
}

/// One row for each key that holds a value.
#[test]
fn table_of_values() {
    let defaults = defaults();
    let mut table = String::from("| key | default | meaning |\n|---|---|---|\n");
    for key in keys().iter().filter(|key| !key.group) {
        let default = default_of(&defaults, &key.path).map(|value| match value.to_string() {
            long if long.len() > 60 => "see values.yaml".to_owned(),
            short => format!("`{short}`"),
        });
        let meaning = key.description().replace('|', "\\|");
        table.push_str(&format!(
            "| `{}` | {} | {meaning} |\n",
            key.path,
            default.unwrap_or_default()
        ));
    }
    let path = chart("README.md");
    let page = text(&path);
    let (before, rest) = page.split_once(START).expect("start of the table");
    let (_, after) = rest.split_once(END).expect("end of the table");
    expect(&path, &format!("{before}{START}\n{table}{END}{after}"));
}
