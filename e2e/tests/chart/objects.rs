//! The rendered objects: what Kubernetes would take, and what the driver was promised to get.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vsc_blob_csi::DRIVER_NAME;
use vsc_blob_csi::cluster::{CHANNEL_LABEL, CHANNEL_REASON, STARTUP_TAINTS};
use vsc_blob_csi::csi::volume_context::{KEYS, OPTIONS, VARIABLES};

use super::render::{Helm, KUBE_VERSIONS, chart, documents, object, repository, text, value_sets};

/// Every object is of a type that Kubernetes knows, with no field that it does not know.
#[test]
fn objects_have_only_known_fields() {
    for helm in value_sets() {
        for version in KUBE_VERSIONS {
            for object in helm.clone().kube_version(version).objects() {
                assert_typed(&object);
            }
        }
    }
}

/// The files that a user starts from.
#[test]
fn examples_have_only_known_fields() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repository("deploy/examples")).unwrap() {
        for object in documents(&text(&entry.unwrap().path())) {
            assert_typed(&object);
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// What users type to see the channel is what the program writes.
#[test]
fn pages_name_the_marks_of_the_program() {
    let mut pages = vec![chart("README.md"), chart("templates/NOTES.txt")];
    for entry in std::fs::read_dir(repository("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    let mut seen = BTreeSet::new();
    for path in pages {
        // A path of kubectl's JSONPath has its points escaped; the chart has the name of the driver in one
        // place.
        let page = text(&path)
            .replace("\\.", ".")
            .replace("{{ include \"vsc-blob.driver\" . }}", DRIVER_NAME);
        let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || "./-".contains(c)));
        // The end of a sentence, and kubectl's sign for taking a mark away.
        let words = words.map(|word| word.trim_end_matches(['.', '-']));
        for word in words
            .filter(|word| word.contains("azure.com/channel") || word.contains("azure.com/agent-not-ready"))
        {
            let known = [CHANNEL_LABEL, CHANNEL_REASON].into_iter().chain(STARTUP_TAINTS);
            let mut known = known;
            let known = known.find(|known| word.ends_with(known));
            assert!(
                known.is_some(),
                "{}: {word} is nothing of the program",
                path.display()
            );
            seen.extend(known.map(|known| (path.file_name().unwrap().to_owned(), known)));
        }
    }
    for page in ["NOTES.txt", "install-aks.md", "install-kind.md", "cluster.md"] {
        assert!(
            seen.contains(&(page.into(), CHANNEL_LABEL)),
            "{page} does not name {CHANNEL_LABEL}"
        );
    }
}

/// What is always refused can stand in no example.
const REFUSED_KEYS: [&str; 1] = ["cacheSizeMB"];

/// Each key, mount option and variable of docs/volume-reference.md stands in an example, where the driver
/// gets it from: not in a comment.
#[test]
fn examples_show_every_key() {
    let mut keys_shown = BTreeSet::new();
    let mut values_shown = BTreeSet::new();
    let mut options_shown = BTreeSet::new();
    for entry in std::fs::read_dir(repository("deploy/examples")).unwrap() {
        for object in documents(&text(&entry.unwrap().path())) {
            let inline = object["spec"]["volumes"].as_array().into_iter().flatten();
            let maps = [&object["parameters"], &object["spec"]["csi"]["volumeAttributes"]]
                .into_iter()
                .chain(inline.map(|volume| &volume["csi"]["volumeAttributes"]));
            for (key, value) in maps.filter_map(Value::as_object).flatten() {
                keys_shown.insert(key.clone());
                values_shown.insert(value.as_str().unwrap().to_owned());
            }
            for options in [&object["mountOptions"], &object["spec"]["mountOptions"]] {
                for option in options.as_array().into_iter().flatten() {
                    let option = option.as_str().unwrap();
                    options_shown.insert(option.split('=').next().unwrap().to_owned());
                }
            }
        }
    }
    for key in KEYS
        .iter()
        .map(|key| key.name)
        .filter(|key| !REFUSED_KEYS.contains(key))
    {
        assert!(keys_shown.contains(key), "{key} is in no file of deploy/examples");
    }
    for variable in VARIABLES {
        assert!(
            values_shown.iter().any(|value| value.contains(variable)),
            "{variable} is in no file of deploy/examples"
        );
    }
    for option in OPTIONS.iter().map(|option| option.name) {
        assert!(
            options_shown.contains(option),
            "{option} is in no file of deploy/examples"
        );
    }
}

pub(super) fn assert_typed(object: &Value) {
    let check = match object["kind"].as_str().unwrap() {
        "CSIDriver" => round_trip::<CSIDriver>,
        "ClusterRole" => round_trip::<ClusterRole>,
        "ClusterRoleBinding" => round_trip::<ClusterRoleBinding>,
        "ConfigMap" => round_trip::<ConfigMap>,
        "DaemonSet" => round_trip::<DaemonSet>,
        "Deployment" => round_trip::<Deployment>,
        "Job" => round_trip::<Job>,
        "Lease" => round_trip::<Lease>,
        "Namespace" => round_trip::<Namespace>,
        "NetworkPolicy" => round_trip::<NetworkPolicy>,
        "PersistentVolume" => round_trip::<PersistentVolume>,
        "PersistentVolumeClaim" => round_trip::<PersistentVolumeClaim>,
        "Pod" => round_trip::<Pod>,
        "PodDisruptionBudget" => round_trip::<PodDisruptionBudget>,
        "Role" => round_trip::<Role>,
        "RoleBinding" => round_trip::<RoleBinding>,
        "Secret" => round_trip::<Secret>,
        "ServiceAccount" => round_trip::<ServiceAccount>,
        "StorageClass" => round_trip::<StorageClass>,
        "ValidatingAdmissionPolicy" => round_trip::<ValidatingAdmissionPolicy>,
        "ValidatingAdmissionPolicyBinding" => round_trip::<ValidatingAdmissionPolicyBinding>,
        // Not Kubernetes' own.
        "PodMonitor" | "PrometheusRule" => {
            return assert_eq!(object["apiVersion"], "monitoring.coreos.com/v1");
        }
        other => panic!("{other}: add its type here"),
    };
    check(object);
}

fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}\n{object:#}"));
    assert_kept(object, &serde_json::to_value(typed).unwrap(), "");
}

/// All of `written` is in `read`: a field that the type does not have would be lost on the way.
fn assert_kept(written: &Value, read: &Value, path: &str) {
    match (written, read) {
        (Value::Object(written), _) => {
            for (name, value) in written {
                let empty = value.as_array().is_some_and(Vec::is_empty) || value.is_null();
                let kept = read.get(name);
                assert!(kept.is_some() || empty, "{path}.{name} is no field of the type");
                if let Some(kept) = kept {
                    assert_kept(value, kept, &format!("{path}.{name}"));
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            assert_eq!(written.len(), read.len(), "{path}");
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                assert_kept(written, read, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(written, read, "{path}"),
    }
}

/// A field that a cluster does not know makes it refuse the object, or is dropped by it.
#[test]
fn the_driver_object_fits_the_version() {
    for (version, token_in_secrets, allocatable, prevent) in [
        ("1.30.0", false, false, false),
        ("1.33.0", false, false, false),
        ("1.34.0", false, true, false),
        ("1.35.0", true, true, false),
        ("1.36.0", true, true, false),
        ("1.37.0", true, true, true),
    ] {
        let objects = Helm::new()
            .file("ci/full-values.yaml")
            .kube_version(version)
            .objects();
        let spec = &object(&objects, "CSIDriver", "vsc-blob.csi.azure.com")["spec"];
        let has = |field: &str| spec.get(field).is_some();
        assert_eq!(has("serviceAccountTokenInSecrets"), token_in_secrets, "{version}");
        assert_eq!(
            has("nodeAllocatableUpdatePeriodSeconds"),
            allocatable,
            "{version}"
        );
        assert_eq!(has("preventPodSchedulingIfMissing"), prevent, "{version}");
        assert_eq!(spec["attachRequired"], false);
        assert_eq!(spec["podInfoOnMount"], true);
        assert_eq!(spec["requiresRepublish"], true);
        assert_eq!(spec["volumeLifecycleModes"], json!(["Persistent", "Ephemeral"]));
        assert_eq!(spec["tokenRequests"][0]["audience"], "api://AzureADTokenExchange");
        // A cluster refuses the one field without the other.
        let none = Helm::minimal()
            .json("csiDriver.tokenRequests", &json!([]))
            .kube_version(version)
            .objects();
        let spec = &object(&none, "CSIDriver", DRIVER_NAME)["spec"];
        for field in ["tokenRequests", "serviceAccountTokenInSecrets"] {
            assert!(spec.get(field).is_none(), "{version}: {spec}");
        }
    }
}

/// Who may write pods may write volumes only where it is asked for.
#[test]
fn inline_volumes_are_off_until_they_are_asked_for() {
    const PROFILE: &str = "security.openshift.io/csi-ephemeral-volume-profile";
    for (helm, modes, profile) in [
        (Helm::minimal(), json!(["Persistent"]), Value::Null),
        (
            Helm::minimal().json("csiDriver.inlineVolumes", &json!(true)),
            json!(["Persistent", "Ephemeral"]),
            json!("restricted"),
        ),
    ] {
        let objects = helm.objects();
        let driver = object(&objects, "CSIDriver", DRIVER_NAME);
        assert_eq!(driver["spec"]["volumeLifecycleModes"], modes);
        assert_eq!(driver["metadata"]["labels"][PROFILE], profile);
        // The Job of an upgrade makes way for these.
        let job = &object(&objects, "Job", "vsc-blob-csi-upgrade")["spec"]["template"]["spec"];
        let words: Vec<&str> = modes
            .as_array()
            .unwrap()
            .iter()
            .map(|mode| mode.as_str().unwrap())
            .collect();
        let wanted = json!(format!("--volume-lifecycle-modes={}", words.join(",")));
        let arguments = job["containers"][0]["args"].as_array().unwrap();
        assert!(arguments.contains(&wanted), "{arguments:?}");
    }
}

/// Each of the lists says how long its tokens live, or `tokenExpirationSeconds` does.
#[test]
fn tokens_live_as_long_as_they_are_asked_to() {
    let requests = |helm: Helm| {
        let objects = helm.objects();
        object(&objects, "CSIDriver", DRIVER_NAME)["spec"]["tokenRequests"].clone()
    };
    let audience = "api://AzureADTokenExchange";
    assert_eq!(
        requests(Helm::minimal()),
        json!([{"audience": audience, "expirationSeconds": 3600}])
    );
    assert_eq!(
        requests(Helm::minimal().json("csiDriver.tokenExpirationSeconds", &json!(1200))),
        json!([{"audience": audience, "expirationSeconds": 1200}])
    );
    assert_eq!(
        requests(Helm::new().file("ci/full-values.yaml")),
        json!([
            {"audience": audience, "expirationSeconds": 3600},
            {"audience": "another", "expirationSeconds": 7200}
        ])
    );
}

/// Both programs lend to the same hosts, and take what the schema lets through.
#[test]
fn allowed_endpoints_reach_both_programs() {
    let arguments = |helm: Helm| -> Vec<Vec<String>> {
        let objects = helm.objects();
        [
            ("DaemonSet", "vsc-blob-csi-node"),
            ("Deployment", "vsc-blob-csi-controller"),
        ]
        .into_iter()
        .map(|(kind, name)| {
            let container = &object(&objects, kind, name)["spec"]["template"]["spec"]["containers"][0];
            let arguments = container["args"].as_array().unwrap().iter();
            arguments.map(|one| one.as_str().unwrap().to_owned()).collect()
        })
        .collect()
    };
    for line in arguments(Helm::new().file("ci/full-values.yaml")) {
        let wanted = "--allowed-endpoints=store.example,*.storage.example,[fd00::7]";
        assert!(line.iter().any(|argument| argument == wanted), "{line:?}");
    }
    for line in arguments(Helm::minimal()) {
        assert!(
            !line.iter().any(|argument| argument.contains("allowed")),
            "{line:?}"
        );
    }
    let with = |host: &str| {
        Helm::minimal()
            .json("allowedEndpoints", &json!([host]))
            .template()
    };
    for host in [
        "store.example",
        "*.Store.example.",
        "10.0.0.7",
        "[fd00::7]",
        "store_1.ns.svc",
    ] {
        with(host).unwrap();
        host.parse::<vsc_blob_csi::csi::lending::AllowedHost>().unwrap();
    }
    for wrong in [
        "",
        "*",
        "https://store.example",
        "store.example:443",
        "a,b",
        "a b",
        "*.*.example",
    ] {
        assert!(
            with(wrong).unwrap_err().contains("/allowedEndpoints/0"),
            "{wrong}"
        );
        wrong
            .parse::<vsc_blob_csi::csi::lending::AllowedHost>()
            .unwrap_err();
    }
}

/// Nobody may read Secrets of the whole cluster, list them anywhere, or do what has no name here.
#[test]
fn no_role_reads_secrets_of_the_cluster() {
    let mut secrets = 0;
    for helm in value_sets() {
        for object in helm.objects() {
            let kind = object["kind"].as_str().unwrap();
            if !["ClusterRole", "Role"].contains(&kind) {
                continue;
            }
            for rule in object["rules"].as_array().unwrap() {
                for list in ["apiGroups", "resources", "verbs"] {
                    let wild = rule[list].as_array().unwrap().contains(&json!("*"));
                    assert!(!wild, "{kind} {}: {rule}", object["metadata"]["name"]);
                }
                if rule["resources"].as_array().unwrap().contains(&json!("secrets")) {
                    assert_eq!(kind, "Role", "{rule}");
                    assert_eq!(rule["verbs"], json!(["get"]), "{rule}");
                    secrets += 1;
                }
            }
        }
    }
    assert_eq!(
        secrets, 5,
        "a role for each account in each namespace of ci/full-values.yaml"
    );
}

/// The Secrets of each account: who takes a node over has not those of the provisioner.
#[test]
fn secrets_of_the_controller_are_not_the_nodes() {
    let readable = |helm: &Helm, who: &str| -> Vec<(String, Value)> {
        let objects = helm.objects();
        let account = format!("vsc-blob-csi-{who}");
        let mut found: Vec<_> = objects
            .iter()
            .filter(|object| {
                object["kind"] == "Role" && object["rules"][0]["resources"] == json!(["secrets"])
            })
            .filter(|role| {
                objects.iter().any(|binding| {
                    binding["kind"] == "RoleBinding"
                        && binding["metadata"]["namespace"] == role["metadata"]["namespace"]
                        && binding["roleRef"]["name"] == role["metadata"]["name"]
                        && binding["subjects"][0]["name"] == account
                })
            })
            .map(|role| {
                let namespace = role["metadata"]["namespace"].as_str().unwrap().to_owned();
                (namespace, role["rules"][0]["resourceNames"].clone())
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    };
    let one = |namespace: &str, names: Value| (namespace.to_owned(), names);
    let full = Helm::new().file("ci/full-values.yaml");
    // Where one entry names no Secrets, all of the namespace.
    let node = [one("default", Value::Null), one("team-a", Value::Null)];
    assert_eq!(readable(&full, "node"), node);
    let controller = [
        one("default", Value::Null),
        one("provisioning", json!(["account"])),
        one("team-a", json!(["account", "classes"])),
    ];
    assert_eq!(readable(&full, "controller"), controller);
    let only = Helm::minimal().json(
        "controller.secretNamespaces",
        &json!([{"namespace": "a", "names": ["b"]}]),
    );
    assert!(readable(&only, "node").is_empty());
    assert_eq!(readable(&only, "controller"), [one("a", json!(["b"]))]);
}

/// A stolen token of the node plugin changes of its own node what the program changes, and nothing else.
#[test]
fn the_own_node_policy_knows_the_marks_of_the_program() {
    let objects = Helm::minimal().kube_version("1.30.0").objects();
    let policy = object(&objects, "ValidatingAdmissionPolicy", "vsc-blob-csi-own-node");
    let rules: Vec<&str> = policy["spec"]["validations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["expression"].as_str().unwrap())
        .collect();
    let about = |words: &str| -> String {
        let found: Vec<&str> = rules
            .iter()
            .copied()
            .filter(|rule| rule.contains(words))
            .collect();
        assert!(!found.is_empty(), "no rule about {words}: {rules:#?}");
        found.join("\n")
    };
    let quoted = |key: &str| format!("\"{key}\"");
    assert!(about("variables.oldLabels").contains(&quoted(CHANNEL_LABEL)));
    assert!(about("variables.oldAnnotations").contains(&quoted(CHANNEL_REASON)));
    let taints = about("variables.oldTaints");
    for key in STARTUP_TAINTS {
        assert!(taints.contains(&quoted(key)), "{key}: {taints}");
    }
    for field in ["spec.unschedulable", "spec.providerID", "metadata.finalizers"] {
        about(&format!("oldObject.{field}"));
    }
    about("authentication.kubernetes.io/node-name");
}

/// The policy is closed but for what the values name.
#[test]
fn the_network_policy_lets_through_what_is_configured() {
    let ports = |helm: &Helm| -> Vec<u64> {
        let objects = helm.objects();
        let policy = object(&objects, "NetworkPolicy", "vsc-blob-csi");
        let rules = policy["spec"]["egress"].as_array().unwrap();
        let ports = rules[2]["ports"].as_array().unwrap();
        ports.iter().map(|port| port["port"].as_u64().unwrap()).collect()
    };
    let closed = Helm::minimal().json("networkPolicy.enabled", &json!(true));
    assert_eq!(ports(&closed), [443]);
    for (proxy, port) in [
        ("http://proxy.example:3128", 3128),
        ("http://proxy.example:3128/", 3128),
        ("http://10.1.2.3:8080", 8080),
        ("http://[fd00::1]:8080", 8080),
        ("http://proxy.example", 80),
    ] {
        let through = closed.clone().json("proxy.https", &json!(proxy));
        assert_eq!(ports(&through), [443, port], "{proxy}");
    }
    let classes = json!([
        {"name": "a", "parameters": {"server": "http://store.lab.svc:10000/devstoreaccount1"}},
        {"name": "b", "parameters": {"server": "https://gateway.example:8443"}},
        {"name": "c", "parameters": {"server": "account.privatelink.blob.core.windows.net"}},
        {"name": "d", "parameters": {"AzureStorageAADEndpoint": "https://login.example:9443/"}},
        {"name": "e"},
    ]);
    let named = closed.clone().json("storageClasses", &classes);
    assert_eq!(ports(&named), [443, 10000, 8443, 9443]);
    let scraped = closed.json("podMonitor.enabled", &json!(true));
    let refused = scraped.template().unwrap_err();
    assert!(refused.contains("networkPolicy.metricsFrom"), "{refused}");
    let from = json!([{"kubernetes.io/metadata.name": "monitoring"}]);
    scraped
        .json("networkPolicy.metricsFrom", &from)
        .template()
        .unwrap();
}

/// Without `secretNamespaces` there is no right on any Secret, and without the cluster no right at all.
#[test]
fn rights_are_given_only_where_they_are_asked_for() {
    let objects = Helm::minimal().objects();
    assert!(!serde_json::to_string(&objects).unwrap().contains("\"secrets\""));

    let off = Helm::minimal().json("node.kubernetes", &json!("off")).objects();
    let roles = off.iter().filter(|object| object["kind"] == "ClusterRole");
    assert!(roles.clone().all(|role| {
        ["vsc-blob-csi-controller", "vsc-blob-csi-upgrade"]
            .contains(&role["metadata"]["name"].as_str().unwrap())
    }));
    let node = object(&off, "DaemonSet", "vsc-blob-csi-node");
    assert_eq!(
        node["spec"]["template"]["spec"]["automountServiceAccountToken"],
        false
    );
}

/// Before anything is deleted, a Job with its own rights ends the node plugins and cleans the nodes.
#[test]
fn uninstalling_begins_with_a_clean_up() {
    let objects = Helm::new().file("ci/full-values.yaml").objects();
    let job = object(&objects, "Job", "vsc-blob-csi-uninstall");
    let pod = &job["spec"]["template"]["spec"];
    let set = object(&objects, "DaemonSet", "vsc-blob-csi-node");
    let arguments: Vec<&str> = pod["containers"][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| argument.as_str().unwrap())
        .collect();
    let grace = set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap();
    for wanted in [
        "cluster-cleanup".to_owned(),
        "--namespace=kube-system".to_owned(),
        format!("--daemon-set={}", set["metadata"]["name"].as_str().unwrap()),
        format!("--timeout={}", grace + 60),
    ] {
        assert!(arguments.contains(&wanted.as_str()), "{wanted}: {arguments:?}");
    }
    // The program takes these arguments.
    let parsed = <vsc_blob_csi::commands::Cli as clap::Parser>::try_parse_from(
        ["vsc-blob-csi"].into_iter().chain(arguments.iter().copied()),
    );
    assert!(parsed.is_ok(), "{}", parsed.unwrap_err());

    // Rights come before the Job, and all of it goes with its success.
    let name = pod["serviceAccountName"].as_str().unwrap();
    for kind in [
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "Job",
    ] {
        let annotations = &object(&objects, kind, name)["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "pre-delete", "{kind}");
        let policy = annotations["helm.sh/hook-delete-policy"].as_str().unwrap();
        assert!(policy.contains("hook-succeeded"), "{kind}: {policy}");
        let weight = if kind == "Job" { "1" } else { "0" };
        assert_eq!(annotations["helm.sh/hook-weight"], weight, "{kind}");
    }

    // What writes no marks needs none taken away.
    let off = Helm::minimal().json("node.kubernetes", &json!("off")).objects();
    let mut jobs = off.iter().filter(|object| object["kind"] == "Job");
    assert!(jobs.all(|job| job["metadata"]["name"] == "vsc-blob-csi-upgrade"));
}

/// Before an upgrade or a rollback changes anything, a Job with its own rights makes way for a CSIDriver
/// object with other modes; helm then makes the object.
#[test]
fn upgrading_begins_with_the_driver_object() {
    for helm in value_sets() {
        let objects = helm.objects();
        let job = object(&objects, "Job", "vsc-blob-csi-upgrade");
        let pod = &job["spec"]["template"]["spec"];
        let arguments = pod["containers"][0]["args"].as_array().unwrap().iter();
        let arguments = arguments.map(|argument| argument.as_str().unwrap());
        let parsed = <vsc_blob_csi::commands::Cli as clap::Parser>::try_parse_from(
            ["vsc-blob-csi"].into_iter().chain(arguments),
        );
        let command = parsed.unwrap_or_else(|error| panic!("{error}")).command;
        let vsc_blob_csi::commands::Command::ClusterPrepare(arguments) = command else {
            panic!("{command:?}");
        };
        // Each of its tries ends before the Job does.
        let tries = 1 + job["spec"]["backoffLimit"].as_u64().unwrap();
        let deadline = job["spec"]["activeDeadlineSeconds"].as_u64().unwrap();
        assert!(tries * arguments.timeout < deadline);
        let name = pod["serviceAccountName"].as_str().unwrap();
        for kind in ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Job"] {
            let annotations = &object(&objects, kind, name)["metadata"]["annotations"];
            assert_eq!(annotations["helm.sh/hook"], "pre-upgrade,pre-rollback", "{kind}");
            let policy = annotations["helm.sh/hook-delete-policy"].as_str().unwrap();
            assert!(policy.contains("hook-succeeded"), "{kind}: {policy}");
            let weight = if kind == "Job" { "1" } else { "0" };
            assert_eq!(annotations["helm.sh/hook-weight"], weight, "{kind}");
        }
    }
}

/// The only sidecar is the provisioner: registration and health are the program's own.
#[test]
fn containers_are_the_promised_ones() {
    let objects = Helm::minimal().objects();
    let names = |kind: &str, name: &str, list: &str| -> Vec<String> {
        let containers = &object(&objects, kind, name)["spec"]["template"]["spec"][list];
        let names = containers
            .as_array()
            .unwrap()
            .iter()
            .map(|container| &container["name"]);
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        names("DaemonSet", "vsc-blob-csi-node", "initContainers"),
        ["load-driver"]
    );
    assert_eq!(
        names("DaemonSet", "vsc-blob-csi-node", "containers"),
        ["vsc-blob-csi"]
    );
    assert_eq!(
        names("Deployment", "vsc-blob-csi-controller", "containers"),
        ["vsc-blob-csi", "csi-provisioner"]
    );
}

/// Doctor and status run in the node plugin's container: they see what the loader sees of its own.
#[test]
fn the_node_plugin_sees_what_the_loader_did() {
    let objects = Helm::new().file("ci/full-values.yaml").objects();
    let pod = &object(&objects, "DaemonSet", "vsc-blob-csi-node")["spec"]["template"]["spec"];
    let mount = |list: &str, name: &str| {
        let mounts = pod[list][0]["volumeMounts"].as_array().unwrap();
        let found = mounts.iter().find(|mount| mount["name"] == name);
        found.unwrap_or_else(|| panic!("{list}: no {name}")).clone()
    };
    for name in ["loader-state", "prebuilt"] {
        let (loader, plugin) = (mount("initContainers", name), mount("containers", name));
        assert_eq!(loader["mountPath"], plugin["mountPath"], "{name}");
        assert_eq!(plugin["readOnly"], true, "{name}");
    }
    // Below the folder of the socket, where the program takes it away at its end
    // (node-plugin/src/folders.rs).
    let volumes = pod["volumes"].as_array().unwrap();
    let folder = volumes.iter().find(|volume| volume["name"] == "loader-state");
    assert_eq!(
        folder.unwrap()["hostPath"]["path"],
        "/var/lib/kubelet/plugins/vsc-blob.csi.azure.com/loader"
    );
    let off = Helm::minimal()
        .json("node.loader.enabled", &json!(false))
        .objects();
    let set = object(&off, "DaemonSet", "vsc-blob-csi-node").to_string();
    assert!(!set.contains("loader") && !set.contains("SYS_MODULE"), "{set}");
}

/// The way out, should a kubelet not take the program's own registration: the sidecar that everybody has.
#[test]
fn another_program_can_register_the_driver() {
    let helm = Helm::minimal().json("node.registrarImage", &json!("registry.example/registrar:v2"));
    let objects = helm.objects();
    let pod = &object(&objects, "DaemonSet", "vsc-blob-csi-node")["spec"]["template"]["spec"];
    let [own, registrar] = pod["containers"].as_array().unwrap().as_slice() else {
        panic!("two containers: {pod}");
    };
    assert!(!own["args"].to_string().contains("--registration-dir"), "{own}");
    let socket = "/var/lib/kubelet/plugins/vsc-blob.csi.azure.com/csi.sock";
    for wanted in [
        format!("--csi-address={socket}"),
        format!("--kubelet-registration-path={socket}"),
        "--plugin-registration-path=/var/lib/kubelet/plugins_registry".to_owned(),
    ] {
        let arguments = registrar["args"].as_array().unwrap();
        assert!(arguments.contains(&json!(wanted)), "{wanted}: {registrar}");
    }
    assert!(
        own["args"]
            .as_array()
            .unwrap()
            .contains(&json!(format!("--endpoint=unix://{socket}")))
    );
    let may = &registrar["securityContext"];
    assert_eq!(
        (&may["privileged"], &may["capabilities"]["drop"]),
        (&json!(false), &json!(["ALL"]))
    );
    objects.iter().for_each(assert_typed);
}

/// A tag that moves would give another image from the same sources.
#[test]
fn the_base_image_is_pinned() {
    let file = text(&repository("deploy/Dockerfile"));
    let base = file
        .lines()
        .find_map(|line| line.strip_prefix("ARG BASE="))
        .unwrap();
    let digest = base.split_once("@sha256:").map(|(_, digest)| digest);
    let digest = digest.unwrap_or_else(|| panic!("{base} has no digest"));
    assert!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{base}"
    );
}

/// In a cluster that has Windows nodes too.
#[test]
fn every_pod_of_ours_asks_for_linux() {
    for helm in value_sets() {
        let mut pods = 0;
        for object in helm.objects() {
            let pod = match object["kind"].as_str().unwrap() {
                "Pod" => &object["spec"],
                "DaemonSet" | "Deployment" | "Job" => &object["spec"]["template"]["spec"],
                _ => continue,
            };
            let name = &object["metadata"]["name"];
            assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux", "{name}");
            pods += 1;
        }
        assert!(pods >= 3, "{pods}");
    }
}

/// Probes ask at the pod's address, of whatever family; and on the node's network nothing else is to be open.
#[test]
fn health_is_served_at_the_address_of_the_pod() {
    for helm in value_sets() {
        let objects = helm.objects();
        for (kind, name) in [
            ("DaemonSet", "vsc-blob-csi-node"),
            ("Deployment", "vsc-blob-csi-controller"),
        ] {
            let container = &object(&objects, kind, name)["spec"]["template"]["spec"]["containers"][0];
            let port = &container["ports"][0]["containerPort"];
            let arguments = container["args"].as_array().unwrap();
            let wanted = json!(format!("--health-address=$(POD_IP):{port}"));
            assert!(arguments.contains(&wanted), "{arguments:?}");
            let environment = container["env"].as_array().unwrap();
            let address = environment.iter().find(|variable| variable["name"] == "POD_IP");
            assert_eq!(
                address.unwrap()["valueFrom"]["fieldRef"]["fieldPath"],
                "status.podIP"
            );
            for address in ["10.0.0.7", "fd00::7"] {
                let filled = arguments.iter().map(|argument| {
                    let argument = argument.as_str().unwrap();
                    argument.replace("$(POD_IP)", address)
                });
                // Without the shape of the log, which ci/full-values.yaml gives twice; the node's name is in
                // the environment.
                let line = ["vsc-blob-csi".to_owned()]
                    .into_iter()
                    .chain(filled.skip(1))
                    .chain(["--node-id=n".to_owned()]);
                let parsed = <vsc_blob_csi::commands::Cli as clap::Parser>::try_parse_from(line);
                assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
            }
        }
    }
}

/// A thousand claims at once go at the provisioner's rate; a leader that cannot renew its Lease is ended.
#[test]
fn the_provisioner_has_a_rate_a_probe_and_metrics() {
    for helm in value_sets() {
        let objects = helm.objects();
        let deployment = object(&objects, "Deployment", "vsc-blob-csi-controller");
        let [own, provisioner] = [0, 1].map(|at| &deployment["spec"]["template"]["spec"]["containers"][at]);
        let port = &provisioner["ports"][0];
        let number = &port["containerPort"];
        assert_ne!(*number, own["ports"][0]["containerPort"]);
        let arguments = provisioner["args"].as_array().unwrap();
        for wanted in [
            "--kube-api-qps=20".to_owned(),
            "--kube-api-burst=100".to_owned(),
            format!("--http-endpoint=:{number}"),
        ] {
            assert!(arguments.contains(&json!(wanted)), "{wanted}: {arguments:?}");
        }
        assert_eq!(
            provisioner["livenessProbe"]["httpGet"],
            json!({"path": "/healthz/leader-election", "port": port["name"]})
        );
        let named = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        for monitor in named("PodMonitor") {
            let endpoints = monitor["spec"]["podMetricsEndpoints"].as_array().unwrap();
            let ports: Vec<&str> = endpoints.iter().map(|e| e["port"].as_str().unwrap()).collect();
            let name = monitor["metadata"]["name"].as_str().unwrap();
            match name.ends_with("-controller") {
                true => assert_eq!(ports, ["health", "provisioner"]),
                false => assert_eq!(ports, ["health"], "{name}"),
            }
        }
        for policy in named("NetworkPolicy") {
            for rule in policy["spec"]["ingress"].as_array().unwrap() {
                let ports = rule["ports"].as_array().unwrap();
                assert!(ports.iter().any(|port| port["port"] == *number), "{ports:?}");
            }
        }
    }
}

/// The programs that speak to the Blob service get the proxy; the provisioner, which speaks to the API
/// server, does not.
#[test]
fn a_proxy_is_for_our_programs_only() {
    let objects = Helm::new().file("ci/full-values.yaml").objects();
    let mut with = Vec::new();
    for (kind, name) in [
        ("DaemonSet", "vsc-blob-csi-node"),
        ("Deployment", "vsc-blob-csi-controller"),
    ] {
        let pod = &object(&objects, kind, name)["spec"]["template"]["spec"];
        for container in pod["containers"].as_array().unwrap() {
            let environment = container["env"].as_array().into_iter().flatten();
            let of_proxy =
                environment.filter(|variable| variable["name"].as_str().unwrap().ends_with("_PROXY"));
            with.extend(of_proxy.map(|variable| {
                (
                    container["name"].clone(),
                    variable["name"].clone(),
                    variable["value"].clone(),
                )
            }));
        }
    }
    let url = (
        json!("vsc-blob-csi"),
        json!("HTTPS_PROXY"),
        json!("http://proxy.example:3128"),
    );
    let without = (
        json!("vsc-blob-csi"),
        json!("NO_PROXY"),
        json!(".example,10.0.0.0/8"),
    );
    assert_eq!(with, [url.clone(), without.clone(), url, without]);
    let minimal = serde_json::to_string(&Helm::minimal().objects()).unwrap();
    assert!(!minimal.contains("_PROXY"));
}

/// With `fips` none of our programs starts out of another image, and the tag is the one that deploy/image's
/// text names.
#[test]
fn fips_is_required_of_every_container_of_ours() {
    let of_ours = |helm: Helm| {
        let mut found = Vec::new();
        for object in helm.objects() {
            let spec = &object["spec"]["template"]["spec"];
            for list in ["initContainers", "containers"] {
                for container in spec[list].as_array().into_iter().flatten() {
                    let image = container["image"].as_str().unwrap().to_owned();
                    if image.contains("vsc-blob-csi") {
                        let environment = container["env"].as_array().into_iter().flatten();
                        let required = environment
                            .filter(|variable| variable["name"] == "VSC_BLOB_CSI_REQUIRE_FIPS")
                            .map(|variable| variable["value"].clone());
                        found.push((image, required.collect::<Vec<_>>()));
                    }
                }
            }
        }
        found
    };
    let with = of_ours(Helm::minimal().json("fips", &json!(true)));
    assert_eq!(with.len(), 5, "{with:?}");
    for (image, required) in with {
        assert!(image.ends_with("-fips"), "{image}");
        assert_eq!(required, [json!("true")], "{image}");
    }
    for (image, required) in of_ours(Helm::minimal()) {
        assert!(
            !image.ends_with("-fips") && required.is_empty(),
            "{image} {required:?}"
        );
    }
    let tagged = Helm::minimal()
        .json("fips", &json!(true))
        .json("image.tag", &json!("mine"));
    assert!(of_ours(tagged).iter().all(|(image, _)| image.ends_with(":mine")));
}

/// Pods of ours are found by the selectors whatever labels the values add.
#[test]
fn labels_of_the_values_do_not_replace_ours() {
    let objects = Helm::new().file("ci/full-values.yaml").objects();
    let node = object(&objects, "DaemonSet", "vsc-blob-csi-node");
    let labels = &node["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/component"], "node");
    assert_eq!(labels["purpose"], "storage");
    assert_eq!(labels["team"], "storage");
    assert_eq!(labels["azure.workload.identity/use"], "true");
}

#[test]
fn images_are_named_by_digest_where_one_is_given() {
    let objects = Helm::new().file("ci/full-values.yaml").objects();
    let controller = &object(&objects, "Deployment", "vsc-blob-csi-controller")["spec"]["template"]["spec"];
    let image = |index: usize| controller["containers"][index]["image"].as_str().unwrap();
    assert_eq!(
        image(0),
        format!("registry.example/storage/vsc-blob-csi@sha256:{}", "1".repeat(64))
    );
    assert!(image(1).ends_with(&format!("csi-provisioner@sha256:{}", "2".repeat(64))));
    let minimal = Helm::minimal().objects();
    let node = &object(&minimal, "DaemonSet", "vsc-blob-csi-node")["spec"]["template"]["spec"];
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        node["containers"][0]["image"],
        format!("registry.example/vsc-blob-csi:{version}")
    );
}
