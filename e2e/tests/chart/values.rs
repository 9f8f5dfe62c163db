//! values.yaml, its schema, and that every setting does what it says it does: something.

use serde_json::{Value, json};

use super::render::{Helm, KUBE_VERSIONS, chart, documents, text, value_sets};

/// A key of the schema.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// For instance `node.loader.enabled`; `storageClasses[].name` below a list.
    pub(crate) path: String,
    pub(crate) schema: Value,
    /// Whether keys of the schema are below it.
    pub(crate) group: bool,
}

impl Key {
    pub(crate) fn description(&self) -> &str {
        self.schema["description"].as_str().unwrap_or_default()
    }

    fn in_list(&self) -> bool {
        self.path.contains("[]")
    }
}

pub(crate) fn schema() -> Value {
    serde_json::from_str(&text(&chart("values.schema.json"))).unwrap()
}

pub(crate) fn defaults() -> Value {
    documents(&text(&chart("values.yaml"))).remove(0)
}

/// All keys of the schema in its order, without Helm's own `global`.
pub(crate) fn keys() -> Vec<Key> {
    let schema = schema();
    let mut found = Vec::new();
    collect(&schema, &schema, "", &mut found);
    found.retain(|key| key.path != "global");
    found
}

fn collect(root: &Value, schema: &Value, prefix: &str, found: &mut Vec<Key>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, schema) in properties {
        let path = format!("{prefix}{name}");
        let mut schema = schema.clone();
        if let Some(definition) = schema["$ref"]
            .as_str()
            .and_then(|name| name.strip_prefix("#/$defs/"))
        {
            let mut full = root["$defs"][definition].clone();
            full["description"] = schema["description"].clone();
            schema = full;
        }
        let items = match &schema["items"]["anyOf"] {
            Value::Array(choices) => choices
                .iter()
                .find(|choice| choice["properties"].is_object())
                .cloned(),
            _ => Some(schema["items"].clone()),
        };
        let items = items.filter(|items| items["properties"].is_object());
        found.push(Key {
            path: path.clone(),
            group: schema["properties"].is_object(),
            schema: schema.clone(),
        });
        collect(root, &schema, &format!("{path}."), found);
        if let Some(items) = items {
            collect(root, &items, &format!("{path}[]."), found);
        }
    }
}

pub(crate) fn default_of(defaults: &Value, path: &str) -> Option<Value> {
    path.split('.')
        .try_fold(defaults.clone(), |value, name| value.get(name).cloned())
}

#[test]
fn lint_finds_nothing() {
    for helm in value_sets() {
        helm.lint().unwrap();
    }
    // Also without the values that an installation needs.
    Helm::new().lint().unwrap();
}

#[test]
fn every_key_is_described() {
    for key in keys() {
        let description = key.description();
        assert!(
            description.len() > 10 && description.ends_with('.'),
            "{}: {description:?}",
            key.path
        );
    }
}

/// values.yaml shows every key, and the schema knows every key of it.
#[test]
fn the_schema_has_the_keys_of_the_values() {
    fn paths(value: &Value, prefix: &str, keys: &[Key], found: &mut Vec<String>) {
        for (name, value) in value.as_object().unwrap() {
            let path = format!("{prefix}{name}");
            if keys.iter().any(|key| key.path == path && key.group) {
                paths(value, &format!("{path}."), keys, found);
            }
            found.push(path);
        }
    }
    let keys = keys();
    let mut shown = Vec::new();
    paths(&defaults(), "", &keys, &mut shown);
    for path in &shown {
        assert!(
            keys.iter().any(|key| key.path == *path),
            "{path} is not in values.schema.json"
        );
    }
    for key in keys
        .iter()
        .filter(|key| !key.in_list() && !key.path.contains(".rollingUpdate"))
    {
        assert!(shown.contains(&key.path), "{} is not in values.yaml", key.path);
    }
}

/// A wrong key and a wrong type are refused, at every place, with the name.
#[test]
fn mistakes_are_refused_by_name() {
    let places: Vec<String> = keys()
        .into_iter()
        .filter(|key| key.group && !key.in_list())
        .map(|key| format!("{}.", key.path))
        .collect();
    for place in places.iter().map(String::as_str).chain([""]) {
        let refused = Helm::minimal()
            .json(&format!("{place}nonsense"), &json!(1))
            .template()
            .unwrap_err();
        assert!(refused.contains("'nonsense'"), "{place}: {refused}");
        let pointer = place.trim_end_matches('.').replace('.', "/");
        assert!(
            refused.contains(&format!("'/{pointer}'")) || pointer.is_empty(),
            "{place}: {refused}"
        );
    }
    for key in keys().iter().filter(|key| !key.group && !key.in_list()) {
        // A list where none is taken, a number where a list is.
        let wrong = if key.schema["type"] == "array" {
            json!(7)
        } else {
            json!([[]])
        };
        let refused = Helm::minimal().json(&key.path, &wrong).template().unwrap_err();
        assert!(
            refused.contains(&format!("'/{}'", key.path.replace('.', "/"))),
            "{}: {refused}",
            key.path
        );
    }
}

/// A setting that changes nothing would be a lie.
#[test]
fn every_setting_acts() {
    let bases: Vec<Helm> = value_sets()
        .into_iter()
        .take(2)
        .map(|helm| helm.kube_version("1.37.0"))
        .collect();
    let before: Vec<String> = bases.iter().map(|base| base.template().unwrap()).collect();
    let defaults = defaults();
    for key in keys().iter().filter(|key| !key.group && !key.in_list()) {
        let value = other_value(key, default_of(&defaults, &key.path));
        let acts = bases.iter().zip(&before).any(|(base, before)| {
            let after = base.clone().json(&key.path, &value).template();
            *before != after.unwrap_or_else(|error| panic!("{} = {value}: {error}", key.path))
        });
        assert!(acts, "{} = {value} changes nothing", key.path);
    }
}

/// A valid value that is not the default.
fn other_value(key: &Key, default: Option<Value>) -> Value {
    let schema = &key.schema;
    let default = default.unwrap_or_default();
    if let Some(example) = schema["examples"]
        .as_array()
        .and_then(|examples| examples.first())
    {
        return example.clone();
    }
    if let Some(choices) = schema["enum"].as_array() {
        return choices.iter().find(|choice| **choice != default).unwrap().clone();
    }
    match schema["type"].as_str() {
        Some("boolean") => json!(!default.as_bool().unwrap()),
        Some("integer") => json!(default.as_i64().unwrap() + 10),
        Some("string") => json!("other"),
        Some("object") => json!({"other": "value"}),
        _ => panic!("{}: give it \"examples\" in values.schema.json", key.path),
    }
}

/// The file for AKS is ready but for what is in capital letters; a class with those would fail in each claim.
#[test]
fn what_is_to_be_filled_in_is_refused() {
    let as_it_is = Helm::new().file("values-aks.yaml");
    let refused = as_it_is.template().unwrap_err();
    assert!(refused.contains("image.repository: REGISTRY."), "{refused}");
    let mut filled = as_it_is.json("image.repository", &json!("registry.example/vsc-blob-csi"));
    // In the order of the parameters' names.
    for (key, value) in [
        (
            "AzureStorageIdentityClientID",
            "00000000-0000-0000-0000-000000000001",
        ),
        ("containerName", "volumes"),
        ("storageAccount", "account"),
    ] {
        let refused = filled.template().unwrap_err();
        assert!(
            refused.contains(&format!("class blob, parameter {key}:")),
            "{refused}"
        );
        filled = filled.json(&format!("storageClasses[0].parameters.{key}"), &json!(value));
    }
    let objects = filled.objects();
    let class = super::render::object(&objects, "StorageClass", "blob");
    assert_eq!(class["parameters"]["AzureStorageAuthType"], "MSI");
}

#[test]
fn an_image_must_be_named() {
    let refused = Helm::new().template().unwrap_err();
    assert!(refused.contains("image.repository: it is not set"), "{refused}");
}

/// The kernel would kill the program, and all mounts of the node with it.
#[test]
fn a_memory_limit_below_the_budget_is_refused() {
    let small = Helm::minimal().json("node.budget", &json!("1GiB"));
    let refused = small.template().unwrap_err();
    assert!(
        refused.contains("node.resources.limits.memory: 1Gi is too little"),
        "{refused}"
    );
    assert!(refused.contains("1280Mi"), "{refused}");
    small
        .json("node.resources.limits.memory", &json!("1280Mi"))
        .template()
        .unwrap();
}

/// In each way that Kubernetes writes a quantity; what it would not take is refused here already.
#[test]
fn a_memory_limit_is_understood_in_any_unit() {
    let with = |limit: &Value| {
        let helm = Helm::minimal().json("node.budget", &json!("512MiB"));
        helm.json("node.resources.limits.memory", limit).template()
    };
    for small in [
        json!("600M"),
        json!("0.6Gi"),
        json!(629_145_600),
        json!("629145600"),
        json!("100k"),
        json!("6e8"),
        json!(6e8),
        json!("767Mi"),
        json!("600000000000m"),
        json!(0),
    ] {
        let refused = with(&small).unwrap_err();
        assert!(
            refused.contains("is too little for node.budget 512MiB"),
            "{small}: {refused}"
        );
    }
    for none in ["foo", "", "1.2.3Gi", "Mi", "1GiB", "1 Gi", "-1Gi"] {
        let refused = with(&json!(none)).unwrap_err();
        assert!(
            refused.contains("is no quantity of memory"),
            "{none:?}: {refused}"
        );
    }
    for large in [
        json!("768Mi"),
        json!("1.2Gi"),
        json!(".8Gi"),
        json!("1G"),
        json!("1T"),
        json!("1E"),
        json!("9e8"),
        json!(805_306_368),
        json!("786432Ki"),
    ] {
        with(&large).unwrap_or_else(|refused| panic!("{large}: {refused}"));
    }
    // None at all is allowed: it is then the node's.
    with(&Value::Null).unwrap();
}

/// The program would refuse it at the first volume, on every node.
#[test]
fn a_proxy_that_the_program_cannot_use_is_refused() {
    for wrong in [
        "https://p:3129",
        "socks5://p:1080",
        "p:3128",
        "http://me:secret@p:3128",
        "http://p:3128/path",
    ] {
        let refused = Helm::minimal()
            .json("proxy.https", &json!(wrong))
            .template()
            .unwrap_err();
        assert!(refused.contains("'/proxy/https'"), "{wrong}: {refused}");
    }
}

/// Two processes of one node: the second would wait for the first, which Kubernetes ends when the second is
/// ready.
#[test]
fn a_surge_of_node_plugins_is_refused() {
    let rolling = Helm::minimal().json("node.updateStrategy.type", &json!("RollingUpdate"));
    let with = |key: &str, value: Value| {
        rolling
            .clone()
            .json(&format!("node.updateStrategy.rollingUpdate.{key}"), &value)
            .template()
    };
    for surge in [json!(1), json!("10%"), json!(0)] {
        let refused = with("maxSurge", surge).unwrap_err();
        assert!(refused.contains("maxSurge"), "{refused}");
    }
    with("maxUnavailable", json!(2)).unwrap();
    with("maxUnavailable", json!("10%")).unwrap();
}

/// The program would not start, on any node.
#[test]
fn more_volumes_than_the_budget_serves_are_refused() {
    let with = |budget: &str, volumes: usize| {
        Helm::minimal()
            .json("node.budget", &json!(budget))
            .json("node.maxVolumes", &json!(volumes))
            .json("node.resources.limits.memory", &json!("4Gi"))
            .template()
    };
    // As many as blob_fs says, in each unit.
    for (budget, bytes) in [("40MiB", 40 << 20), ("1GiB", 1 << 30), ("65536KiB", 64 << 20)] {
        let served = blob_fs::Budget::new(bytes).mounts();
        with(budget, served).unwrap();
        let refused = with(budget, served + 1).unwrap_err();
        assert!(
            refused.contains(&format!(
                "node.maxVolumes: node.budget {budget} serves {served} volumes"
            )),
            "{budget}: {refused}"
        );
    }
}

#[test]
fn old_clusters_are_refused() {
    Helm::minimal().kube_version("1.29.9").template().unwrap_err();
    for version in KUBE_VERSIONS {
        Helm::minimal().kube_version(version).template().unwrap();
    }
}
