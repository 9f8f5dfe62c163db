//! What is rendered is what a cluster keeps: a tool that compares the two, again and again, finds no
//! difference and has nothing to do.

use std::collections::BTreeSet;

use serde_json::Value;

use super::render::{Helm, KUBE_VERSIONS, chart, text, value_sets};

/// Fields that are not kept while they are `false`, because that is what their absence means.
const KEPT_WHEN_TRUE: [&str; 7] = [
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
];
/// Objects that mean something while they are empty.
const MAY_BE_EMPTY: [&str; 4] = ["emptyDir", "namespaceSelector", "podAntiAffinity", "podSelector"];
/// Maps of the user's own words.
const WORDS: [&str; 5] = ["annotations", "data", "labels", "parameters", "stringData"];

/// What a cluster would not keep as it is written.
fn changed(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                let dropped = match value {
                    Value::Null => true,
                    Value::String(text) => text.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    Value::Object(fields) => fields.is_empty() && !MAY_BE_EMPTY.contains(&name.as_str()),
                    Value::Bool(set) => !set && KEPT_WHEN_TRUE.contains(&name.as_str()),
                    Value::Number(_) => false,
                };
                if dropped {
                    found.push(format!("{path}: {value} is not kept"));
                }
                if ["limits", "requests"].contains(&name.as_str()) {
                    quantities(value, &path, found);
                }
                if !WORDS.contains(&name.as_str()) {
                    changed(value, &path, found);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                changed(item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Quantities that are not as a cluster writes them.
fn quantities(resources: &Value, path: &str, found: &mut Vec<String>) {
    for (name, quantity) in resources.as_object().into_iter().flatten() {
        if !quantity.as_str().is_some_and(is_canonical) {
            found.push(format!("{path}.{name}: {quantity} is written otherwise"));
        }
    }
}

/// A whole number with the largest suffix that leaves it one.
fn is_canonical(quantity: &str) -> bool {
    let digits = quantity.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = quantity.split_at(digits);
    let Ok(number) = number.parse::<u64>() else {
        return false;
    };
    let step = match suffix {
        "Ki" | "Mi" | "Gi" | "Ti" => 1024,
        "" | "m" | "k" | "M" | "G" => 1000,
        _ => return false,
    };
    !number.is_multiple_of(step) && !quantity.starts_with('0')
}

/// Entries of a list that have the same key: a cluster keeps one of them, or refuses both.
fn doubled(object: &Value, found: &mut Vec<String>) {
    let pod = &object["spec"]["template"]["spec"];
    for list in ["initContainers", "containers"] {
        for container in pod[list].as_array().into_iter().flatten() {
            let mut seen = BTreeSet::new();
            for variable in container["env"].as_array().into_iter().flatten() {
                if !seen.insert(variable["name"].as_str()) {
                    found.push(format!("{} of {}: twice", variable["name"], container["name"]));
                }
            }
            let mut seen = BTreeSet::new();
            for port in container["ports"].as_array().into_iter().flatten() {
                let key = (port["containerPort"].as_u64(), port["protocol"].as_str());
                if !seen.insert(key) || key.1.is_none() {
                    found.push(format!(
                        "{port} of {}: twice, or without protocol",
                        container["name"]
                    ));
                }
            }
        }
    }
}

#[test]
fn a_cluster_keeps_what_is_rendered() {
    let mut sets = value_sets().to_vec();
    // What the sets have otherwise.
    sets.push(Helm::minimal().json("networkPolicy.enabled", &true.into()));
    sets.push(Helm::minimal().json("node.hostNetwork", &true.into()));
    let mut found = Vec::new();
    for helm in sets {
        for object in helm.objects() {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            changed(&object, &name, &mut found);
            doubled(&object, &mut found);
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn quantities_are_told_apart() {
    for good in ["50m", "1", "1Gi", "768Mi", "1500m", "1G", "128Mi"] {
        assert!(is_canonical(good), "{good}");
    }
    for bad in ["1000m", "1024Mi", "0.5", "1000", "1e3", "", "0", "Mi"] {
        assert!(!is_canonical(bad), "{bad}");
    }
}

/// No time, no chance and nothing of the cluster is in it: the same sources give the same objects.
#[test]
fn a_render_is_the_same_each_time() {
    for helm in value_sets() {
        for version in KUBE_VERSIONS {
            let helm = helm.clone().kube_version(version);
            assert_eq!(helm.template().unwrap(), helm.template().unwrap());
        }
    }
    const CHANGING: [&str; 10] = [
        "now",
        "date",
        "randAlphaNum",
        "randAlpha",
        "randNumeric",
        "uuidv4",
        "lookup",
        "genCA",
        "genSelfSignedCert",
        "Release.IsUpgrade",
    ];
    let mut seen = 0;
    for entry in std::fs::read_dir(chart("templates")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.ends_with("NOTES.txt") {
            continue;
        }
        seen += 1;
        let template = text(&path);
        // What is between the brackets of helm, without comments.
        for action in template
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split("}}").next())
        {
            if action.trim_start_matches(['-', ' ']).starts_with("/*") {
                continue;
            }
            let mut words = action.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
            let changing = words.find(|word| CHANGING.contains(&word.trim_start_matches(['.', '$'])));
            assert_eq!(changing, None, "{}: {action}", path.display());
        }
    }
    assert!(seen > 8, "{seen}");
}

/// Argo CD makes its own hooks of those of helm: each has a kind that it knows, makes way for the next run,
/// and what a Job needs is there before it.
#[test]
fn hooks_are_those_that_argo_cd_knows() {
    // Of its documentation: pre-install and pre-upgrade are PreSync, pre-delete is PreDelete; others that the
    // chart has (pre-rollback, test) it leaves out.
    const KNOWN: [&str; 3] = ["pre-install", "pre-upgrade", "pre-delete"];
    let mut jobs = 0;
    for object in value_sets().iter().flat_map(Helm::objects) {
        let annotations = &object["metadata"]["annotations"];
        for name in annotations
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
        {
            assert!(
                !name.starts_with("argocd.argoproj.io/hook"),
                "with one of these it would take none of helm's hooks"
            );
        }
        let Some(hook) = annotations["helm.sh/hook"].as_str() else {
            assert_ne!(object["kind"], "Job", "it would be applied again and again");
            continue;
        };
        if hook == "test" {
            continue;
        }
        let known: Vec<_> = hook.split(',').filter(|hook| KNOWN.contains(hook)).collect();
        assert_eq!(known.len(), 1, "{hook}");
        let policy = annotations["helm.sh/hook-delete-policy"].as_str().unwrap();
        assert!(policy.contains("before-hook-creation"), "{policy}");
        let weight: i64 = annotations["helm.sh/hook-weight"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let job = object["kind"] == "Job";
        assert_eq!(weight, i64::from(job), "{}", object["kind"]);
        jobs += usize::from(job);
    }
    assert!(jobs >= 2, "{jobs}");
}
