//! Files made from the chart: deploy/*.yaml and the table of the chart's README. `deploy/generate` writes
//! them anew.

use std::path::Path;

use super::render::{Helm, chart, documents, repository, text};
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

/// A template for one version of Kubernetes, without what only helm has a use for.
fn plain(template: &str, version: &str) -> String {
    let rendered = Helm::new()
        .json("image.repository", &"vsc-blob-csi".into())
        .kube_version(version)
        .argument("--show-only")
        .argument(&format!("templates/{template}.yaml"))
        .template()
        .unwrap();
    // Which template a document came from, and a release that does not exist.
    let lines: Vec<&str> = rendered
        .lines()
        .filter(|line| !line.starts_with("# Source: ") && !line.contains("app.kubernetes.io/managed-by:"))
        .map(str::trim_end)
        .collect();
    lines.join("\n").trim_end().to_owned()
}

/// The documents of rendered YAML as texts.
fn parts(rendered: &str) -> Vec<&str> {
    let parts = rendered.split("---\n").map(str::trim);
    parts.filter(|part| !part.is_empty()).collect()
}

/// Those for the oldest version of Kubernetes that the chart takes are the files that every version takes;
/// what newer ones have beside or instead is in files with the version from which they hold.
#[test]
fn manifests() {
    let write = |name: &str, note: &str, body: &str| {
        let wanted = format!(
            "# Made from charts/vsc-blob-csi-driver by deploy/generate; change the chart instead.\n# \
             {note}\n---\n{body}\n"
        );
        expect(&repository("deploy").join(format!("{name}.yaml")), &wanted);
    };
    let image = "The image's name is filled in by kustomization.yaml.";
    for (file, note) in [
        (
            "csidriver",
            "For Kubernetes 1.30 to 1.34; from 1.35 on take csidriver-1.35.yaml (no tokens in a context).",
        ),
        (
            "rbac",
            "Accounts, roles, and the policy that binds the node plugin to its own node.",
        ),
        ("node", image),
        ("controller", image),
    ] {
        write(file, note, &parts(&plain(file, "1.30.0")).join("\n---\n"));
    }
    write(
        "csidriver-1.35",
        "For Kubernetes 1.35 and later, instead of csidriver.yaml.",
        parts(&plain("csidriver", "1.35.0"))[0],
    );
    // Nothing else depends on the version: these files are all there is.
    for file in ["node", "controller", "rbac"] {
        assert_eq!(plain(file, "1.30.0"), plain(file, "1.37.0"), "{file}");
    }
    assert_eq!(plain("csidriver", "1.35.0"), plain("csidriver", "1.37.0"));
}

/// kustomization.yaml names files that are there, for the newest versions, and the image that they name.
#[test]
fn the_kustomization_has_all_of_it() {
    let page = documents(&text(&repository("deploy/kustomization.yaml"))).remove(0);
    let mut images = 0;
    let mut kinds = Vec::new();
    for resource in page["resources"].as_array().unwrap() {
        for object in documents(&text(&repository("deploy").join(resource.as_str().unwrap()))) {
            images += object.to_string().matches("\"vsc-blob-csi:").count();
            kinds.push(object["kind"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(page["images"][0]["name"], "vsc-blob-csi");
    assert_eq!(images, 3, "loader, node and controller");
    for kind in [
        "CSIDriver",
        "DaemonSet",
        "Deployment",
        "Lease",
        "ValidatingAdmissionPolicyBinding",
    ] {
        let times = kinds.iter().filter(|one| *one == kind).count();
        assert_eq!(times, 1, "{kind}: {kinds:?}");
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
